"""Instances on the command line: train, predict, publish; mistakes in one line before training."""

import json
import re

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import HubServer, use_server
from PIL import Image

import nestedseg
from nestedseg.cli import main
from nestedseg.data import read_image, read_label, synthetic_nuclei
from nestedseg.hub.publish import write_repo
from nestedseg.instances.detectors import faster_rcnn, mask_rcnn
from nestedseg.instances.maps import from_mask
from nestedseg.instances.prediction import predict_instances
from nestedseg.prediction.predict import predict_image, to_mask

REPO = "someone/cells"
SCORES = {"score": 0.41, "iou": 0.95, "dice": 0.91}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nuclei, among them an image without any, one with gaps in its numbers, one of a pixel."""
    folder = tmp_path_factory.mktemp("nuclei")
    images, labels = synthetic_nuclei(4, 64)
    labels[1] = 0
    labels[2] *= 1000
    labels[3] = 0
    labels[3, 0, 63] = 7
    for kind, pictures in (("images", images), ("labels", labels)):
        (folder / kind).mkdir()
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / kind / f"{index}.png")
    return folder


def arguments(folder, out, *options):
    return ["train", "--task", "instance", "--images", folder / "images", "--labels",
            folder / "labels", "--encoder", "test_resnet", "--out", out, *options]


@pytest.fixture(scope="module")
def run(folder):
    """A finished run: every image was in a patch, and validated."""
    argv = arguments(folder, folder / "run", "--decoder-channels", 8, "--epochs", 1, "--batch", 2,
                     "--patch", 64, "--anchor-scale", 2, "--val-images", folder / "images",
                     "--val-labels", folder / "labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nestedseg.cli.instances.DETECTIONS", 5)  # their masks take their time
        assert main([*map(str, argv)]) == 0
    return folder / "run"


def error(capsys, *argv):
    """The one line that a user's mistake gives."""
    assert main([*map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"nestedseg: error: [^\n]+\n", captured.err)
    return captured.err


# -- train and predict ----------------------------------------------------------------------------


def test_a_run_holds_model_scores_and_pictures(run):
    assert {path.name for path in run.iterdir()} == {"checkpoint.pt", "metrics.json", "curves.png",
                                                     "overlay.png", "files.csv", "model"}
    metrics = json.loads((run / "metrics.json").read_text())
    (epoch,) = metrics["history"]
    assert metrics["scores"] == epoch["scores"] and {*epoch["scores"]} == {"score", "iou", "dice"}
    for picture in ("curves.png", "overlay.png"):
        assert read_image(run / picture).std() > 10
    model = nestedseg.from_pretrained(run / "model")
    assert (model.graph.name, model.backbone.out_channels) == ("fpnpp", 8)
    assert model.config["resize"] is False and model.config["anchor_scale"] == 2
    assert len(model.transform.image_mean) == 1 and model.transform.image_mean != [0.5]


def test_instance_maps_are_the_models_and_overlays_their_size(run, folder, tmp_path):
    assert main(["predict", str(run / "model"), str(folder / "images"), "--out", str(tmp_path),
                 "--score", "0.3"]) == 0
    model = nestedseg.from_pretrained(run / "model")
    for index in range(4):
        image = read_image(folder / "images" / f"{index}.png")
        found = read_label(tmp_path / "instances" / f"{index}.png")
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, predict_instances(model, image, 0.3))
        overlay = read_image(tmp_path / "overlays" / f"{index}.png")
        assert overlay.shape == (64, 64, 3)
        assert ((overlay.max(-1) > overlay.min(-1)) <= (found > 0)).all()


def test_a_semantic_model_gives_the_parts_of_its_mask(folder, tmp_path, capsys, monkeypatch):
    model = nestedseg.create("unet", encoder_channels=(4, 8), in_channels=1)
    model.save_pretrained(tmp_path / "model")
    argv = ["predict", tmp_path / "model", folder / "images", "--out", tmp_path / "out"]
    assert main([*map(str, argv), "--instances"]) == 0
    assert not (tmp_path / "out" / "masks").exists()
    most = 0
    for index in range(4):
        image = read_image(folder / "images" / f"{index}.png")
        expected = from_mask(to_mask(predict_image(model, image), "binary"))
        found = read_label(tmp_path / "out" / "instances" / f"{index}.png")
        np.testing.assert_array_equal(found, expected)
        most = max(most, int(expected.max()))
    assert most > 1
    assert "--score is only for detectors" in error(capsys, *argv, "--score", 0.5)
    monkeypatch.setattr("nestedseg.cli.predict.MAX_INSTANCES", most - 1)
    assert main([*map(str, argv), "--instances"]) == 1
    assert re.search(
        rf"images failed:\n(.*\n)*.*\d\.png: {most} instances were found, but a 16-bit PNG",
        capsys.readouterr().err)
    nestedseg.create("unet", encoder_channels=(4, 8), in_channels=1,
                     classes=3).save_pretrained(tmp_path / "classes")
    assert "task 'multiclass'" in error(capsys, "predict", tmp_path / "classes", *argv[2:],
                                             "--instances")


# -- mistakes -------------------------------------------------------------------------------------


