"""One trial: a network trained, tested and measured, and its one JSON file.

Training is `nestedseg.training.fit`: killed, it goes on from its last epoch to the same numbers.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import nestedseg
from benchmarks.machine import describe_machine
from benchmarks.memory import peak_bytes
from benchmarks.paper import maps
from benchmarks.paper.data import DATA, PARTS
from benchmarks.paper.plan import FIGURE_8, Trial
from benchmarks.paper.score import score
from benchmarks.timing import elapsed
from nestedseg.data import LabelledImages
from nestedseg.models.model import SegmentationModel
from nestedseg.training.history import best_epoch
from nestedseg.training.loop import CHECKPOINT, MODEL, fit

TIMED = 5  # passes over a patch, of which the median counts
APART = ("times", "machine")  # what differs when a trial is repeated


def run(trial: Trial, sets: Mapping[str, LabelledImages], folder: Path, path: Path,
        weights: Path | None = None, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and test, and write the results.

    Args:
        trial: what to train.
        sets: the three parts of its data set.
        folder: for checkpoint and model; a run found there is continued.
        path: of the JSON file.
        weights: a folder with ``ENCODER.safetensors``, for the backbones that it has.
        log: takes a line for each epoch.
    """
    settings = trial.protocol.settings
    model = build(trial, sets["training"], weights)
    history = fit(model, *(sets[part] for part in PARTS[:2]), folder, settings, resume=True,
                  log=log)
    start, device = time.perf_counter(), next(model.parameters()).device
    best = nestedseg.from_pretrained(folder / MODEL).to(device).eval()
    test = score(best, sets["test"], settings.patch, trial.protocol.overlap,
                 DATA[trial.row.data].objects is not None)
    costs, seconds = measure(best, settings.patch)
    curves = [asdict(epoch) for epoch in history]
    times = {"epochs": [curve.pop("seconds") for curve in curves], "patch": seconds}
    results = {
        "trial": facts(trial, weights),
        "split": {part: len(sets[part]) for part in PARTS},
        "parameters": sum(p.numel() for p in best.parameters()),
        "curves": curves,
        "best_epoch": best_epoch(history).epoch,
        "test": test,
        "costs": costs,
        "times": times | {"all": sum(times["epochs"]) + time.perf_counter() - start},
        "machine": describe_machine() | {"device": device.type},
    }
    if in_figure_8(trial) and best.config["dims"] == 2:
        row = maps.top_row(best, sets["test"])
        maps.save(row, path.with_suffix(".png"))
        results["maps"] = list(row)
    write(path, results)
    (folder / CHECKPOINT).unlink()
    return results


def facts(trial: Trial, weights: Path | None) -> dict[str, Any]:
    """All that the numbers of a trial follow from."""
    return trial.facts() | {"pretrained": weights_of(trial, weights) is not None}


def build(trial: Trial, images: LabelledImages, weights: Path | None) -> SegmentationModel:
    """The network of a trial, its weights drawn from the trial's seed."""
    torch.manual_seed(trial.number)
    model = nestedseg.create(**trial.options, dims=images.dims, in_channels=images.in_channels,
                             encoder_weights=weights_of(trial, weights))
    model.set_preprocessing(**images.preprocessing())
    model.output = "ensemble" if len(model.depths) > 1 else "deepest"
    return model


def weights_of(trial: Trial, folder: Path | None) -> Path | None:
    """The file of pretrained weights for the encoder of a trial, if there is one."""
    if folder is None or trial.row.backbone == "plain":
        return None
    path = folder / f"{trial.options['encoder']}.safetensors"
    return path if path.is_file() else None


def in_figure_8(trial: Trial) -> bool:
    return (trial.row.backbone == "plain" and trial.row.architecture in FIGURE_8
            and trial.number == 0)


def measure(model: SegmentationModel, patch: int | tuple[int, ...],
            ) -> tuple[list[dict[str, int]], dict[str, float]]:
    """What each depth costs on one patch: what is exact, and the median time in seconds."""
    sides = (patch,) * model.config["dims"] if isinstance(patch, int) else patch
    x = torch.zeros(1, model.config["in_channels"], *sides,
                    device=next(model.parameters()).device)
    costs, seconds = [], {}
    for row in model.summary(patch):
        peak, time_taken = _pass(model.prune(row.depth).eval(), x)
        costs.append({"depth": row.depth, "parameters": row.parameters, "macs": row.macs,
                      "peak_bytes": peak})
        seconds[str(row.depth)] = time_taken
    return costs, seconds


@torch.no_grad()
def _pass(model: SegmentationModel, x: torch.Tensor) -> tuple[int, float]:
    """The most bytes of maps alive at once, and the median time, of a pass over a patch."""
    peak = peak_bytes(lambda: model(x), [x, *model.state_dict().values()])
    return peak, statistics.median(elapsed(lambda: model(x)) for _ in range(TIMED))


def write(path: Path, results: dict[str, Any]) -> None:
    """One line for each part, all at once: a killed trial leaves no half of a file."""
    lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}"
             for key, value in results.items())
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    os.replace(draft, path)
