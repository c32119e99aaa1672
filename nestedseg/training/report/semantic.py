"""The report of a semantic model's training: scores by depth, curves and images."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nestedseg.base.extras import require
from nestedseg.data import LabelledImages
from nestedseg.data.labelled import planes_first
from nestedseg.data.labels import VOID
from nestedseg.evaluation.cases import (
    TOLERANCE,
    CaseScore,
    decide,
    open_case,
    score_cases,
    segment,
)
from nestedseg.evaluation.depths import DepthReport, compare_depths
from nestedseg.evaluation.metrics import SegmentationScores
from nestedseg.evaluation.visualise_masks import (
    CLASS_COLOURS,
    MISSED,
    WRONG,
    paint_classes,
    paint_errors,
    to_rgb,
)
from nestedseg.evaluation.visualise_volumes import Case, draw_slices
from nestedseg.models.model import SegmentationModel
from nestedseg.models.outputs import probabilities
from nestedseg.prediction import predict_heads
from nestedseg.training.history import Epoch
from nestedseg.training.report.figures import CURVES, OVERLAY, draw_curves, draw_panels, shown
from nestedseg.training.report.metrics_file import write_metrics


def write_report(run: str | Path, model: SegmentationModel, validation: LabelledImages,
                 history: Sequence[Epoch], settings: dict[str, Any]) -> list[DepthReport]:
    """Writes ``metrics.json``, ``depths.md``, ``curves.png`` and ``overlay.png``.

    For volumes it also writes ``cases.csv``: the scores of each volume, on its own grid.

    Args:
        run: an existing folder.
        model: the best model of the run.
        validation: the images that are scored and shown.
        history: as returned by `nestedseg.training.fit`.
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


def depth_table(depths: Sequence[DepthReport]) -> str:
    """The depths as a Markdown table with aligned columns."""
    rows = [["depth", "IoU", "Dice", "parameters", "MACs", "time per image"]]
    rows += [[str(row.depth), f"{row.iou:.4f}", f"{row.dice:.4f}", f"{row.parameters:,}",
              f"{row.macs / 1e9:.2f} G", f"{1e3 * row.seconds:.1f} ms"] for row in depths]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * (width - 1) + ":" for width in widths])
    lines = [" | ".join(map(str.rjust, row, widths)) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)


def write_cases(cases: Sequence[CaseScore], path: Path, tolerance: float = TOLERANCE) -> None:
    """Writes the scores of each volume and class as a CSV table, one line each.

    Args:
        cases: as returned by `nestedseg.evaluation.cases.score_cases`.
        path: of the CSV file.
        tolerance: of the surface Dice in mm, for the name of its column.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("case", "class", "dice", "iou", "hd95_mm",
                        f"surface_dice_{tolerance:g}mm"))
        for case in cases:
            table.writerow((case.case, case.label, *(f"{score:.4f}" for score in (
                case.dice, case.iou, case.hd95, case.surface_dice))))


def draw_overlay(model: SegmentationModel, images: LabelledImages, path: Path) -> None:
    """Draws image, truth and each depth's prediction side by side, for a few images, as a PNG."""
    rows = [_panels(model, *images.middle(index), images.pairs[index].image.name)
            for index in shown(images)]
    draw_panels(rows, path, _legend(model, images))


def draw_contours(model: SegmentationModel, images: LabelledImages, path: Path) -> None:
    """Draws slices of a few volumes with the contours of truth and prediction, as a PNG."""
    cases = []
    for index in shown(images):
        volume, truth = open_case(images, index)
        cases.append(Case(images.pairs[index].image.name, volume,
                          {"truth": truth, "prediction": segment(model, volume)}))
    draw_slices(cases, path)


def _panels(model: SegmentationModel, image: np.ndarray, truth: np.ndarray,
            name: str) -> list[tuple[str, np.ndarray]]:
    rgb = to_rgb(image)
    panels = [(name, rgb), ("truth", paint_classes(rgb, truth))]
    for key, logits in predict_heads(model, image).items():
        mask = decide(probabilities(logits, model.task)[0], model.task)
        title = f"depth {key}" if isinstance(key, int) else str(key)
        panels.append((f"{title}: IoU {_iou(model, logits, truth):.3f}",
                       paint_errors(rgb, mask, truth)))
    return panels


def _iou(model: SegmentationModel, logits: torch.Tensor, truth: np.ndarray) -> float:
    scores = SegmentationScores(model.task, model.classes, ignore_index=VOID)
    scores.update(logits.cpu(), torch.from_numpy(planes_first(truth, 2))[None])
    return scores.compute()["iou"]["mean"]


def _legend(model: SegmentationModel, images: LabelledImages) -> list[Any]:
    patch = require("matplotlib.patches").Patch
    first = 0 if model.task == "multilabel" else 1
    names = ["foreground"] if model.classes == 1 else [
        f"class {c}" for c in range(first, model.classes)]
    wrong = "false alarm" if model.classes == 1 else "wrong class"
    # Colours repeat after the last of the palette, so only the first classes are listed.
    entries = [*zip(names, CLASS_COLOURS, strict=False), ("missed", MISSED), (wrong, WRONG)]
    shown = [patch(color=np.array(colour) / 255, label=name) for name, colour in entries]
    void = [patch(facecolor="white", edgecolor="black", hatch="/////", label="no class")]
    return shown + (void if images.rules.ignore else [])
