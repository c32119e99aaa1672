"""PNG and JPEG files: every kind of sample, against the numbers that were written."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nestedseg.data import read_image
from nestedseg.data.images import open_image, read_label
from nestedseg.data.png_jpeg import PNG

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 11, 14
KINDS = {  # the colour type: samples of a pixel, their bits
    0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)),
    6: (4, (8, 16))}
CASES = [(kind, bits) for kind, (_, depths) in KINDS.items() for bits in depths]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(path, samples, kind, bits, palette=None, more=()):
    """Writes ``(H, W, S)`` from nothing but the PNG specification, third edition."""
    height, width, _ = samples.shape
    rows = samples.reshape(height, -1)
    if bits == 16:
        rows = rows.astype(">u2").view(np.uint8)
    elif bits == 8:
        rows = rows.astype(np.uint8)
    else:
        flat = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits:]
        rows = np.packbits(flat.reshape(height, -1), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    path.write_bytes(
        PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
        + (chunk(b"PLTE", palette.tobytes()) if palette is not None else b"")
        + b"".join(chunk(*each) for each in more)
        + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("kind, bits", CASES)
def test_samples_of_every_kind_are_read_as_they_were_written(kind, bits, tmp_path):
    samples = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, KINDS[kind][0]))
    palette = RNG.integers(0, 256, (2**bits, 3)).astype(np.uint8) if kind == 3 else None
    gamma = [(b"gAMA", struct.pack(">I", 220000))]  # an instruction to screens; numbers stay
    path = write_png(tmp_path / "a.png", samples, kind, bits, palette, gamma)
    colours = 3 if kind in (2, 6) else 1
    stored = samples[..., :colours]
    shown = palette[stored[..., 0]] if kind == 3 else \
        stored * (255 // (2**bits - 1)) if 1 < bits < 8 else stored
    shown = shown[..., 0] if colours == 1 and kind != 3 else shown
    image = read_image(path)
    assert image.dtype == (np.uint16 if bits == 16 else bool if (kind, bits) == (0, 1)
                           else np.uint8)
    np.testing.assert_array_equal(image, shown)
    np.testing.assert_array_equal(read_label(path), stored[..., 0] if colours == 1 else stored)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_turns_images_and_labels(suffix, tag, tmp_path):
    stored = np.add.outer(np.arange(HEIGHT) * 6, np.arange(WIDTH) * 9).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    plain = tmp_path / f"b.{suffix}"
    Image.fromarray(stored).save(plain, quality=100)
    right = np.asarray(Image.open(plain).transpose(
        {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[tag]) if tag > 1 else Image.open(plain))
    for read in (read_image, read_label):
        np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), right)
    window = (slice(2, 7), slice(1, 9))
    source = open_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(source.read(window)[..., 0], right[window])


def test_inks_become_colours(tmp_path):
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0] = 255  # cyan
    Image.fromarray(inks, "CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (16, 16, 3) and np.abs(image[8, 8].astype(int) - (0, 255, 255)).max() < 4


def test_transparent_colours_and_palettes_give_their_colours(tmp_path):
    samples = RNG.integers(0, 4, (HEIGHT, WIDTH, 1))
    palette = RNG.integers(0, 256, (4, 3)).astype(np.uint8)
    path = write_png(tmp_path / "a.png", samples, 3, 8, palette, [(b"tRNS", b"\0\x80")])
    np.testing.assert_array_equal(read_image(path), palette[samples[..., 0]])
    np.testing.assert_array_equal(read_label(path), samples[..., 0])


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(RNG.integers(0, 255, (8, 8)).astype(np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"a\.png: it is an animation"):
        read_image(tmp_path / "a.png")


def test_a_header_that_promises_more_than_the_bytes_hold_is_refused_unread(tmp_path):
    path = write_png(tmp_path / "a.png", RNG.integers(0, 9, (4, 4, 3)), 2, 8)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 9000, 9000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"a\.png: its header says 9000 x 9000 pixels"):
        read_image(path)
