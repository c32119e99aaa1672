"""Labels in several files, or several channels: a picture for each object, or for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestedseg.base.errors import as_path, blamed, choose
from nestedseg.data.files import DrawnLabel, Pair, list_images, name_in, spatial_axes, walk
from nestedseg.data.images import open_image, read_label
from nestedseg.data.labels import one_channel
from nestedseg.data.layouts.folders import find_pairs
from nestedseg.data.source import by
from nestedseg.data.volumes import open_volume

MASKS = "masks"  # the folder of the masks of a case in the Data Science Bowl of 2018


@dataclass(frozen=True)
class ObjectMasks(DrawnLabel):
    """A label of a mask for each object; its pixels have the number of the mask, counted from 1.

    Args:
        folder: of the masks.
        files: the masks; where they overlap, later ones lie on top.
    """

    folder: Path
    masks: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.folder}"

    @property
    def files(self) -> tuple[Path, ...]:
        return self.masks or (self.folder,)

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        label = np.zeros(shape, np.int32)
        for number, path in enumerate(self.masks, 1):
            label[read_mask(path, shape)] = number
        return label


@dataclass(frozen=True)
class ClassMasks(DrawnLabel):
    """A label of a mask for each class, which may overlap: planes ``(H, W, classes)`` of 0 and 1.

    Args:
        masks: of the classes.
    """

    masks: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.masks[0]} and {len(self.masks) - 1} more"

    @property
    def files(self) -> tuple[Path, ...]:
        return self.masks

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.stack([read_mask(path, shape) for path in self.masks], -1)

    @property
    def channels(self) -> int:
        return len(self.masks)


def read_mask(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of a mask of an image of this size, ``(H, W)``, bool.

    Raises:
        ValueError: it is of another size, or has more than two values.
    """
    with blamed(f"the mask {path}"):
        mask = one_channel(read_label(path), 2, cures=False)
    if mask.shape != tuple(shape):
        raise ValueError(f"the mask {path} is {by(mask.shape)}, but its image is {by(shape)} "
                         "pixels (height by width)")
    return _as_mask(mask, path)


def _as_mask(mask: np.ndarray, path: Path) -> np.ndarray:
    inside = mask != 0
    if inside.any() and (mask[inside] != mask.max()).any():
        values = np.unique(mask)
        raise ValueError(f"the mask {path} has {len(values)} values, {values[:5].tolist()} and so "
                         "on; expected 0 and one other. If it has grey edges or is a JPEG, save it "
                         "losslessly, as a PNG of two values")
    return inside


# -- finding them ---------------------------------------------------------------------------------


def find_object_masks(images: str | Path, labels: str | Path, *,
                      recursive: bool = False) -> list[Pair]:
    """Pairs images with folders of masks, one for each object.

    The masks of ``images/a.png`` are in ``labels/a/``, or, as in the Data Science Bowl of 2018,
    those of ``a/images/a.png`` in ``a/masks/``.

    Args:
        images: folder of the images.
        labels: folder of the folders of masks; may be the same one.
        recursive: also the images in subfolders.

    Returns:
        One `Pair` for each image, sorted by name.

    Raises:
        ValueError: an image has no folder of masks, or there are no images.
    """
    images, labels = as_path("a folder of images", images), as_path("a folder of labels", labels)
    files = {name_in(images, path): path for path in list_images(images, recursive)
             if path.parent.name != MASKS}
    folders = {name: _masks_of(labels, name) for name in files}
    missing = [name for name, folder in folders.items() if folder is None]
    if missing or not files:
        name = missing[0] if missing else "a"
        raise ValueError(f"{len(missing)} of {len(files)} images have no folder of masks; for "
                         f"{files.get(name, images)} it would be {labels / name}, or {MASKS} "
                         "beside a folder named images")
    spatial_axes(files.values())
    return [Pair(files[name], ObjectMasks(folder, tuple(sorted(walk(folder)))))
            for name, folder in folders.items() if folder is not None]


def _masks_of(labels: Path, name: str) -> Path | None:
    own = labels / name
    beside = own.parent.parent / MASKS
    if own.is_dir():
        return own
    return beside if own.parent.name == "images" and beside.is_dir() else None


def find_class_masks(images: str | Path, labels: str | Path, *, image_suffix: str = "",
                     label_suffix: str = "", recursive: bool = False,
                     class_names: Sequence[str] | None = None) -> tuple[list[Pair], list[str]]:
    """Pairs images with masks, one in the folder of each class, which may overlap.

    Args:
        images: folder of the images.
        labels: folder with a folder for each class, whose name is the class's.
        image_suffix: see `nestedseg.data.find_pairs`.
        label_suffix: see `nestedseg.data.find_pairs`.
        recursive: see `nestedseg.data.find_pairs`.
        class_names: the folders to read, in the order of the classes. Default: all, by name.

    Returns:
        One `Pair` for each image, sorted by name, and the names of the classes.

    Raises:
        ValueError: an image has no mask in one of the folders, or there are no folders, or no
            folder of a name.
    """
    labels = as_path("a folder of labels", labels)
    found = sorted(path.name for path in labels.iterdir()
                   if path.is_dir() and not path.name.startswith(".")) if labels.is_dir() else []
    if not found:
        raise ValueError(f"{labels} contains no folders; expected one for each class")
    names = [choose("class", name, found) for name in class_names or found]
    parts = [find_pairs(images, labels / name, image_suffix=image_suffix,
                        label_suffix=label_suffix, recursive=recursive) for name in names]
    spatial_axes(pair.image for pair in parts[0])
    return [Pair(pairs[0].image, ClassMasks(tuple(pair.label_file for pair in pairs)))
            for pairs in zip(*parts)], names


def count_channels(pairs: Sequence[Pair], dims: int | None = None) -> int:
    """How many channels the first label has, one for each class.

    Args:
        pairs: whose labels are pictures or volumes with channels.
        dims: 3 = TIFF and Zarr files are volumes. Default: they are images.

    Raises:
        ValueError: the label cannot be read, or has one channel.
    """
    first = pairs[0].label_file
    volume = spatial_axes([first], dims) == 3
    count = open_volume(first).channels if volume else open_image(first, indexed=True).channels
    if count < 2:
        raise ValueError(f"the label {first} has one channel; expected one for each class")
    return count
