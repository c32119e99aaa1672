import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from places import REAL

import nestedseg
from nestedseg.cli import demo, main
from nestedseg.data import find_pairs, read_image, synthetic_nuclei
from nestedseg.prediction.predict import predict_image, to_mask
from nestedseg.topology import rules
from nestedseg.training.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Grey nuclei with instance numbers, and the same as three classes in RGB, 16 bit."""
    folder = tmp_path_factory.mktemp("nuclei")
    for index, (image, label) in enumerate(zip(*synthetic_nuclei(5, 64), strict=True)):
        save(folder / "images" / f"{index}.png", image)
        save(folder / "labels" / f"{index}.png", label)
        save(folder / "rgb" / f"{index}.jpg", np.stack([image, image // 2, 255 - image], -1))
        save(folder / "classes" / f"{index}.tif", (label % 3).astype(np.uint8))
    return folder


def save(path, pixels):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def run(folder):
    """A finished training run."""
    out = folder / "run"
    assert train(folder, out, "--binary", "--val-fraction", "0.4") == 0
    return out


def train(folder, out, *options, images="images", labels="labels"):
    return main(["train", "--images", str(folder / images), "--labels", str(folder / labels),
                 "--widths", "4", "8", "8", "--epochs", "2", "--steps", "2", "--batch", "2",
                 "--patch", "32", "--out", str(out), *options])


def error(capsys, *argv):
    """The one line that a user's mistake gives."""
    assert main([str(arg) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"nestedseg: error: [^\n]+\n", captured.err)
    return captured.err


# -- train ----------------------------------------------------------------------------------------


def test_a_run_holds_model_numbers_and_pictures(run):
    names = {path.name for path in run.iterdir()}
    assert names == {"checkpoint.pt", "metrics.json", "curves.png", "overlay.png", "depths.md",
                     "files.csv", "model"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert [epoch["epoch"] for epoch in metrics["history"]] == [1, 2]
    assert metrics["settings"]["lr"] == 3e-4 and metrics["model"]["in_channels"] == 1
    assert len(metrics["validation"]) == 2
    best = metrics["history"][metrics["best_epoch"] - 1]
    assert [row["iou"] for row in metrics["depths"]] == pytest.approx(list(best["scores"].values()))
    table = (run / "depths.md").read_text().splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == [
        "depth", "IoU", "Dice", "parameters", "MACs", "time per image"]
    assert table[3].split("|")[2].strip() == f"{best['scores']['2']:.4f}"
    for picture in ("curves.png", "overlay.png"):
        pixels = read_image(run / picture)
        assert pixels.shape[0] > 300 and pixels.std() > 10
    model = nestedseg.from_pretrained(run / "model")
    assert model.depths == (1, 2)  # deep supervision where the topology offers it
    assert model.preprocessing["mean"] != [0.5]


def test_the_same_command_resumes_only_when_asked(run, folder, capsys):
    options = ("--binary", "--val-fraction", "0.4")
    assert train(folder, run, *options) == 2
    assert "already contains a run; use resume=True" in capsys.readouterr().err
    assert train(folder, run, *options, "--resume") == 0
    assert "after epoch 2" in capsys.readouterr().out


@pytest.mark.parametrize("topology", ["unet", "unet_e"])
def test_classes_in_colour_images_and_a_validation_folder(folder, tmp_path, topology):
    options = ["--classes", "3", "--topology", topology, "--val-images", str(folder / "rgb"),
               "--val-labels", str(folder / "classes")]
    assert train(folder, tmp_path, *options, images="rgb", labels="classes") == 0
    model = nestedseg.from_pretrained(tmp_path / "model")
    assert (model.task, model.classes, model.config["in_channels"]) == ("multiclass", 3, 3)
    assert model.depths == ((2,) if topology == "unet" else (1, 2))


def test_a_users_topology_over_a_timm_encoder(folder, tmp_path):
    graph = {"nodes": {"x0_1": ["x0_0", "x1_0"]}, "heads": ["x0_1"]}
    (tmp_path / "mine.json").write_text(json.dumps(graph))
    assert train(folder, tmp_path / "run", "--binary", "--topology", str(tmp_path / "mine.json"),
                 "--encoder", "test_resnet", "--decoder-channels", "8") == 0
    model = nestedseg.from_pretrained(tmp_path / "run/model")
    assert model.graph == nestedseg.Graph.from_dict(graph)


def test_mistakes_are_one_line_before_training(folder, tmp_path, capsys):
    data = ["--images", folder / "images", "--labels", folder / "labels", "--out", tmp_path / "r"]
    assert "use binary=True" in error(capsys, "train", *data)
    assert "did you mean 'unetpp'" in error(capsys, "train", *data, "--binary", "--topology",
                                            "unetp")
    assert "'test_resnet'" in error(capsys, "train", *data, "--binary", "--encoder", "test_resnt")
    assert "--val-images and --val-labels together" in error(
        capsys, "train", *data, "--val-images", folder / "images")
    assert "not a directory: nowhere" in error(capsys, "train", "--images", "nowhere", *data[2:])
    assert "epochs must be at least 1" in error(capsys, "train", *data, "--epochs", 0)
    assert "has one head" in error(capsys, "train", *data, "--binary", "--topology", "unet",
                                   "--deep-supervision")
    assert not (tmp_path / "r").exists()


def test_ctrl_c_tells_how_to_go_on(folder, tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("nestedseg.cli.train.fit", interrupt)
    assert train(folder, tmp_path, "--binary") == 130
    assert "the same command with --resume" in capsys.readouterr().err


# -- predict, prune, summary ----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [None, 1])
def test_masks_are_the_models_and_overlays_their_size(run, folder, tmp_path, depth):
    options = [] if depth is None else ["--depth", str(depth)]
    assert main(["predict", str(run / "model"), str(folder / "images"), "--out", str(tmp_path),
                 *options]) == 0
    model = nestedseg.from_pretrained(run / "model", depth)
    for index in range(5):
        image = read_image(folder / "images" / f"{index}.png")
        mask = read_image(tmp_path / "masks" / f"{index}.png")
        np.testing.assert_array_equal(mask, 255 * to_mask(predict_image(model, image), "binary"))
        overlay = read_image(tmp_path / "overlays" / f"{index}.png")
        assert overlay.shape == (64, 64, 3)
        coloured = (overlay.max(-1) - overlay.min(-1)) > 0
        assert (coloured[mask == 0] == 0).all()  # paint lies on the class, and nowhere else
        assert coloured[mask == 255].mean() > 0.9 or not (mask == 255).any()


def test_one_image_by_windows(run, folder, tmp_path):
    assert main(["predict", str(run / "model"), str(folder / "images/3.png"), "--out",
                 str(tmp_path), "--window", "32", "--overlap", "0.5"]) == 0
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["3.png"]


def test_prune_writes_the_smaller_model(run, tmp_path, capsys):
    assert main(["prune", str(run / "model"), "--depth", "1", "--out", str(tmp_path)]) == 0
    small, whole = nestedseg.from_pretrained(tmp_path), nestedseg.from_pretrained(run / "model")
    x = torch.rand(1, 1, 33, 40)
    with torch.no_grad():
        assert torch.equal(small(x), whole.forward_heads(x)[1])
    assert f"{sum(p.numel() for p in small.parameters()):,}" in capsys.readouterr().out


def test_export_writes_one_depth_by_the_files_suffix(run, tmp_path, capsys):
    out = tmp_path / "model.pt2"
    assert main(["export", str(run / "model"), "--depth", "1", "--probabilities", "--out",
                 str(out)]) == 0
    assert f"{out} has {out.stat().st_size:,} bytes" in capsys.readouterr().out
    model, x = nestedseg.from_pretrained(run / "model", depth=1), torch.rand(3, 1, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(out).module()(x), model.predict(x))
    assert "ends in .onnx, got 'model.pt'" in error(capsys, "export", run / "model", "--out",
                                                   "model.pt")


def test_summary_of_a_saved_model_and_of_a_name(run, capsys):
    assert main(["summary", str(run / "model"), "--size", "64"]) == 0
    saved = capsys.readouterr().out
    assert main(["summary", "unet++", "--widths", "4", "8", "8", "--in-channels", "1",
                 "--size", "64", "64"]) == 0
    assert capsys.readouterr().out == saved
    assert saved.strip() == str(nestedseg.from_pretrained(run / "model").summary(64))


def test_other_mistakes_are_one_line(run, folder, tmp_path, capsys):
    assert "no head at depth 7" in error(capsys, "prune", run / "model", "--depth", 7, "--out",
                                         tmp_path)
    assert "config.json is missing" in error(capsys, "predict", tmp_path, folder / "images",
                                             "--out", tmp_path)
    assert "missing.png" in error(capsys, "predict", run / "model", tmp_path / "missing.png",
                                  "--out", tmp_path)
    message = error(capsys, "predict", run / "model", folder / "rgb/0.jpg", "--out", tmp_path)
    assert "0.jpg: expected an image" in message and "(64, 64, 3)" in message
    assert "give --images and --labels together" in error(capsys, "demo", "--images", tmp_path)


# -- draw, list, help -----------------------------------------------------------------------------


def test_draw_writes_what_the_graph_draws(tmp_path, capsys):
    graph = nestedseg.topology("unet++", 3)
    assert main(["draw", "unet++", "--depth", "3", "--out", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_text() == graph.to_svg()
    (tmp_path / "a.json").write_text(graph.to_json())
    assert main(["draw", str(tmp_path / "a.json"), "--keep", "1", "--out",
                 str(tmp_path / "b.svg")]) == 0
    kept = nestedseg.Graph.from_json(tmp_path / "a.json")
    assert (tmp_path / "b.svg").read_text() == kept.to_svg(keep=1)
    assert main(["draw", "unet++", "--depth", "3", "--out", str(tmp_path / "a.mmd")]) == 0
    assert (tmp_path / "a.mmd").read_text() == graph.to_mermaid()
    assert "must end in .svg or .mmd" in error(capsys, "draw", "unet", "--out", tmp_path / "a.png")


def test_lists(capsys):
    main(["list", "topologies"])
    assert capsys.readouterr().out.split() == nestedseg.list_topologies()
    main(["list", "encoders", "resnet18*"])
    assert capsys.readouterr().out.split() == nestedseg.list_encoders("resnet18*")


def test_help_names_every_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    printed = capsys.readouterr().out
    for command in ("train", "predict", "prune", "export", "publish", "summary", "draw",
                    "list", "demo"):
        assert f"\n    {command} " in printed
    assert max(map(len, printed.splitlines())) <= 100


# -- options of all commands ----------------------------------------------------------------------


def fail(args):
    """Has a fault of its own, which looks like a user's mistake."""
    raise ValueError("first line\nsecond line")


@pytest.mark.parametrize("argv", [["--traceback", "list", "topologies"],
                                  ["list", "--traceback", "topologies"],
                                  ["list", "topologies", "--traceback"]])
def test_a_traceback_leads_to_a_fault_inside_a_command(monkeypatch, capsys, argv):
    monkeypatch.setattr("nestedseg.cli.models.list_names", fail)
    with pytest.raises(ValueError, match="first line\nsecond line") as caught:
        main(argv)
    assert [entry.name for entry in caught.traceback][-2:] == ["main", "fail"]
    assert capsys.readouterr().err == ""
    argv.remove("--traceback")
    assert error(capsys, *argv) == "nestedseg: error: first line second line\n"


LADDER = """
import nestedseg

@nestedseg.register_topology("{name}")
def ladder(i, j, depth):
    return [f"x{{i + 1}}_{{j - 1}}"] if i + j == depth else None
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """The name of a module in the current folder, and of the topology that it registers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.setattr(rules, "_RULES", {**rules._RULES})
    names = [f"my_{number}_{tmp_path.name}" for number in range(2)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(LADDER.format(name=name))
    yield names
    for name in names:
        sys.modules.pop(name, None)


def test_a_topology_of_ones_own_is_known_to_every_command(module, folder, tmp_path, capsys):
    mine, other = module
    assert mine not in nestedseg.list_topologies()
    assert main(["--import", mine, "list", "topologies", "--import", other]) == 0
    assert {mine, other} <= {*capsys.readouterr().out.split()}
    assert main(["draw", mine, "--import", mine, "--depth", "2", "--out", "a.svg"]) == 0
    assert (tmp_path / "a.svg").read_text() == nestedseg.topology(mine, 2).to_svg()
    assert train(folder, tmp_path / "run", "--binary", "--topology", mine, "--import", mine) == 0
    model = nestedseg.from_pretrained(tmp_path / "run/model")
    assert model.graph.to_dict()["nodes"] == {"x1_1": ["x2_0"], "x0_2": ["x1_1"]}


def test_a_topology_that_was_not_imported_is_unknown(module, capsys):
    assert "unknown topology" in error(capsys, "draw", module[0], "--out", "a.svg")


def test_a_module_that_is_not_there_says_what_to_give(module, tmp_path, capsys):
    assert error(capsys, "list", "topologies", "--import", "nothere").startswith(
        "nestedseg: error: --import nothere: there is no such module; give the name of one")
    assert "without its .py" in error(capsys, "list", "topologies", "--import", f"{module[0]}.py")
    (tmp_path / f"{module[1]}.py").write_text("import nothere_either")
    assert error(capsys, "list", "topologies", "--import", module[1]) \
        == "nestedseg: error: No module named 'nothere_either'\n"


# -- demo -----------------------------------------------------------------------------------------


@pytest.fixture
def quick_demo(monkeypatch):
    monkeypatch.setattr(demo, "SETTINGS", Settings(epochs=2, steps=2, batch=2, patch=32, lr=1e-3))
    monkeypatch.setattr(demo, "PICTURES", 4)


def test_demo_goes_from_pictures_to_a_checked_pruned_model(quick_demo, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "outputs equal to those of the whole model's head" in printed
    depth = int(re.search(r"within 0.01 of the best IoU: (\d)", printed)[1])
    assert nestedseg.from_pretrained(tmp_path / "pruned").depths == (depth,)
    report = (tmp_path / "report.md").read_text()
    assert (tmp_path / "depths.md").read_text() in report
    for picture in re.findall(r"\]\((.+?)\)", report):
        assert (tmp_path / picture).is_file()
    assert len(find_pairs(tmp_path / "images", tmp_path / "labels")) == 4


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real images in {REAL}")
def test_demo_on_real_nuclei(quick_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "MOST", (6, 3))
    assert main(["demo", "--out", str(tmp_path), "--images", str(REAL / "nuclei/images"),
                 "--labels", str(REAL / "nuclei/labels")]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["validation"]) == 3 and metrics["model"]["in_channels"] in (1, 3)
