"""Image and label files: the supported formats, and listing files. `layouts` pairs them."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nestedseg.base.errors import as_path, show

SUFFIXES = {2: (".png", ".jpg", ".jpeg", ".ome.tif", ".ome.tiff", ".ome.zarr",
                ".tif", ".tiff", ".zarr"),
            3: (".nii.gz", ".nii", ".npy", ".nrrd", ".nhdr", ".mha", ".mhd")}
KNOWN = (*SUFFIXES[2], *SUFFIXES[3])
SHOWN = 3  # names that a message shows
MOST_SEEN = 100_000  # entries of a folder that are counted for a message
LOOKED_AT = 16  # files, to tell whether a folder is a DICOM series
STACKS = SUFFIXES[2][3:]  # which may hold volumes as well


class DrawnLabel(Protocol):
    """A label that is not one picture: it is drawn, or put together, when it is read.

    Attributes:
        files: that it is made of.
        channels: 1, or one for each class, if they may overlap.
    """

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def channels(self) -> int:
        return 1

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        """The label of an image of this size, ``(H, W)`` or ``(H, W, C)``, of whole numbers.

        Args:
            shape: ``(H, W)`` of the image.

        Raises:
            ValueError: the label is not one of an image of this size.
        """


@dataclass(frozen=True)
class Pair:
    """An image and its label; ``image, label = pair`` gives the two.

    Args:
        image: path of the image.
        label: path of its label, or a label that is drawn, for example from polygons.
        group: images of one group, for example of one patient, are never divided between training
            and validation; "" = the image is a group of its own.
        split: "train", "val" or "test", where a list says so; otherwise "".
    """

    image: Path
    label: Path | DrawnLabel
    group: str = ""
    split: str = ""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.image, self.label))

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The image, and the label if it is a picture."""
        return (self.image, self.label) if isinstance(self.label, Path) else (self.image,)

    @property
    def label_file(self) -> Path:
        """The label, which is a file, as those of volumes are."""
        if not isinstance(self.label, Path):
            raise ValueError(f"the label {self.label} of {self.image} is drawn, which is only "
                             "possible for images")
        return self.label

    @property
    def files(self) -> tuple[Path, ...]:
        """All files on which image and label depend."""
        return (self.image, *([self.label] if isinstance(self.label, Path) else self.label.files))


def split_name(path: Path) -> tuple[str, str]:
    """A file's name without suffix, and the suffix: ``a.nii.gz`` -> ``("a", ".nii.gz")``.

    A folder of DICOM slices has no suffix, even if there are dots in its name.
    """
    name = path.name
    suffix = known_suffix(path) or ("" if path.is_dir() else path.suffix)
    cut = len(name) - len(suffix)
    return name[:cut], name[cut:]


def known_suffix(path: Path) -> str:
    """The suffix of a supported format, in lower case; "" if it has none."""
    name = path.name.lower()
    if not name.endswith(KNOWN):
        return ""
    return next(suffix for suffix in KNOWN if name.endswith(suffix))


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
        axes = next((axes for axes, known in SUFFIXES.items() if suffix in known), 3)
        if suffix not in KNOWN and not path.is_dir():
            raise ValueError(f"unsupported image format: {path}; supported: {_kinds()}")
        first.setdefault(3 if dims == 3 and suffix in STACKS else axes, path)
    if len(first) > 1:
        raise ValueError(f"images and volumes are mixed: {first[2]} is an image, {first[3]} a "
                         "volume; give files of one kind")
    return next(iter(first))


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The images or volumes in a folder, sorted by name; other files are ignored.

    Args:
        folder: contains PNG, JPEG, TIFF and Zarr files (images), or NIfTI, NRRD, MetaImage and
            ``.npy`` files, or folders with the slices of a DICOM series (volumes).
        recursive: also those in its subfolders. A ``.zarr`` folder and a DICOM series are one file.

    Raises:
        ValueError: ``folder`` is not a directory, contains no such files, contains both kinds, or
            two files whose names differ only in the suffix: labels are found, and results
            written, by the name without suffix.
    """
    folder = as_path("a folder of images", folder)
    if not folder.is_dir():
        raise ValueError(f"not a directory: {folder}")
    found = sorted((name_in(folder, path), path.name, path) for path in walk(folder, recursive))
    paths = [path for *_, path in found]
    if not paths:
        if is_series(folder):
            raise ValueError(f"{folder} contains the slices of a DICOM series, which are one "
                             "volume; give the folder that it is in")
        raise ValueError(f"{folder} contains no images; supported formats: {_kinds()}; a folder of "
                         f"DICOM slices is a volume too. Found: {contents(folder)}")
    spatial_axes(paths)
    for (name, _, path), (next_name, _, following) in itertools.pairwise(found):
        if name == next_name:
            raise ValueError(f"{path} and {following} have the same name without suffix, by which "
                             "labels and results are named; rename one of them")
    return paths


def walk(folder: Path, recursive: bool = False) -> Iterator[Path]:
    """The images and volumes in a folder, and in its subfolders; hidden ones are left out.

    Args:
        folder: an existing one.
        recursive: whether subfolders are searched; each only once, whatever links lead to it.
    """
    seen, waiting = {os.path.realpath(folder)}, [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.name.startswith("."):
                continue
            if known_suffix(path) or (path.is_dir() and is_series(path)):
                yield path
            elif recursive and path.is_dir() and os.path.realpath(path) not in seen:
                seen.add(os.path.realpath(path))
                waiting.append(path)


def is_series(folder: Path) -> bool:
    """Whether a folder contains the slices of a DICOM series: by its first few files."""
    with os.scandir(folder) as entries:
        files = (entry for entry in entries
                 if not entry.name.startswith(".") and not known_suffix(Path(entry.name)))
        return any(_is_dicom(entry) for entry in itertools.islice(files, LOOKED_AT))


def _is_dicom(entry: os.DirEntry[str]) -> bool:
    if not entry.is_file() or entry.name.upper() == "DICOMDIR":  # a list of files, and no slice
        return False
    with open(entry.path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def name_in(folder: Path, path: Path) -> str:
    """A file's name within a folder, without suffix and with slashes: ``city/a``."""
    name = path.relative_to(folder).as_posix()
    return name[:len(name) - len(split_name(path)[1])]


def contents(folder: Path) -> str:
    """What is in a folder, for messages: counts by suffix, the first names, and subfolders."""
    entries = sorted(visible(folder), key=lambda path: path.name)
    folders = [path.name for path in entries if path.is_dir() and not known_suffix(path)]
    files = [path for path in entries if path.name not in folders]
    counts = Counter(split_name(path)[1].lower() or "no suffix" for path in files)
    parts = [f"{count} {suffix}" for suffix, count in counts.most_common(SHOWN)]
    if files:
        parts[-1] += f" ({_first([path.name for path in files])})"
    if folders:
        parts.append(f"{len(folders)} subfolders ({_first(folders)})")
    more = f"; only the first {MOST_SEEN} entries were looked at" * (len(entries) == MOST_SEEN)
    return (", ".join(parts) or "nothing") + more


def visible(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden; of a very large one only some."""
    return [*itertools.islice((path for path in folder.iterdir()
                               if not path.name.startswith(".")), MOST_SEEN)]


def _first(names: Sequence[str]) -> str:
    return ", ".join(show(name)[1:-1] for name in names[:SHOWN]) + ", ..." * (len(names) > SHOWN)


def _kinds() -> str:
    return "; ".join(", ".join(suffixes) for suffixes in SUFFIXES.values())
