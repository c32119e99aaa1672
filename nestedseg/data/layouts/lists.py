"""Reads lists of images and labels: text files with a name or a pair a line, and CSV tables."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from nestedseg.base.errors import as_path, blamed, choose, nearest, show
from nestedseg.data.files import Pair, known_suffix, list_images, name_in, spatial_axes
from nestedseg.data.layouts.splits import SPLITS

COLUMNS = ("image", "label", "split", "group")
TABLES = {".csv": ",", ".tsv": "\t"}
LISTS = (".txt", *TABLES)  # suffixes of lists
MOST_BYTES = 2**28  # of a list
GAP = re.compile(r"\s*[,\t]\s*|\s+")


class Row(NamedTuple):
    """A line of a list, as it is written."""

    line: int
    image: str
    label: str = ""
    split: str = ""
    group: str = ""


def read_list(path: str | Path, images: str | Path | None = None,
              labels: str | Path | None = None, *, image_suffix: str = "", label_suffix: str = "",
              recursive: bool = False) -> list[Pair]:
    """The pairs of images and labels that a list names, in its order.

    A text file has a name a line, or an image and its label. A CSV or TSV table has a line of
    headings: ``image``, and perhaps ``label``, ``split`` (train, val or test) and ``group``; other
    columns are ignored. Names may be paths, with or without suffix; they are looked for in the
    folders, then beside the list. Of a full path of another machine the longest end is taken that
    is a file beside the list.

    Args:
        path: of the list.
        images: folder of the images that it names; default: the folder of the list.
        labels: folder of the labels, which are found by the names of the images if the list does
            not name them.
        image_suffix: how the names of images end after what the list says, like ``_leftImg8bit``.
        label_suffix: how the names of labels end after what the list says, like ``_mask``.
        recursive: names without suffix are also those of files in subfolders of the folders.

    Raises:
        ValueError: it is not such a list; a name is that of no file, or the label of an image is
            missing; an image is named twice; or images of one group are both in train and in
            another split.
    """
    path = as_path("a list", path)
    find_image = _Finder(path.parent, images, image_suffix, recursive)
    find_label = _Finder(path.parent, labels, label_suffix, recursive)
    found = [_locate(row, find_image, find_label) for row in _rows(path, find_image, find_label)]
    for kind, place, finder in (("image", 1, find_image), ("label", 2, find_label)):
        _check_found(path, found, kind, place, finder)
    pairs = [Pair(image, label, row.group, row.split) for row, image, label in found
             if image is not None and label is not None]
    _check_distinct(path, [(row, image) for row, image, _ in found if image is not None])
    _check_groups(path, pairs)
    spatial_axes(picture for pair in pairs for picture in pair.pictures)
    return pairs


def list_named(path: str | Path, images: str | Path | None = None, *, split: str | None = None,
               image_suffix: str = "", recursive: bool = False) -> list[Path]:
    """The images that a list names, in its order; labels are not looked for.

    Args:
        path: of the list; see `read_list`.
        images: folder of the images that it names; default: the folder of the list.
        split: only the images of this split, "train", "val" or "test". Default: all.
        image_suffix: see `read_list`.
        recursive: see `read_list`.

    Raises:
        ValueError: it is not a list; a name is that of no file; or no image is of this split.
    """
    path = as_path("a list", path)
    rows = _named(path, _Finder(path.parent, images, image_suffix, recursive))
    if split is not None:
        choose("split", split, SPLITS)
        counts = {name: sum(row.split == name for row, _ in rows) for name in SPLITS}
        if not counts[split]:
            raise ValueError(f"{path} has no image of the split {split!r}; it has {counts}. The "
                             "column split of a CSV table gives the split of each image")
    paths = [image for row, image in rows if split in (None, row.split)]
    spatial_axes(paths)
    return paths


def choose_pairs(pairs: Sequence[Pair], path: str | Path, images: str | Path, *,
                 image_suffix: str = "", recursive: bool = False) -> list[Pair]:
    """Those of some pairs whose images a list names, in its order, with its splits and groups.

    Args:
        pairs: of images in the folder.
        path: of the list; see `read_list`.
        images: folder of the images that it names.
        image_suffix: see `read_list`.
        recursive: see `read_list`.

    Raises:
        ValueError: it is not a list, or names an image that is not among the pairs.
    """
    path = as_path("a list", path)
    known = {pair.image.resolve(): pair for pair in pairs}
    rows = _named(path, _Finder(path.parent, images, image_suffix, recursive))
    missing = [row for row, image in rows if image.resolve() not in known]
    if missing:
        raise ValueError(f"{path}, line {missing[0].line}, names {show(missing[0].image)}, which "
                         f"has no label (so it is for {len(missing)} of {len(rows)} lines)")
    chosen = [replace(known[image.resolve()], split=row.split, group=row.group)
              for row, image in rows]
    _check_groups(path, chosen)
    return chosen


def _named(path: Path, find: _Finder) -> list[tuple[Row, Path]]:
    """The lines of a list with the images that they name."""
    found: list[Found] = [(row, find(row.image), None) for row in _rows(path, find, Path)]
    _check_found(path, found, "image", 1, find)
    named = [(row, image) for row, image, _ in found if image is not None]
    _check_distinct(path, named)
    return named


class _Finder:
    """Finds the file of a name: in a folder, beside the list, or by the end of its path."""

    def __init__(self, beside: Path, folder: str | Path | None, suffix: str,
                 recursive: bool) -> None:
        self.beside, self.suffix, self.recursive = beside, suffix, recursive
        self.folder = None if folder is None else as_path("a folder", folder)

    def __str__(self) -> str:
        return " and ".join(map(str, dict.fromkeys(filter(None, (self.folder, self.beside)))))

    def __call__(self, text: str) -> Path | None:
        """The file of a name as it is written; ``None`` = there is none."""
        if not text or "\0" in text:
            return None
        path = Path(text.replace("\\", "/"))
        if known_suffix(path):
            places = [folder / path for folder in (self.folder, self.beside) if folder is not None]
            if PurePosixPath(path).is_absolute() or PureWindowsPath(text).is_absolute():
                places += [self.beside.joinpath(*path.parts[start:])
                           for start in range(1, len(path.parts))]
            return next((place for place in places if os.path.exists(place)), None)
        return self.names.get(PurePosixPath(path).as_posix() + self.suffix)

    @cached_property
    def names(self) -> dict[str, Path]:
        """The files of the folder by their names without suffix."""
        folder = self.folder or self.beside
        return {name_in(folder, path): path for path in list_images(folder, self.recursive)}


Found = tuple[Row, Path | None, Path | None]


def _locate(row: Row, find_image: _Finder, find_label: _Finder) -> Found:
    """The files of a line; a label that it does not name is found by the image's name."""
    image = find_image(row.image)
    if row.label:
        return row, image, find_label(row.label)
    if image is None or find_label.folder is None:
        return row, image, None
    bare = row.image.replace("\\", "/")
    stem = bare[:len(bare) - len(known_suffix(Path(bare)))]
    names = [stem, stem.rpartition("/")[2]]  # a path may lead to the folder of the images
    if find_image.folder is not None and find_image.folder in image.parents:
        names.insert(0, name_in(find_image.folder, image).removesuffix(find_image.suffix))
    labels = (find_label.names.get(name + find_label.suffix) for name in names)
    return row, image, next(filter(None, labels), None)