MISTAKES = {
    "plain encoder": (["--encoder", "plain"], "like --encoder resnet18"),
    "unknown encoder": (["--encoder", "test_resnt"], "'test_resnet'"),
    "one level": (["--encoder", "test_vit_relpos"], "images must be resized"),
    "topology": (["--topology", "fpnp"], "did you mean 'fpn"),
    "anchors": (["--anchor-scale", "0"], "anchor_scale must be a number above 0"),
    "channels": (["--decoder-channels", "8", "16"], "--decoder-channels needs 1 number"),
    "score of classes": (["--classes", "3"], "--classes is only for --task semantic"),
    "binary": (["--binary"], "--binary is only for --task semantic"),
    "supervision": (["--deep-supervision"], "--deep-supervision is only for --task semantic"),
    "epochs": (["--epochs", "0"], "epochs must be at least 1"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line_before_images_are_read(folder, tmp_path, capsys, monkeypatch,
                                                      options, message):
    def read(*args):
        raise AssertionError("images are read")
    monkeypatch.setattr("nestedseg.data.labelled.OPEN", {2: read, 3: read})
    assert message in error(capsys, *arguments(folder, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_labels_are_refused_before_training(folder, tmp_path, capsys):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for name in "ab":
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / kind / f"{name}.png")
    argv = arguments(tmp_path, tmp_path / "run", "--decoder-channels", 8)
    assert "the training labels contain no foreground" in error(capsys, *argv)
    crowd = np.kron(np.arange(110 * 110).reshape(110, 110), np.ones((3, 3), int)).astype(np.uint16)
    for kind in ("images", "labels"):
        for name in "ab":
            Image.fromarray(crowd).save(tmp_path / kind / f"{name}.png")
    assert "too many instances: up to 12" in error(capsys, *argv)
    Image.fromarray(crowd[:50]).save(tmp_path / "labels" / "b.png")
    assert "b.png is 330 x 330 pixels, but its label" in error(capsys, *argv)
    assert not (tmp_path / "run").exists()


def test_commands_for_depths_say_that_a_detector_has_none(run, tmp_path, capsys):
    assert "no depths" in error(capsys, "prune", run / "model", "--depth", 1, "--out", tmp_path)
    assert "no depths" in error(capsys, "summary", run / "model")


# -- publish --------------------------------------------------------------------------------------


def test_a_run_becomes_a_repo_with_a_card(run, monkeypatch, tmp_path):
    with HubServer() as server, use_server(monkeypatch, server, tmp_path / "home"):
        assert main(["publish", str(run), "--repo", REPO, "--license", "mit", "--dataset", "Cells",
                     "--token", server.token]) == 0
        files, loaded = server.files(REPO), nestedseg.from_pretrained(REPO)
    assert {*files} == {"README.md", "config.json", "model.safetensors", "curves.png",
                        "overlay.png", ".gitattributes"}
    saved = nestedseg.from_pretrained(run / "model")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(),
                                                 saved.state_dict().values()))
    scores = json.loads((run / "metrics.json").read_text())["scores"]
    known = {name: value for name, value in scores.items() if value is not None}
    assert loaded.config["training"]["metrics"] == known
    card = huggingface_hub.ModelCard(files["README.md"].decode())
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        {"score": "dsb_score"}.get(name, name): value for name, value in known.items()}
    assert "Scores: of 4 validation images" in card.text and "](overlay.png)" in card.text


@pytest.mark.parametrize(("make", "pipeline"), [(mask_rcnn, "image-segmentation"),
                                                (faster_rcnn, "object-detection")])
def test_the_card_says_what_the_detector_is(tmp_path, make, pipeline):
    model = make("fpn_plus", "test_resnet", out_channels=8, anchor_scale=2, classes=2, min_size=64)
    write_repo(model, tmp_path, REPO, metrics=SCORES, dataset="someone/cells", license="mit",
               training={"epochs": 3})
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == pipeline
    assert {"nestedseg", make.__name__, "fpn_plus", "test_resnet"} <= {*card.data.tags}
    assert {r.metric_name: r.metric_value for r in card.data.eval_results} == {
        "Data Science Bowl's score": 0.41, "pixel-wise IoU": 0.95, "pixel-wise Dice": 0.91}
    for text in ("A detector: torchvision's", "instances of 2 classes", model.graph.to_mermaid(),
                 "Pyramid: strides 4, 8, 16, 32, 64, 8 channels", "Anchors: 2 times the stride",
                 "resized to 64 pixels along the shorter side", "Epochs: 3",
                 f"Parameters: {sum(p.numel() for p in model.parameters()):,}"):
        assert text in card.text
    loaded = nestedseg.from_pretrained(tmp_path)
    assert loaded.config["training"] == {"epochs": 3, "dataset": "someone/cells", "metrics": SCORES}
    with pytest.raises(ValueError, match="metrics must be scores by name"):
        write_repo(model, tmp_path, REPO, metrics={2: {"iou": 0.5}})


def test_the_usage_on_the_card_runs(tmp_path, monkeypatch):
    model = mask_rcnn("fpn", "test_resnet", out_channels=8, resize=False,
                      box_detections_per_img=5)
    write_repo(model, tmp_path / REPO, REPO)
    code = re.search(r"```python\n(.*?)```", (tmp_path / REPO / "README.md").read_text(),
                     re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (70, 64)).save("image.png")
    names = {}
    exec(code, names)
    assert names["instances"].shape == (64, 70) and names["boxes"].shape[1] == 4
