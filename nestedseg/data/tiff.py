"""Opens TIFF files by tifffile: any number of bands, tiles or strips, BigTIFF, stacks; by window.

Numbers stay as they are stored, also where 0 is displayed as white (ImageJ's inverting tables).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.base.extras import require
from nestedseg.data import orientation
from nestedseg.data.source import check_size, whole

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PALETTE = 3  # of PhotometricInterpretation
ALPHA = (1, 2)  # of ExtraSamples: associated and unassociated
REDUCED, TRANSPARENCY = 1, 4  # bits of NewSubfileType
NODATA = 42113  # GDAL's tag
GEOKEYS = 34735  # of the coordinate system
NAMES = {"Z": "planes", "T": "times", "I": "pages", "Q": "pages"}


class Tiff:
    """An opened TIFF file; a `Source`.

    Channels are the axes C, then S (the samples of a pixel). Samples are dropped only where the
    header says that they are alpha. Overviews and masks of transparency are no images of their own.

    Args:
        path: of the file.
        indexed: give the stored numbers of a palette, as labels need them; otherwise its colours.
        dims: 2 = an image ``(H, W)``; 3 = a volume ``(D, H, W)``, whose planes are the axis Z, T,
            or the pages.

    Raises:
        ValueError: the file is damaged, has several images, or is a stack where an image is
            expected, or the reverse.
    """

    def __init__(self, path: Path, indexed: bool = False, dims: int = 2) -> None:
        self.path = path
        self._reopen = (path, indexed, dims)
        with require("tifffile").TiffFile(path) as file:
            series = _only_image(file)
            page = series.keyframe
            self._series = series.axes, tuple(series.shape)
            self._pages = [_Page(each) for each in _stored_pages(series)]
            self._offset = series.dataoffset
            self._stored = np.dtype(file.byteorder + page.dtype.char)
            self.spacing = _spacing(file, series)
            self._read_header(page, series, indexed, dims)
        for each in self._pages:
            each.check(path.stat().st_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._reopen  # decoders are closures, which cannot be pickled

    def _read_header(self, page: Any, series: Any, indexed: bool, dims: int) -> None:
        axes = dict(zip(*self._series))
        stack = [axis for axis in axes if axis not in "CSYX" and axes[axis] > 1]
        self._stack = stack[0] if stack else None
        if page.dtype.kind not in "buif":
            raise ValueError(f"its numbers are of the type {page.dtype}; expected whole numbers, "
                             "floats or bool")
        _check_axes(axes, stack, dims)
        tag = page.tags.valueof(orientation.TAG, 1)
        self.orientation = tag if tag in orientation.TURNS else 1
        size = axes["Y"], axes["X"]
        shown = orientation.displayed_shape(size, self.orientation)
        depth = axes[self._stack] if self._stack else 1
        self.shape: tuple[int, ...] = (depth, *shown) if dims == 3 else shown
        samples = axes.get("S", 1)
        alpha = {samples - len(page.extrasamples) + index
                 for index, kind in enumerate(page.extrasamples) if kind in ALPHA}
        self._keep = [index for index in range(samples) if index not in alpha] or [0]
        self._colours = None if indexed or page.photometric != PALETTE else _colours(page)
        self.channels = axes.get("C", 1) * len(self._keep) if self._colours is None else 3
        self.dtype = self._colours.dtype if self._colours is not None else page.dtype
        self.mapped = self._offset is not None
        self.windowed = self.mapped or all(each.fine for each in self._pages)
        self.georeferenced = GEOKEYS in page.tags
        tag = page.tags.valueof(NODATA)
        self.nodata = _number(tag) if tag is not None else None

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window, or everything, as ``(*window, channels)``; see `Source`."""
        window = tuple(window or whole(self.shape))
        shape = [side.stop - side.start for side in window]
        check_size(shape, self.channels, self.dtype)
        rows, columns = orientation.stored_window(window[-2:], self.shape[-2:], self.orientation)
        if len(window) == 2:
            return np.ascontiguousarray(self._plane(0, rows, columns))
        planes = range(*window[0].indices(self.shape[0]))
        return np.stack([self._plane(plane, rows, columns) for plane in planes])

    def _plane(self, plane: int, rows: slice, columns: slice) -> np.ndarray:
        pixels = self._mapped(plane, rows, columns) if self._offset is not None \
            else self._decoded(plane, rows, columns)  # (h, w, C, S)
        if len(self._keep) < pixels.shape[-1]:
            pixels = pixels[..., self._keep]
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if self._colours is not None:
            pixels = self._colours[pixels[..., 0]]
        return orientation.displayed(pixels.astype(self.dtype, copy=False), self.orientation)

    def _mapped(self, plane: int, rows: slice, columns: slice) -> np.ndarray:
        """From a file whose numbers lie one after the other, uncompressed."""
        axes, shape = self._series
        array: np.ndarray = np.memmap(self.path, self._stored, "r", self._offset, shape)
        places: dict[str | None, Any] = {self._stack: plane, "Y": rows, "X": columns}
        array = array[tuple(places.get(axis, slice(None) if axis in "CS" else 0)
                            for axis in axes)]
        left = [axis for axis in axes if axis in "CSYX"]
        for axis in "CS":
            if axis not in left:
                array, left = array[..., None], [*left, axis]
        return array.transpose([left.index(axis) for axis in "YXCS"])

    def _decoded(self, plane: int, rows: slice, columns: slice) -> np.ndarray:
        axes, shape = self._series
        leading = {axis: length for axis, length in zip(axes, shape) if axis not in "YXS"}
        order = np.arange(len(self._pages)).reshape(tuple(leading.values()))
        order = order[tuple(plane if axis == self._stack else slice(None) if axis == "C" else 0
                            for axis in leading)]
        with self.path.open("rb") as file:
            bands = [self._pages[index].read(file, rows, columns) for index in np.ravel(order)]
        return bands[0][:, :, None] if len(bands) == 1 else np.stack(bands, 2)


