"""``nestedseg predict`` writes what `predict_image` gives, in every format; ``score`` compares."""

import contextlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from processes import in_two_processes

import nestedseg
from nestedseg.cli import main
from nestedseg.data import open_image, read_image, read_label
from nestedseg.prediction import predict_image, to_mask

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)


def make_model(folder, seed=0, **options):
    torch.manual_seed(seed)
    options = {"encoder_channels": (4, 6), "classes": 3, "norm": None} | options
    model = nestedseg.create("unet", **options).eval()
    with torch.no_grad():  # so that all classes come up
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def images(tmp_path):
    for name in "ab":
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = RNG.integers(0, 255, (50, 70, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{name}.png")
    return tmp_path / "images"


def predict(tmp_path, *options, models=("model",), out="out"):
    return main(["predict", *(str(tmp_path / name) for name in models), str(tmp_path / "images"),
                 "--out", str(tmp_path / out), *map(str, options)])


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("format", ["png", "tif", "npy"])
@pytest.mark.parametrize("numbers", ["uint8", "uint16", "float16"])
def test_masks_and_probabilities_are_those_of_the_model(classes, format, numbers, images,
                                                        tmp_path):
    model = make_model(tmp_path / "model", classes=classes)
    assert predict(tmp_path, "--format", format, "--probabilities", numbers, "--no-overlay",
                   "--window", 32) == 0
    for name in "ab":
        scores = predict_image(model, read_image(images / f"{name}.png"), 32)
        path = next((tmp_path / "out/masks").glob(f"{name}.*"))
        mask = np.load(path) if format == "npy" else read_label(path)
        np.testing.assert_array_equal(mask, to_mask(scores, model.task))
        path = next((tmp_path / "out/probabilities").glob(f"{name}.*"))
        found = np.load(path) if path.suffix == ".npy" else open_image(path).read()
        found = found.reshape(50, 70, classes) / (np.iinfo(numbers).max if "u" in numbers else 1)
        np.testing.assert_allclose(found, scores.permute(1, 2, 0), atol=0.003)
    assert not (tmp_path / "out/overlays").exists()


def test_classes_that_overlap_have_a_band_each(images, tmp_path):
    model = make_model(tmp_path / "model", task="multilabel")
    assert predict(tmp_path) == 0
    scores = predict_image(model, read_image(images / "a.png"))
    np.testing.assert_array_equal(open_image(tmp_path / "out/masks/a.tif").read(),
                                  (scores > 0.5).permute(1, 2, 0))
    with pytest.raises(ValueError, match="PNG has no room for 3 channels"):
        main(["--traceback", "predict", str(tmp_path / "model"), str(images / "a.png"), "--out",
              str(tmp_path / "p"), "--format", "png"])


def test_several_models_and_mirrors_are_averaged(images, tmp_path):
    models = [make_model(tmp_path / str(seed), seed) for seed in range(2)]
    assert predict(tmp_path, "--probabilities", "float16", models=("0", "1")) == 0
    image = read_image(images / "a.png")
    mean = torch.stack([predict_image(model, image) for model in models]).mean(0)
    found = open_image(tmp_path / "out/probabilities/a.tif").read()
    np.testing.assert_allclose(found, mean.permute(1, 2, 0), atol=0.002)
    assert predict(tmp_path, "--probabilities", "float16", "--tta", models=("0",), out="t") == 0
    turned = [np.flip(predict_image(models[0], np.flip(image, axes).copy()).numpy(),
                      [axis + 1 for axis in axes]) for axes in ((), (0,), (1,), (0, 1))]
    found = open_image(tmp_path / "t/probabilities/a.tif").read()
    np.testing.assert_allclose(found, np.mean(turned, 0).transpose(1, 2, 0), atol=0.002)


def test_a_run_goes_on_after_the_files_that_are_complete(images, tmp_path):
    make_model(tmp_path / "model")
    assert predict(tmp_path) == 0
    kept, made = tmp_path / "out/masks/a.png", tmp_path / "out/masks/b.png"
    kept.write_bytes(b"kept")
    made.unlink()
    assert predict(tmp_path, "--resume") == 0
    assert kept.read_bytes() == b"kept" and made.exists()
    assert predict(tmp_path) == 0 and kept.read_bytes() != b"kept"


def geo_images(folder, crs="EPSG:32633"):
    rasterio = pytest.importorskip("rasterio")
    folder.mkdir(exist_ok=True)
    for name in "ab":
        pixels = RNG.integers(1, 4000, (3, 60, 80)).astype(np.uint16)
        pixels[:, :, :7] = 0
        with rasterio.open(folder / f"{name}.tif", "w", "GTiff", 80, 60, 3, dtype="uint16",
                           crs=crs, nodata=0, tiled=True, blockxsize=16, blockysize=16,
                           transform=rasterio.transform.from_origin(5e5, 5.4e6, 10, 10)) as file:
            file.write(pixels)
    return rasterio


@pytest.mark.parametrize("suffix", ["geojson", "gpkg"])
def test_polygons_cover_the_pixels_of_their_classes(suffix, tmp_path, capsys):
    rasterio = geo_images(tmp_path / "images")
    make_model(tmp_path / "model", class_names=("ground", "wood", "water"))
    out = tmp_path / f"all.{suffix}"
    assert predict(tmp_path, "--format", "geotiff", "--polygons", out) == 0
    with rasterio.open(tmp_path / "out/masks/a.tif") as file:
        mask, place = file.read(1), file.transform
        assert file.crs.to_epsg() == 32633 and (mask[:, :7] == 255).all()
    if suffix == "gpkg":
        pyogrio = pytest.importorskip("pyogrio")
        meta, _, geometry, columns = pyogrio.raw.read(out)
        assert meta["crs"] == "EPSG:32633" and len(geometry) == len(columns[1])
        assert set(columns[2]) <= {"wood", "water"} and set(columns[0]) <= {"a.tif", "b.tif"}
        return
    features = json.loads(out.read_text())["features"]
    for index, name in ((1, "wood"), (2, "water")):
        shapes = [each["geometry"] for each in features if each["properties"] == {
            "image": "a.tif", "class": index, "name": name}]
        painted = rasterio.features.rasterize(shapes, mask.shape, transform=place) \
            if shapes else np.zeros_like(mask)
        np.testing.assert_array_equal(painted == 1, mask == index)


@pytest.mark.parametrize("own, gone", [(None, slice(0, 7)), (9, slice(20, 31))])
def test_the_models_value_for_nothing_measured_goes_before_the_files(own, gone, tmp_path):
    rasterio = geo_images(tmp_path / "images")
    with rasterio.open(tmp_path / "images/a.tif", "r+") as file:
        pixels = file.read()
        pixels[:, :, 20:31] = 9
        file.write(pixels)
    model = make_model(tmp_path / "model")
    model.set_preprocessing(nodata=own)
    model.save_pretrained(tmp_path / "model")
    assert predict(tmp_path, "--format", "geotiff", "--probabilities", "uint16") == 0
    with rasterio.open(tmp_path / "out/masks/a.tif") as file:
        void = file.read(1) == 255
    assert void[:, gone].all() and void.sum() == void[:, gone].size
    x = nestedseg.preprocess(pixels.transpose(1, 2, 0), model, nodata=0 if own is None else own)
    with torch.no_grad():
        expected = model(x).softmax(1)[0].permute(1, 2, 0)
    found = open_image(tmp_path / "out/probabilities/a.tif").read()
    np.testing.assert_allclose(found / 65535, expected, atol=0.002)


def test_nan_pixels_are_marked_and_256_classes_leave_no_number_for_them(tmp_path, capsys):
    rasterio = geo_images(tmp_path / "images")
    pixels = RNG.random((3, 20, 30)).astype(np.float32)
    pixels[:, 4:9] = np.nan
    with rasterio.open(tmp_path / "images/a.tif", "w", "GTiff", 30, 20, 3, dtype="float32") as file:
        file.write(pixels)
    make_model(tmp_path / "model")
    assert predict(tmp_path, "--format", "geotiff") == 0
    with rasterio.open(tmp_path / "out/masks/a.tif") as file:
        np.testing.assert_array_equal(file.read(1) == 255, np.isnan(pixels[0]))
    make_model(tmp_path / "many", classes=256)
    assert predict(tmp_path, "--format", "geotiff", models=("many",), out="m") == 1
    assert "256 classes leave no number" in capsys.readouterr().err


def test_what_a_mask_loses_is_said(tmp_path, capsys):
    geo_images(tmp_path / "images")
    make_model(tmp_path / "model")
    assert predict(tmp_path) == 0
    error = capsys.readouterr().err
    assert error.count("has a place on the Earth") == 1 and "--format geotiff" in error


@pytest.mark.parametrize("options, message", [
    (["--format", "geotiff", "--probabilities", "float16"], "no room for float16"),
    (["--polygons", "a.shp"], "--polygons writes .geojson"),
    (["--format", "nifti"], "for volumes"),
    (["--instances", "--tta"], "--tta is for masks"),
    (["--score", "0.5"], "--score is only for detectors"),
])
def test_wrong_options_are_named_before_a_file_is_read(options, message, images, tmp_path, capsys):
    make_model(tmp_path / "model")
    assert predict(tmp_path, *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def quiet(command):
    with contextlib.redirect_stderr(sys.stdout):
        return 0 if main(command) == 1 else 3


@pytest.mark.slow
def test_two_processes_share_the_files_and_report_together(images, tmp_path):
    make_model(tmp_path / "model")
    for name in "cde":
        (images / f"{name}.png").write_bytes((images / "a.png").read_bytes())
    (images / "c.png").write_bytes(b"no picture")
    printed = in_two_processes(
        quiet, ["predict", str(tmp_path / "model"), str(images), "--out", str(tmp_path / "out")],
        output=tmp_path / "printed")
    assert {path.stem for path in (tmp_path / "out/masks").iterdir()} == set("abde")
    assert printed.count("1 of 5 images failed") == 1 and printed.count("c.png") == 1


# -- score -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 4])
def test_scores_of_files_are_those_of_the_pixels(classes, tmp_path, capsys):
    everything = []
    for name in "ab":
        mask, label = RNG.integers(0, max(2, classes), (2, 40, 50)).astype(np.uint8)
        label[RNG.random(label.shape) < 0.2] = 255
        for folder, pixels in (("masks", mask), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
        everything.append((mask[label != 255], label[label != 255]))
    mask, label = (np.concatenate(each) for each in zip(*everything))
    assert main(["score", str(tmp_path / "masks"), str(tmp_path / "labels"), "--classes",
                 str(classes), "--ignore", "255", "--json", str(tmp_path / "s.json")]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    for place, index in enumerate([1] if classes == 1 else range(classes)):
        both = ((mask == index) & (label == index)).sum()
        either = ((mask == index) | (label == index)).sum()
        assert found["iou"]["per_class"][place] == pytest.approx(both / either)
    assert f"{found['iou']['mean']:.4f}" in capsys.readouterr().out


def test_a_mask_that_is_none_is_named(tmp_path, capsys):
    for folder, value in (("masks", 9), ("labels", 1)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((9, 9), value, np.uint8)).save(tmp_path / folder / "a.png")
    assert main(["score", str(tmp_path / "masks"), str(tmp_path / "labels")]) == 2
    assert "masks/a.png: it has values from 9 to 9; expected class indices" \
        in capsys.readouterr().err


def test_large_labels_of_instances_are_checked_as_a_whole(tmp_path):
    label = np.zeros((1200, 1000), np.uint16)
    label[100:200, 100:200], label[1046:1150, 300:500] = 1, 2  # cut by a block
    label[1046:1150, 500:600] = 3
    for folder, pixels in (("masks", (label > 0).astype(np.uint8)), ("labels", label)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    assert main(["score", str(tmp_path / "masks"), str(tmp_path / "labels"), "--binary", "--json",
                 str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["iou"]["mean"] == 1


def test_a_jpeg_of_class_indices_is_no_label(tmp_path, capsys):
    for folder, suffix in (("masks", "png"), ("labels", "jpg")):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.ones((16, 16), np.uint8)).save(tmp_path / folder / f"a.{suffix}")
    assert main(["score", str(tmp_path / "masks"), str(tmp_path / "labels"), "--classes", "3"]) == 2
    assert "labels/a.jpg: it is a JPEG" in capsys.readouterr().err


def test_volumes_at_other_places_are_not_compared(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    for folder, shift in (("masks", 0), ("labels", 30)):
        (tmp_path / folder).mkdir()
        affine = np.eye(4)
        affine[0, 3] = shift
        nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), affine).to_filename(
            tmp_path / folder / "a.nii.gz")
    assert main(["score", str(tmp_path / "masks"), str(tmp_path / "labels")]) == 2
    assert "are at different places" in capsys.readouterr().err