def _rows(path: Path, find_image: _Finder,
          find_label: Callable[[str], Path | None]) -> list[Row]:
    with blamed(f"cannot read the list {path}"):
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes")
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ValueError(error.strerror) from error
        if "\0" in text:
            raise ValueError("it is no text")
        lines = text.splitlines()
        table = path.suffix.lower() in TABLES
        try:
            rows = [*(_table(lines, TABLES[path.suffix.lower()]) if table else
                      _lines(lines, find_image, find_label))]
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if not rows:
            raise ValueError("it names no image")
    return rows


def _table(lines: Sequence[str], comma: str) -> Iterator[Row]:
    head = lines[0] if lines else ""
    comma = max((comma, ";"), key=head.count)  # some countries' spreadsheets write semicolons
    reader = csv.reader(lines, delimiter=comma, skipinitialspace=True)
    names = [name.strip().lower() for name in next(reader, [])]
    if "image" not in names:
        raise ValueError(f"its first line must be headings, with a column 'image'; it is "
                         f"{show(head)}; {nearest(names[0] if names else '', COLUMNS)}")
    for kind in COLUMNS:
        if names.count(kind) > 1:
            raise ValueError(f"it has {names.count(kind)} columns {kind!r}")
    for cells in reader:
        if not any(map(str.strip, cells)):
            continue
        with blamed(f"line {reader.line_num}"):
            if len(cells) != len(names):
                raise ValueError(f"{len(cells)} cells under {len(names)} headings")
            row = dict(zip(names, map(str.strip, cells)))
            values = {kind: row[kind] for kind in COLUMNS if kind in row}
            if values.get("split", "train") not in SPLITS:
                choose("split", values["split"], SPLITS)
            yield Row(reader.line_num, **values)


def _lines(lines: Sequence[str], find_image: _Finder,
           find_label: Callable[[str], Path | None]) -> Iterator[Row]:
    """A name a line, or two. A name may have spaces, so the files tell where the second begins."""
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        gaps = [*GAP.finditer(line)]
        halves = [(line[:gap.start()], line[gap.end():]) for gap in gaps]
        both = [half for half in halves if find_image(half[0]) and find_label(half[1])]
        if both:
            yield Row(number, *both[0])
        elif len(halves) == 1 and not Path(find_image.folder or find_image.beside, line).exists():
            yield Row(number, *halves[0])
        else:
            yield Row(number, line)


def _check_found(path: Path, found: Sequence[Found], kind: str, place: int,
                 finder: _Finder) -> None:
    missing = [each for each in found if each[place] is None]
    if not missing:
        return
    row = missing[0][0]
    if kind == "image" or row.label:
        what = f"names no {kind} that is there: {show(getattr(row, kind))}"
    else:
        what = f"names the image {show(row.image)}, which has no label"
        if finder.folder is None:
            what += "; write the label into the list, or give the folder of the labels (--labels)"
    raise ValueError(f"{path}, line {row.line}, {what}; looked in {finder} (so it is for "
                     f"{len(missing)} of {len(found)} lines)")


def _check_distinct(path: Path, named: Sequence[tuple[Row, Path]]) -> None:
    lines: dict[Path, int] = {}
    for row, image in named:
        first = lines.setdefault(image.resolve(), row.line)
        if first != row.line:
            raise ValueError(f"{path} names {image} twice, in the lines {first} and {row.line}; "
                             "remove one of them")


def _check_groups(path: Path, pairs: Sequence[Pair]) -> None:
    splits: dict[str, str] = {}
    for pair in pairs:
        if pair.group and splits.setdefault(pair.group, pair.split) != pair.split:
            raise ValueError(f"{path}: images of the group {pair.group!r} are in the splits "
                             f"{splits[pair.group]!r} and {pair.split!r}, but a group must be "
                             "in one split; change the column split, or leave out the column "
                             "group")
