"""Scores of a model on labelled images: of every depth, with what it costs, and of each case."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nestedseg.data import LabelledImages, Volume, open_volume
from nestedseg.extras import require
from nestedseg.inference import output_key, predict_heads, predict_image, predict_volume, to_mask
from nestedseg.metrics import SegmentationScores
from nestedseg.model import SegmentationModel

TIMED_RUNS = 5
TOLERANCE = 1.0  # mm, of the surface Dice


def score_heads(model: SegmentationModel, images: LabelledImages,
                indices: Iterable[int] | None = None) -> dict[int | str, SegmentationScores]:
    """The scores of each head, by depth, on some of the images (default: all)."""
    scores = new_scores(model)
    for index in range(len(images)) if indices is None else indices:
        image, target = images[index]
        truth = torch.from_numpy(target)[None]
        for key, logits in predict_heads(model, image).items():
            scores[key].update(logits, truth.to(logits.device))
    return scores


def new_scores(model: SegmentationModel) -> dict[int | str, SegmentationScores]:
    """Scores of each head, by depth, of no images yet."""
    return {key: SegmentationScores(model.task, model.classes)
            for key in (*model.depths, output_key(model))}


@dataclass(frozen=True)
class DepthReport:
    """What the model pruned to one depth reaches and costs.

    Args:
        iou: mean over the classes, as a fraction.
        dice: likewise.
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
    """One `DepthReport` for each depth, shallow -> deep; costs are those of the first image."""
    scores = score_heads(model, images)
    reports = []
    for row in model.summary(images.shapes[0]):
        measured = scores[row.depth].compute()
        seconds = _time(model.prune(row.depth), images[0][0])
        reports.append(DepthReport(row.depth, measured["iou"]["mean"], measured["dice"]["mean"],
                                   row.parameters, row.macs, seconds))
    return reports


def _time(model: SegmentationModel, image: np.ndarray) -> float:
    """Median seconds for one image, after one run that warms up."""
    seconds = []
    for _ in range(TIMED_RUNS + 1):
        start = time.perf_counter()
        predict_image(model, image).cpu()  # the copy waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


# -- volumes, case by case ------------------------------------------------------------------------


@dataclass(frozen=True)
class CaseScore:
    """One class of one volume, on the volume's own grid.

    A class that is neither in the truth nor in the prediction has nan throughout; one that is in
    only one of them has no overlap, and an infinite distance.

    Args:
        case: name of the image file.
        label: class index.
        dice: as a fraction.
        iou: likewise.
        hd95: 95th percentile of the Hausdorff distance in mm, the larger of both directions.
        surface_dice: the part of both surfaces that lies within a tolerance of the other.
    """

    case: str
    label: int
    dice: float
    iou: float
    hd95: float
    surface_dice: float


def score_cases(model: SegmentationModel, images: LabelledImages,
                tolerance: float = TOLERANCE) -> list[CaseScore]:
    """The scores of each volume and class; ``tolerance``: of the surface Dice, in mm."""
    scores = []
    for index, pair in enumerate(images.pairs):
        volume, truth = open_case(images, index)
        scores += score_case(pair.image.name, segment(model, volume), truth, volume.spacing,
                             images.classes, tolerance)
    return scores


def open_case(images: LabelledImages, index: int) -> tuple[Volume, np.ndarray]:
    """A volume and its class indices, both on the volume's own grid."""
    pair = images.pairs[index]
    label = open_volume(pair.label).class_indices()
    return open_volume(pair.image), images.class_indices(label, pair)


def score_case(name: str, mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float],
               classes: int, tolerance: float = TOLERANCE) -> list[CaseScore]:
    """The scores of each class but the background.

    Args:
        name: of the case.
        mask: predicted class indices, ``(D, H, W)``.
        truth: likewise.
        spacing: size of a voxel along D, H, W in mm.
        classes: as of `LabelledImages`.
        tolerance: of the surface Dice, in mm.
    """
    scores = []
    for label in range(1, max(classes, 2)):
        a, b = mask == label, truth == label
        both, either, size = (a & b).sum(), (a | b).sum(), a.sum() + b.sum()
        dice, iou = (2 * both / size, both / either) if either else (math.nan, math.nan)
        scores.append(CaseScore(name, label, float(dice), float(iou),
                                *_surface_scores(a, b, spacing, tolerance)))
    return scores


def segment(model: SegmentationModel, volume: Volume, **options: Any) -> np.ndarray:
    """Class indices ``(D, H, W)`` of a volume; options are those of `predict_volume`."""
    mask = np.empty(volume.shape, np.uint8)
    for planes, scores in predict_volume(model, volume, **options):
        mask[planes] = to_mask(scores, model.task)
    return mask


def _surface_scores(a: np.ndarray, b: np.ndarray, spacing: Sequence[float],
                    tolerance: float) -> tuple[float, float]:
    """Distance and Dice of two surfaces."""
    if not a.any() or not b.any():
        return (math.inf, 0.0) if a.any() or b.any() else (math.nan, math.nan)
    metrics = require("monai.metrics", "medical")
    planes = [torch.from_numpy(each)[None, None] for each in (a, b)]
    options = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI to itself
        hd95 = metrics.compute_hausdorff_distance(*planes, percentile=95, **options)
        dice = metrics.compute_surface_dice(*planes, class_thresholds=[tolerance], **options)
    return hd95.item(), dice.item()
