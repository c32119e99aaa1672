"""Image and label files: reading them, and pairing them by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nestedseg.extras import require

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


class Pair(NamedTuple):
    """An image file and its label file."""

    image: Path
    label: Path


def list_images(folder: str | Path) -> list[Path]:
    """The PNG, JPEG and TIFF files in a folder, sorted by name; other files are passed over.

    Raises:
        ValueError: ``folder`` is no folder, it holds no such file, or two with one name and
            different suffixes: labels are found, and results written, by the name alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    paths = sorted((path for path in folder.iterdir()
                    if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")),
                   key=lambda path: (path.stem, path.name))
    if not paths:
        raise ValueError(f"{folder} holds no image ({', '.join(SUFFIXES)})")
    for path, following in itertools.pairwise(paths):
        if path.stem == following.stem:
            raise ValueError(f"{path} and {following} have the same name; files are told apart "
                             "by it, whatever their suffix")
    return paths


def find_pairs(images: str | Path, labels: str | Path) -> list[Pair]:
    """Pair the files of two folders by their name without suffix: ``a.tif`` with ``a.png``.

    Raises:
        ValueError: a file has no partner, or a folder is none that `list_images` takes.
    """
    image_files, label_files = (
        {path.stem: path for path in list_images(folder)} for folder in (images, labels))
    for files, others, kind, folder in ((image_files, label_files, "label", labels),
                                        (label_files, image_files, "image", images)):
        missing = sorted(files.keys() - others.keys())
        if missing:
            raise ValueError(f"{files[missing[0]]} has no {kind} of the same name in {folder}"
                             + _and_more(len(missing)))
    return [Pair(path, label_files[stem]) for stem, path in image_files.items()]


def split_pairs(pairs: Sequence[Pair], fraction: float,
                seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Split at random, the same way for the same seed: ``(training, validation)``.

    Args:
        pairs: at least two.
        fraction: of the pairs for validation, in (0, 1); at least one pair goes to each side.

    Raises:
        ValueError: fewer than two pairs, or a fraction outside (0, 1).
    """
    if len(pairs) < 2 or not 0 < fraction < 1:
        raise ValueError(f"cannot keep a fraction of {fraction} of {len(pairs)} images for "
                         "validation: at least 2 images and a fraction between 0 and 1 are needed")
    count = min(max(1, round(fraction * len(pairs))), len(pairs) - 1)
    order = np.random.default_rng(seed).permutation(len(pairs))
    chosen = set(order[:count].tolist())
    return ([pair for index, pair in enumerate(pairs) if index not in chosen],
            [pair for index, pair in enumerate(pairs) if index in chosen])


def read_image(path: str | Path) -> np.ndarray:
    """Read an image at its full bit depth.

    Returns:
        ``(H, W)`` or RGB ``(H, W, 3)``; uint8, uint16 or, from TIFF, float. Transparency is
        dropped.

    Raises:
        ValueError: the file is missing, unreadable, or holds several pages.
    """
    cv2 = require("cv2")
    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise ValueError(f"cannot read the image {path}: {error.strerror}") from error
    # OpenCV refuses an empty buffer, and answers a damaged one with no page.
    pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1] if data.size else ()
    if len(pages) != 1:
        what = _stack(len(pages)) if pages else "it is damaged or of another format"
        raise ValueError(f"cannot read the image {path}: {what}")
    image = pages[0]
    # OpenCV keeps colours in the order BGR(A).
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., 2::-1])


def read_label(path: str | Path) -> np.ndarray:
    """Read a label image as the numbers it holds: class indices, instances, 0/1 or 0/255.

    Returns:
        ``(H, W)``, an unsigned or signed integer; palette images give indices, 1-bit images 0/1.

    Raises:
        ValueError: the file is missing, unreadable, holds several pages, or colours in place of
            numbers.
    """
    pillow = require("PIL.Image")
    try:
        with pillow.open(path) as image:
            pages, label = getattr(image, "n_frames", 1), np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises each for a damaged file
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the label {path}: {reason}") from error
    if pages != 1:
        raise ValueError(f"cannot read the label {path}: {_stack(pages)}")
    if label.ndim != 2 or label.dtype.kind == "f":
        raise ValueError(f"the label {path} holds colours or fractions (Pillow mode "
                         f"{image.mode!r}); expected one whole number per pixel")
    return label.astype(np.uint8) if label.dtype == bool else label


def _stack(pages: int) -> str:
    return f"it is a stack of {pages} pages; expected one picture in a file"


def _and_more(count: int) -> str:
    return f" (and {count - 1} more like it)" if count > 1 else ""
