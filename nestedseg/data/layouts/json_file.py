"""Reads JSON from strangers: of bounded size, and with a message for whatever is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nestedseg.base.errors import show
from nestedseg.data.source import memory

MOST_BYTES = 2**31
EXPANSION = 8  # a text takes about so many times its size in memory once it is parsed
MOST_SIDE = 2**20  # pixels along a side of an image


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file contains.

    Raises:
        ValueError: it is missing, damaged, too large for the memory, or contains no object.
    """
    try:
        size = path.stat().st_size
        most = min(MOST_BYTES, memory() // EXPANSION)
        if size > most:
            raise ValueError(f"it has {size / 2**20:.0f} MiB; at most {most / 2**20:.0f} are read")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise ValueError(f"cannot read {path}: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"cannot read {path}: it contains {show(value)}; expected an object")
    return value


def field(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of an object, if it is there and of a type."""
    if not isinstance(row, dict) or not isinstance(row.get(name), kind) \
            or isinstance(row[name], bool):
        raise ValueError(f"its {name!r} is {show(row.get(name) if isinstance(row, dict) else row)}"
                         "; expected another kind of value")
    return row[name]


def size_of(row: dict[str, Any], height: str, width: str) -> tuple[int, int] | None:
    """``(H, W)``, as two fields of an object give it; ``None`` if it has none."""
    if row.get(height) is None and row.get(width) is None:
        return None
    size = field(row, height, int), field(row, width, int)
    if not all(0 < side <= MOST_SIDE for side in size):
        raise ValueError(f"its {height!r} and {width!r} are {show(size)}")
    return size


def points_of(values: Any, least: int) -> np.ndarray:
    """Points ``(n, 2)`` from a flat list x, y, x, y, ... or a list of pairs.

    Raises:
        ValueError: there are fewer than ``least``, or what is no finite number.
    """
    try:
        points = np.asarray(values, np.float64)
        points = points.reshape(-1, 2) if points.ndim == 1 else points
    except (TypeError, ValueError, OverflowError):
        points = np.zeros((0, 0))
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < least \
            or not np.isfinite(points).all() or np.abs(points).max() > MOST_SIDE * 2:
        raise ValueError(f"its points are {show(values)}; expected at least {least} pairs of x and "
                         "y")
    return points


def inside(folder: Path, name: str) -> Path | None:
    """The file of a name within a folder, or of the end of its path; ``None`` = there is none.

    Raises:
        ValueError: the name leads out of the folder.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or "\0" in name or ".." in parts or parts[0] == "/" or ":" in parts[0]:
        raise ValueError(f"its file name {show(name)} leads out of the folder of the images; "
                         "expected a name within it")
    places = (folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((place for place in places if place.is_file() or place.is_dir()), None)


