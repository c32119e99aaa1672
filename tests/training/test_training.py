import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import in_two_processes, start

import nestedseg
from nestedseg.cli import main
from nestedseg.data import LabelledImages, find_pairs, synthetic_nuclei
from nestedseg.evaluation.depths import compare_depths, score_heads
from nestedseg.hub.lock import locked
from nestedseg.training.history import best_epoch
from nestedseg.training.loop import CHECKPOINT, MODEL, fit
from nestedseg.training.settings import Settings

QUICK = Settings(epochs=2, steps=2, batch=2, patch=32)


def write_nuclei(folder, count=6):
    for kind, pictures in zip(("images", "labels"), synthetic_nuclei(count, 64), strict=True):
        (folder / kind).mkdir(parents=True)
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / kind / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_nuclei(tmp_path_factory.mktemp("nuclei"))


@pytest.fixture(scope="module")
def sides(folder):
    pairs = find_pairs(folder / "images", folder / "labels")
    return LabelledImages(pairs[:4], binary=True), LabelledImages(pairs[4:], binary=True)


def tiny(**options):
    torch.manual_seed(0)
    options = {"encoder_channels": (4, 8, 8), "in_channels": 1, "deep_supervision": True} | options
    model = nestedseg.create("unetpp", **options)
    model.set_preprocessing(mean=[0.2], std=[0.2])
    return model


def numbers(history):
    return [{key: value for key, value in asdict(epoch).items() if key != "seconds"}
            for epoch in history]


def test_training_learns_and_keeps_the_best_weights(tmp_path, sides):
    lines = []
    settings = Settings(epochs=8, steps=10, batch=4, patch=48, lr=1e-2)
    history = fit(tiny(), *sides, tmp_path, settings, log=lines.append)
    assert [epoch.epoch for epoch in history] == list(range(1, 9))
    assert history[-1].loss < 0.6 * history[0].loss
    best = best_epoch(history)
    assert best.score > 0.7 and best.score == max(epoch.score for epoch in history)
    saved = nestedseg.from_pretrained(tmp_path / MODEL)
    scores = score_heads(saved, sides[1])
    for depth in (1, 2):
        assert scores[depth].compute()["iou"]["mean"] == pytest.approx(best.scores[str(depth)])
    assert best.score == best.scores["2"]
    assert saved.preprocessing["mean"] == [0.2]
    assert len(lines) == 9 and lines[best.epoch].endswith("*") and "val IoU" in lines[1]


def test_the_table_of_depths_agrees_with_scores_and_summary(sides):
    model = tiny().eval()
    scores = score_heads(model, sides[1])
    for report, row in zip(compare_depths(model, sides[1]), model.summary(64), strict=True):
        measured = scores[report.depth].compute()
        assert (report.depth, report.parameters, report.macs) \
            == (row.depth, row.parameters, row.macs)
        assert (report.iou, report.dice) == (measured["iou"]["mean"], measured["dice"]["mean"])
        assert 0 < report.seconds < 5


def test_the_seed_decides_everything_and_workers_nothing(tmp_path, sides):
    variants = QUICK, replace(QUICK, workers=2), replace(QUICK, seed=1)
    runs = [fit(tiny(dropout=0.2), *sides, tmp_path / str(n), settings)
            for n, settings in enumerate(variants)]
    assert numbers(runs[0]) == numbers(runs[1])
    assert numbers(runs[0]) != numbers(runs[2])


