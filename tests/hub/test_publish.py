"""From a training run to a repo, on the command line, and back in a fresh process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import HubServer, client_environment, use_server
from PIL import Image

import nestedseg
from nestedseg.cli import main
from nestedseg.data import read_image, read_label, synthetic_nuclei
from nestedseg.hub.card import MARK
from nestedseg.prediction.predict import predict_image, to_mask

REPO = "someone/nuclei"
INDEX = "model.safetensors.index.json"
PUSHED = {"README.md", "config.json", "curves.png", "overlay.png", INDEX,
          "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nuclei")
    for index, (image, label) in enumerate(zip(*synthetic_nuclei(4, 64), strict=True)):
        for name, pixels in (("images", image), ("labels", label)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A finished training run."""
    assert train(folder, folder / "run") == 0
    return folder / "run"


def train(folder, out, *options):
    return main(["train", "--images", str(folder / "images"), "--labels", str(folder / "labels"),
                 "--binary", "--widths", "4", "8", "8", "--epochs", "1", "--steps", "2", "--batch",
                 "2", "--patch", "32", "--val-fraction", "0.5", "--class-names", "nucleus",
                 "--out", str(out), *options])


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer() as hub, use_server(monkeypatch, hub, tmp_path / "home"):
        yield hub


def publish(run, *options):
    return main(["publish", str(run), "--repo", REPO, "--license", "cc0-1.0", "--dataset",
                 "Nuclei", *options])


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def predict_here(monkeypatch, server, cache, *argv):
    with use_server(monkeypatch, server, cache):
        assert main(["predict", *map(str, argv)]) == 0


def predict_in_a_fresh_process(monkeypatch, server, cache, *argv):
    environment = client_environment(server, cache)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(nestedseg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-m", "nestedseg", "predict", *argv], env=environment,
                   check=True, cwd=cache.parent)


@pytest.mark.parametrize("predict", [
    predict_here, pytest.param(predict_in_a_fresh_process, marks=pytest.mark.slow)])
def test_a_run_becomes_a_repo_that_predicts(run, folder, server, tmp_path, capsys, monkeypatch,
                                            predict):
    assert publish(run, "--token", server.token) == 0
    assert f"pushed to {REPO}: {server.url}/{REPO}/commit/" in capsys.readouterr().out
    assert {*server.files(REPO)} == PUSHED | {".gitattributes"}
    assert ("POST", "/api/validate-yaml") in server.log

    card = huggingface_hub.ModelCard(server.files(REPO)["README.md"].decode())
    metrics = json.loads((run / "metrics.json").read_text())
    scores = {row["depth"]: row for row in metrics["depths"]}
    assert {(r.metric_args["depth"], r.metric_type): r.metric_value
            for r in card.data.eval_results} == {
        (depth, kind): scores[depth][name] for depth in (1, 2)
        for name, kind in (("iou", "mean_iou"), ("dice", "dice"))}
    assert card.data.license == "cc0-1.0"
    for text in ("](curves.png)", "](overlay.png)", "Scores: of 2 validation images", "nucleus"):
        assert text in card.text

    server.clear_log()
    predict(monkeypatch, server, tmp_path / "empty", REPO, folder / "images", "--out",
            tmp_path / "out", "--depth", "1")
    assert sorted(server.downloads()) == ["config.json", "model-00001-of-00002.safetensors", INDEX]
    model = nestedseg.from_pretrained(run / "model", 1)
    for path in (folder / "images").iterdir():
        mask = to_mask(predict_image(model, read_image(path)), "binary")
        np.testing.assert_array_equal(read_label(tmp_path / "out/masks" / path.name), mask)


def test_a_dry_run_writes_what_would_be_pushed(run, server, tmp_path, capsys):
    assert publish(run, "--dry-run", str(tmp_path / "dry")) == 0
    assert server.log == [] and "would be pushed" in capsys.readouterr().out
    assert publish(run, "--token", server.token, "--private") == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "dry").iterdir()}
    assert written == {name: data for name, data in server.files(REPO).items()
                       if name != ".gitattributes"}
    assert server.repos[REPO].private


def test_a_users_own_card_is_kept_on_the_hub(run, server):
    server.put(REPO, {"README.md": b"---\nlicense: mit\n---\nmine\n"})
    assert publish(run, "--token", server.token) == 0
    assert server.files(REPO)["README.md"] == b"---\nlicense: mit\n---\nmine\n"
    server.put(REPO, {"README.md": f"an older one\n{MARK}".encode()})
    assert publish(run, "--token", server.token) == 0
    assert b"an older one" not in server.files(REPO)["README.md"]
    assert {*server.files(REPO)} == PUSHED


def test_training_can_end_with_a_push(folder, server, tmp_path, capsys):
    options = ("--push-to-hub", REPO, "--token")
    assert train(folder, tmp_path / "a", *options, "hf_wrong") == 2
    assert re.search(rf"error: .*{REPO}.*access denied", capsys.readouterr().err)
    assert not (tmp_path / "a").exists()  # it was said before the training
    assert train(folder, tmp_path / "a", *options, server.token) == 0
    assert {*server.files(REPO)} == PUSHED | {".gitattributes"}
    loaded = nestedseg.from_pretrained(REPO)
    assert same_weights(loaded, nestedseg.from_pretrained(tmp_path / "a/model"))
    assert loaded.config["class_names"] == ["nucleus"]


def test_a_repo_goes_where_a_folder_goes(run, server, tmp_path, capsys):
    assert publish(run, "--token", server.token) == 0
    capsys.readouterr()
    assert main(["summary", REPO, "--size", "64"]) == 0
    whole = nestedseg.from_pretrained(run / "model")
    assert capsys.readouterr().out.strip() == str(whole.summary(64))
    assert main(["prune", REPO, "--depth", "1", "--out", str(tmp_path / "small")]) == 0
    small = nestedseg.from_pretrained(tmp_path / "small")
    assert same_weights(small, whole.prune(1))


def test_mistakes_are_one_line(run, server, tmp_path, capsys):
    for argv, message in (
            (["publish", tmp_path, "--repo", REPO], "neither a folder"),
            (["publish", run, "--repo", "nuclei"], "user/name"),
            (["publish", run, "--repo", REPO, "--token", "hf_wrong"], "access denied"),
            (["predict", REPO, run, "--out", tmp_path], "cannot load")):
        assert main([str(arg) for arg in argv]) == 2
        assert re.fullmatch(rf"nestedseg: error: [^\n]*{message}[^\n]*\n", capsys.readouterr().err)


def test_a_run_without_a_report_is_published_without_scores(run, server, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(run / "model")
    assert publish(tmp_path / "run", "--dry-run", str(tmp_path / "dry")) == 0
    assert "mIoU" not in (tmp_path / "dry/README.md").read_text()
    (tmp_path / "run/metrics.json").write_text('{"depths": 5}')
    assert publish(tmp_path / "run", "--dry-run", str(tmp_path / "dry")) == 2
