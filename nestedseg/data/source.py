"""What every reader of a format gives: an opened image or volume, whose pixels are read by window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Source(Protocol):
    """An opened file: its header has been read and checked, its pixels are read on access.

    Attributes:
        path: of the file.
        shape: ``(H, W)`` in pixels, or ``(D, H, W)`` in voxels, as the picture is displayed.
        channels: how many numbers each pixel has.
        dtype: of these numbers, as they are stored.
        windowed: whether reading a window costs about as much as its pixels; otherwise the whole
            file is decoded for it.
        nodata: the value by which the file marks pixels that were not measured; ``None`` = none.
    """

    path: Path
    shape: tuple[int, ...]
    channels: int
    dtype: np.dtype
    windowed: bool
    nodata: float | None

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window, or everything, as ``(*window, channels)`` of the stored type.

        Args:
            window: a slice with start and stop for each axis, within the image. Default: all of it.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
