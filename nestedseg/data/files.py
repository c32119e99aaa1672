"""Image and label files: the supported formats, listing files, and pairing them by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nestedseg.base.errors import as_path

SUFFIXES = {2: (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".zarr"),
            3: (".nii.gz", ".nii", ".npy")}
STACKS = (".tif", ".tiff", ".zarr")  # which may hold volumes as well


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


def spatial_axes(paths: Iterable[Path], dims: int | None = None) -> int:
    """2 if the files are images, 3 if they are volumes, by their suffixes; no file is opened.

    Args:
        paths: at least one.
        dims: 3 = TIFF and Zarr files are volumes. Default: they are images.

    Raises:
        ValueError: there are both images and volumes, or a file of an unsupported format.
    """
    first: dict[int, Path] = {}
    for path in paths:
        suffix = split_name(path)[1].lower()
        axes = next((axes for axes, known in SUFFIXES.items() if suffix in known), None)
        if axes is None:
            raise ValueError(f"unsupported image format: {path}; supported: {_kinds()}")
        first.setdefault(3 if dims == 3 and suffix in STACKS else axes, path)
    if len(first) > 1:
        raise ValueError(f"images and volumes are mixed: {first[2]} is an image, {first[3]} a "
                         "volume; give files of one kind")
    return next(iter(first))


def list_images(folder: str | Path) -> list[Path]:
    """The images or volumes in a folder, sorted by name; other files are ignored.

    Args:
        folder: contains PNG, JPEG and TIFF files (images), or NIfTI and ``.npy`` files (volumes).

    Raises:
        ValueError: ``folder`` is not a directory, contains no such files, contains both kinds, or
            two files whose names differ only in the suffix: labels are found, and results
            written, by the name without suffix.
    """
    folder = as_path("a folder of images", folder)
    if not folder.is_dir():
        raise ValueError(f"not a directory: {folder}")
    known = tuple(itertools.chain(*SUFFIXES.values()))
    paths = sorted((path for path in folder.iterdir()
                    if split_name(path)[1].lower() in known and not path.name.startswith(".")),
                   key=lambda path: (split_name(path)[0], path.name))
    if not paths:
        raise ValueError(f"{folder} contains no images; supported formats: {_kinds()}")
    spatial_axes(paths)
    for path, following in itertools.pairwise(paths):
        if split_name(path)[0] == split_name(following)[0]:
            raise ValueError(f"{path} and {following} have the same name without suffix, by which "
                             "labels and results are named; rename one of them")
    return paths


def find_pairs(images: str | Path, labels: str | Path) -> list[Pair]:
    """Pairs the files of two folders by their name without suffix: ``a.tif`` with ``a.png``.

    Args:
        images: folder of the images; see `list_images`.
        labels: folder of their labels.

    Returns:
        One `Pair` for each image, sorted by name.

    Raises:
        ValueError: a file has no partner, or one of the other kind (image or volume), or
            `list_images` rejects a folder.
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
    """Splits pairs at random into training and validation; the same seed gives the same split.

    Args:
        pairs: at least two.
        fraction: the fraction of pairs for validation, in (0, 1); each side gets at least one.
        seed: of the random choice.

    Returns:
        ``(training, validation)``.

    Raises:
        ValueError: fewer than two pairs, or a fraction outside (0, 1).
    """
    if len(pairs) < 2 or not 0 < fraction < 1:
        raise ValueError("a split needs at least 2 images and a fraction between 0 and 1, got "
                         f"{len(pairs)} images and a fraction of {fraction}")
    count = min(max(1, round(fraction * len(pairs))), len(pairs) - 1)
    order = np.random.default_rng(seed).permutation(len(pairs))
    chosen = set(order[:count].tolist())
    return ([pair for index, pair in enumerate(pairs) if index not in chosen],
            [pair for index, pair in enumerate(pairs) if index in chosen])


def _kinds() -> str:
    return "; ".join(", ".join(suffixes) for suffixes in SUFFIXES.values())


def _and_more(count: int) -> str:
    return f" (and {count - 1} more like it)" if count > 1 else ""
