"""Reads images, which have two spatial axes, and their labels, at their full bit depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nestedseg.base.errors import as_path
from nestedseg.base.extras import require
from nestedseg.data.files import Pair

SPACING = (1.0, 1.0)  # pixels are taken as squares of unknown size


def read_image_pair(pair: Pair, spacing: Sequence[float] | None = None
              ) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Reads an image and its label; returns both with the spacing, as `read_volume_pair` does.

    Raises:
        ValueError: a file cannot be read, the label has another size than its image, or a
            ``spacing`` is given, which only volumes have.
    """
    if spacing is not None:
        raise ValueError(f"spacing is only for volumes, not for images such as {pair.image}, got "
                         f"{spacing}")
    image, label = read_image(pair.image), read_label(pair.label)
    if image.shape[:2] != label.shape[:2]:
        raise ValueError(f"{pair.image} is {image.shape[1]} x {image.shape[0]} pixels, but its "
                         f"label {pair.label} is {label.shape[1]} x {label.shape[0]}")
    return image, label, SPACING


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image at its full bit depth.

    Args:
        path: of a PNG, JPEG or TIFF file.

    Returns:
        ``(H, W)`` or RGB ``(H, W, 3)``; uint8, uint16 or, from TIFF, float. An alpha channel is
        dropped.

    Raises:
        ValueError: the file is missing or unreadable, or has several pages, or NaN or infinity.
    """
    cv2 = require("cv2")
    try:
        data = np.frombuffer(as_path("an image", path).read_bytes(), np.uint8)
    except OSError as error:
        raise ValueError(f"cannot read the image {path}: {error.strerror}") from error
    # OpenCV raises an error of its own for an empty buffer, and returns no page for a damaged one.
    pages: Sequence[np.ndarray] = ()
    if data.size:
        with decoding(f"the image {path}"):
            pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1]
    if len(pages) != 1:
        what = _stack(len(pages)) if pages else "it is damaged, or not PNG, JPEG or TIFF"
        raise ValueError(f"cannot read the image {path}: {what}")
    image = pages[0]
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError(f"the image {path} has NaN or infinite pixels; replace them")
    # OpenCV returns colours in the order BGR(A).
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., 2::-1])


def read_label(path: str | Path) -> np.ndarray:
    """Reads a label image as it is stored: class indices, instance numbers, 0/255, or colours.

    Args:
        path: of a PNG, JPEG or TIFF file.

    Returns:
        ``(H, W)``, or ``(H, W, C)`` of a file with colours; palette images give indices, 1-bit
        images 0 and 1.

    Raises:
        ValueError: the file is missing or unreadable, or has several pages.
    """
    pillow = require("PIL.Image")
    path = as_path("a label", path)
    with decoding(f"the label {path}"), pillow.open(path) as image:
        pages, label = getattr(image, "n_frames", 1), np.asarray(image)
    if pages != 1:
        raise ValueError(f"cannot read the label {path}: {_stack(pages)}")
    return label.astype(np.uint8) if label.dtype == bool else label


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Names the file, and what can be done, whatever a decoder makes of it.

    Only calls of the decoder belong within it: an error of our own is none of the file's.

    Raises:
        ValueError: in the place of any error within it.
    """
    try:
        yield
    except Exception as error:  # Pillow and OpenCV raise many kinds, for damage and for size
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        if _is_size(error):
            reason = f"it has too many pixels; cut it into smaller pictures ({reason})"
        raise ValueError(f"cannot read {what}: {reason}") from error


def _is_size(error: Exception) -> bool:
    """Whether a decoder refuses a picture for its number of pixels."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "DecompressionBombError"
            or "CV_IO_MAX_IMAGE" in str(error))


def _stack(pages: int) -> str:
    return f"it is a stack of {pages} pages; expected one image per file"
