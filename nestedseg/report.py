"""What a training run leaves behind: numbers, curves, the depth table and pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nestedseg.data import LabelledImages
from nestedseg.evaluation import (
    TOLERANCE,
    CaseScore,
    DepthReport,
    compare_depths,
    open_case,
    score_cases,
    segment,
)
from nestedseg.extras import require
from nestedseg.inference import predict_heads, to_mask
from nestedseg.metrics import SegmentationScores
from nestedseg.model import SegmentationModel, probabilities
from nestedseg.pictures import (
    CLASS_COLOURS,
    INK,
    MISSED,
    WRONG,
    paint_classes,
    paint_errors,
    to_rgb,
)
from nestedseg.slices import Case, draw_slices, pyplot
from nestedseg.training import Epoch, best_epoch

METRICS, CURVES, OVERLAY = "metrics.json", "curves.png", "overlay.png"
SHOWN = 3  # images in overlay.png
PANEL = 2.9  # inches
RECORDED = ("batch", "patch", "lr", "seed")  # settings that the model's config keeps


def write_report(run: str | Path, model: SegmentationModel, validation: LabelledImages,
                 history: Sequence[Epoch], settings: dict[str, Any]) -> list[DepthReport]:
    """Write ``metrics.json``, ``depths.md``, ``curves.png`` and ``overlay.png``.

    Of volumes also ``cases.csv``: the scores of each one, on its own grid.

    Args:
        run: an existing folder.
        model: the best one of the run.
        validation: what scores and pictures are made from.
        history: as `nestedseg.training.fit` returns it.
        settings: recorded in ``metrics.json``; JSON-able.

    Returns:
        One row for each depth, shallow -> deep.
    """
    run = Path(run)
    depths = compare_depths(model, validation)
    write_metrics(run, model, validation, history, settings, depths=list(map(asdict, depths)))
    (run / "depths.md").write_text(depth_table(depths))
    draw_curves(history, run / CURVES, "Validation IoU")
    if validation.dims == 3:
        write_cases(score_cases(model, validation), run / "cases.csv")
        draw_contours(model, validation, run / OVERLAY)
    else:
        draw_overlay(model, validation, run / OVERLAY)
    return depths


def write_metrics(run: Path, model: nn.Module, validation: LabelledImages,
                  history: Sequence[Epoch], settings: dict[str, Any], **measured: Any) -> None:
    """Write ``metrics.json``: what was measured, and what is needed to measure it again."""
    metrics = {"best_epoch": best_epoch(list(history)).epoch, **measured,
               "history": list(map(asdict, history)), "settings": settings,
               "model": model.config,
               "validation": [pair.image.name for pair in validation.pairs]}
    (run / METRICS).write_text(json.dumps(_finite(metrics), indent=2) + "\n")


def read_report(run: str | Path) -> dict[str, Any]:
    """The facts of a run as the model's `push_to_hub` takes them.

    Raises:
        ValueError: ``metrics.json`` is not what a training run writes.
    """
    run = Path(run)
    pictures = {"Validation images: truth and prediction": run / OVERLAY,
                "Training loss and validation scores": run / CURVES}
    facts = {"pictures": {text: path for text, path in pictures.items() if path.is_file()}}
    if not (run / METRICS).is_file():
        return facts  # of a run that was stopped there is the model alone
    try:
        report = json.loads((run / METRICS).read_text(encoding="utf-8"))
        scores = _known(report["scores"]) if "scores" in report else {
            row["depth"]: _known({name: row[name] for name in ("iou", "dice")})
            for row in report["depths"]}
        training = {"scores": f"of {len(report['validation'])} validation images",
                    "epochs": len(report["history"]), "best_epoch": report["best_epoch"],
                    **{name: _text(report["settings"][name]) for name in RECORDED}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / METRICS} is not what a training run writes: {error!r}") from None
    return facts | {"metrics": scores, "training": training}


def _known(scores: dict[str, float | None]) -> dict[str, float]:
    return {name: score for name, score in scores.items() if score is not None}


def _text(value: Any) -> Any:
    """A number as it is, several as in "64 x 64 x 64"."""
    return " x ".join(map(str, value)) if isinstance(value, list) else value


def depth_table(depths: Sequence[DepthReport]) -> str:
    """The depths as a Markdown table whose columns line up."""
    rows = [["depth", "IoU", "Dice", "parameters", "MACs", "time per image"]]
    rows += [[str(row.depth), f"{row.iou:.4f}", f"{row.dice:.4f}", f"{row.parameters:,}",
              f"{row.macs / 1e9:.2f} G", f"{1e3 * row.seconds:.1f} ms"] for row in depths]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * (width - 1) + ":" for width in widths])
    lines = [" | ".join(map(str.rjust, row, widths)) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def write_cases(cases: Sequence[CaseScore], path: Path, tolerance: float = TOLERANCE) -> None:
    """The scores of each volume and class as a table, a line each.

    Args:
        cases: as `nestedseg.evaluation.score_cases` gives them.
        path: of the CSV file.
        tolerance: of the surface Dice in mm, named in its column.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("case", "class", "dice", "iou", "hd95_mm",
                        f"surface_dice_{tolerance:g}mm"))
        for case in cases:
            table.writerow((case.case, case.label, *(f"{score:.4f}" for score in (
                case.dice, case.iou, case.hd95, case.surface_dice))))


