"""Writes masks and probabilities of images row by row: PNG, TIFF, GeoTIFF and ``.npy`` files.

A file appears when it is complete. Of the picture only the rows that are being written are in
memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nestedseg.base.errors import choose
from nestedseg.base.extras import require
from nestedseg.data.source import Source
from nestedseg.hub.storage import drafted, writing

SUFFIXES = {"png": ".png", "tif": ".tif", "npy": ".npy", "geotiff": ".tif"}
TILE = 256  # pixels, of TIFF files
GREY, PALETTE = 0, 3  # colour types of PNG
VOID = 255  # in a GeoTIFF: pixels that were not measured

Write = Callable[[np.ndarray], None]


class Raster(NamedTuple):
    """What is written.

    Attributes:
        shape: ``(H, W)``.
        dtype: of the numbers.
        channels: of each pixel.
        palette: ``(entries, 3)`` uint8, the colours of the numbers; ``None`` = grey.
        like: the image that it belongs to, whose place on the Earth a GeoTIFF gets.
        void: whether `VOID` marks pixels that were not measured, which only a GeoTIFF can say.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    channels: int = 1
    palette: np.ndarray | None = None
    like: Source | None = None
    void: bool = False


@contextmanager
def new_raster(path: Path, format: str, raster: Raster) -> Iterator[Write]:
    """A context with a function that takes the rows of a picture one after the other.

    Args:
        path: of the file, which appears when the context ends without an error.
        format: one of `SUFFIXES`.
        raster: what is written.

    Yields:
        ``write(rows)``, of ``(rows, W)`` or ``(rows, W, channels)``.

    Raises:
        ValueError: the format has no room for such a picture.
        OSError: the file cannot be written.
    """
    write_file = WRITERS[choose("format", format, WRITERS)]
    check_format(format, raster)
    with writing(str(path), "No part of it is there"), drafted(path) as draft, \
            write_file(draft, raster) as write:
        yield write


def check_format(format: str, raster: Raster) -> None:
    """Checks that a format has room for a picture.

    Raises:
        ValueError: it has not.
    """
    if format == "png" and (raster.channels > 1 or raster.dtype not in (np.uint8, np.uint16)):
        raise ValueError(f"PNG has no room for {raster.channels} channels of {raster.dtype}; use "
                         "--format tif or npy")
    if format == "geotiff" and raster.dtype == np.float16:
        raise ValueError("a GeoTIFF has no room for float16; use --probabilities uint8 or uint16, "
                         "or --format tif or npy")
    if raster.void and raster.palette is not None and len(raster.palette) > VOID:
        raise ValueError(f"{len(raster.palette)} classes leave no number for pixels that were not "
                         f"measured, which are {VOID} in a GeoTIFF; use --format tif")
    if format == "geotiff" and getattr(raster.like, "orientation", 1) != 1:
        raise ValueError(f"{raster.like.path if raster.like else ''} is displayed in another "
                         "orientation than it is stored, which a GeoTIFF cannot have; use "
                         "--format tif")


# -- formats ---------------------------------------------------------------------------------------


@contextmanager
def _png(path: Path, raster: Raster) -> Iterator[Write]:
    with path.open("wb") as file:
        kind = GREY if raster.palette is None else PALETTE
        file.write(b"\x89PNG\r\n\x1a\n")
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", raster.shape[1], raster.shape[0],
                                          8 * raster.dtype.itemsize, kind, 0, 0, 0))
        if raster.palette is not None:
            _chunk(file, b"PLTE", raster.palette.astype(np.uint8).tobytes())
        packer = zlib.compressobj()

        def write(rows: np.ndarray) -> None:
            stored = np.ascontiguousarray(rows, raster.dtype.newbyteorder(">")).view(np.uint8)
            lines = np.pad(stored.reshape(len(rows), -1), ((0, 0), (1, 0)))  # filter 0: none
            data = packer.compress(lines.tobytes())
            if data:
                _chunk(file, b"IDAT", data)

        yield write
        _chunk(file, b"IDAT", packer.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data
               + struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


@contextmanager
def _npy(path: Path, raster: Raster) -> Iterator[Write]:
    shape = (*raster.shape, *([raster.channels] if raster.channels > 1 else []))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {
            "descr": np.lib.format.dtype_to_descr(raster.dtype), "fortran_order": False,
            "shape": shape})
        yield lambda rows: _append(file, rows, raster.dtype)


