"""The stem: plain convolutional levels that are finer than an encoder's finest level."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nestedseg.decoder.blocks import DoubleConv
from nestedseg.decoder.layers import Level, Style, max_pool, steps_between
from nestedseg.decoder.recomputation import set_checkpointing
from nestedseg.encoders.contract import Encoder


def stem_channels(stem: bool | int | Sequence[int], finest: int) -> tuple[int, ...]:
    """Widths of the levels at strides 1, 2, ... ``finest`` / 2.

    Args:
        stem: ``True`` = 32, 64, ...; a number = the width of the finest level, doubled at each
            next one; or the width of each level.
        finest: stride of the encoder's finest level; 1 = there is nothing to add.

    Raises:
        ValueError: the number of widths is not the number of levels to add.
    """
    count = finest.bit_length() - 1
    if isinstance(stem, Sequence):
        if len(stem) != count:
            raise ValueError(f"stem needs {count} widths, one for each stride below {finest}, at "
                             f"which the encoder starts, got {len(stem)}: {list(stem)}")
        return tuple(stem)
    return tuple((32 if stem is True else stem) * 2 ** row for row in range(count))


class StemmedEncoder(Encoder):
    """An encoder with a stem: blocks H that compute levels at strides 1, 2, ... from the image.

    ``(N, in_channels, *spatial)`` -> one feature per level, finest first. The first ``added``
    levels are the stem's, the others those of the encoder ``body``.
    """

    def __init__(self, in_channels: int, levels: tuple[Level, ...], added: int, body: Encoder,
                 style: Style) -> None:
        super().__init__()
        self.levels = levels
        self.stem = nn.ModuleList()
        for level in levels[:added]:
            self.stem.append(DoubleConv(in_channels, level.channels, style))
            in_channels = level.channels
        self.body: Encoder | None = body

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for block, by in zip(self.stem, steps_between(self.levels)):
            features.append(block(max_pool(features[-1] if features else x, by)))
        return features if self.body is None else [*features, *self.body(x)]

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Whether maps inside a block are computed again in the backward pass."""
        set_checkpointing(self.stem, enable)
        if self.body is not None:
            self.body.set_grad_checkpointing(enable)

    def keep(self, count: int) -> StemmedEncoder:
        """Removes all levels but the ``count`` finest."""
        self.levels = self.levels[:count]
        if self.body is not None:
            left = count - len(self.stem)
            self.body = self.body.keep(left) if left > 0 else None
        self.stem = self.stem[:count]
        return self
