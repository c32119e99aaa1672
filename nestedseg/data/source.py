"""What every reader of a format gives: an opened image or volume, whose pixels are read by window.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

BLOCK = 2**24  # pixels that are read at once
MAX_PIXELS = 2**30  # of an image that can only be decoded as a whole: 32,768 x 32,768


class Source(Protocol):
    """An opened file: its header has been read and checked, its pixels are read on access.

    Attributes:
        path: of the file.
        shape: ``(H, W)`` in pixels, or ``(D, H, W)`` in voxels, as the picture is displayed.
        channels: how many numbers each pixel has.
        dtype: of these numbers, as they are stored.
        windowed: whether reading a window costs about as much as its pixels; otherwise the whole
            file is decoded for it.
        mapped: whether the numbers lie in the file as they do in memory, so that none are decoded.
        nodata: the value by which the file marks pixels that were not measured; ``None`` = none.
    """

    @property
    def path(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def windowed(self) -> bool: ...
    @property
    def mapped(self) -> bool: ...
    @property
    def nodata(self) -> float | None: ...

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window, or everything, as ``(*window, channels)`` of the stored type.

        Args:
            window: a slice with start and stop for each axis, within the image. Default: all of it.

        Raises:
            ValueError: the file is damaged; the message names it.
        """


def whole(shape: Sequence[int]) -> tuple[slice, ...]:
    """The window that is the whole image."""
    return tuple(slice(0, length) for length in shape)


def blocks(shape: Sequence[int], pixels: int = BLOCK) -> Iterator[tuple[slice, ...]]:
    """Windows of whole rows or planes that together are the image, with so many pixels each."""
    step = max(1, pixels // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        yield (slice(start, min(start + step, shape[0])),
               *(slice(0, length) for length in shape[1:]))


def check_size(shape: Sequence[int], channels: int, dtype: np.dtype, most: int | None = None
               ) -> None:
    """Checks, before anything is decoded, that a picture fits in half of the machine's memory.

    Args:
        shape: ``(H, W)`` or ``(D, H, W)`` of what will be decoded at once.
        channels: of it.
        dtype: of its numbers.
        most: pixels that are allowed at most; default: any number.

    Raises:
        ValueError: it does not; the message says the size and what can be done.
    """
    pixels = int(np.prod(shape, dtype=object))
    size = pixels * channels * np.dtype(dtype).itemsize
    if (most is not None and pixels > most) or size > memory() // 2:
        raise ValueError(f"it has too many pixels to be decoded at once: {by(shape)} with "
                         f"{channels} channels, {size / 2**30:.1f} GiB; cut it into smaller "
                         "pictures, or save it as a tiled TIFF, which is read in windows")


def memory() -> int:
    """The memory of the machine, in bytes; where it cannot be asked, 16 GiB."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 16 * 2**30


def by(shape: Sequence[int]) -> str:
    """A shape as people write it: ``(480, 640)`` -> ``480 x 640``."""
    return " x ".join(map(str, shape))


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Names the file, and what can be done, whatever a decoder makes of it.

    Only calls of the decoder belong within it: an error of our own is none of the file's.

    Raises:
        ValueError: in the place of any error within it.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # decoders raise many kinds, for damage and for size
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        if isinstance(error, MemoryError):
            reason = "it has too many pixels for the memory; cut it into smaller pictures"
        raise ValueError(f"cannot read {what}: {reason or type(error).__name__}") from error
