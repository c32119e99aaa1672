import csv
import gzip
import json
import math
import os
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from places import REAL
from torch.nn import functional as F

import nestedseg
from nestedseg.cli import main
from nestedseg.data import LabelledImages, Pair, Patches, find_pairs, list_images, new_mask
from nestedseg.data.files import spatial_axes, split_name
from nestedseg.data.preprocessing import measure, preprocess
from nestedseg.data.volumes import open_volume, open_volume_pair, resize, resize_label
from nestedseg.evaluation.cases import score_case
from nestedseg.evaluation.visualise_volumes import Case, draw_slices, fullest
from nestedseg.prediction.predict import predict_image, predict_volume
from nestedseg.prediction.sliding_window import slide, slide_slabs
from nestedseg.training.loop import fit
from nestedseg.training.settings import Settings

HIPPOCAMPUS = REAL / "hippocampus"
RNG = np.random.default_rng(0)

# A sagittal scan: the file's axes run to the front, downwards and to the left, 2, 3 and 1 mm.
SAGITTAL = np.array([[0, 0, -1.0, 5], [2.0, 0, 0, 6], [0, -3.0, 0, 7], [0, 0, 0, 1]])


def tilted():
    """The same, tilted by 0.2 around the axis from left to right."""
    c, s = math.cos(0.2), math.sin(0.2)
    return np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ SAGITTAL


def write(path, voxels, affine=None, scale=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, voxels)
        return path
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    if scale:
        image.header.set_slope_inter(*scale)
    image.to_filename(path)
    return path


def ball(shape, seed):
    """A bright ball with noise, and its label."""
    rng = np.random.default_rng(seed)
    centre = [length / 2 + rng.uniform(-2, 2) for length in shape]
    distance = np.linalg.norm([grid - c for grid, c in zip(np.indices(shape), centre)], axis=0)
    label = (distance < min(shape) / 4).astype(np.uint8)
    return (100 * label + rng.normal(50, 10, shape)).astype(np.float32), label


def write_balls(folder, count=4, shape=(14, 18, 16), suffix=".nii.gz", affine=SAGITTAL):
    for index in range(count):
        image, label = ball(shape, index)
        write(folder / "images" / f"{index}{suffix}", image, affine)
        write(folder / "labels" / f"{index}{suffix}", label, affine)
    return folder


def tiny(**options):
    torch.manual_seed(0)
    options = {"encoder_channels": (4, 6), "in_channels": 1, "dims": 3, "norm": None} | options
    model = nestedseg.create("unetpp", **options)
    channels = model.config["in_channels"]
    model.set_preprocessing(mean=[0.0] * channels, std=[1.0] * channels, standardise=True)
    return model.eval()


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", [np.eye(4), SAGITTAL, tilted(), np.diag([-1.0, -1, 1, 1])])
def test_a_volume_is_read_in_canonical_axes_with_its_spacing(tmp_path, suffix, affine):
    voxels = RNG.normal(size=(5, 6, 7)).astype(np.float32)
    volume = open_volume(write(tmp_path / f"a{suffix}", voxels, affine))
    canonical = nib.as_closest_canonical(nib.load(tmp_path / f"a{suffix}"))
    expected = canonical.get_fdata().transpose(2, 1, 0)
    np.testing.assert_array_equal(volume[:], expected.astype(np.float32))
    np.testing.assert_array_equal(volume[2:4], expected[2:4].astype(np.float32))
    assert volume.spacing == pytest.approx(canonical.header.get_zooms()[::-1])
    assert volume.shape == expected.shape and volume[:].dtype == np.float32


def test_the_orientation_by_hand(tmp_path):
    assert nib.aff2axcodes(SAGITTAL) == ("A", "I", "L")
    voxels = np.zeros((5, 6, 7), np.uint8)  # to the front, down, to the left
    voxels[1, 0, 6] = 1
    volume = open_volume(write(tmp_path / "a.nii", voxels, SAGITTAL))
    assert volume.shape == (6, 5, 7) and volume.spacing == (3.0, 2.0, 1.0)
    assert np.argwhere(volume[:]).tolist() == [[5, 1, 0]]  # topmost, second from the back, leftmost


def test_the_slope_of_a_header_is_applied(tmp_path):
    stored = RNG.integers(-100, 100, (4, 5, 6)).astype(np.int16)
    image = nib.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(2, -1000)
    image.to_filename(tmp_path / "a.nii")
    meant = nib.load(tmp_path / "a.nii").get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(open_volume(tmp_path / "a.nii")[:], meant)


