"""Opens Zarr arrays and OME-Zarr images (NGFF 0.4 and 0.5, https://ngff.openmicroscopy.org)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.base.extras import require
from nestedseg.data.source import whole

MILLIMETRES = {"meter": 1e3, "centimeter": 10.0, "millimeter": 1.0, "micrometer": 1e-3,
               "nanometer": 1e-6}
PLAIN = {2: "yx", 3: "zyx", 4: "zyxc"}  # axes of an array that does not name them


class ZarrArray:
    """An opened ``.zarr`` folder; a `Source`.

    The axis c becomes the channels. Of an OME-Zarr image the largest resolution is taken; an array
    without names of axes is an image ``(H, W)`` or a volume ``(D, H, W)`` or ``(D, H, W, C)``.

    Args:
        path: of the folder.
        dims: 2 = an image, 3 = a volume. Default: as many as it has.

    Raises:
        ValueError: it is damaged, or has other axes.
    """

    windowed, mapped = True, False
    nodata: float | None = None

    def __init__(self, path: Path, dims: int | None = None) -> None:
        self.path = path
        self._reopen = (path, dims)
        group = require("zarr", "zarr").open(str(path), mode="r")
        image = _multiscale(group.attrs)
        self._array = group if image is None else group[image["datasets"][0]["path"]]
        if not hasattr(self._array, "shape"):
            raise ValueError("it is a Zarr group without an OME-Zarr image; give the folder of one "
                             "array")
        self._axes = _axes(image, len(self._array.shape))
        lengths = dict(zip(self._axes, self._array.shape))
        more = [axis for axis in lengths if axis not in "zyxc" and lengths[axis] > 1]
        if not {"y", "x"} <= lengths.keys() or more or self._array.dtype.kind not in "buif":
            raise ValueError(f"its axes are {lengths} of {self._array.dtype}; expected y and x, "
                             "perhaps z and c, of numbers")
        deep = lengths.get("z", 1) > 1
        if dims == 2 and deep:
            raise ValueError(f"it is a stack of {lengths['z']} planes; expected an image. Read it "
                             "as a volume, with nestedseg.data.open_volume or --dims 3")
        self._depth = ("z",) if dims == 3 or (dims is None and "z" in lengths) else ()
        self.shape: tuple[int, ...] = tuple(lengths.get(axis, 1) for axis in (*self._depth, *"yx"))
        self.channels = lengths.get("c", 1)
        self.dtype = self._array.dtype
        self.spacing = _spacing(image, self._axes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._reopen

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window; see `Source`."""
        axes = (*self._depth, *"yx")
        places: dict[str, Any] = dict(zip(axes, window or whole(self.shape)))
        values = self._array[tuple(
            places.get(axis, slice(None) if axis == "c" else 0) for axis in self._axes)]
        kept = [axis for axis in self._axes if axis in places or axis == "c"]
        for axis in (*axes, "c"):
            if axis not in kept:
                values, kept = np.asarray(values)[..., None], [*kept, axis]
        return np.ascontiguousarray(values.transpose([kept.index(axis) for axis in (*axes, "c")]))


def _multiscale(attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What OME-Zarr says of the image; ``None`` for a plain array."""
    known = attributes.get("ome", attributes)
    scales = known.get("multiscales") if isinstance(known, Mapping) else None
    return scales[0] if scales else None


def _axes(image: Mapping[str, Any] | None, count: int) -> tuple[str, ...]:
    if image is None:
        return tuple(PLAIN.get(count, "?" * count))
    axes = image.get("axes") or list("tczyx"[-count:])  # NGFF 0.2 and earlier had these five
    return tuple(axis if isinstance(axis, str) else axis["name"] for axis in axes)


def _spacing(image: Mapping[str, Any] | None, axes: Sequence[str]) -> tuple[float, ...]:
    """The size of a voxel along D, H, W in mm; 1 where it is not said."""
    if image is None:
        return 1.0, 1.0, 1.0
    scale = next((each["scale"] for each in image["datasets"][0].get(
        "coordinateTransformations", ()) if each.get("type") == "scale"), [1.0] * len(axes))
    units = [axis.get("unit", "") if isinstance(axis, Mapping) else "" for axis in
             image.get("axes", ())]
    sizes = {axis: side * MILLIMETRES.get(unit, 1.0)
             for axis, side, unit in zip(axes, scale, units or [""] * len(axes))}
    return tuple(float(sizes.get(axis, 1.0)) for axis in "zyx")