class _Page:
    """One stored page ``(H, W, S)`` in strips or tiles."""

    def __init__(self, page: Any) -> None:
        keyframe = page.keyframe
        self.offsets, self.sizes = page.dataoffsets, page.databytecounts
        self.decode, self.dtype = keyframe.decode, keyframe.dtype
        self.planes, depth, self.height, self.width, self.samples = keyframe.shaped
        if depth != 1 or keyframe.shaped[0] * keyframe.shaped[-1] != keyframe.samplesperpixel:
            raise ValueError(f"its pages have the shape {keyframe.shaped}; expected one plane")
        self.tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader} \
            if keyframe.compression in (6, 7, 34892, 33007) else {}
        self.rows = keyframe.tilelength if keyframe.is_tiled else keyframe.rowsperstrip
        self.rows = min(self.rows, self.height)
        self.columns = keyframe.tilewidth if keyframe.is_tiled else self.width
        self.empty = keyframe.nodata

    @property
    def fine(self) -> bool:
        """Whether segments are so small that a window needs only a part of the page."""
        return self.rows * self.columns <= max(2**20, self.height * self.width // 16)

    def check(self, length: int) -> None:
        """Checks that all segments are there, and lie within the file's ``length``.

        Raises:
            ValueError: they do not.
        """
        expected = self.planes * math.ceil(self.height / self.rows) \
            * math.ceil(self.width / self.columns)
        ends = np.add(self.offsets, self.sizes, dtype=np.int64)
        if len(ends) < expected or ends.max(initial=0) > length:
            raise ValueError(f"it is damaged: its header says {expected} parts that end at byte "
                             f"{ends.max(initial=0)}, but there are {len(ends)}, and the file has "
                             f"{length} bytes")

    def read(self, file: Any, rows: slice, columns: slice) -> np.ndarray:
        """A window ``(h, w, S)``."""
        out = np.full((self.planes, rows.stop - rows.start, columns.stop - columns.start,
                       self.samples), self.empty, self.dtype)
        for index in self._needed(rows, columns):
            data = None
            if self.sizes[index]:  # an empty segment is one that was never measured
                file.seek(self.offsets[index])
                data = file.read(self.sizes[index])
            pixels, (plane, _, top, left, _), (_, height, width, _) = self.decode(
                data, index, **self.tables)
            if pixels is None:
                continue
            down, right = min(top + height, rows.stop), min(left + width, columns.stop)
            first, start = max(top, rows.start), max(left, columns.start)
            out[plane, first - rows.start:down - rows.start,
                start - columns.start:right - columns.start] = \
                pixels[0, first - top:down - top, start - left:right - left]
        return out.transpose(1, 2, 0, 3).reshape(*out.shape[1:3], -1)

    def _needed(self, rows: slice, columns: slice) -> Iterator[int]:
        """The numbers of the segments that a window touches."""
        down, across = math.ceil(self.height / self.rows), math.ceil(self.width / self.columns)
        for plane in range(self.planes):
            for row in range(rows.start // self.rows, math.ceil(rows.stop / self.rows)):
                for column in range(columns.start // self.columns,
                                    math.ceil(columns.stop / self.columns)):
                    yield (plane * down + row) * across + column


def _only_image(file: Any) -> Any:
    """The series of the one image that is no overview or mask.

    Raises:
        ValueError: there is none, or are several.
    """
    images = [series for series in file.series
              if not series.keyframe.subfiletype & (REDUCED | TRANSPARENCY)]
    if len(images) != 1:
        shapes = ", ".join(str(tuple(series.shape)) for series in images[:4]) or "none"
        raise ValueError(f"it has {len(images)} images ({shapes}); expected one image per file, so "
                         "save each in a file of its own")
    return images[0]


def _stored_pages(series: Any) -> list[Any]:
    if series.dataoffset is not None:  # the header of the first stands for all
        return [series.keyframe]
    pages = list(series.pages)
    if any(page is None for page in pages):
        raise ValueError("some of its planes are missing; they may lie in other files of the set")
    return pages


def _check_axes(axes: dict[str, int], stack: list[str], dims: int) -> None:
    found = ", ".join(f"{axis} {length}" for axis, length in axes.items())
    if not {"Y", "X"} <= axes.keys() or len(stack) > 1:
        raise ValueError(f"its axes are {found}; expected Y and X, channels C or S, and at most "
                         "one more of length above 1")
    if stack and dims == 2:
        axis = stack[0]
        raise ValueError(f"it is a stack of {axes[axis]} {NAMES.get(axis, 'pages')}; expected one "
                         f"image per file. Read it as a volume, with nestedseg.data.open_volume "
                         "or --dims 3, or save each plane in a file of its own")


def _colours(page: Any) -> np.ndarray:
    """The palette, ``(entries, 3)``, uint8: it is stored in 16 bits, of which 8 are used."""
    return (np.asarray(page.colormap).T >> 8).astype(np.uint8)


def _number(text: Any) -> float | None:
    try:
        return float(str(text).strip().strip("\0"))
    except ValueError:
        return None


def _spacing(file: Any, series: Any) -> tuple[float, float, float]:
    """The size of a voxel along D, H, W in mm where ImageJ says it; otherwise 1."""
    known = file.imagej_metadata or {}
    units = {"mm": 1.0, "um": 1e-3, "\\u00B5m": 1e-3, "µm": 1e-3, "micron": 1e-3, "nm": 1e-6,
             "cm": 10.0}
    scale = units.get(known.get("unit", ""))
    if scale is None:
        return 1.0, 1.0, 1.0
    sides = [_per_pixel(series.keyframe.tags.valueof(tag)) for tag in (283, 282)]  # Y, X
    return float(known.get("spacing", 1.0)) * scale, sides[0] * scale, sides[1] * scale


def _per_pixel(resolution: Any) -> float:
    return resolution[1] / resolution[0] if resolution and resolution[0] else 1.0

