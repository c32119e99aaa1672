"""Image and label files: what kinds there are, listing them, and pairing them by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nestedseg.base.errors import as_path

SUFFIXES = {2: (".png", ".jpg", ".jpeg", ".tif", ".tiff"), 3: (".nii.gz", ".nii", ".npy")}


class Pair(NamedTuple):
    """An image file and its label file.

    Attributes:
        image: path of the image.
        label: path of its label.
    """

    image: Path
    label: Path


def split_name(path: Path) -> tuple[str, str]:
    """A file's name without suffix, and the suffix: ``a.nii.gz`` -> ``("a", ".nii.gz")``."""
    name = path.name
    known = (suffix for suffix in itertools.chain(*SUFFIXES.values())
             if name.lower().endswith(suffix))
    cut = len(name) - len(next(known, path.suffix))
    return name[:cut], name[cut:]


def spatial_axes(paths: Iterable[Path]) -> int:
    """2 if the files are pictures, 3 if they are volumes. None of them is opened.

    Args:
        paths: at least one; their suffixes count.

    Raises:
        ValueError: they are of both kinds, or one is of another kind.
    """
    first: dict[int, Path] = {}
    for path in paths:
        suffix = split_name(path)[1].lower()
        dims = next((dims for dims, known in SUFFIXES.items() if suffix in known), None)
        if dims is None:
            raise ValueError(f"{path} is no image ({_kinds()})")
        first.setdefault(dims, path)
    if len(first) > 1:
        raise ValueError(f"{first[2]} is a picture and {first[3]} a volume; files of one kind "
                         "are needed")
    return next(iter(first))


def list_images(folder: str | Path) -> list[Path]:
    """The pictures or volumes in a folder, sorted by name; other files are passed over.

    Args:
        folder: with PNG, JPEG and TIFF (pictures), or NIfTI and ``.npy`` (volumes).

    Raises:
        ValueError: ``folder`` is no folder, it holds no such file, files of both kinds, or two with
            one name and different suffixes: labels are found, and results written, by the name
            alone.
    """
    folder = as_path("a folder of images", folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    known = tuple(itertools.chain(*SUFFIXES.values()))
    paths = sorted((path for path in folder.iterdir()
                    if split_name(path)[1].lower() in known and not path.name.startswith(".")),
                   key=lambda path: (split_name(path)[0], path.name))
    if not paths:
        raise ValueError(f"{folder} holds no image ({_kinds()})")
    spatial_axes(paths)
    for path, following in itertools.pairwise(paths):
        if split_name(path)[0] == split_name(following)[0]:
            raise ValueError(f"{path} and {following} have the same name; files are told apart "
                             "by it, whatever their suffix")
    return paths


def find_pairs(images: str | Path, labels: str | Path) -> list[Pair]:
    """Pair the files of two folders by their name without suffix: ``a.tif`` with ``a.png``.

    Args:
        images: folder of the images; see `list_images`.
        labels: folder of their labels.

    Returns:
        One `Pair` for each image, sorted by name.

    Raises:
        ValueError: a file has no partner, or one of another kind, or a folder is none that
            `list_images` takes.
    """
    image_files, label_files = (
        {split_name(path)[0]: path for path in list_images(folder)} for folder in (images, labels))
    for files, others, kind, folder in ((image_files, label_files, "label", labels),
                                        (label_files, image_files, "image", images)):
        missing = sorted(files.keys() - others.keys())
        if missing:
            raise ValueError(f"{files[missing[0]]} has no {kind} of the same name in {folder}"
                             + _and_more(len(missing)))
    spatial_axes([*image_files.values(), *label_files.values()])
    return [Pair(path, label_files[name]) for name, path in image_files.items()]


def split_pairs(pairs: Sequence[Pair], fraction: float,
                seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Split at random, the same way for the same seed: ``(training, validation)``.

    Args:
        pairs: at least two.
        fraction: of the pairs for validation, in (0, 1); at least one pair goes to each side.
        seed: of the choice.

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


def _kinds() -> str:
    return "; ".join(", ".join(suffixes) for suffixes in SUFFIXES.values())


def _and_more(count: int) -> str:
    return f" (and {count - 1} more like it)" if count > 1 else ""
