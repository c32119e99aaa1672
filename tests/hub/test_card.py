import json
import re

import huggingface_hub
import pytest
import torch

import nestedseg
from nestedseg.hub.card import MARK, escape, is_ours, slug
from nestedseg.hub.publish import write_repo

REPO = "someone/net"
METRICS = {1: {"iou": 0.81, "dice": 0.9}, 2: {"iou": 0.88}}


def make(topology="unetpp", **arguments):
    torch.manual_seed(0)
    supervised = None if topology == "unet" else True
    return nestedseg.create(topology, **{"encoder_channels": (4, 6, 8),
                                         "deep_supervision": supervised} | arguments)


def write(tmp_path, model, **facts):
    write_repo(model, tmp_path, REPO, **facts)
    return huggingface_hub.ModelCard.load(tmp_path / "README.md")


def table(card):
    """Its rows as lists of cells."""
    rows = [line for line in card.text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_front_matter_says_what_the_hub_reads(tmp_path):
    card = write(tmp_path, make(), metrics=METRICS, dataset="someone/em", license="mit")
    data = card.data.to_dict()
    assert {key: data[key] for key in ("library_name", "pipeline_tag", "license", "datasets",
                                       "metrics")} == {
        "library_name": "nestedseg", "pipeline_tag": "image-segmentation", "license": "mit",
        "datasets": ["someone/em"], "metrics": ["dice", "mean_iou"]}
    assert {"nestedseg", "unetpp", "plain"} <= {*data["tags"]}
    results = {(r.metric_args["depth"], r.metric_type): r for r in card.data.eval_results}
    assert {key: r.metric_value for key, r in results.items()} == {
        (1, "mean_iou"): 0.81, (1, "dice"): 0.9, (2, "mean_iou"): 0.88}
    best = results[2, "mean_iou"]
    assert (best.metric_name, best.dataset_name, best.dataset_type, best.task_type) == (
        "mIoU at depth 2", "someone/em", "someone/em", "image-segmentation")
    (index,) = data["model-index"]
    assert index["name"] == "net" and len(index["results"][0]["metrics"]) == 3


def test_without_a_dataset_there_are_no_results_but_the_table_has_the_scores(tmp_path):
    card = write(tmp_path, make(), metrics=METRICS)
    assert card.data.eval_results is None and "model-index" not in card.content
    assert [row[3:] for row in table(card)[2:]] == [["0.9000", "0.8100"], ["", "0.8800"]]
    assert "Licence: not stated" in card.text and card.data.license is None


@pytest.mark.parametrize("topology, dims", [("unetpp", 2), ("unet", 2), ("unetpp", 3)])
def test_the_text_holds_what_the_model_is(tmp_path, topology, dims):
    model = make(topology, dims=dims, classes=2, class_names=["back|ground", "nucleus"],
                 in_channels=2)
    model.set_preprocessing(mean=[0.25, 0.5])
    if dims == 3:
        model.set_preprocessing(standardise=True, spacing=[1.5, 1, 0.5])
    card = write(tmp_path, model, dataset="EM, 30 slices", training={"epochs": 12})
    assert MARK in card.text and card.text.count(model.graph.to_mermaid()) == 1
    assert [row[:2] for row in table(card)[2:]] == [
        [str(row.depth), f"{row.parameters:,}"] for row in model.summary()]
    for fact in (f'nestedseg.from_pretrained("{REPO}")', "minus [0.25, 0.5]", "Epochs: 12",
                 "back\\|ground, nucleus", "Dataset: EM, 30 slices", "the UNet++ paper's own"):
        assert fact in card.text
    assert ("depth=1" in card.text) is (topology == "unetpp")
    assert ("PIL" in card.text) is (dims == 2)
    assert ("minus its own mean" in card.text and "[1.5, 1, 0.5] mm" in card.text) is (dims == 3)


def test_the_usage_runs(tmp_path, monkeypatch):
    from PIL import Image
    card = write(tmp_path, make())
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 12)).save("image.png")
    write_repo(make(), tmp_path / REPO, REPO)  # a folder in the place of the repo
    names = {}
    exec(code, names)
    assert names["probabilities"].shape == (1, 1, 12, 20)
    assert names["small"].depths == (1,)


def test_pictures_are_copied_and_shown(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"png")
    card = write(tmp_path / "repo", make(), pictures={"Loss [a]": tmp_path / "curves.png"})
    assert "![Loss \\[a\\]](curves.png)" in card.text
    assert (tmp_path / "repo/curves.png").read_bytes() == b"png"


def test_a_card_of_somebodys_own_stays_and_ours_is_written_anew(tmp_path):
    card = write(tmp_path, make(), metrics=METRICS)
    assert is_ours(card.content)
    assert "0.8800" not in write(tmp_path, make()).text
    own = card.content.replace(MARK, "Mine.")
    (tmp_path / "README.md").write_text(own)
    write(tmp_path, make())
    assert (tmp_path / "README.md").read_text() == own


def test_scores_go_with_the_model_and_a_pruned_one_shows_its_own(tmp_path):
    write(tmp_path, make(), metrics=METRICS, dataset="em", training={"lr": 0.1})
    training = json.loads((tmp_path / "config.json").read_text())["training"]
    assert training == {"dataset": "em", "metrics": {"1": METRICS[1], "2": METRICS[2]}, "lr": 0.1}
    small = nestedseg.from_pretrained(tmp_path, depth=1)
    assert small.config["training"] == training
    card = write(tmp_path / "small", small)
    assert [row[3:] for row in table(card)[2:]] == [["0.9000", "0.8100"]]
    assert {r.metric_args["depth"] for r in card.data.eval_results} == {1}


def test_names_in_front_matter_and_text():
    assert slug("ISBI 2012, EM!") == "isbi-2012-em" and slug("a/B.c") == "a/B.c"
    assert slug("…") == "none"
    assert escape("a|b*[x](y)<b>`#!") == r"a\|b\*\[x\](y)\<b\>\`\#\!"


def test_a_strangers_topology_name_is_no_markup(tmp_path):
    graph = make().graph.to_dict()
    model = make(nestedseg.Graph.from_dict(graph, "x`\n---\n# <b>"))
    card = write(tmp_path, model)
    assert "<b>" not in card.content and card.data.library_name == "nestedseg"
