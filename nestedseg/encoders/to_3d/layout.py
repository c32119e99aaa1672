"""How a feature of a volume corresponds to that of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Grid = tuple[int, ...]  # (D, H, W)


@dataclass(frozen=True)
class Layout:
    """Where a feature has its depth, height and width.

    Args:
        axis: the first of the three axes, which are beside each other.
        grid: their sizes; empty where there are none.
        tokens: whether they are laid into that one axis, as attention sees them.
    """

    axis: int
    grid: Grid
    tokens: bool = False

    def repeat(self, image: Tensor) -> Tensor:
        """The feature of a volume whose slices are all as this one."""
        if not self.grid:
            return image
        if self.tokens:
            image = image.unflatten(self.axis, self.grid[1:])
        volume = image.unsqueeze(self.axis).repeat_interleave(self.grid[0], self.axis)
        return self._pack(volume)

    def swap(self, volume: Tensor) -> Tensor:
        """Depth and width exchanged."""
        if not self.grid:
            return volume
        swapped = self._unpack(volume).transpose(self.axis, self.axis + 2)
        return self._pack(swapped).contiguous()

    def interior(self, volume: Tensor) -> Tensor:
        """The middle slices, where padding along depth is not felt."""
        if not self.grid:
            return volume
        volume = self._unpack(volume)
        depth = volume.shape[self.axis]
        return volume.narrow(self.axis, depth // 3, depth - 2 * (depth // 3))

    def _unpack(self, volume: Tensor) -> Tensor:
        return volume.unflatten(self.axis, self.grid) if self.tokens else volume

    def _pack(self, volume: Tensor) -> Tensor:
        return volume.flatten(self.axis, self.axis + 2) if self.tokens else volume


def layout_of(image: Sequence[int], volume: Sequence[int], grids: dict[int, Grid]) -> Layout:
    """From the shapes of both features.

    Args:
        grids: those that are known, by their numbers of voxels.

    Raises:
        ValueError: the shapes do not correspond.
    """
    image, volume = tuple(image), tuple(volume)
    if image == volume:
        return Layout(0, ())
    for axis in (len(volume) - 3, 1):  # channels first, or last
        if axis > 0 and volume[:axis] + volume[axis + 1:] == image and axis + 3 <= len(volume):
            return Layout(axis, volume[axis:axis + 3])
    differ = [axis for axis, (a, b) in enumerate(zip(image, volume)) if a != b]
    if len(image) == len(volume) and len(differ) == 1:
        grid = grids.get(volume[differ[0]], ())
        if math.prod(grid[1:]) == image[differ[0]]:
            return Layout(differ[0], grid, tokens=True)
    raise ValueError(f"it gives {volume} for a volume, and {image} for an image")
