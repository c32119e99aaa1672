"""Compares the depths of a model on labelled images: scores, parameters, MACs and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nestedseg.data import LabelledImages
from nestedseg.data.labelled import planes_first
from nestedseg.data.labels import VOID
from nestedseg.data.preprocessing import preprocess
from nestedseg.evaluation.metrics import SegmentationScores
from nestedseg.models.model import SegmentationModel
from nestedseg.models.outputs import ensemble
from nestedseg.prediction.predict import output_key, predict_image
from nestedseg.prediction.sliding_window import default_window, stream

TIMED_RUNS = 5


def score_heads(model: SegmentationModel, images: LabelledImages,
                indices: Iterable[int] | None = None) -> dict[int | str, SegmentationScores]:
    """Scores each head, by depth, on the images with these indices (default: all).

    Images are read and predicted a few rows or planes at a time, so they may be larger than memory.
    """
    scores = new_scores(model)
    for index in range(len(images)) if indices is None else indices:
        for rows, heads in _predict_rows(model, images, index):
            window = [rows, *(slice(0, length) for length in images.shapes[index][1:])]
            target = planes_first(images.read(index, window)[1], images.dims)
            truth = torch.from_numpy(target)[None]
            for key, logits in heads.items():
                scores[key].update(logits, truth.to(logits.device))
    return scores


def _predict_rows(model: SegmentationModel, images: LabelledImages, index: int
                  ) -> Iterator[tuple[slice, dict[int | str, Tensor]]]:
    """The logits of each head, as `predict_heads` gives them, for a few rows at a time."""
    model.eval()
    like, shape = next(model.parameters()), images.shapes[index]

    def cut(place: tuple[slice, ...]) -> Tensor:
        image, _ = images.read(index, place)
        return preprocess(image, model, images.moments[index], images.nodata_of(index)).to(like)

    def forward(x: Tensor) -> Tensor:
        return torch.cat(list(model.forward_heads(x).values()), 1)

    for rows, logits in stream(forward, cut, shape, default_window(model, shape)):
        parts = logits.chunk(len(model.depths), 1)
        heads: dict[int | str, Tensor] = dict(zip(model.depths, parts))
        if model.output == "ensemble":
            heads["ensemble"] = ensemble(parts, model.task)
        yield rows, heads


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
    """One `DepthReport` for each depth, shallow -> deep; costs are measured on the first image, or
    the middle of a large one."""
    scores, (image, _) = score_heads(model, images), images.middle(0)
    reports = []
    for row in model.summary(image.shape[:images.dims]):
        measured = scores[row.depth].compute()
        seconds = _time(model.prune(row.depth), image)
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
