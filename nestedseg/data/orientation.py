"""Orientation tags of EXIF and TIFF: a picture may be displayed in another way than it is stored.

Tags 1 to 8 as in TIFF 6.0, page 36: where the first row and the first column are displayed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TAG = 274  # in TIFF and in EXIF
# For each tag: whether rows and columns change places, and which displayed axes are then reversed.
TURNS = {1: (False, ()), 2: (False, (1,)), 3: (False, (0, 1)), 4: (False, (0,)),
         5: (True, ()), 6: (True, (1,)), 7: (True, (0, 1)), 8: (True, (0,))}


def displayed_shape(shape: Sequence[int], tag: int) -> tuple[int, int]:
    """``(H, W)`` as displayed, of a picture that is stored as ``shape``."""
    height, width = shape
    return (width, height) if TURNS[tag][0] else (height, width)


def displayed(pixels: np.ndarray, tag: int) -> np.ndarray:
    """Stored pixels ``(H, W)`` or ``(H, W, C)`` as they are displayed; a view."""
    swapped, reverse = TURNS[tag]
    return np.flip(pixels.swapaxes(0, 1) if swapped else pixels, reverse)


def stored_window(window: Sequence[slice], shape: Sequence[int], tag: int) -> tuple[slice, slice]:
    """Where the displayed ``window`` of a picture lies in the stored one.

    Args:
        window: rows and columns, each with start and stop.
        shape: ``(H, W)`` as displayed.
        tag: the orientation, 1 to 8.
    """
    swapped, reverse = TURNS[tag]
    sides = [slice(length - side.stop, length - side.start) if axis in reverse else side
             for axis, (side, length) in enumerate(zip(window, shape))]
    return (sides[1], sides[0]) if swapped else (sides[0], sides[1])