def test_resuming_gives_the_numbers_of_an_uninterrupted_run(tmp_path, sides):
    settings = replace(QUICK, epochs=4, lr=1e-2)
    whole = fit(tiny(dropout=0.2), *sides, tmp_path / "whole", settings)
    fit(tiny(dropout=0.2), *sides, tmp_path / "parts", replace(settings, epochs=2))
    parts = fit(tiny(dropout=0.2), *sides, tmp_path / "parts", settings, resume=True)
    assert numbers(parts) == numbers(whole)
    states = [torch.load(tmp_path / run / CHECKPOINT, weights_only=True)["model"]
              for run in ("whole", "parts")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert numbers(fit(tiny(dropout=0.2), *sides, tmp_path / "parts", settings, resume=True)) \
        == numbers(whole)  # nothing is left to do


def test_a_run_is_neither_overwritten_nor_continued_as_another(tmp_path, sides):
    fit(tiny(), *sides, tmp_path, QUICK)
    with pytest.raises(ValueError, match="already contains a run; use resume=True"):
        fit(tiny(), *sides, tmp_path, QUICK)
    with pytest.raises(ValueError, match=r"'lr' was 0.0003 in that run, and is now 0.1"):
        fit(tiny(), *sides, tmp_path, replace(QUICK, lr=0.1), resume=True)
    with pytest.raises(ValueError, match="'upsample' was 'nearest' in that run, and is now"):
        fit(tiny(upsample="bilinear"), *sides, tmp_path, QUICK, resume=True)
    with pytest.raises(ValueError, match="'training images' was"):
        fit(tiny(), sides[1], sides[0], tmp_path, QUICK, resume=True)


def test_training_stops_early_without_progress_or_time(tmp_path, sides):
    # A step so small that no validation pixel changes: only the first epoch is an improvement.
    still = replace(QUICK, epochs=50, lr=1e-30, patience=3)
    assert len(fit(tiny(norm=None), *sides, tmp_path / "still", still)) == 4
    short = replace(QUICK, epochs=50, seconds=1e-3)
    assert len(fit(tiny(), *sides, tmp_path / "short", short)) == 1


def test_a_loss_that_is_no_number_is_an_error(tmp_path, sides):
    with pytest.raises(FloatingPointError, match=r"the loss of epoch \d is nan; try a smaller"):
        fit(tiny(norm=None), *sides, tmp_path, replace(QUICK, lr=1e30, steps=4))


def test_labels_without_foreground_are_refused(tmp_path, sides):
    folder = write_nuclei(tmp_path / "empty", 1)
    Image.new("L", (64, 64)).save(folder / "labels" / "0.png")
    empty = LabelledImages(find_pairs(folder / "images", folder / "labels"), binary=True)
    with pytest.raises(ValueError, match="the validation labels contain no foreground"):
        fit(tiny(), sides[0], empty, tmp_path / "run", QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong, message", [
    ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"batch": -1}, "batch must be at least 1, got -1"),
    ({"workers": -1}, "workers must be at least 0, got -1"),
    ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
    ({"seconds": 0.0}, "seconds must be a positive number, got 0.0"),
    ({"precision": "fp61"}, "did you mean 'fp16'"),
])
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


# -- other processes ------------------------------------------------------------------------------


def train_command(folder: Path, run: Path, *options: str) -> list[str]:
    return ["train", "--images", str(folder / "images"), "--labels", str(folder / "labels"),
            "--binary", "--widths", "4", "8", "8", "--patch", "32", "--steps", "3", "--lr", "0.01",
            "--out", str(run), *options]


def curves(run: Path) -> list[dict]:
    history = json.loads((run / "metrics.json").read_text())["history"]
    return [{key: epoch[key] for key in ("epoch", "loss", "score", "scores")} for epoch in history]


def launched_by_accelerate(work, command, output):
    """What follows `accelerate launch` runs in two processes; what they print."""
    # On CPUs accelerate launches them as it does on two GPUs; they talk through gloo.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines",
              "1", "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", "0", "-m", "nestedseg"]
    return subprocess.run([*launch, *command], check=True, timeout=120, text=True,
                          capture_output=True,
                          env=os.environ | {"ACCELERATE_USE_CPU": "true"}).stdout


@pytest.mark.parametrize("launch", [
    in_two_processes, pytest.param(launched_by_accelerate, marks=pytest.mark.slow)])
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, folder, launch):
    options = ("--norm", "none", "--epochs", "3")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(train_command(folder, one, *options, "--batch", "4")) == 0
    printed = launch(main, train_command(folder, two, *options, "--batch", "2"),
                     output=tmp_path / "printed")
    assert "2 x cpu" in printed and printed.count("epoch   1/3") == 1
    for alone, together in zip(curves(one), curves(two), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert together["score"] == pytest.approx(alone["score"], abs=1e-3)


def refused(command):
    """0 if the command ends with an error, which is printed."""
    with contextlib.redirect_stderr(sys.stdout):
        return 0 if main(command) == 2 else 1


def test_two_processes_both_hear_that_another_training_has_the_folder(tmp_path, folder):
    run = tmp_path / "run"
    run.mkdir()
    with locked(run, 0, ""):
        printed = in_two_processes(refused, train_command(folder, run, "--batch", "2"),
                                   output=tmp_path / "printed")
    assert printed.count(f"is in use by process {os.getpid()} on ") == 2
    assert not (run / "checkpoint.pt").exists()


@pytest.mark.slow
def test_what_accelerate_launches_hears_it_too(tmp_path, folder):
    run = tmp_path / "run"
    run.mkdir()
    with locked(run, 0, ""), pytest.raises(subprocess.CalledProcessError) as failed:
        launched_by_accelerate(main, train_command(folder, run, "--batch", "2"), tmp_path)
    assert failed.value.stderr.count(f"is in use by process {os.getpid()} on ") == 2


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path, folder, capsys):
    whole, killed, printed = tmp_path / "whole", tmp_path / "killed", tmp_path / "printed"
    options = ("--epochs", "6", "--batch", "2")
    assert main(train_command(folder, whole, *options)) == 0
    process = start(main, train_command(folder, killed, *options), output=printed)
    while not (printed.exists() and "epoch   2/6" in printed.read_text()):
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()  # SIGKILL: it has no chance to clean up
    process.join(timeout=60)
    assert not (killed / "metrics.json").exists()
    assert main(train_command(folder, killed, *options, "--resume")) == 0
    assert f"resuming {killed} after epoch" in capsys.readouterr().out
    assert curves(killed) == curves(whole)
