import ast
import importlib.metadata
import re
import shlex
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from places import REAL, ROOT

from nestedseg.base.extras import require
from nestedseg.data import (
    EpochSampler,
    LabelledImages,
    Pair,
    Patches,
    find_pairs,
    list_images,
    read_image,
    read_label,
    split_pairs,
    synthetic_nuclei,
)

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real images in {REAL}")
RNG = np.random.default_rng(0)


def write(path, pixels):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def grey_pair(folder, name, image, label):
    image = np.asarray(image)
    return Pair(write(folder / "images" / f"{name}.png", image),
                write(folder / "labels" / f"{name}.png", np.asarray(label)))


# -- synthetic nuclei -----------------------------------------------------------------------------


def test_nuclei_follow_from_the_seed_and_their_number_alone():
    images, labels = synthetic_nuclei(3, size=64, seed=5)
    again = synthetic_nuclei(2, size=64, seed=5)
    assert images.shape == labels.shape == (3, 64, 64)
    assert images.dtype == np.uint8 and labels.dtype == np.uint16
    assert (images[:2] == again[0]).all() and (labels[:2] == again[1]).all()
    assert (images[:2] != synthetic_nuclei(2, size=64, seed=6)[0]).any()


def test_nuclei_are_bright_uneven_touching_and_of_many_sizes():
    images, labels = synthetic_nuclei(4, size=192, seed=0)
    inside, outside = images[labels > 0].mean(), images[labels == 0].mean()
    assert inside > 2 * outside
    assert 0.1 < (labels > 0).mean() < 0.5
    for label in labels:
        numbers, areas = np.unique(label[label > 0], return_counts=True)
        assert list(numbers) == list(range(1, len(numbers) + 1))
        assert np.percentile(areas, 95) > 3 * np.percentile(areas, 5)
        left, right = label[:, :-1], label[:, 1:]
        assert ((left != right) & (left > 0) & (right > 0)).any()  # two nuclei touch
    # no threshold separates them: part of the nuclei is darker than part of the background
    assert np.percentile(images[labels > 0], 5) < np.percentile(images[labels == 0], 95)


@pytest.mark.parametrize("n, size", [(0, 64), (1, 31)])
def test_nuclei_refuse_impossible_numbers(n, size):
    with pytest.raises(ValueError, match=f"got n={n}, size={size}"):
        synthetic_nuclei(n, size)


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_images_are_read_exactly(tmp_path, suffix, dtype, shape):
    pixels = RNG.integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), pixels[..., ::-1] if len(shape) == 3 else pixels)
    read = read_image(path)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)


def test_a_jpeg_is_read_in_rgb_and_a_float_tiff_as_float(tmp_path):
    red = write(tmp_path / "red.jpg", np.full((8, 8, 3), (200, 10, 10), np.uint8))
    assert np.abs(read_image(red).astype(int) - (200, 10, 10)).max() < 6
    cv2.imwrite(str(tmp_path / "half.tif"), np.full((3, 4), 0.5, np.float32))
    half = read_image(tmp_path / "half.tif")
    assert half.dtype == np.float32 and (half == 0.5).all()


def test_transparency_is_dropped(tmp_path):
    path = write(tmp_path / "a.png", np.full((3, 4, 4), (10, 20, 30, 128), np.uint8))
    assert (read_image(path) == (10, 20, 30)).all() and read_image(path).shape == (3, 4, 3)


