"""Pairs the files of two folders by their names."""

from __future__ import annotations

from pathlib import Path

from nestedseg.base.errors import as_path, text
from nestedseg.data.files import Pair, list_images, name_in, spatial_axes
from nestedseg.data.layouts.nearest import nearest_layout


def find_pairs(images: str | Path, labels: str | Path, *, image_suffix: str = "",
               label_suffix: str = "", recursive: bool = False) -> list[Pair]:
    """Pairs the files of two folders by their name without suffix: ``a.tif`` with ``a.png``.

    Args:
        images: folder of the images; see `list_images`.
        labels: folder of their labels; may be the same one if one of the suffixes is given.
        image_suffix: how the names of images end, like ``_leftImg8bit``; others are ignored.
        label_suffix: how the names of labels end, like ``_mask``; others are ignored.
        recursive: also the files in subfolders, paired by the name with its folders: ``city/a``.

    Returns:
        One `Pair` for each image, sorted by name.

    Raises:
        ValueError: a file has no partner, or one of the other kind (image or volume), or
            `list_images` rejects a folder. The message says what was found, and the nearest layout
            that would fit.
    """
    images, labels = as_path("images", images), as_path("labels", labels)
    suffixes = text("image_suffix", image_suffix), text("label_suffix", label_suffix)
    same = images.is_dir() and labels.is_dir() and images.resolve() == labels.resolve()
    if same and suffixes[0] == suffixes[1]:
        raise ValueError(f"images and labels are in the same folder, {images}, so their names must "
                         "end differently" + nearest_layout(images, labels))
    try:
        image_files, label_files = (
            {name_in(folder, path): path for path in list_images(folder, recursive)}
            for folder in (images, labels))
    except ValueError as error:
        hint = nearest_layout(images, labels) if images.is_dir() and labels.is_dir() else ""
        raise ValueError(f"{error}{hint}") from error
    files = {"image": _ending(image_files, suffixes, same),
             "label": _ending(label_files, suffixes[::-1], same)}
    for kind, other, folder, suffix in (("image", "label", labels, suffixes[1]),
                                        ("label", "image", images, suffixes[0])):
        missing = sorted(files[kind].keys() - files[other].keys())
        if missing:
            name = f"the name {missing[0]}{suffix}" if any(suffixes) else "the same name"
            more = f" (and {len(missing) - 1} more like it)" if len(missing) > 1 else ""
            raise ValueError(f"{files[kind][missing[0]]} has no {other} of {name} in {folder}"
                             f"{more}{nearest_layout(images, labels)}")
    pairs = [Pair(path, files["label"][name]) for name, path in files["image"].items()]
    if not pairs:
        raise ValueError(f"no image in {images} has a name that ends in {suffixes[0]!r}, and no "
                         f"label in {labels} one that ends in {suffixes[1]!r}"
                         + nearest_layout(images, labels))
    spatial_axes(path for pair in pairs for path in pair.pictures)
    return pairs


def _ending(files: dict[str, Path], suffixes: tuple[str, str], same: bool) -> dict[str, Path]:
    """The files whose names end in the first suffix, by the name without it.

    In the same folder those are left out that are of the other kind, by a longer suffix.
    """
    own, other = suffixes
    longer = same and len(other) > len(own)
    return {name.removesuffix(own): path for name, path in files.items()
            if name.endswith(own) and not (longer and name.endswith(other))}
