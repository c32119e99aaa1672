"""`nestedseg train` with labels that have void, colours, shades or several classes per pixel."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import nestedseg
from nestedseg.cli import main
from nestedseg.data import find_pairs, read_image
from nestedseg.evaluation.visualise_masks import paint_classes, paint_errors
from nestedseg.evaluation.visualise_volumes import Case, draw_slices
from nestedseg.prediction import predict_heads

NAMES = [f"c{index}" for index in range(11)] + ["unlabelled"]
RGB = {name: [20 * index, 255 - 20 * index, 7 * index] for index, name in enumerate(NAMES)}


def street(seed):
    """A picture of 12 values in blocks, as CamVid's labels are: 11 is void."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.permutation(np.arange(64) % 12).reshape(8, 8), np.ones((8, 8), int))
    grey = 20 * label + rng.integers(0, 9, label.shape)
    return grey.astype(np.uint8), label.astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five pictures, and their labels in several forms."""
    folder = tmp_path_factory.mktemp("streets")
    for seed in range(5):
        grey, label = street(seed)
        forms = {"images": grey, "labels": label, "mask": 255 * (label > 5),
                 "colours": np.array(list(RGB.values()))[label],
                 "planes": np.stack([label > 3, label > 6, label == 2], -1)
                 + 254 * (label == 11)[..., None]}
        for kind, pixels in forms.items():
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{seed}.png")
        (folder / "jpeg").mkdir(exist_ok=True)
        shifted = np.roll(forms["mask"], 3, (0, 1))  # JPEG keeps blocks of 8 pixels
        Image.fromarray(shifted.astype(np.uint8)).save(folder / "jpeg" / f"{seed}.jpg")
    (folder / "colours.json").write_text(json.dumps(RGB))
    return folder


def train(folder, out, labels, *options):
    return main([str(arg) for arg in (
        "train", "--images", folder / "images", "--labels", folder / labels, "--widths", 4, 8,
        "--epochs", 1, "--steps", 2, "--batch", 2, "--patch", 32, "--out", out, *options)])


def error(capsys, *arguments):
    assert train(*arguments) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"nestedseg: error: [^\n]+\n", line)
    return line


def iou_by_hand(model, folder, held_out, void):
    """The IoU of the deepest head over the pixels with a class, counted in numpy."""
    both, either = np.zeros(11), np.zeros(11)
    for pair in find_pairs(folder / "images", folder / "labels"):
        if pair.image.name in held_out:
            heads = predict_heads(model, read_image(pair.image))
            found = heads[model.depths[-1]][0].argmax(0).numpy()
            truth = np.asarray(Image.open(pair.label))
            found, truth = found[truth != void], truth[truth != void]
            both += [((found == c) & (truth == c)).sum() for c in range(11)]
            either += [((found == c) | (truth == c)).sum() for c in range(11)]
    return np.mean(both[either > 0] / either[either > 0])


@pytest.mark.parametrize("labels, options", [
    ("labels", []), ("colours", ["--label-colours", "colours.json"])])
def test_camvid_trains_on_11_classes_and_scores_without_void(folder, tmp_path, labels, options,
                                                             monkeypatch):
    monkeypatch.chdir(folder)
    assert train(folder, tmp_path, labels, "--classes", 11, "--ignore", 11, *options) == 0
    model = nestedseg.from_pretrained(tmp_path / "model")
    assert model.classes == 11 and model.config["ignore_index"] == [11]
    assert model.config["class_names"] == (NAMES[:11] if options else None)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["depths"][-1]["iou"] == pytest.approx(
        iou_by_hand(model, folder, metrics["validation"], 11))
    assert model.prune(1).config["ignore_index"] == [11]
    card = str(model._make_card("user/name", model.config, "mit", {}))
    assert "- Left out: pixels with the label 11, in training and in scores\n" in card


def test_a_value_of_void_pixels_does_not_matter(folder, tmp_path):
    """Training on another void value gives the same numbers, to the last digit."""
    curves = []
    for value in (11, 200):
        labels = tmp_path / f"labels{value}"
        labels.mkdir()
        for seed in range(5):
            label = street(seed)[1]
            label[label == 11] = value
            Image.fromarray(label).save(labels / f"{seed}.png")
        run = tmp_path / f"run{value}"
        assert train(folder, run, labels, "--classes", 11, "--ignore", value) == 0
        history = json.loads((run / "metrics.json").read_text())["history"]
        curves.append([(epoch["loss"], epoch["scores"]) for epoch in history])
    assert curves[0] == curves[1]


def test_a_run_goes_on_only_with_the_same_void(folder, tmp_path, capsys):
    options = folder, tmp_path, "labels", "--classes", 11, "--ignore", 11
    assert train(*options) == 0
    assert train(*options, "--resume") == 0
    assert "'ignore_index' was [11] in that run, and is now [10, 11]" in error(
        capsys, *options, "--ignore", 10, "--resume")


def test_several_classes_per_pixel(folder, tmp_path):
    assert train(folder, tmp_path / "run", "planes", "--label-parts", "channels", "--ignore",
                 255, "--ignore", 254) == 0
    model = nestedseg.from_pretrained(tmp_path / "run/model")
    assert (model.task, model.classes) == ("multilabel", 3)
    assert (tmp_path / "run/overlay.png").is_file()


@pytest.mark.parametrize("spacing", [[], ["--spacing", "1", "2", "1"]])
def test_volumes_with_several_classes_per_voxel(tmp_path, spacing):
    pytest.importorskip("monai")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name in "ab":
        label = np.zeros((10, 24, 22, 2), np.uint8)
        label[2:8, 4:16, 5:15, 0] = label[4:6, 6:12, 8:12, 1] = 1
        label[:, :4, :, 1] = 255  # the second class was not annotated here
        np.save(tmp_path / "images" / name, label[..., 0] + rng.normal(0, 0.1, label.shape[:3]))
        np.save(tmp_path / "labels" / name, label)
    assert train(tmp_path, tmp_path / "run", "labels", "--label-parts", "channels", "--ignore", 255,
                 "--patch", 8, *spacing) == 0
    model = nestedseg.from_pretrained(tmp_path / "run/model")
    assert (model.task, model.classes, model.config["dims"]) == ("multilabel", 2, 3)
    rows = (tmp_path / "run/cases.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows] == ["class", "0", "1"]
    assert (tmp_path / "run/overlay.png").is_file()


def test_a_threshold_makes_a_mask_of_a_jpeg(folder, tmp_path, capsys):
    for options in (["--binary"], []):
        line = error(capsys, folder, tmp_path / "r", "jpeg", *options)
        assert "besides 0 and 255" in line and "--threshold 128" in line and "jpeg/" in line
    assert not (tmp_path / "r").exists()
    assert train(folder, tmp_path / "run", "jpeg", "--binary", "--threshold", 128) == 0


@pytest.mark.parametrize("options", [["--ignore", "255"], ["--threshold", "9"],
                                     ["--label-colours", "x.json"]])
def test_detectors_have_none_of_these(folder, tmp_path, capsys, options):
    line = error(capsys, folder, tmp_path / "r", "labels", "--task", "instance", "--encoder",
                 "test_resnet", *options)
    assert f"{options[0]} is only for --task semantic" in line


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_void_is_hatched_and_nothing_else(several):
    rgb = np.full((64, 80, 3), 100, np.uint8)
    truth = np.zeros((64, 80), int)
    truth[10:30, 10:30] = 1
    void = np.zeros(truth.shape, bool)
    void[20:50, 20:60] = True
    mask = np.ones_like(truth)  # wrong in many places
    truth = np.where(void, -1, truth)
    if several:
        truth, mask = (np.stack([each, each], -1) for each in (truth, mask))
    for painted in (paint_classes(rgb, truth), paint_errors(rgb, mask, truth)):
        lines = [(painted == shade).all(-1) for shade in (0, 255)]
        for line in lines:
            assert not line[~void].any() and 0.1 < line[void].mean() < 0.4
        rest = void & ~lines[0] & ~lines[1]
        assert (painted[rest] == 100).all(), "neither a class nor an error is painted on void"


@pytest.mark.parametrize("several", [False, True])
def test_void_is_hatched_in_slices(tmp_path, several):
    volume = nestedseg.data.open_volume(_saved(tmp_path / "v.npy", np.full((9, 30, 30), 7.0)))
    blank = np.zeros((9, 30, 30), np.int8)
    blank[:, 4:9, 4:9] = 1
    void = blank.copy()
    void[:, 15:, 15:] = -1
    pictures = []
    for mask in (blank, void):
        mask = np.stack([mask, mask], -1) if several else mask
        draw_slices([Case("a", volume, {"truth": mask})], tmp_path / "slices.png")
        pictures.append(read_image(tmp_path / "slices.png"))
    assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).mean() > 0.005


def _saved(path, array):
    np.save(path, array)
    return path


def test_labels_and_model_must_have_as_many_classes_per_pixel(folder, tmp_path):
    from nestedseg.data import LabelledImages
    from nestedseg.training import fit

    pairs = find_pairs(folder / "images", folder / "planes")
    images = LabelledImages(pairs, 3, multilabel=True, ignore_index=[254, 255])
    model = nestedseg.create("unet", encoder_channels=(2, 4), classes=3, in_channels=1)
    with pytest.raises(ValueError, match=r"several per pixel, .* use LabelledImages\(..., "
                                         "multilabel=False"):
        fit(model, images, images, tmp_path / "run")
    assert torch.equal(torch.from_numpy(images[0][1]) == -1, torch.from_numpy(
        np.asarray(Image.open(pairs[0].label)) >= 254))
