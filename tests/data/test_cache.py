"""Images in windows and from the cache: the same numbers as from the decoded file, always."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from nestedseg.data import Cache, LabelledImages, Pair, Patches, labelled, open_image
from nestedseg.data import cache as cache_module
from nestedseg.data.findings import Findings, examine
from nestedseg.data.source import blocks

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)


def png(path, shape=(60, 80, 3), seed=0):
    path.parent.mkdir(exist_ok=True, parents=True)
    pixels = np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_tiles(path, pixels):
    path.parent.mkdir(exist_ok=True, parents=True)
    tifffile.imwrite(path, pixels, tile=(16, 16), compression="deflate",
                     photometric="rgb" if pixels.ndim == 3 else "minisblack")


def pairs_in(folder, count=3):
    """PNG and tiled TIFF files in turn."""
    pairs = []
    for number in range(count):
        suffix = (".png", ".tif")[number % 2]
        image, label = folder / f"images/{number}{suffix}", folder / f"labels/{number}.png"
        pixels = png(folder / f"images/{number}.png", seed=number)
        if suffix == ".tif":
            write_tiles(image, pixels)
        label.parent.mkdir(exist_ok=True)
        truth = (np.random.default_rng(number).random((60, 80)) < 0.3).astype(np.uint8)
        Image.fromarray(truth).save(label)
        pairs.append(Pair(image, label))
    return pairs


def test_every_way_of_keeping_images_gives_the_same_numbers(tmp_path, monkeypatch):
    pairs = pairs_in(tmp_path)
    kept = LabelledImages(pairs)
    cached = LabelledImages(pairs, cache=tmp_path / "cache")
    again = LabelledImages(pairs, cache=tmp_path / "cache", workers=2)
    monkeypatch.setattr(labelled, "KEEP_BYTES", 0)
    read = LabelledImages(pairs)
    assert not read._kept and len(kept._kept) == 3
    window = (slice(7, 31), slice(40, 80))
    for images in (cached, again, read):
        for name in ("mean", "std", "foreground", "shapes", "in_channels"):
            assert getattr(images, name) == getattr(kept, name)
        for index in range(3):
            for a, b in zip(images[index], kept[index]):
                np.testing.assert_array_equal(a, b)
            for a, b in zip(images.read(index, window), kept[index]):
                np.testing.assert_array_equal(a, b[window])
        for number in range(12):
            pair = [Patches(each, 24, lambda raw, **_: _tensor(raw), foreground=0.5)[number]
                    for each in (images, kept)]
            for a, b in zip(*pair):
                assert a.equal(b)


def _tensor(raw):
    import torch

    return torch.from_numpy(raw.astype(np.float32)).movedim(-1, 0)[None]


def test_a_later_run_decodes_and_examines_nothing(tmp_path, monkeypatch):
    pairs = pairs_in(tmp_path)
    first = LabelledImages(pairs, cache=tmp_path / "cache")
    monkeypatch.setattr(labelled, "examine", None)
    monkeypatch.setattr("nestedseg.data.png_jpeg.Picture._decode", None)
    later = LabelledImages(pairs, cache=tmp_path / "cache")
    assert later.mean == first.mean
    np.testing.assert_array_equal(later[0][0], first[0][0])


def test_a_changed_file_is_decoded_again(tmp_path):
    pairs = pairs_in(tmp_path, 1)
    LabelledImages(pairs, cache=tmp_path / "cache")
    pixels = png(pairs[0].image, seed=9)
    images = LabelledImages(pairs, cache=tmp_path / "cache")
    np.testing.assert_array_equal(images[0][0], pixels)
    np.testing.assert_allclose(images.mean, pixels.mean((0, 1)) / 255, rtol=1e-6)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-50],
                                    lambda data: b"x" * len(data)])
def test_a_damaged_entry_is_made_again(damage, tmp_path):
    pairs = pairs_in(tmp_path, 1)
    LabelledImages(pairs, cache=tmp_path / "cache")
    for entry in (tmp_path / "cache").iterdir():
        entry.write_bytes(damage(entry.read_bytes()))
    images = LabelledImages(pairs, cache=tmp_path / "cache")
    np.testing.assert_array_equal(images[0][0], np.asarray(Image.open(pairs[0].image)))


def test_other_rules_find_other_things(tmp_path):
    pairs = pairs_in(tmp_path, 1)
    one = LabelledImages(pairs, cache=tmp_path / "cache")
    two = LabelledImages(pairs, classes=3, cache=tmp_path / "cache")
    assert len(one.findings[0].counts) == 2 and two.classes == 3
    entries = len(list((tmp_path / "cache").glob("*.npz")))
    assert entries == 2


def test_the_cache_is_bounded_and_the_oldest_make_room(tmp_path):
    sources = []
    for number in range(4):
        png(tmp_path / f"{number}.png", (100, 100), number)
        sources.append(open_image(tmp_path / f"{number}.png"))
    cache = Cache(tmp_path / "cache", most_bytes=25_000)  # two of 10,000 and their headers
    for number, source in enumerate(sources[:2]):
        cache.wrap(source).read()
        os.utime(cache.entry([source.path]), (number, number))
    later = Cache(tmp_path / "cache", most_bytes=25_000)
    for source in sources[2:]:
        later.wrap(source).read()
    assert later.size() <= 25_000
    assert [later.entry([source.path]).exists() for source in sources] == [False, False, True, True]
    third = later.wrap(sources[0])  # there is no room, for the others are of the same run
    np.testing.assert_array_equal(third.read(), sources[0].read())
    assert not later.entry([sources[0].path]).exists()


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_a_killed_one_leaves_no_half(tmp_path):
    pairs = pairs_in(tmp_path, 6)
    code = ("import sys; from nestedseg.data import LabelledImages, find_pairs\n"
            "pairs = find_pairs(sys.argv[1] + '/images', sys.argv[1] + '/labels')\n"
            "while True:\n"
            "    LabelledImages(pairs, cache=sys.argv[1] + '/cache')\n"
            "    import pathlib\n"
            "    for entry in pathlib.Path(sys.argv[1], 'cache').iterdir():\n"
            "        entry.unlink(missing_ok=True)\n")
    for number in (1, 3, 5):
        (tmp_path / f"images/{number}.png").unlink()
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    deadline = time.time() + 60
    while not list(tmp_path.glob("cache/*.npz")) and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    for process in both:
        assert process.poll() is None  # it did not stumble over the other
        process.send_signal(signal.SIGKILL)
        process.wait()
    for entry in (tmp_path / "cache").glob("*.npy"):
        assert np.load(entry).size
    for entry in (tmp_path / "cache").glob("*.npz"):
        assert Findings.load(entry) is not None
    for part in (tmp_path / "cache").glob("*.part"):
        os.utime(part, (0, 0))
    images = LabelledImages(pairs, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.part"))
    np.testing.assert_array_equal(images[0][0], np.asarray(Image.open(pairs[0].image)))


def test_a_cache_without_room_on_disk_still_reads(tmp_path, monkeypatch):
    pixels = png(tmp_path / "a.png")
    usage = cache_module.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    source = Cache(tmp_path / "cache").wrap(open_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(source.read(), pixels)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("shape", [(1, 1), (37, 41), (5, 6, 7), (100, 3)])
@pytest.mark.parametrize("pixels", [1, 50, 10**6])
def test_blocks_are_the_image_once(shape, pixels):
    seen = np.zeros(shape, int)
    for window in blocks(shape, pixels):
        seen[window] += 1
    assert (seen == 1).all()


def test_findings_of_blocks_are_those_of_the_whole(monkeypatch):
    image = RNG.integers(8, 4000, (50, 40, 3)).astype(np.uint16)
    image[RNG.random((50, 40)) < 0.1] = 7
    target = RNG.integers(0, 4, (50, 40)).astype(np.uint8)

    def read(window):
        return image[window], target[window]

    whole = examine(read, (50, 40), 3, nodata=7)
    monkeypatch.setattr("nestedseg.data.findings.blocks", lambda shape: blocks(shape, 200))
    parts = examine(read, (50, 40), 3, nodata=7)
    measured = image[(image != 7).all(-1)] / 65535
    for found in (whole, parts):
        np.testing.assert_allclose(found.mean, measured.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.mean_square, (measured ** 2).mean(0), rtol=1e-6)
        np.testing.assert_array_equal(found.counts, np.bincount(target.ravel()))
        assert (target.ravel()[found.places] > 0).all()
        assert len(np.unique(found.places)) == len(found.places)
        assert not (found.sample == 7).any()


def test_findings_survive_a_file(tmp_path):
    found = Findings(*(np.arange(n) for n in range(1, 7)))
    found.save(tmp_path / "a.npz")
    loaded = Findings.load(tmp_path / "a.npz")
    assert all(np.array_equal(a, b) for a, b in zip(vars(found).values(), vars(loaded).values()))
    assert Findings.load(tmp_path / "none.npz") is None


def test_a_chunk_that_changes_deep_in_a_zarr_folder_is_another_entry(tmp_path):
    chunk = tmp_path / "a.zarr/0/c/0/0"
    chunk.parent.mkdir(parents=True)
    chunk.write_bytes(b"one")
    cache = Cache(tmp_path / "cache")
    before = cache.entry([tmp_path / "a.zarr"])
    chunk.write_bytes(b"other")
    assert cache.entry([tmp_path / "a.zarr"]) != before


@pytest.mark.parametrize("suffix, voxels", [("nhdr", "raw"), ("mhd", "raw")])
def test_voxels_beside_their_header_that_change_are_another_entry(suffix, voxels, tmp_path):
    itk = pytest.importorskip("SimpleITK")
    path = tmp_path / f"a.{suffix}"
    itk.WriteImage(itk.GetImageFromArray(np.zeros((3, 4, 5), np.int16)), str(path))
    cache = Cache(tmp_path / "cache")
    before = cache.entry([path])
    raw = next(each for each in tmp_path.glob("a.*") if each.suffix != path.suffix)
    raw.write_bytes(raw.read_bytes() + b"x")
    assert cache.entry([path]) != before