def test_labels_are_read_as_the_numbers_they_hold(tmp_path):
    bits = RNG.integers(0, 2, (5, 9)).astype(bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert read_label(tmp_path / "bits.png").dtype == np.uint8
    np.testing.assert_array_equal(read_label(tmp_path / "bits.png"), bits)

    indices = RNG.integers(0, 4, (5, 9)).astype(np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert palette.mode == "P"
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label(tmp_path / "palette.png"), indices)

    many = RNG.integers(0, 60_000, (5, 9)).astype(np.uint16)
    Image.fromarray(many).save(tmp_path / "many.png")
    np.testing.assert_array_equal(read_label(tmp_path / "many.png"), many)


def test_a_label_in_colours_keeps_them(tmp_path):
    colours = RNG.integers(0, 9, (3, 4, 3)).astype(np.uint8)
    path = write(tmp_path / "b.png", colours)
    np.testing.assert_array_equal(read_label(path), colours)


@pytest.mark.parametrize("read", [read_image, read_label])
def test_files_that_cannot_be_read_are_named(tmp_path, read):
    whole = write(tmp_path / "whole.png", RNG.integers(0, 255, (40, 40)).astype(np.uint8))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "empty.png", "text.png", "missing.png"):
        with pytest.raises(ValueError, match=f"cannot read the .*{name}"):
            read(tmp_path / name)
    pages = [Image.fromarray(np.full((3, 4), n, np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"stack.tif: it is a stack of 3 pages"):
        read(tmp_path / "stack.tif")


def test_files_are_paired_by_name_whatever_their_suffix(tmp_path):
    pixels = np.zeros((2, 2), np.uint8)
    for name in ("b.tif", "a.png", "c.jpg"):
        write(tmp_path / "images" / name, pixels)
    for name in ("c.png", "b.png", "a.PNG"):
        write(tmp_path / "labels" / name, pixels)
    (tmp_path / "images" / "notes.txt").write_text("")
    pairs = find_pairs(tmp_path / "images", tmp_path / "labels")
    assert [(pair.image.name, pair.label.name) for pair in pairs] == [
        ("a.png", "a.PNG"), ("b.tif", "b.png"), ("c.jpg", "c.png")]


def test_a_file_without_a_partner_is_named(tmp_path):
    pixels = np.zeros((2, 2), np.uint8)
    write(tmp_path / "images" / "a.png", pixels)
    write(tmp_path / "labels" / "a.png", pixels)
    for side, missing, name in (("images", "label", "extra"), ("labels", "image", "more")):
        extra = write(tmp_path / side / f"{name}.png", pixels)
        with pytest.raises(ValueError, match=rf"{name}\.png has no {missing} of the same name"):
            find_pairs(tmp_path / "images", tmp_path / "labels")
        extra.unlink()
    write(tmp_path / "images" / "a.tif", pixels)
    with pytest.raises(ValueError, match=r"a\.png and .*a\.tif have the same name"):
        find_pairs(tmp_path / "images", tmp_path / "labels")


def test_a_folder_that_is_none_or_empty_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"not a directory: .*nowhere"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"contains no images; supported formats: \.png"):
        list_images(tmp_path)


def test_split_is_disjoint_whole_and_the_same_for_the_same_seed():
    pairs = [Pair(Path(f"i{n}"), Path(f"l{n}")) for n in range(10)]
    train, validation = split_pairs(pairs, 0.3, seed=1)
    assert len(validation) == 3 and {*train, *validation} == {*pairs} and len(train) == 7
    assert split_pairs(pairs, 0.3, seed=1) == (train, validation)
    assert split_pairs(pairs, 0.3, seed=2)[1] != validation
    assert len(split_pairs(pairs, 0.001)[1]) == 1 and len(split_pairs(pairs, 0.999)[0]) == 1
    for few, fraction in ((pairs[:1], 0.5), (pairs, 0.0), (pairs, 1.0)):
        with pytest.raises(ValueError, match="at least 2 images"):
            split_pairs(few, fraction)


# -- checked collections --------------------------------------------------------------------------


def test_a_mismatch_in_size_names_both_files(tmp_path):
    pair = grey_pair(tmp_path, "a", np.zeros((4, 6), np.uint8), np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match=r"images/a.png is 6 x 4 .*labels/a.png is 5 x 4"):
        LabelledImages([pair])


def test_an_unreadable_file_is_named_with_its_partner(tmp_path):
    pair = grey_pair(tmp_path, "a", np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8))
    pair.label.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cannot read the label .*a.png.*pair: .*images/a.png"):
        LabelledImages([pair])


