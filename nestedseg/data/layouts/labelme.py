"""Reads the annotations of labelme: a JSON file with polygons and other shapes for each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.base.errors import as_path, blamed, choose, show
from nestedseg.data.files import Pair, list_images, name_in, spatial_axes, walk
from nestedseg.data.layouts.classes import BACKGROUND, Classes, choose_classes
from nestedseg.data.layouts.drawing import Circle, Drawing, Polygons, Region
from nestedseg.data.layouts.json_file import field, points_of, read_json, size_of

SHAPES = ("polygon", "rectangle", "circle")
GROUND = "_background_"  # labelme's own name of the background


def has_labelme(images: Path, labels: Path, recursive: bool = False) -> bool:
    """Whether the labels in a folder are labelme's JSON files: beside the images, or alone."""
    if not labels.is_dir() or not any(labels.glob("**/*.json" if recursive else "*.json")):
        return False
    return (images.is_dir() and images.samefile(labels)) or not any(walk(labels, recursive))


def read_labelme(images: str | Path, labels: str | Path, *, instances: bool = False,
                 class_names: Sequence[str] | None = None,
                 recursive: bool = False) -> tuple[list[Pair], list[str]]:
    """Pairs images with labelme's JSON files of the same name; labels are drawn when they are read.

    A pixel belongs to a shape if its centre is inside; later shapes lie on earlier ones, as in
    labelme. Names are the classes; ``_background_`` is the background. Shapes of one name with one
    group number are one instance.

    Args:
        images: folder of the images.
        labels: folder of the JSON files; may be the same one.
        instances: number the objects of each image from 1, instead of their classes.
        class_names: all names, in the order of their classes; the first may be "background".
            Default: the names of all files, sorted.
        recursive: also the files in subfolders.

    Returns:
        One `Pair` for each image, sorted by name, and the names of the classes; see `read_coco`.

    Raises:
        ValueError: a file has no partner or is not labelme's, a shape is of a kind that is no
            region, or its name is not in ``class_names``.
    """
    images, labels = as_path("a folder of images", images), as_path("a folder of labels", labels)
    files = {name_in(images, path): path for path in list_images(images, recursive)}
    spatial_axes(files.values())
    jsons = {path.relative_to(labels).with_suffix("").as_posix(): path
             for path in labels.glob("**/*.json" if recursive else "*.json")}
    for ours, others, kind, folder in ((files, jsons, ".json file", labels),
                                       (jsons, files, "image", images)):
        missing = sorted(ours.keys() - others.keys())
        if missing:
            raise ValueError(f"{ours[missing[0]]} has no {kind} of the same name in {folder}, and "
                             f"so it is for {len(missing)} of {len(ours)} files")
    shapes = {name: _shapes(jsons[name]) for name in files}
    named = sorted({label for _, rows in shapes.values() for label, _, _ in rows} - {GROUND})
    if class_names is not None:
        for name, (_, rows) in shapes.items():
            for label in sorted({label for label, _, _ in rows} - {GROUND}):
                with blamed(f"the label {jsons[name]}"):
                    choose("class", label, class_names)
        named = [name for name in class_names if name != BACKGROUND]
    classes = choose_classes(named, class_names, str(labels))
    return [Pair(files[name], _draw(jsons[name], *shapes[name], classes, instances))
            for name in files], classes.names


Shape = tuple[str, Any, Region]  # its name, the number of its group or None, its region


def _shapes(path: Path) -> tuple[tuple[int, int] | None, list[Shape]]:
    """The size of the image and the shapes of a file."""
    content = read_json(path)
    with blamed(f"the label {path}"):
        shapes = []
        for number, row in enumerate(field(content, "shapes", list)):
            with blamed(f"shape {number}"):
                shapes.append((field(row, "label", str), row.get("group_id"), _region(row)))
        return size_of(content, "imageHeight", "imageWidth"), shapes


def _region(row: dict[str, Any]) -> Region:
    kind = choose("shape", row.get("shape_type") or "polygon", SHAPES)
    points = points_of(row.get("points"), 3 if kind == "polygon" else 2)
    if kind == "polygon" or (kind == "rectangle" and len(points) == 4):
        return Polygons((points,))
    if len(points) != 2:
        raise ValueError(f"a {kind} needs 2 points, got {len(points)}")
    if kind == "circle":
        (x, y), radius = points[0].tolist(), float(np.linalg.norm(points[1] - points[0]))
        return Circle(x, y, radius)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return Polygons((np.array([[left, top], [right, top], [right, bottom], [left, bottom]]),))


def _draw(path: Path, size: tuple[int, int] | None, shapes: Sequence[Shape], classes: Classes,
          instances: bool) -> Drawing:
    numbers: dict[Any, int] = {}
    regions = []
    for place, (label, group, region) in enumerate(shapes):
        value = classes.values.get(label, 0)
        if instances and value:
            key = (label, show(group)) if group is not None else place
            value = numbers.setdefault(key, len(numbers) + 1)
        regions.append((value, region))
    return Drawing(path, "", size, tuple(regions), "instances" if instances else str(classes))
