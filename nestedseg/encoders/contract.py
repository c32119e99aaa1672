"""What every encoder is: the paper's plain one, timm's, and either of them with a stem."""

from __future__ import annotations

from torch import nn

from nestedseg.decoder.layers import Level


class Encoder(nn.Module):
    """``(N, in_channels, *spatial)`` -> a list of one feature a level, finest first.

    Attributes:
        levels: channels and stride of each feature.
    """

    levels: tuple[Level, ...]

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Whether maps inside are computed again in the backward pass.

        Raises:
            ValueError: it cannot do so.
        """
        raise NotImplementedError

    def keep(self, count: int) -> Encoder:
        """Removes all levels but the ``count`` finest, in place, and returns itself."""
        raise NotImplementedError