def test_channels_come_last_and_one_moment_is_none(tmp_path):
    voxels = RNG.normal(size=(4, 5, 6, 2)).astype(np.float32)
    volume = open_volume(write(tmp_path / "a.nii.gz", voxels))
    np.testing.assert_array_equal(volume[:], voxels.transpose(2, 1, 0, 3))
    assert open_volume(write(tmp_path / "b.nii.gz", voxels[..., :1])).stored.shape == (6, 5, 4)
    np.testing.assert_array_equal(open_volume(write(tmp_path / "c.npy", voxels))[:], voxels)


def test_large_files_are_views_of_the_disk(tmp_path):
    voxels = RNG.normal(size=(4, 5, 6)).astype(np.float32)
    for name in ("a.nii", "a.npy"):
        stored = open_volume(write(tmp_path / name, voxels, SAGITTAL)).stored
        while stored.base is not None and not isinstance(stored, np.memmap):
            stored = stored.base
        assert isinstance(stored, np.memmap)


def test_names_and_kinds_of_files(tmp_path):
    assert split_name(Path("x/a.b.nii.gz")) == ("a.b", ".nii.gz")
    assert split_name(Path("a.NII")) == ("a", ".NII")
    assert split_name(Path("a.png")) == ("a", ".png") and split_name(Path("a")) == ("a", "")
    write(tmp_path / "images/a.nii.gz", np.zeros((2, 2, 2), np.uint8))
    write(tmp_path / "labels/a.nii", np.zeros((2, 2, 2), np.uint8))
    pair = Pair(tmp_path / "images/a.nii.gz", tmp_path / "labels/a.nii")
    assert find_pairs(tmp_path / "images", tmp_path / "labels") == [pair]
    assert spatial_axes(pair) == 3
    extra = write(tmp_path / "labels/b.npy", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"b\.npy has no image of the same name"):
        find_pairs(tmp_path / "images", tmp_path / "labels")
    extra.rename(tmp_path / "labels/b.png")
    with pytest.raises(ValueError, match=r"b\.png is an image, .*a\.nii a volume"):
        list_images(tmp_path / "labels")
    (tmp_path / "labels/a.nii").unlink()
    (tmp_path / "labels/b.png").rename(tmp_path / "labels/a.png")
    with pytest.raises(ValueError, match=r"a\.png is an image, .*a\.nii\.gz a volume"):
        find_pairs(tmp_path / "images", tmp_path / "labels")


# -- bad input ------------------------------------------------------------------------------------


def good(shape=(4, 5, 6)):
    return np.zeros(shape, np.float32), np.ones(shape, np.uint8)


def with_value(value):
    image, label = good()
    image[1, 2, 3] = value
    return image, label


@pytest.mark.parametrize("image, label, message", [
    (*with_value(np.inf), r"infinite pixels; .* \(pair: .*images/a\.nii\.gz, .*labels/a"),
    (good((4, 5))[0], good()[1], r"images/a\.nii\.gz: its shape is \(4, 5\); expected three axes"),
    (good((4, 5, 6, 1, 2))[0], good()[1], r"its shape is \(4, 5, 6, 1, 2\); expected three axes"),
    (good()[0].astype(np.complex64), good()[1], r"dtype complex64 of .*images/a\.nii\.gz"),
    (good()[0], good((4, 5, 7))[1], r"images/a.* is 6 x 5 x 4 .* label .*a.* is 7 x 5 x 4"),
    (good()[0], good((4, 5, 6, 2))[1], r"the label .*labels/a\.nii\.gz .*has 2 channels"),
    (good()[0], good()[0] + 0.5, r"the label .*labels/a\.nii\.gz .*has fractions in 120 places"),
    (good()[0], good()[1] + 2, r"labels/a\.nii\.gz .* values from 3 to 3; with classes=3 they"),
])
def test_bad_volumes_are_named(tmp_path, image, label, message):
    pair = Pair(write(tmp_path / "images/a.nii.gz", image),
                write(tmp_path / "labels/a.nii.gz", label))
    with pytest.raises(ValueError, match=message):
        LabelledImages([pair], classes=3)


