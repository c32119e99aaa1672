"""Compares the depths of a model on labelled images: scores, parameters, MACs and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from nestedseg.data import LabelledImages
from nestedseg.data.labelled import planes_first
from nestedseg.data.labels import VOID
from nestedseg.evaluation.metrics import SegmentationScores
from nestedseg.models.model import SegmentationModel
from nestedseg.prediction.predict import (
    output_key,
    predict_heads,
    predict_image,
)

TIMED_RUNS = 5


def score_heads(model: SegmentationModel, images: LabelledImages,
                indices: Iterable[int] | None = None) -> dict[int | str, SegmentationScores]:
    """Scores each head, by depth, on the images with these indices (default: all)."""
    scores = new_scores(model)
    for index in range(len(images)) if indices is None else indices:
        image, target = images[index]
        truth = torch.from_numpy(planes_first(target, images.dims))[None]
        for key, logits in predict_heads(model, image).items():
            scores[key].update(logits, truth.to(logits.device))
    return scores


def new_scores(model: SegmentationModel) -> dict[int | str, SegmentationScores]:
    """Empty scores for each head, by depth."""
    return {key: SegmentationScores(model.task, model.classes, ignore_index=VOID)
            for key in (*model.depths, output_key(model))}


@dataclass(frozen=True)
class DepthReport:
    """The scores and the cost of the model pruned to one depth.

    Args:
        depth: of the head.
        iou: mean over the classes, as a fraction.
        dice: mean over the classes, as a fraction.
        parameters: number of weights.
        macs: multiply-accumulates for one image of the size that was timed.
        seconds: median time for one image.
    """

    depth: int
    iou: float
    dice: float
    parameters: int
    macs: int
    seconds: float


def compare_depths(model: SegmentationModel, images: LabelledImages) -> list[DepthReport]:
    """One `DepthReport` for each depth, shallow -> deep; costs are measured on the first image."""
    scores = score_heads(model, images)
    reports = []
    for row in model.summary(images.shapes[0]):
        measured = scores[row.depth].compute()
        seconds = _time(model.prune(row.depth), images[0][0])
        reports.append(DepthReport(row.depth, measured["iou"]["mean"], measured["dice"]["mean"],
                                   row.parameters, row.macs, seconds))
    return reports


def _time(model: SegmentationModel, image: np.ndarray) -> float:
    """Median seconds for one image, after one warm-up run."""
    seconds = []
    for _ in range(TIMED_RUNS + 1):
        start = time.perf_counter()
        predict_image(model, image).cpu()  # the copy waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
