"""Opens PNG and JPEG files, which can only be decoded as a whole."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.base.extras import require
from nestedseg.data import orientation
from nestedseg.data.source import MAX_PIXELS, check_size, whole

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
DEFLATE = 1032  # compressed data unpacks to at most this many times its size
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG
MAX_CHUNK = 2**20  # bytes that are read of one: EXIF has at most 2^16
SAMPLES = {GREY: 1, COLOUR: 3, PALETTE: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}


class Picture:
    """An opened PNG or JPEG file; a `Source`. An alpha channel is dropped.

    The samples of a 16-bit PNG are kept, and gamma and colour profiles are ignored: numbers stay
    as they are stored.

    Args:
        path: of the file.
        indexed: give the stored numbers of a palette, and of samples of 1, 2 or 4 bits, as labels
            need them; otherwise palettes become RGB, and grey fills the range 0 ... 255.

    Raises:
        ValueError: the file is damaged, animated, or too large to decode.
    """

    windowed = mapped = False
    nodata: float | None = None

    def __init__(self, path: Path, indexed: bool = False) -> None:
        self.path, self.indexed = path, indexed
        self.bits, self.kind = 8, None
        with path.open("rb") as file, _opened(file) as image:
            mode, size = image.mode, (image.height, image.width)
            exif = image.getexif() if image.format == "JPEG" else None
            if exif is None:
                chunks = _png_chunks(file)
                self.bits, self.kind = _png_samples(chunks)
                exif = require("PIL.Image").Exif()
                exif.load(chunks.get(b"eXIf", b""))
        tag = exif.get(orientation.TAG, 1)
        self.orientation = tag if tag in orientation.TURNS else 1
        self.shape: tuple[int, ...] = orientation.displayed_shape(size, self.orientation)
        self.channels = 1 if self._grey(mode) else 3
        self.dtype = np.dtype(np.uint16 if self.bits == 16 else bool if mode == "1" else np.uint8)
        samples = self.channels if self.kind is None else SAMPLES[self.kind]
        check_size(size, samples, self.dtype, MAX_PIXELS)
        self._check_bomb(size)

    def _grey(self, mode: str) -> bool:
        if self.kind is None:
            return mode == "L"
        return self.kind in (GREY, GREY_ALPHA) or (self.kind == PALETTE and self.indexed)

    def _check_bomb(self, size: tuple[int, int]) -> None:
        """A PNG whose header promises more than its bytes can hold is refused unread."""
        if self.kind is None:
            return
        promised = size[0] * size[1] * SAMPLES[self.kind] * self.bits // 8
        held = self.path.stat().st_size
        if promised > held * DEFLATE:
            raise ValueError(f"its header says {size[1]} x {size[0]} pixels, but the file has only "
                             f"{held} bytes")

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window, or everything, as ``(h, w, channels)``; see `Source`."""
        pixels = self._decode()
        pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :self.channels]
        pixels = orientation.displayed(pixels, self.orientation)
        if pixels.shape != (*self.shape, self.channels) or pixels.dtype != self.dtype:
            raise ValueError(f"it was decoded as {pixels.dtype} of {pixels.shape}, but its header "
                             f"says {self.dtype} of {(*self.shape, self.channels)}")
        return np.ascontiguousarray(pixels[tuple(window or whole(self.shape))])

    def _decode(self) -> np.ndarray:
        data = self.path.read_bytes()
        if self.bits == 16 and self.kind != GREY:  # Pillow would reduce them to 8 bits
            return require("imagecodecs").png_decode(data)
        with _opened(io.BytesIO(data)) as image:
            if image.mode == "CMYK" or (image.mode == "P" and not self.indexed):
                image = image.convert("RGB")
            pixels = np.asarray(image)
        if self.bits == 16:
            return pixels.astype(np.uint16)
        if self.indexed and self.kind == GREY and self.bits in (2, 4):
            return pixels // np.uint8(255 // (2**self.bits - 1))
        return pixels


def _opened(file: Any) -> Any:
    """Pillow's image of an open PNG or JPEG file.

    Its classes are called directly: ``PIL.Image.open`` would apply a bound on pixels that is one
    number for the whole process. Ours is `check_size`.
    """
    start = file.read(8)
    file.seek(0)
    if start == PNG:
        return require("PIL.PngImagePlugin").PngImageFile(file)
    return require("PIL.JpegImagePlugin").JpegImageFile(file)


def _png_chunks(file: Any) -> dict[bytes, bytes]:
    """The chunks of a PNG file but for its pixels; those are passed over.

    Raises:
        ValueError: the file ends before its last chunk, or is an animation.
    """
    length, chunks = file.seek(0, 2), {}
    place = file.seek(len(PNG))
    while b"IEND" not in chunks:
        size, name = struct.unpack(">I4s", file.read(8).ljust(8, b"\0"))
        chunks[name] = file.read(min(size, MAX_CHUNK)) if name != b"IDAT" else b""
        place = file.seek(place + 12 + size)
        if place > length:
            raise ValueError("it is damaged: it ends before its last part")
    if b"acTL" in chunks:
        raise ValueError("it is an animation; expected one image per file")
    return chunks


def _png_samples(chunks: dict[bytes, bytes]) -> tuple[int, int]:
    """The bits of a sample and the colour type, from the header."""
    bits, kind = chunks[b"IHDR"][8:10]
    if kind not in SAMPLES:
        raise ValueError(f"its header has the unknown colour type {kind}")
    return bits, kind