def test_a_label_that_lies_elsewhere_is_named(tmp_path):
    image, label = good()
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    pair = Pair(write(tmp_path / "a.nii", image), write(tmp_path / "b.nii", label, shifted))
    with pytest.raises(ValueError, match=r"a\.nii and its label .*b\.nii are at different places"):
        LabelledImages([pair])
    shifted[0, 3] = 1e-5  # a rounded quaternion is no other place
    LabelledImages([Pair(pair.image, write(tmp_path / "b.nii", label, shifted))])
    array = Pair(pair.image, write(tmp_path / "b.npy", label))
    with pytest.raises(ValueError, match="must both have an affine"):
        LabelledImages([array])


def test_damaged_files_are_named(tmp_path):
    voxels = RNG.normal(size=(20, 20, 20)).astype(np.float32)
    whole = {name: write(tmp_path / f"whole{name}", voxels).read_bytes()
             for name in (".nii", ".nii.gz", ".npy")}
    for name, data in whole.items():
        for kind, content in (("cut", data[:len(data) // 2]), ("short", data[:100]),
                              ("empty", b""), ("text", b"no volume")):
            path = tmp_path / f"{kind}{name}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"cannot read the volume .*{kind}{name}"):
                open_volume(path)
    with pytest.raises(ValueError, match=r"cannot read the volume .*missing\.nii"):
        open_volume(tmp_path / "missing.nii")
    np.save(tmp_path / "pickle.npy", np.array([{}, None]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot read the volume .*pickle\.npy"):
        open_volume(tmp_path / "pickle.npy")


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path):
    header = bytearray(write(tmp_path / "a.nii", good()[0]).read_bytes())
    header[40:48] = np.array([3, 30_000, 30_000, 30_000], "<i2").tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(header)))
    with pytest.raises(ValueError, match=r"its header says 1080{12} bytes of voxels"):
        open_volume(tmp_path / "a.nii.gz")


def test_an_affine_without_inverse_is_named(tmp_path):
    header = bytearray(write(tmp_path / "flat.nii", good()[0]).read_bytes())
    header[312:328] = bytes(16)  # srow_z
    (tmp_path / "flat.nii").write_bytes(header)
    with pytest.raises(ValueError, match=r"flat\.nii: its affine is not invertible"):
        open_volume(tmp_path / "flat.nii")


def test_volumes_that_do_not_fit_each_other_or_the_model_are_refused(tmp_path):
    image, label = good()
    one = Pair(write(tmp_path / "a.nii", image), write(tmp_path / "al.nii", label))
    two = Pair(write(tmp_path / "b.nii", np.stack([image] * 2, -1)), one.label)
    with pytest.raises(ValueError, match=r"b\.nii has 2 and .*a\.nii has 1"):
        LabelledImages([one, two])
    with pytest.raises(ValueError, match="spacing needs three lengths in mm"):
        LabelledImages([one], spacing=[1, 0, 1])
    images, options = LabelledImages([one]), Settings(patch=4)
    for model, message in (
            (tiny(in_channels=2), None), (tiny(dims=2), "have 3 axes, but the model takes 2")):
        if message:
            with pytest.raises(ValueError, match=message):
                fit(model, images, images, tmp_path / "run", options)
    with pytest.raises(ValueError, match="training images have 2 channels, but the model takes 1"):
        fit(tiny(), LabelledImages([two]), images, tmp_path / "run", options)
    coarse = LabelledImages([one], spacing=(2, 2, 2))
    with pytest.raises(ValueError, match="have the spacing None, but the model takes"):
        model = tiny()
        model.set_preprocessing(**coarse.preprocessing())
        fit(model, coarse, images, tmp_path / "run", options)
    with pytest.raises(ValueError, match=r"size must have 3 numbers .*, got \(4, 4\)"):
        Patches(images, (4, 4), to_tensor)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("values", [{"spacing": [1, 1]}, {"spacing": [1, 1, 0]},
                                    {"spacing": "1 1 1"}, {"standardise": 1}])
def test_impossible_preprocessing_is_refused(values):
    with pytest.raises(ValueError, match=f"preprocessing '{next(iter(values))}'"):
        tiny().set_preprocessing(**values)


# -- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", [np.eye(4), SAGITTAL, tilted()])
def test_a_mask_lies_where_its_volume_does(tmp_path, suffix, affine):
    voxels = RNG.normal(size=(5, 6, 7)).astype(np.float32)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=4)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / f"a{suffix}")
    volume = open_volume(tmp_path / f"a{suffix}")
    with new_mask(tmp_path / f"mask{suffix}", volume) as mask:
        for plane in range(len(mask)):
            mask[plane] = volume[plane:plane + 1][0] > 0
    written = nib.load(tmp_path / f"mask{suffix}")
    source = nib.load(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(np.asarray(written.dataobj), voxels > 0)
    np.testing.assert_array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.uint8
    for key in ("sform_code", "qform_code", "xyzt_units", "pixdim"):
        np.testing.assert_array_equal(written.header[key], source.header[key])
    assert len(os.listdir(tmp_path)) == 2  # no draft is left


def test_a_mask_of_an_array_is_an_array_and_a_failure_leaves_nothing(tmp_path):
    volume = open_volume(write(tmp_path / "a.npy", good()[0]))
    with new_mask(tmp_path / "mask.npy", volume) as mask:
        mask[:] = 3
    assert (np.load(tmp_path / "mask.npy") == 3).all()
    with pytest.raises(RuntimeError), new_mask(tmp_path / "other.npy", volume):
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "mask.npy"]
    with pytest.raises(ValueError, match=r"must be a \.npy file, got .*mask\.nii"), \
            new_mask(tmp_path / "mask.nii", volume):
        pass