@contextmanager
def _tif(path: Path, raster: Raster) -> Iterator[Write]:
    """Through a file of the bare numbers, because tifffile asks for tiles in its own order."""
    bare = path.with_suffix(".bare")
    try:
        with bare.open("wb") as file:
            yield lambda rows: _append(file, rows, raster.dtype)
        shape = (*raster.shape, *([raster.channels] if raster.channels > 1 else []))
        palette = raster.palette
        if palette is not None:
            full = np.zeros((256, 3), np.uint16)
            full[:len(palette)] = palette.astype(np.uint16) * 257
            palette = full.T
        extra = ["unspecified"] * (raster.channels - 1) if raster.channels > 1 else None
        require("tifffile").imwrite(
            path, _tiles(bare, raster), shape=shape, dtype=raster.dtype, tile=(TILE, TILE),
            compression="deflate", photometric="palette" if palette is not None else "minisblack",
            colormap=palette, extrasamples=extra, metadata=None,
            planarconfig="contig" if raster.channels > 1 else None,
            bigtiff=np.prod(shape, dtype=float) * raster.dtype.itemsize > 2**31)
    finally:
        bare.unlink(missing_ok=True)


def _append(file: BinaryIO, rows: np.ndarray, dtype: np.dtype) -> None:
    file.write(np.ascontiguousarray(rows, dtype).data)


def _tiles(bare: Path, raster: Raster) -> Iterator[np.ndarray]:
    """The tiles of a picture in order, from a file of its bare numbers."""
    height, width = raster.shape
    with bare.open("rb") as file:
        for top in range(0, height, TILE):
            rows = min(TILE, height - top)
            strip = np.fromfile(file, raster.dtype, rows * width * raster.channels)
            strip = strip.reshape(rows, width, raster.channels)
            for left in range(0, width, TILE):
                tile = strip[:, left:left + TILE]
                lack = [(0, TILE - tile.shape[0]), (0, TILE - tile.shape[1]), (0, 0)]
                padded = np.pad(tile, lack)
                yield padded if raster.channels > 1 else padded[..., 0]


@contextmanager
def _geotiff(path: Path, raster: Raster) -> Iterator[Write]:
    rasterio = require("rasterio", "geo")
    place = place_of(raster.like) if raster.like is not None else {}
    with rasterio.open(path, "w", "GTiff", raster.shape[1], raster.shape[0], raster.channels,
                       dtype=raster.dtype.name, tiled=True, blockxsize=TILE, blockysize=TILE,
                       compress="deflate", bigtiff="IF_SAFER", nodata=VOID if raster.void else None,
                       **place) as file:
        if raster.palette is not None:
            file.write_colormap(1, {index: (*map(int, colour), 255)
                                    for index, colour in enumerate(raster.palette)})
        done = 0

        def write(rows: np.ndarray) -> None:
            nonlocal done
            bands = rows.reshape(*rows.shape[:2], -1).transpose(2, 0, 1)
            file.write(bands.astype(raster.dtype, copy=False), window=rasterio.windows.Window(
                0, done, raster.shape[1], len(rows)))
            done += len(rows)

        yield write


def place_of(source: Source) -> dict[str, Any]:
    """The place of an image on the Earth: ``crs`` and ``transform``, for rasterio."""
    rasterio = require("rasterio", "geo")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(source.path) as file:
            return {"crs": file.crs, "transform": file.transform}


def is_georeferenced(source: Source) -> bool:
    """Whether a TIFF says its place on the Earth; rasterio is not needed for that."""
    return bool(getattr(source, "georeferenced", False))


WRITERS: dict[str, Callable[[Path, Raster], Any]] = {
    "png": _png, "tif": _tif, "npy": _npy, "geotiff": _geotiff}


def quantise(scores: np.ndarray, dtype: str) -> np.ndarray:
    """Probabilities as whole numbers from 0 to the largest of a type, or as they are for floats.

    Args:
        scores: from 0 to 1.
        dtype: "uint8", "uint16" or "float16".
    """
    if dtype == "float16":
        return scores.astype(np.float16)
    return np.round(scores * np.iinfo(dtype).max).astype(dtype)


def shrink(rows: np.ndarray, start: int, step: int) -> np.ndarray:
    """Every so many rows and columns of a picture, given some of its rows.

    Args:
        rows: ``(h, W)`` or ``(h, W, C)``.
        start: the number of the first of them.
        step: 1 = all.
    """
    return rows[-start % step::step, ::step].copy()  # a view would keep all rows in memory


def read_small(source: Source, step: int, windows: Iterator[Sequence[slice]]) -> np.ndarray:
    """A smaller copy of an image, read a few rows at a time.

    Args:
        source: an opened image.
        step: see `shrink`.
        windows: of whole rows that together are the image.
    """
    parts = [shrink(source.read(window), window[0].start, step) for window in windows]
    small = np.concatenate(parts)
    return small[..., 0] if source.channels == 1 else small
