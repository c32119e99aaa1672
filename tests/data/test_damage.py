"""Every reader on every kind of damage: one error that names the file, chained to its cause."""

import gzip
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nestedseg.data import open_volume, read_image, read_label

PIXELS = (np.arange(16 * 16) % 4).astype(np.uint8).reshape(16, 16)


def png(width, height):
    """A PNG whose header says so many pixels, and which has none of them."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


def picture(path):
    Image.fromarray(PIXELS).save(path)


def array(path):
    np.save(path, np.zeros((4, 5, 6), np.float32))


def nifti(path):
    nibabel = pytest.importorskip("nibabel")
    nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)).to_filename(path)


READERS = {"image": read_image, "label": read_label, "volume": open_volume}
FILES = {"png": ("image", "label"), "jpg": ("image", "label"), "tif": ("image", "label"),
         "npy": ("volume",), "nii": ("volume",), "nii.gz": ("volume",)}
WRITERS = {"npy": array, "nii": nifti, "nii.gz": nifti}
DAMAGES = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "half": lambda data: data[:len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "a text": lambda data: b"this is a text, and a long one at that: " * 40,
    "a page": lambda data: b"<!DOCTYPE html><html>sign in first</html>",
    "half of zeros": lambda data: bytes(len(data) // 2) + data[len(data) // 2:],
    "a pickle": lambda data: b"\x80\x04\x95\x10" + data,
    "gzipped": gzip.compress,
}
CASES = [(reader, suffix, damage) for suffix, readers in FILES.items() for reader in readers
         for damage in DAMAGES]


@pytest.mark.parametrize("reader, suffix, damage", CASES, ids=map("-".join, CASES))
def test_a_damaged_file_is_one_error_that_names_it(reader, suffix, damage, tmp_path):
    path = tmp_path / f"bad.{suffix}"
    WRITERS.get(suffix, picture)(path)
    READERS[reader](path)  # it is whole
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=rf"cannot read the {reader} .*bad\.{suffix}: \S"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_file_is_named(reader, kind, tmp_path):
    path = tmp_path / ("none.npy" if reader == "volume" else "none.png")
    if kind == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=rf"cannot read the {reader} .*none\."):
        READERS[reader](path)


@pytest.mark.parametrize("reader", ["image", "label"])
@pytest.mark.parametrize("side", [65_535, 40_000])
def test_a_picture_of_too_many_pixels_is_named_with_the_cure(reader, side, tmp_path):
    path = tmp_path / "vast.png"
    path.write_bytes(png(side, side))
    with pytest.raises(ValueError, match=r"vast\.png: .*smaller pictures") as error:
        READERS[reader](path)
    assert error.value.__cause__ is not None


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, which reads what it can
def test_every_byte_of_a_tiff_may_be_damaged(tmp_path):
    path, seen = tmp_path / "bad.tif", set()
    picture(path)
    data = path.read_bytes()
    for position in range(len(data)):
        for value in (1, 2, 12):
            path.write_bytes(data[:position] + bytes([value]) + data[position + 1:])
            try:
                read_label(path)
            except ValueError as error:
                assert "bad.tif" in str(error)
                seen.add(type(error.__cause__).__name__)
    assert len(seen) > 3  # the decoder raises many kinds
