"""Reads COCO's annotations of objects: one JSON file for all images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.base.errors import as_path, blamed, show
from nestedseg.data.files import Pair, spatial_axes
from nestedseg.data.layouts.classes import choose_classes
from nestedseg.data.layouts.drawing import Drawing, Polygons, Region, Runs, decode_runs
from nestedseg.data.layouts.json_file import field, inside, points_of, read_json, size_of

MOST_RUNS = 2**31  # pixels of an image in run lengths


def read_coco(path: str | Path, images: str | Path, *, instances: bool = False,
              class_names: Sequence[str] | None = None) -> tuple[list[Pair], list[str]]:
    """The pairs of a COCO file of objects; their labels are drawn when they are read.

    Polygons, run lengths and compressed run lengths are read. A pixel belongs to an object if its
    centre is inside; where objects overlap, the smaller one lies on top. Crowds count as pixels of
    their class; in instance maps they are left out, because they are no single instance. Images
    without objects are images of the background.

    Args:
        path: of the JSON file.
        images: folder of the images, in which its file names are looked for.
        instances: number the objects of each image from 1, instead of their classes.
        class_names: the categories to read, in the order of their classes; the pixels of others
            count as background. The first may be "background". Default: all, in the order of their
            numbers in the file, which may have gaps.

    Returns:
        One `Pair` for each image of the file, in its order, and the names of the classes: one
        category alone is class 1 of a binary label; with several, the background is the first.

    Raises:
        ValueError: it is not such a file, or images of it are not in the folder, or their names
            lead out of it; or ``class_names`` has a name that is no category.
    """
    path, images = as_path("a COCO file", path), as_path("a folder of images", images)
    whole = read_json(path)
    with blamed(f"the COCO file {path}"):
        rows = {name: field(whole, name, list) for name in ("images", "annotations", "categories")}
        categories = _by_id("category", rows["categories"])
        names = {key: field(row, "name", str) for key, row in categories.items()}
        if len({*names.values()}) < len(names):
            raise ValueError("two of its categories have the same name")
        classes = choose_classes([names[key] for key in sorted(names, key=_order)], class_names,
                                 "the file")
        values = {key: classes.values.get(name, 0) for key, name in names.items()}
        pictures = _by_id("image", rows["images"])
        files = _find(pictures, images)
        objects = _objects(rows["annotations"], values, pictures)
        meaning = "instances" if instances else str(values)
        pairs = []
        for key, row in pictures.items():
            with blamed(f"image {show(key)}"):
                size = size_of(row, "height", "width")
                regions = _regions(objects.get(key, []), instances, size)
                pairs.append(Pair(files[key], Drawing(path, str(key), size, regions, meaning)))
    spatial_axes(pair.image for pair in pairs)
    return pairs, classes.names


Id = int | str


def _by_id(kind: str, rows: Sequence[Any]) -> dict[Id, dict[str, Any]]:
    """The rows by their ids."""
    found: dict[Id, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        with blamed(f"{kind} {number}"):
            if found.setdefault(field(row, "id", (int, str)), row) is not row:
                raise ValueError(f"its id {show(row['id'])} is that of another {kind} too")
    return found


def _order(key: Id) -> tuple[bool, Id]:
    """Numbers in their order, then texts."""
    return isinstance(key, str), key


def _find(pictures: Mapping[Id, dict[str, Any]], images: Path) -> dict[Id, Path]:
    """The files of all images."""
    files: dict[Id, Path] = {}
    missing = []
    for key, row in pictures.items():
        with blamed(f"image {show(key)}"):
            file = inside(images, field(row, "file_name", str))
        if file is None:
            missing.append(row["file_name"])
        else:
            files[key] = file
    if missing or not files:
        raise ValueError(f"{len(missing)} of its {len(pictures)} images are not in {images}"
                         + (f"; the first is {show(missing[0])}" if missing else ""))
    counts = Counter(files.values())
    file, count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} of its images have the file {file}")
    return files


def _objects(rows: Sequence[Any], values: Mapping[Id, int], images: Mapping[Id, Any]
             ) -> dict[Id, list[tuple[int, dict[str, Any]]]]:
    """The annotations of each image whose category is wanted, each with its value."""
    found: dict[Id, list[tuple[int, dict[str, Any]]]] = {}
    for number, row in enumerate(rows):
        with blamed(f"annotation {number}"):
            image = field(row, "image_id", (int, str))
            category = field(row, "category_id", (int, str))
            if image not in images or category not in values:
                raise ValueError(f"its image {show(image)} or category {show(category)} is not in "
                                 "the file")
            if values[category]:
                found.setdefault(image, []).append((values[category], row))
    return found


def _regions(rows: Sequence[tuple[int, dict[str, Any]]], instances: bool,
             size: tuple[int, int] | None) -> tuple[tuple[int, Region], ...]:
    """The regions of an image with their values, the largest first."""
    regions = []
    for value, row in rows:
        with blamed(f"annotation {show(row.get('id'))}"):
            if instances and row.get("iscrowd"):
                continue
            region = _region(row.get("segmentation"), size)
            regions.append((_area(region), value, region))
    regions.sort(key=lambda each: -each[0])  # stable
    return tuple((number if instances else value, region)
                 for number, (_, value, region) in enumerate(regions, 1))


def _region(segmentation: Any, size: tuple[int, int] | None) -> Region:
    if isinstance(segmentation, list) and segmentation:
        return Polygons(tuple(points_of(part, 3) for part in segmentation))
    if not isinstance(segmentation, dict):
        raise ValueError(f"its 'segmentation' is {show(segmentation)}; expected polygons or run "
                         "lengths. Boxes alone are no masks")
    sides = field(segmentation, "size", list)
    own = size_of(dict(zip(("height", "width"), sides)), "height", "width")
    if own is None or len(sides) != 2 or own != (size or own) or own[0] * own[1] > MOST_RUNS:
        raise ValueError(f"its run lengths are of {show(sides)} pixels, in an image of {size}")
    counts = field(segmentation, "counts", (list, str))
    runs = _whole_numbers(counts) if isinstance(counts, list) else decode_runs(
        counts, own[0] * own[1])
    if runs.sum() != own[0] * own[1]:
        raise ValueError(f"its run lengths do not add up to {own[0]} x {own[1]} pixels")
    return Runs(own, runs)


def _whole_numbers(values: list[Any]) -> np.ndarray:
    if not all(type(value) is int and 0 <= value <= MOST_RUNS for value in values):
        raise ValueError(f"its run lengths are {show(values)}; expected whole numbers")
    return np.array(values, np.int64)


def _area(region: Region) -> float:
    """By which objects are ordered: the file's own areas may be of boxes, or missing."""
    if isinstance(region, Runs):
        return float(region.counts[1::2].sum())
    assert isinstance(region, Polygons)
    return sum(abs(float(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0])) / 2
               for x, y in (part.T for part in region.parts))
