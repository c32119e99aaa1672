"""Opens and reads images, which have two spatial axes, and labels, at their full bit depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nestedseg.base.errors import as_path
from nestedseg.data.files import Pair
from nestedseg.data.layouts.drawing import Drawn
from nestedseg.data.png_jpeg import JPEG, PNG, Picture
from nestedseg.data.preprocessing import missing
from nestedseg.data.source import Source, decoding
from nestedseg.data.tiff import SIGNATURES, Tiff
from nestedseg.data.zarr_array import ZarrArray

SPACING = (1.0, 1.0)  # pixels are taken as squares of unknown size


def open_image(path: str | Path, indexed: bool = False) -> Source:
    """Opens an image: reads and checks its header, and reads pixels on access, by window.

    The format is told by the file's first bytes. Orientation tags of EXIF and TIFF are applied.

    Args:
        path: of a PNG, JPEG or TIFF file, or of a Zarr array or OME-Zarr image (extra ``zarr``).
        indexed: give the stored numbers of palettes, as labels need them, instead of their colours.

    Returns:
        An object with ``shape``, ``(H, W)`` as displayed, ``channels``, ``dtype``, ``nodata``, the
        value of pixels that were not measured or ``None``, and ``read(window)``, which gives
        ``(h, w, channels)``; see `nestedseg.data.source.Source`.

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
        if path.suffix.lower() == ".zarr":
            return ZarrArray(path, dims=2)
        with path.open("rb") as file:
            start = file.read(8)
        if start == PNG or start.startswith(JPEG):
            opened: Source = Picture(path, indexed)
        elif start.startswith(SIGNATURES):
            opened = Tiff(path, indexed)
        else:
            raise ValueError("it is damaged, or not PNG, JPEG or TIFF")
    return opened


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image at its full bit depth.

    Args:
        path: of a PNG, JPEG or TIFF file.

    Returns:
        ``(H, W)`` or ``(H, W, C)``, of the type that is stored: whole numbers, floats or bool.
        Colours are in the order R, G, B. A channel is dropped only where the file's header says
        that it is alpha.

    Raises:
        ValueError: the file is missing, damaged or too large, is a stack, or has infinite pixels.
    """
    source = open_image(path)
    with decoding(f"the image {path}"):
        pixels = source.read()
        missing(pixels, source.nodata)
    return pixels[..., 0] if source.channels == 1 else pixels


def read_label(path: str | Path) -> np.ndarray:
    """Reads a label image as it is stored: class indices, instance numbers, 0/255, or colours.

    Args:
        path: of a PNG, JPEG or TIFF file.

    Returns:
        ``(H, W)``, or ``(H, W, C)`` of a file with colours, of the type that is stored; palette
        images give indices, 1-bit images 0 and 1.

    Raises:
        ValueError: the file is missing, damaged or too large, or is a stack.
    """
    source = open_image(path, indexed=True)
    with decoding(f"the label {path}"):
        label = source.read()
    label = label[..., 0] if source.channels == 1 else label
    return label.astype(np.uint8) if label.dtype == bool else label


def open_image_pair(pair: Pair, spacing: Sequence[float] | None = None
                    ) -> tuple[Source, Source, tuple[float, ...]]:
    """Opens an image and its label; returns both with the spacing, as `open_volume_pair` does.

    Raises:
        ValueError: a file cannot be opened, the label has another size than its image, or a
            ``spacing`` is given, which only volumes have.
    """
    if spacing is not None:
        raise ValueError(f"spacing is only for volumes, not for images such as {pair.image}, got "
                         f"{spacing}")
    image = open_image(pair.image)
    if not isinstance(pair.label, Path):
        return image, Drawn(pair.label, image.shape), SPACING
    label = open_image(pair.label, indexed=True)
    if image.shape != label.shape:
        raise ValueError(f"{pair.image} is {image.shape[1]} x {image.shape[0]} pixels, but its "
                         f"label {pair.label} is {label.shape[1]} x {label.shape[0]}")
    return image, label, SPACING
