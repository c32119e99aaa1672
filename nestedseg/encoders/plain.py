"""The paper's own encoder: a block H per level, 2x2 max pooling between levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nestedseg.encoders.description import Description
from nestedseg.layers import MAX_POOL, DoubleConv, Level, Style


def describe(in_channels: int, channels: Sequence[int], dims: int) -> Description:
    """Strides 1, 2, 4, ... with these widths."""
    levels = tuple(Level(width, (2 ** row,) * dims) for row, width in enumerate(channels))
    return Description(levels, {"mean": [0.5] * in_channels, "std": [0.5] * in_channels,
                                "input_range": [0.0, 1.0], "interpolation": "bilinear",
                                "size": None})


class PlainEncoder(nn.Module):
    """X^{0,0} ... X^{L,0} of the plain U-Net, in 2-D or 3-D.

    ``(N, in_channels, *spatial)`` -> L + 1 features with strides 1, 2, 4, ...
    """

    def __init__(self, in_channels: int, description: Description, style: Style) -> None:
        super().__init__()
        self.pool = MAX_POOL[style.dims]
        self.levels = description.levels
        for row, level in enumerate(self.levels):
            self.add_module(f"x{row}_0", DoubleConv(in_channels, level.channels, style))
            in_channels = level.channels

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for block in self.children():
            x = block(self.pool(x, 2) if features else x)
            features.append(x)
        return features

    def keep(self, count: int) -> PlainEncoder:
        """Removes all levels but the ``count`` finest."""
        for row in range(count, len(self.levels)):
            delattr(self, f"x{row}_0")
        self.levels = self.levels[:count]
        return self
