"""The paper's own encoder: a block H per level, with max pooling between levels."""

from __future__ import annotations

import operator
from itertools import accumulate

from torch import Tensor

from nestedseg.decoder.blocks import DoubleConv
from nestedseg.decoder.kernels import preferred_layout
from nestedseg.decoder.layers import Level, Style, max_pool, steps_between
from nestedseg.decoder.recomputation import set_checkpointing
from nestedseg.encoders.contract import Encoder
from nestedseg.encoders.description import Description, Options


def describe_plain(options: Options) -> Description:
    """The description of a plain encoder: strides 1, 2, 4, ..., or products of ``strides``."""
    one, widths = (1,) * options.dims, options.encoder_channels or ()
    steps = options.strides or [(2,) * options.dims] * (len(widths) - 1)
    strides = accumulate([one, *steps], lambda a, b: tuple(map(operator.mul, a, b)))
    levels = tuple(map(Level, widths, strides))
    half = [0.5] * options.in_channels
    return Description(levels, tuple(level.stride for level in levels),
                       {"mean": half, "std": half, "input_range": [0.0, 1.0],
                        "interpolation": "bilinear", "size": options.image_size}, one)


class PlainEncoder(Encoder):
    """The plain encoder: X^{0,0} ... X^{L,0} of the paper's U-Net, in 2-D or 3-D.

    ``(N, in_channels, *spatial)`` -> L + 1 features, finest first.
    """

    def __init__(self, in_channels: int, description: Description, style: Style) -> None:
        super().__init__()
        self.levels = description.levels
        for row, level in enumerate(self.levels):
            self.add_module(f"x{row}_0", DoubleConv(in_channels, level.channels, style))
            in_channels = level.channels

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        x = preferred_layout(x)
        for block, by in zip(self.children(), steps_between(self.levels)):
            x = block(max_pool(x, by))
            features.append(x)
        return features

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Turns on or off that maps inside a block are computed again in the backward pass."""
        set_checkpointing(self.children(), enable)

    def keep(self, count: int) -> PlainEncoder:
        """Removes all levels but the ``count`` finest."""
        for row in range(count, len(self.levels)):
            delattr(self, f"x{row}_0")
        self.levels = self.levels[:count]
        return self