def test_the_same_mask_gives_the_same_file(tmp_path):
    volume = open_volume(write(tmp_path / "a.nii.gz", good()[0]))
    for name in ("m", "n"):
        with new_mask(tmp_path / f"{name}.nii.gz", volume) as mask:
            mask[:] = 1
    assert (tmp_path / "m.nii.gz").read_bytes() == (tmp_path / "n.nii.gz").read_bytes()


# -- resampling -----------------------------------------------------------------------------------


def test_resampling_keeps_the_extent_and_a_ramp(tmp_path):
    image, label = ball((6, 8, 10), 0)
    pair = Pair(write(tmp_path / "a.nii", image, SAGITTAL), write(tmp_path / "b.nii", label,
                                                                 SAGITTAL))
    *files, spacing = open_volume_pair(pair, (1.5, 1, 1))
    resampled, classes = (file.read()[..., 0] for file in files)
    assert resampled.shape == classes.shape == (16, 12, 10) and spacing == (1.5, 1, 1)
    before = open_volume_pair(pair)[1].read()[..., 0]
    np.testing.assert_array_equal(resize_label(classes, (8, 6, 10)), before)
    assert classes.sum() == 4 * label.sum()
    ramp = np.broadcast_to(np.arange(8.0, dtype=np.float32)[:, None, None], (8, 6, 10)).copy()
    finer = resize(ramp, (16, 12, 10))
    inside = (np.arange(16) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(finer[:, 3, 3], np.clip(inside, 0, 7), atol=1e-6)
    both = resize(np.stack([ramp, -ramp], -1), (16, 12, 10))
    np.testing.assert_allclose(both, np.stack([finer, -finer], -1))


def test_resampling_to_more_voxels_than_memory_is_refused(tmp_path):
    volume = open_volume(write(tmp_path / "a.npy", good()[0]))
    assert volume.shape_at((2, 1, 0.5)) == (2, 5, 12)
    with pytest.raises(ValueError, match=r"a\.npy has \(4, 5, 6\) voxels .* would have \(40000, "):
        volume.shape_at((1e-4, 1e-4, 1e-4))


def test_a_model_of_a_common_spacing_predicts_on_the_grid_of_the_source(tmp_path):
    model = tiny(classes=3)
    model.set_preprocessing(spacing=[1.5, 1.0, 1.0])
    volume = open_volume(write(tmp_path / "a.nii", ball((6, 8, 10), 0)[0], SAGITTAL))
    (planes, scores), = predict_volume(model, volume)
    assert planes == slice(0, 8) and scores.shape == (3, 8, 6, 10)
    finer = predict_image(model, resize(volume[:], (16, 12, 10)))
    torch.testing.assert_close(scores, F.interpolate(finer[None], (8, 6, 10), mode="trilinear")[0])


# -- preprocessing --------------------------------------------------------------------------------


def test_a_part_is_standardised_as_the_whole():
    model = tiny(in_channels=2)
    model.set_preprocessing(mean=[0.0, 0.5], std=[1.0, 2.0])
    image = RNG.normal(300, 40, (6, 7, 8, 2)).astype(np.float32)
    whole = preprocess(image, model)
    expected = (image - image.mean((0, 1, 2))) / image.std((0, 1, 2))
    expected = (expected - [0, 0.5]) / [1, 2]
    np.testing.assert_allclose(whole[0].numpy(), expected.transpose(3, 0, 1, 2), atol=1e-4)
    moments = measure([(image[:2], None), (image[2:], None)])
    torch.testing.assert_close(preprocess(image[1:3], model, moments), whole[:, :, 1:3])
    torch.testing.assert_close(preprocess(7 * image, model), whole, atol=1e-4, rtol=0)


def test_voxels_keep_their_numbers():
    model = tiny()
    model.set_preprocessing(standardise=False)
    hounsfield = RNG.integers(-1000, 1000, (2, 3, 4)).astype(np.int16)
    assert (preprocess(hounsfield, model).numpy() == hounsfield).all()
    assert (preprocess(np.full((2, 3, 4), 255, np.uint8), model) == 255).all()
    with pytest.raises(ValueError, match=r"\(D, H, W\) or \(D, H, W, 1\), got \(2, 3\)"):
        preprocess(hounsfield[..., 0], model)
    same = tiny()  # a volume of one value has no deviation to divide by
    assert (preprocess(np.full((2, 3, 4), 7.0, np.float32), same) == 0).all()


def test_preprocessing_is_that_of_the_training_images(tmp_path):
    folder = write_balls(tmp_path)
    images = LabelledImages(find_pairs(folder / "images", folder / "labels"))
    voxels = np.stack([ball((14, 18, 16), n)[0] for n in range(4)])
    assert images.mean == pytest.approx([voxels.mean()], rel=1e-5)
    assert images.std == pytest.approx([voxels.std()], rel=1e-5)
    assert images.spacings == [(3.0, 2.0, 1.0)] * 4 and images.shapes == [(18, 14, 16)] * 4
    assert images.preprocessing() == {"input_range": [0.0, 1.0], "mean": [0.0], "std": [1.0],
                                      "standardise": True, "spacing": None}
    assert images.preprocessing(standardise=False)["mean"] == images.mean


# -- patches --------------------------------------------------------------------------------------


def to_tensor(image, moments=None):
    return torch.from_numpy(image)[None, None]


def images_of(tmp_path, image, label, spacing=(1, 1, 1)):
    affine = np.diag([*spacing[::-1], 1.0])
    return LabelledImages([Pair(write(tmp_path / "a.nii", image.transpose(2, 1, 0), affine),
                                write(tmp_path / "b.nii", label.transpose(2, 1, 0), affine))])


@pytest.mark.parametrize("wanted", [0.0, 0.5, 1.0])
def test_the_stated_part_of_patches_is_centred_on_foreground(tmp_path, wanted):
    image = np.zeros((30, 31, 32), np.float32)
    label = image.astype(np.uint8)
    label[10, 20, 15] = label[20, 8, 7] = 1
    patches = Patches(images_of(tmp_path, image, label), (5, 7, 3), to_tensor, foreground=wanted)
    centred = [bool(patches[k][1][2, 3, 1]) for k in range(400)]
    assert np.mean(centred) == pytest.approx(wanted, abs=0.075)  # three standard deviations
    default = Patches(patches.images, 5, to_tensor)
    assert default.foreground == pytest.approx(1 / 3) and default.size == (5, 5, 5)


@pytest.mark.parametrize("spacing, size, symmetries", [
    ((1, 1, 1), 3, 48), ((3, 1, 1), 3, 16), ((3, 2, 1), 3, 8), ((1, 1, 1), (2, 3, 3), 16)])
def test_axes_change_places_only_where_they_are_alike(tmp_path, spacing, size, symmetries):
    shape = (size,) * 3 if isinstance(size, int) else size
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    patches = Patches(images_of(tmp_path, image, (image > 5).astype(np.uint8), spacing), size,
                      to_tensor)
    seen = set()
    for k in range(600):
        patch, label = patches[k]
        order = patch.flatten().argsort()
        assert label.flatten()[order].tolist() == [int(n > 5) for n in range(image.size)]
        seen.add(tuple(order.tolist()))
    assert len(seen) == symmetries
    still = Patches(patches.images, size, to_tensor, mirror=False)
    assert {tuple(still[k][0].flatten().argsort().tolist()) for k in range(20)} \
        == {tuple(range(image.size))}


def test_a_small_volume_is_reflected(tmp_path):
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    patch, target = Patches(images_of(tmp_path, image, (image > 7).astype(np.uint8)), (5, 4, 6),
                            to_tensor)[0]
    assert patch.shape == (1, 5, 4, 6) and target.shape == (5, 4, 6)
    assert len(patch.unique()) == 24


# -- slab by slab ---------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("size", [(33, 9, 20), (16, 17, 8), (5, 6, 7), (17, 40, 16)])
def test_slabs_give_what_the_whole_gives(size, overlap):
    x = torch.rand(1, 2, *size, dtype=torch.float64)
    conv = torch.nn.Conv3d(2, 3, 3, padding=1, dtype=torch.float64)  # pads, so windows disagree
    reads, ends, parts = [], [0], []

    def read(planes):
        reads.append(planes)
        return x[:, :, planes]

    for planes, logits in slide_slabs(conv, read, size, 16, overlap):
        assert planes.start == ends[-1] and logits.shape[2] == planes.stop - planes.start
        ends.append(planes.stop)
        parts.append(logits)
    assert ends[-1] == size[0] and max(planes.stop - planes.start for planes in reads) <= 16
    torch.testing.assert_close(torch.cat(parts, 2), slide(conv, x, 16, overlap), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["a.npy", "a.nii"])
def test_a_volume_on_disk_is_predicted_like_one_in_memory(tmp_path, name):
    model = tiny(classes=2)
    volume = open_volume(write(tmp_path / name, ball((40, 12, 14), 0)[0]))
    whole = predict_image(model, volume[:], window=(16, 8, 16), overlap=0.5)
    slabs = list(predict_volume(model, volume, (16, 8, 16), 0.5))
    assert len(slabs) == (4 if name == "a.npy" else 1)  # D is 40 or, in the NIfTI, 14
    torch.testing.assert_close(torch.cat([scores for _, scores in slabs], 1), whole, rtol=0,
                               atol=1e-5)


# -- scores and pictures --------------------------------------------------------------------------


def test_scores_of_a_shifted_box_by_hand():
    """Boxes of 4 x 4 x 4 voxels, one plane of 2 mm apart: each has 56 voxels in its surface. Of
    those the 16 of the far face are 2 mm from the other surface, 4 inner ones of the near face lie
    1 mm inside of it, and 36 on it."""
    truth, mask = np.zeros((2, 8, 8, 8), np.uint8)
    truth[1:5, 2:6, 2:6] = mask[2:6, 2:6, 2:6] = 1
    score, = score_case("a", mask, truth, (2, 1, 1), classes=1)
    assert (score.dice, score.iou) == (pytest.approx(3 / 4), pytest.approx(3 / 5))
    assert score.hd95 == pytest.approx(2)
    assert score.surface_dice == pytest.approx(40 / 56)
    assert score_case("a", mask, truth, (2, 1, 1), 1, tolerance=2)[0].surface_dice == 1
    assert score_case("a", mask, truth, (1, 1, 1), 1)[0].surface_dice == 1
    same, = score_case("a", truth, truth, (2, 1, 1), classes=2)
    assert (same.dice, same.iou, same.hd95, same.surface_dice) == (1, 1, 0, 1)


def test_scores_where_a_class_is_missing():
    truth, mask = np.zeros((2, 4, 4, 4), np.uint8)
    truth[1:3, 1:3, 1:3] = 1
    mask[1:3, 1:3, 1:3] = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missed, alarm, neither = score_case("a", mask, truth, (1, 1, 1), classes=4)
    for score in (missed, alarm):
        assert (score.dice, score.iou, score.hd95, score.surface_dice) == (0, 0, math.inf, 0)
    assert all(map(math.isnan, (neither.dice, neither.iou, neither.hd95, neither.surface_dice)))


def test_slices_are_cut_where_the_foreground_is(tmp_path):
    image, label = ball((20, 24, 30), 0)
    label[:] = 0
    label[3, 4:8, 5:9] = label[3:5, 4, 5:9] = label[3:5, 4:8, 6] = 1
    volume = open_volume(write(tmp_path / "a.npy", image))
    assert fullest(label) == [3, 4, 6] and fullest(0 * label) == [10, 12, 15]
    draw_slices([Case("a", volume, {"truth": label, "prediction": 2 * label})],
                tmp_path / "a.png")
    pixels = nestedseg.data.read_image(tmp_path / "a.png")
    for colour in ((86, 180, 233), (213, 94, 0)):
        assert (np.abs(pixels.astype(int) - colour).max(-1) < 3).sum() > 100


# -- the commands ---------------------------------------------------------------------------------


def train(folder, out, *options):
    return main(["train", "--images", str(folder / "images"), "--labels", str(folder / "labels"),
                 "--widths", "4", "8", "--norm", "instance", "--patch", "8", "12", "12", "--steps",
                 "3", "--batch", "2", "--lr", "0.01", "--val-fraction", "0.5", "--out", str(out),
                 *options])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_balls(tmp_path_factory.mktemp("balls"))
    assert train(folder, folder / "run", "--epochs", "4") == 0
    return folder / "run"


def test_a_run_on_volumes_holds_scores_of_each_case(run):
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoint.pt", "metrics.json", "curves.png", "overlay.png", "depths.md",
                     "files.csv", "model", "cases.csv"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["settings"]["patch"] == [8, 12, 12] and metrics["model"]["dims"] == 3
    with (run / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == metrics["validation"]
    assert set(rows[0]) == {"case", "class", "dice", "iou", "hd95_mm", "surface_dice_1mm"}
    assert all(float(row["dice"]) > 0.5 for row in rows)  # it learns: a ball is a tenth
    assert nestedseg.from_pretrained(run / "model").preprocessing["standardise"] is True


def test_resuming_gives_the_numbers_of_an_uninterrupted_run(run, tmp_path, capsys):
    out = tmp_path / "parts"
    assert train(run.parent, out, "--epochs", "2") == 0
    assert train(run.parent, out, "--epochs", "4", "--resume") == 0
    assert "after epoch 2" in capsys.readouterr().out
    whole, parts = (json.loads((path / "metrics.json").read_text())["history"]
                    for path in (run, out))
    for epoch in (*whole, *parts):
        del epoch["seconds"]
    assert parts == whole
    assert train(run.parent, out, "--resume", "--spacing", "2", "2", "2") == 2
    assert "'preprocessing' was" in capsys.readouterr().err


@pytest.mark.parametrize("window", [[], ["--window", "8", "12", "12", "--overlap", "0.5"]])
def test_masks_have_the_affine_of_their_source(run, tmp_path, window):
    assert main(["predict", str(run / "model"), str(run.parent / "images"), "--out", str(tmp_path),
                 *window]) == 0
    model = nestedseg.from_pretrained(run / "model")
    options = {"window": (8, 12, 12), "overlap": 0.5} if window else {}
    for index in range(4):
        source, mask = (nib.load(folder / f"{index}.nii.gz")
                        for folder in (run.parent / "images", tmp_path / "masks"))
        np.testing.assert_array_equal(mask.affine, source.affine)
        volume = open_volume(run.parent / f"images/{index}.nii.gz")
        expected = predict_image(model, volume[:], **options)[0].numpy() > 0.5
        found = open_volume(tmp_path / f"masks/{index}.nii.gz").class_indices()
        assert (found != expected).mean() < 1e-3  # a slab rounds otherwise than the whole
        assert (tmp_path / f"overlays/{index}.png").is_file()


def test_classes_at_a_common_spacing(tmp_path):
    folder = write_balls(tmp_path, count=2)
    for path in (folder / "labels").iterdir():
        label = np.asarray(nib.load(path).dataobj).copy()
        label[:, :9] *= 2
        write(path, label, SAGITTAL)
    assert train(folder, tmp_path / "run", "--epochs", "1", "--classes", "3", "--spacing", "2",
                 "2", "2", "--no-mirror", "--foreground", "0.5") == 0
    model = nestedseg.from_pretrained(tmp_path / "run/model")
    assert model.classes == 3 and model.preprocessing["spacing"] == [2, 2, 2]
    with (tmp_path / "run/cases.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["1", "2"]
    assert main(["predict", str(tmp_path / "run/model"), str(folder / "images/0.nii.gz"), "--out",
                 str(tmp_path / "out")]) == 0
    mask = nib.load(tmp_path / "out/masks/0.nii.gz")
    assert mask.shape == (14, 18, 16) and np.asarray(mask.dataobj).max() <= 2


@pytest.mark.parametrize("options, name, value", [
    (["--strides", "1,2,2"], "strides", [[1, 2, 2]]),
    (["--encoder", "test_resnet", "--depth", "2", "--depth-strides", "1", "1", "1"],
     "depth_strides", [1, 1, 1])])
def test_thick_slices_are_not_made_fewer(tmp_path, options, name, value):
    folder = write_balls(tmp_path, count=2, shape=(20, 18, 5), affine=np.diag([1.0, 1, 6, 1]))
    assert train(folder, tmp_path / "run", "--epochs", "1", "--patch", "5", "16", "16",
                 *options) == 0
    model = nestedseg.from_pretrained(tmp_path / "run/model")
    assert model.config[name] == value and model.depths[0] == 1
    assert {level.stride[0] for level in model.encoder.levels} == {1}
    assert model.config["pad_multiple"][0] == 1 < model.config["pad_multiple"][1]
    assert main(["predict", str(tmp_path / "run/model"), str(folder / "images/1.nii.gz"), "--out",
                 str(tmp_path / "out")]) == 0
    assert nib.load(tmp_path / "out/masks/1.nii.gz").shape == (20, 18, 5)


def test_the_summary_of_a_model_for_volumes(capsys):
    assert main(["summary", "unetpp", "--encoder", "test_resnet", "--dims", "3", "--in-channels",
                 "1", "--depth", "2", "--depth-strides", "1", "--size", "8", "32", "48"]) == 0
    model = nestedseg.create("unetpp", "test_resnet", dims=3, in_channels=1, depth=2,
                             depth_strides=[1], deep_supervision=True)
    assert capsys.readouterr().out.strip() == str(model.summary((8, 32, 48)))


def test_mistakes_are_one_line_before_training(run, tmp_path, capsys):
    def error(*argv):
        assert main([str(arg) for arg in argv]) == 2
        line = capsys.readouterr().err
        assert re.fullmatch(r"nestedseg: error: [^\n]+\n", line)
        return line

    folder = write_balls(tmp_path / "bad", count=2)
    (folder / "images/1.nii.gz").write_bytes((folder / "images/1.nii.gz").read_bytes()[:400])
    data = ["train", "--images", folder / "images", "--labels", folder / "labels", "--out",
            tmp_path / "r"]
    assert "cannot read the volume" in (line := error(*data)) and "images/1.nii.gz" in line
    bad = folder / "images/1.nii.gz"
    assert "1.nii.gz" in error("predict", run / "model", bad, "--out", tmp_path / "p")
    assert main(["predict", str(run / "model"), str(bad.parent), "--out", str(tmp_path / "p")]) == 1
    assert [path.name for path in (tmp_path / "p/masks").iterdir()] == ["0.nii.gz"]
    assert re.search(r"1 of 2 images failed:\n .*1\.nii\.gz", capsys.readouterr().err)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    line = error("predict", run / "model", picture, "--out", tmp_path / "p")
    assert "a.png has 2 spatial axes, but the model takes 3" in line
    data[2], data[4] = run.parent / "images", run.parent / "labels"
    assert "size must have 3 numbers for these images" in error(*data, "--patch", 8, 8)
    assert "a fraction in [0, 1], got 2.0" in error(*data, "--foreground", 2)
    assert "patch must be at least 1" in error(*data, "--patch", 8, 0, 8)
    line = error(*data, "--encoder", "test_vit")
    assert "encoder 'test_vit' cannot be made volumetric: the model itself (VisionTrans" in line
    assert "5 encoder_channels need 4 strides" in error(*data, "--strides", "1,2,2")
    assert "depth_strides are only for timm" in error(*data, "--depth-strides", 1)
    assert not (tmp_path / "r").exists()
    infinite = folder / "inf.nii"
    write(infinite, with_value(np.inf)[0])
    line = error("predict", run / "model", infinite, "--out", tmp_path / "p")
    assert "inf.nii: there are infinite pixels" in line
    two = write(folder / "two.nii", good((4, 5, 6, 2))[0])
    line = error("predict", run / "model", two, "--out", tmp_path / "p")
    assert "two.nii: expected an image (D, H, W) or (D, H, W, 1), got (6, 5, 4, 2)" in line
    assert not list((tmp_path / "p/masks").glob("*.nii"))


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason=f"no real volumes in {HIPPOCAMPUS}")
def test_real_volumes_are_read_and_masks_lie_on_them(tmp_path):
    pairs = find_pairs(HIPPOCAMPUS / "images", HIPPOCAMPUS / "labels")
    assert len(pairs) == 260
    images = LabelledImages(pairs[:12], classes=3)
    assert images.in_channels == 1 and 0.02 < images.foreground < 0.12
    assert images.spacings == [(1.0, 1.0, 1.0)] * 12
    volume = open_volume(pairs[0].image)
    with new_mask(tmp_path / "m.nii.gz", volume) as mask:
        mask[:] = images[0][1]
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj),
                                  np.asarray(nib.load(pairs[0].label).dataobj))
    np.testing.assert_array_equal(nib.load(tmp_path / "m.nii.gz").affine, volume.affine)