def draw_curves(history: Sequence[Epoch], path: Path, title: str) -> None:
    """Training loss and validation scores over the epochs, as a PNG."""
    plt = pyplot()
    epochs = [epoch.epoch for epoch in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(epochs, [epoch.loss for epoch in history], color=INK, marker=".")
    left.set(title="Training loss", ylim=(0, None))
    scores = list(history[0].scores)
    colours = plt.get_cmap("viridis")(np.linspace(0.85, 0.1, len(scores)))
    for name, colour in zip(scores, colours, strict=True):
        right.plot(epochs, [epoch.scores[name] for epoch in history], color=colour, marker=".",
                   label=f"depth {name}" if name.isdigit() else name)
    best = best_epoch(list(history))
    right.plot(best.epoch, best.score, "o", color=INK, mfc="none", ms=9,
               label=f"best: {best.score:.3f}, epoch {best.epoch}")
    right.set(title=title)
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_overlay(model: SegmentationModel, images: LabelledImages, path: Path) -> None:
    """Image, truth and each depth's prediction side by side, for a few images, as a PNG."""
    rows = [_panels(model, *images[index], images.pairs[index].image.name)
            for index in shown(images)]
    draw_panels(rows, path, _legend(model.classes))


def draw_panels(rows: Sequence[Sequence[tuple[str, np.ndarray]]], path: Path,
                legend: Sequence[Any] = ()) -> None:
    """Rows of pictures with titles, as a PNG; ``legend`` are its handles in Matplotlib."""
    plt = pyplot()
    heights = [picture.shape[0] / picture.shape[1] for (_, picture), *_ in rows]
    figure, grid = plt.subplots(
        len(rows), len(rows[0]), squeeze=False, layout="constrained", height_ratios=heights,
        figsize=(PANEL * len(rows[0]), PANEL * sum(heights) + 0.3 * len(rows) + 0.5))
    panels = (panel for row in rows for panel in row)
    for axes, (title, picture) in zip(grid.flat, panels, strict=True):
        axes.imshow(picture, interpolation="nearest" if picture.shape[1] < 400 else "antialiased")
        axes.set_title(title, fontsize=10, color=INK)
        axes.axis("off")
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=8, frameon=False,
                      fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_contours(model: SegmentationModel, images: LabelledImages, path: Path) -> None:
    """Slices of a few volumes with the contours of truth and prediction, as a PNG."""
    cases = []
    for index in shown(images):
        volume, truth = open_case(images, index)
        cases.append(Case(images.pairs[index].image.name, volume,
                          {"truth": truth, "prediction": segment(model, volume)}))
    draw_slices(cases, path)


def shown(images: LabelledImages) -> list[int]:
    """A few of the images, from first to last."""
    return np.unique(np.linspace(0, len(images) - 1, SHOWN).round().astype(int)).tolist()


def _panels(model: SegmentationModel, image: np.ndarray, truth: np.ndarray,
            name: str) -> list[tuple[str, np.ndarray]]:
    rgb = to_rgb(image)
    panels = [(name, rgb), ("truth", paint_classes(rgb, truth))]
    for key, logits in predict_heads(model, image).items():
        mask = to_mask(probabilities(logits, model.task)[0], model.task)
        title = f"depth {key}" if isinstance(key, int) else str(key)
        panels.append((f"{title}: IoU {_iou(model, logits, truth):.3f}",
                       paint_errors(rgb, mask, truth)))
    return panels


def _iou(model: SegmentationModel, logits: torch.Tensor, truth: np.ndarray) -> float:
    scores = SegmentationScores(model.task, model.classes)
    scores.update(logits.cpu(), torch.from_numpy(truth)[None])
    return scores.compute()["iou"]["mean"]


def _legend(classes: int) -> list[Any]:
    patch = require("matplotlib.patches").Patch
    names = ["foreground"] if classes == 1 else [f"class {c}" for c in range(1, classes)]
    wrong = "false alarm" if classes == 1 else "wrong class"
    # Beyond the palette colours come round again: the first classes stand for all.
    entries = [*zip(names, CLASS_COLOURS, strict=False), ("missed", MISSED), (wrong, WRONG)]
    return [patch(color=np.array(colour) / 255, label=name) for name, colour in entries]


def _finite(value: Any) -> Any:
    """The same with null for nan, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
