"""The numbers in the pixels: their range, pixels that were not measured, and what a model sees."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import nestedseg
from nestedseg.cli import main
from nestedseg.data import LabelledImages, Pair, Patches, preprocess
from nestedseg.data.preprocessing import missing, scale
from nestedseg.evaluation.cases import open_case

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]


def pair(folder, name, image, label=None):
    """Files of an image ``(H, W)`` or ``(H, W, C)`` and of its label."""
    label = (RNG.random(image.shape[:2]) < 0.3).astype(np.uint8) if label is None else label
    for part, array in (("images", image), ("labels", label)):
        (folder / part).mkdir(exist_ok=True)
        array = array[..., 0] if array.shape[2:] == (1,) else array
        tifffile.imwrite(folder / part / f"{name}.tif", array, photometric="minisblack",
                         planarconfig="contig" if array.ndim == 3 else None)
    return Pair(folder / "images" / f"{name}.tif", folder / "labels" / f"{name}.tif")


def model_for(images, **preprocessing):
    model = nestedseg.create("unet", encoder_channels=(4, 8), in_channels=images.in_channels)
    model.set_preprocessing(**images.preprocessing(**preprocessing))
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bands", [1, 2, 4, 7])
def test_a_model_sees_every_type_of_number_with_mean_0_and_deviation_1(dtype, bands, tmp_path):
    values = 60 + RNG.normal(size=(40, 50, bands)) * 8 + 5 * np.arange(bands)
    images = LabelledImages([pair(tmp_path, "a", values.astype(dtype))])
    assert images.in_channels == bands
    x = preprocess(images[0][0], model_for(images))
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(x.std((0, 2, 3)), 1, atol=1e-3)


def test_twelve_bits_in_sixteen_fill_the_range_of_pretrained_weights(tmp_path):
    images = LabelledImages([pair(tmp_path, str(n), RNG.integers(0, 4096, (60, 70, 3), np.uint16))
                             for n in range(4)])
    [[low, high]] = images.value_range()
    assert 5 < low < 45 and 4050 < high < 4090
    values = scale(images[0][0], images.value_range())
    assert values.std() == pytest.approx(0.29, abs=0.01)  # of a uniform distribution: 12 ** -0.5


def test_the_measured_range_weighs_every_pixel_the_same(tmp_path):
    small, large = np.full((10, 10), 200, np.uint16), RNG.integers(0, 101, (200, 300), np.uint16)
    images = LabelledImages([pair(tmp_path, "a", small, np.ones((10, 10), np.uint8)),
                             pair(tmp_path, "b", large)])
    everything = np.concatenate([small.ravel(), large.ravel()])
    np.testing.assert_allclose(images.value_range()[0], np.percentile(everything, (0.5, 99.5)),
                               atol=1)


def test_ranges_of_each_band_are_linear_and_a_window_clips(tmp_path):
    image = RNG.integers(-1000, 2000, (40, 50, 2), np.int16)
    images = LabelledImages([pair(tmp_path, "a", image)])
    ranges = [[-160, 240], [0, 1000]]
    expected = (image - np.array([-160, 0])) / np.array([400, 1000])
    np.testing.assert_allclose(scale(image, ranges), expected, rtol=1e-6)
    np.testing.assert_allclose(scale(image, ranges, clip=True), np.clip(expected, 0, 1), rtol=1e-6)
    model = model_for(images, value_range=ranges, clip=True)
    x = preprocess(image, model)
    clipped = np.clip(expected, 0, 1)
    np.testing.assert_allclose(model.preprocessing["mean"], clipped.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(x[0].permute(1, 2, 0), (clipped - clipped.mean((0, 1)))
                               / clipped.std((0, 1)), atol=1e-5)


@pytest.mark.parametrize("dtype, nodata", [("int16", -9999), ("uint16", 0), ("float32", np.nan),
                                           ("float32", -9999.0), ("uint8", 255)])
def test_pixels_that_were_not_measured_change_nothing(dtype, nodata, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    clean = RNG.integers(1, 200, (3, 40, 50)).astype(dtype)
    gone = RNG.random((40, 50)) < 0.2
    stored = np.where(gone, nodata, clean).astype(dtype)
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.tif"
    with rasterio.open(path, "w", "GTiff", 50, 40, 3, dtype=dtype, nodata=nodata) as file:
        file.write(stored)
    label = Pair(*pair(tmp_path, "b", clean.transpose(1, 2, 0))).label
    images = LabelledImages([Pair(path, label)])
    measured = clean[:, ~gone].astype(float) / (np.iinfo(dtype).max
                                                if dtype in ("uint8", "uint16") else 1)
    np.testing.assert_allclose(images.mean, measured.mean(1), rtol=1e-5)
    np.testing.assert_allclose(images.std, measured.std(1), rtol=1e-4)
    x = preprocess(images[0][0], model_for(images), nodata=images.nodata_of(0))
    assert (x[0, :, gone] == 0).all()
    np.testing.assert_allclose(
        x[0, :, ~gone].T, ((measured.T - images.mean) / images.std), atol=1e-4)


def test_missing_is_what_is_nan_or_nodata():
    image = np.array([[[1.0], [np.nan], [-5.0]]])
    np.testing.assert_array_equal(missing(image), [[[False], [True], [False]]])
    np.testing.assert_array_equal(missing(image, -5), [[[False], [True], [True]]])
    assert missing(np.ones((1, 1, 1), np.uint8), -9999) is None  # which the type cannot hold
    with pytest.raises(ValueError, match="infinite pixels"):
        missing(np.array([[[np.inf]]]))


@pytest.mark.parametrize("options", [{}, {"value_range": [[0, 4095]]},
                                     {"value_range": [[500, 900]], "clip": True}])
def test_brightness_varies_in_units_of_what_the_model_sees(options, tmp_path):
    images = LabelledImages([pair(tmp_path, "a", RNG.integers(0, 4096, (60, 70), np.uint16))])
    model = model_for(images, **options)
    x = preprocess(images[0][0], model)
    assert images.prepared_std(model.preprocessing) == pytest.approx(x.std().item(), rel=0.02)
    model.set_preprocessing(mean=[0.485], std=[0.229])  # of pretrained weights
    x = preprocess(images[0][0], model)
    assert images.prepared_std(model.preprocessing) == pytest.approx(x.std().item(), rel=0.02)


def test_a_range_is_chosen_printed_and_saved(tmp_path, capsys):
    for number in range(3):
        pair(tmp_path, str(number), RNG.integers(100, 3000, (32, 32, 3), np.uint16))
    weights = tmp_path / "weights.safetensors"
    encoder = nestedseg.create("unet", "test_resnet").encoder
    nestedseg.create("unet", "test_resnet")

    save_file(timm.create_model("test_resnet").state_dict(), weights)
    del encoder
    assert main(["train", "--images", f"{tmp_path}/images", "--labels", f"{tmp_path}/labels",
                 "--encoder", "test_resnet", "--encoder-weights", str(weights), "--depth", "2",
                 "--epochs", "1", "--steps", "1", "--batch", "1", "--patch", "32",
                 "--nodata", "101", "--out", f"{tmp_path}/run"]) == 0
    assert "of the pixels become 0 to 1" in capsys.readouterr().out
    saved = json.loads((tmp_path / "run/model/config.json").read_text())["preprocessing"]
    assert saved["nodata"] == 101  # so that prediction leaves out the same pixels
    [[low, high]] = saved["value_range"]
    assert 90 < low < 150 and 2950 < high <= 3000
    assert nestedseg.from_pretrained(tmp_path / "run/model").preprocessing["value_range"] \
        == [[low, high]]


@pytest.mark.parametrize("options, message", [
    (["--window", "-160", "240", "--input-range", "0", "1"], "give one of them"),
    (["--input-range", "0", "1", "2"], "needs pairs LOW HIGH"),
    (["--input-range", "5", "1"], "needs pairs LOW HIGH, the lower first"),
    (["--window", "0", "9", "--standardise"], "leave out one of the two"),
    (["--input-range", "0", "1", "0", "1"], "value_range"),
])
def test_an_impossible_range_is_named(options, message, tmp_path, capsys):
    for number in range(2):
        pair(tmp_path, str(number), RNG.integers(0, 9, (20, 20), np.uint16))
    assert main(["train", "--images", f"{tmp_path}/images", "--labels", f"{tmp_path}/labels",
                 "--out", f"{tmp_path}/run", "--widths", "4", "8", *options]) == 2
    assert message in capsys.readouterr().err


def test_patches_of_a_picture_with_nodata_are_finite(tmp_path):
    image = RNG.integers(0, 200, (40, 40, 2)).astype(np.float32)
    image[:20] = np.nan
    images = LabelledImages([pair(tmp_path, "a", image)])
    model = model_for(images)
    patches = Patches(images, 16, lambda raw, **more: preprocess(raw, model, **more))
    assert all(torch.isfinite(patches[number][0]).all() for number in range(8))


def test_voxels_that_were_not_measured_count_in_no_case(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    voxels, label = RNG.random((6, 7, 8)).astype(np.float32), np.ones((6, 7, 8), np.uint8)
    voxels[:2] = np.nan
    for name, array in (("image", voxels), ("label", label)):
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / f"{name}.nii")
    images = LabelledImages([Pair(tmp_path / "image.nii", tmp_path / "label.nii")])
    truth = open_case(images, 0)[1]
    np.testing.assert_array_equal(truth == -1, np.isnan(voxels.transpose(2, 1, 0)))
    np.testing.assert_array_equal(truth, images[0][1])
