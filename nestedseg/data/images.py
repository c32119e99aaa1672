"""Opens and reads images, which have two spatial axes, and labels, at their full bit depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nestedseg.base.errors import as_path
from nestedseg.data.files import Pair
from nestedseg.data.png_jpeg import JPEG, PNG, Picture
from nestedseg.data.source import Source, decoding
from nestedseg.data.tiff import SIGNATURES, Tiff

SPACING = (1.0, 1.0)  # pixels are taken as squares of unknown size


def open_image(path: str | Path, indexed: bool = False) -> Source:
    """Opens an image: reads and checks its header, and reads pixels on access, by window.

    The format is told by the file's first bytes. Orientation tags of EXIF and TIFF are applied.

    Args:
        path: of a PNG, JPEG or TIFF file.
        indexed: give the stored numbers of palettes, as labels need them, instead of their colours.

    Raises:
        ValueError: the file is missing, damaged or too large, or does not contain exactly one
            image.

    Examples:
        >>> import cv2
        >>> import numpy as np
        >>> from nestedseg.data import open_image
        >>> cv2.imwrite("a.png", np.zeros((60, 80, 3), np.uint8))
        True
        >>> image = open_image("a.png")
        >>> image.shape, image.channels, image.dtype
        ((60, 80), 3, dtype('uint8'))
        >>> image.read((slice(0, 10), slice(20, 50))).shape
        (10, 30, 3)
    """
    path = as_path("an image", path)
    what = f"the {'label' if indexed else 'image'} {path}"
    with decoding(what):
        with path.open("rb") as file:
            start = file.read(8)
        if start == PNG or start.startswith(JPEG):
            opened: Source = Picture(path, indexed)
        elif start.startswith(SIGNATURES):
            opened = Tiff(path, indexed)
        else:
            raise ValueError("it is damaged, or not PNG, JPEG or TIFF")
    return opened


def read_pixels(source: Source, window: Sequence[slice] | None = None, kind: str = "image"
                ) -> np.ndarray:
    """Reads an opened image or label, ``(h, w)`` or ``(h, w, C)``, and names it if it is damaged.
    """
    with decoding(f"the {kind} {source.path}"):
        pixels = source.read(window)
    return pixels[..., 0] if source.channels == 1 else pixels


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image at its full bit depth.

    Args:
        path: of a PNG, JPEG or TIFF file.

    Returns:
        ``(H, W)`` or ``(H, W, C)``, of the type that is stored: whole numbers, floats or bool.
        Colours are in the order R, G, B. A channel is dropped only where the file's header says
        that it is alpha.

    Raises:
        ValueError: the file is missing, damaged or too large, is a stack, or has NaN or infinity.
    """
    image = read_pixels(open_image(path))
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise ValueError(f"the image {path} has NaN or infinite pixels; replace them")
    return image


def read_label(path: str | Path) -> np.ndarray:
    """Reads a label image as whole numbers: class indices, instance numbers, 0/1 or 0/255.

    Args:
        path: of a PNG, JPEG or TIFF file.

    Returns:
        ``(H, W)`` of an integer type; palette images give indices, 1-bit images 0 and 1. Colours
        give ``(H, W, C)``, and three equal channels one.

    Raises:
        ValueError: the file is missing, damaged or too large, is a stack, or has fractions instead
            of whole numbers.
    """
    label = read_pixels(open_image(path, indexed=True), kind="label")
    return as_whole(label, path)


def as_whole(label: np.ndarray, path: str | Path) -> np.ndarray:
    """A label's numbers as an integer type; equal channels become one.

    Raises:
        ValueError: there are fractions, NaN or infinity.
    """
    if label.ndim == 3 and (label == label[..., :1]).all():
        label = label[..., 0]
    if label.dtype == bool:
        return label.astype(np.uint8)
    if label.dtype.kind != "f":
        return label
    if not np.isfinite(label).all() or (label != np.round(label)).any():
        raise ValueError(f"the label {path} has fractions; expected one whole number per pixel")
    return label.astype(np.int64)


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
