"""Writes the outlines of the classes in masks as polygons: GeoJSON and GeoPackage."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.base.extras import require
from nestedseg.data.images import open_image
from nestedseg.hub.storage import drafted, writing
from nestedseg.prediction.raster_files import is_georeferenced, place_of

SUFFIXES = (".geojson", ".json", ".gpkg")
EARTH = "EPSG:4326"


def check_polygons(path: Path) -> None:
    """Checks that polygons can be written to a path, before anything is computed.

    Raises:
        ValueError: the suffix is unknown.
        ImportError: a library of the extra ``geo`` is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--polygons writes {', '.join(SUFFIXES)}, got {path}")
    require("rasterio", "geo")
    if path.suffix.lower() == ".gpkg":
        require("pyogrio", "geo")


def write_polygons(path: Path, masks: Mapping[Path, Path], names: Sequence[str]) -> int:
    """Writes a polygon for each connected part of each class, except the background.

    A polygon has the properties ``image``, ``class`` and ``name``. Its coordinates are those of the
    image's coordinate system, or for images without one, columns and rows of pixels.

    Args:
        path: ends in ``.geojson``, ``.json`` or ``.gpkg``.
        masks: the image of each mask; both are files.
        names: of the classes, by index.

    Returns:
        The number of polygons.

    Raises:
        ValueError: the images have different coordinate systems.
        OSError: the file cannot be written.
    """
    crs = _common_system(masks.values())
    found = [each for mask, image in masks.items() for each in _polygons(mask, image, names)]
    with writing(str(path), "No part of it is there"), drafted(path) as draft:
        if path.suffix.lower() == ".gpkg":
            _write_geopackage(draft, found, crs)
        else:
            draft.write_text(json.dumps(_geojson(found, crs)), encoding="utf-8")
    return len(found)


def _common_system(images: Iterable[Path]) -> str | None:
    """The coordinate system of all images, as its code or its text; ``None`` = pixels."""
    systems: dict[str | None, Path] = {}
    for image in images:
        source = open_image(image)
        crs = place_of(source)["crs"] if is_georeferenced(source) else None
        systems.setdefault(crs.to_string() if crs else None, image)
    if len(systems) > 1:
        (one, first), (two, second) = list(systems.items())[:2]
        raise ValueError(f"{first} has the coordinate system {one} and {second} has {two}; write "
                         "the polygons of each to a file of its own")
    return next(iter(systems), None)


def _polygons(mask: Path, image: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    shapes = require("rasterio.features", "geo").shapes
    pixels, source = open_image(mask, indexed=True), open_image(image)
    transform = place_of(source)["transform"] if is_georeferenced(source) \
        else require("rasterio", "geo").Affine.identity()
    values = pixels.read()[..., 0].astype(np.uint8)
    void = values == pixels.nodata if pixels.nodata is not None else np.zeros(values.shape, bool)
    for geometry, value in shapes(values, (values > 0) & ~void, transform=transform):
        index = int(value)
        name = names[index] if index < len(names) else f"class {index}"
        yield {"type": "Feature", "geometry": geometry,
               "properties": {"image": image.name, "class": index, "name": name}}


def _geojson(features: list[dict[str, Any]], crs: str | None) -> dict[str, Any]:
    """RFC 7946, with the member ``crs`` of its predecessor for other systems than WGS 84, as GDAL
    writes and reads it."""
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs is None:
        collection["coordinates"] = "columns and rows of pixels, for the images have no place"
    elif crs != EARTH:
        name = crs.replace("EPSG:", "urn:ogc:def:crs:EPSG::")
        collection["crs"] = {"type": "name", "properties": {"name": name}}
    return collection


def _write_geopackage(path: Path, features: list[dict[str, Any]], crs: str | None) -> None:
    fields = ["image", "class", "name"]
    columns = [np.array([each["properties"][name] for each in features],
                        np.int32 if name == "class" else object) for name in fields]
    geometry = np.array([_binary(each["geometry"]["coordinates"]) for each in features], object)
    require("pyogrio.raw", "geo").write(
        str(path), geometry, columns, fields, geometry_type="Polygon", crs=crs, driver="GPKG",
        layer="classes")


def _binary(rings: Sequence[Sequence[Sequence[float]]]) -> bytes:
    """A polygon in the well-known binary form of OGC's simple features (06-103r4)."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts.append(struct.pack("<I", len(ring)) + np.asarray(ring, "<f8")[:, :2].tobytes())
    return b"".join(parts)
