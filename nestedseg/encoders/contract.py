"""The base class of all encoders: the paper's plain one, timm's, and both with a stem."""

from __future__ import annotations

from torch import nn

from nestedseg.decoder.layers import Level


class Encoder(nn.Module):
    """An encoder: ``(N, in_channels, *spatial)`` -> a list of one feature per level, finest first.

    Attributes:
        levels: channels and stride of each feature.
    """

    levels: tuple[Level, ...]

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Turns on or off that maps inside are computed again in the backward pass.

        Raises:
            ValueError: this encoder does not support it.
        """
        raise NotImplementedError

    def keep(self, count: int) -> Encoder:
        """Removes all levels but the ``count`` finest, in place, and returns itself."""
        raise NotImplementedError