def test_label_values_that_are_no_class_are_refused(tmp_path):
    image, label = np.zeros((2, 2), np.uint8), np.array([[0, 255], [0, 0]], np.uint8)
    pair = grey_pair(tmp_path, "a", image, label)
    with pytest.raises(ValueError, match=r"from 0 to 255; with classes=1 .* use binary=True"):
        LabelledImages([pair])
    with pytest.raises(ValueError, match="with classes=3 they must be from 0 to 2"):
        LabelledImages([pair], classes=3)
    assert (LabelledImages([pair], binary=True)[0][1] == label // 255).all()
    with pytest.raises(ValueError, match="got classes=3"):
        LabelledImages([pair], classes=3, binary=True)
    with pytest.raises(ValueError, match="at least one pair of image and label"):
        LabelledImages([])


def test_statistics_are_those_of_all_pixels(tmp_path):
    grey = RNG.integers(0, 65_535, (4, 6)).astype(np.uint16)
    rgb = RNG.integers(0, 255, (3, 5, 3)).astype(np.uint8)
    label = RNG.integers(0, 2, (3, 5)).astype(np.uint8)
    first = grey_pair(tmp_path, "a", grey, np.zeros((4, 6), np.uint8))
    images = LabelledImages([first, grey_pair(tmp_path, "b", rgb, label)])
    pixels = np.concatenate([np.repeat(grey.reshape(-1, 1) / 65_535, 3, 1),
                             rgb.reshape(-1, 3) / 255])
    assert images.in_channels == 3 and images.shapes == [(4, 6), (3, 5)]
    np.testing.assert_allclose(images.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(images.std, pixels.std(0), rtol=1e-5)
    assert images.foreground == pytest.approx(label.sum() / (24 + 15))
    assert LabelledImages([first]).in_channels == 1


def test_what_does_not_fit_in_memory_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("nestedseg.data.labelled.KEEP_BYTES", 50)
    pixels = [np.full((4, 6), n, np.uint8) for n in range(3)]  # 48 bytes with their labels
    images = LabelledImages([grey_pair(tmp_path, str(n), p, p > 0) for n, p in enumerate(pixels)])
    assert len(images._kept) == 1
    for n, p in enumerate(pixels):
        assert (images[n][0] == p).all() and (images[n][1] == (p > 0)).all()


# -- patches --------------------------------------------------------------------------------------


def to_tensor(image, moments=None):
    return torch.from_numpy(image.astype(np.float32))[None, None]


@pytest.fixture
def ramps(tmp_path):
    """Two images whose pixels are all different, and labels that say which are above the middle."""
    pairs = []
    for name, shape in (("a", (40, 52)), ("b", (9, 20))):
        image = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
        pairs.append(grey_pair(tmp_path, name, image, (image > image.size // 2).astype(np.uint8)))
    return LabelledImages(pairs)


def test_a_patch_depends_on_seed_and_number_alone(ramps):
    first, second = Patches(ramps, 16, to_tensor, seed=3), Patches(ramps, 16, to_tensor, seed=3)
    _ = [second[k] for k in (7, 1)]  # what was drawn before does not matter
    for k in (0, 5, 5 + 10 * len(first)):
        assert all(torch.equal(a, b) for a, b in zip(first[k], second[k], strict=True))
    assert not torch.equal(first[0][0], Patches(ramps, 16, to_tensor, seed=4)[0][0])
    numbers = range(len(first), 3 * len(first))  # later epochs bring other patches
    assert not any(torch.equal(first[k][0], first[k % len(first)][0]) for k in numbers)


def test_patches_tile_the_images_and_keep_image_and_label_together(ramps):
    patches = Patches(ramps, 16, to_tensor)
    assert len(patches) == 3 * 4 + 1 * 2
    for k in range(2 * len(patches)):
        patch, target = patches[k]
        assert patch.shape == (1, 16, 16) and patch.dtype == torch.float32
        assert target.shape == (16, 16) and target.dtype == torch.int64
        # brightness and contrast keep the order of pixels, turns and flips move both alike
        if 0 < target.sum() < target.numel():
            assert patch[0][target == 1].min() > patch[0][target == 0].max()


def test_a_small_image_is_reflected(tmp_path):
    image = np.arange(15, dtype=np.uint8).reshape(3, 5)
    pair = grey_pair(tmp_path, "a", image, (image > 7).astype(np.uint8))
    patch, target = Patches(LabelledImages([pair]), 9, to_tensor)[0]
    assert patch.shape == (1, 9, 9) and target.shape == (9, 9)
    assert len(patch.unique()) == 15  # nothing but the image's own pixels


def test_an_epoch_is_a_shuffled_stretch_of_the_stream():
    sampler = EpochSampler(6, seed=1)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(6 * epoch, 6 * epoch + 6))
    assert len(sampler) == 6
    assert all([k % 6 for k in a] != [k % 6 for k in b] for a, b in pairwise(epochs))
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]


# -- the rest -------------------------------------------------------------------------------------


providers = cache(importlib.metadata.packages_distributions)


def required():
    """The module and the extra of each call of `require` in the package whose module is written."""
    for path in (ROOT / "nestedseg").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(text)) if "require(" in text else ():
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "require":
                module, *extra = (getattr(given, "value", None) for given in call.args)
                if isinstance(module, str):
                    yield module, *extra


@pytest.mark.parametrize("arguments", sorted({*required()}), ids=" of ".join)
def test_what_is_missing_comes_with_the_extra_that_the_message_installs(arguments, monkeypatch):
    package = arguments[0].partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ImportError) as caught:
        require(*arguments)
    extra = re.search(r'pip install "\.\[(\w+)\]"$', str(caught.value))[1]
    installed = {re.match(r"[\w-]+", line)[0] for line in importlib.metadata.requires("nestedseg")
                 if f'extra == "{extra}"' in line}
    assert installed & {*providers()[package]}


def test_the_message_of_a_missing_extra_is_a_command_of_pip():
    with pytest.raises(ImportError) as caught:
        require("no_such_module")
    command = shlex.split(re.search(r"pip install .*$", str(caught.value))[0])
    assert command == ["pip", "install", ".[train]"]
    assert (ROOT / "pyproject.toml").exists()  # what "." is, in a clone


@needs_real
def test_real_images_of_every_kind_are_read():
    pairs = find_pairs(REAL / "nuclei/images", REAL / "nuclei/labels")
    assert len(pairs) == 664
    nuclei = LabelledImages(pairs[:40], binary=True)
    assert nuclei.in_channels == 3 and 0.02 < nuclei.foreground < 0.6
    em = LabelledImages(find_pairs(REAL / "em/images", REAL / "em/labels"))
    assert em.in_channels == 1 and set(em.shapes) == {(512, 512)}
    assert em.foreground == pytest.approx(0.78, abs=0.02)
