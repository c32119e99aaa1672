"""Scores of each volume (a case) and class, on the volume's own grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nestedseg.base.extras import require
from nestedseg.data import LabelledImages, Volume, open_volume
from nestedseg.models.model import SegmentationModel
from nestedseg.prediction import predict_volume, to_mask

TOLERANCE = 1.0  # mm, of the surface Dice


@dataclass(frozen=True)
class CaseScore:
    """The scores of one class in one volume, on the volume's own grid.

    For a class that is neither in the truth nor in the prediction all scores are nan. For a class
    in only one of them the fractions are 0 and the distance is infinite. Voxels that have no class
    in the truth are taken out of both.

    Args:
        case: name of the image file.
        label: class index.
        dice: Dice coefficient, a fraction.
        iou: intersection over union, a fraction.
        hd95: 95th percentile of the Hausdorff distance in mm, the larger of both directions.
        surface_dice: the fraction of both surfaces that is within a tolerance of the other surface.
    """

    case: str
    label: int
    dice: float
    iou: float
    hd95: float
    surface_dice: float


def score_cases(model: SegmentationModel, images: LabelledImages,
                tolerance: float = TOLERANCE) -> list[CaseScore]:
    """Scores each volume and class; ``tolerance`` is that of the surface Dice, in mm."""
    scores = []
    for index, pair in enumerate(images.pairs):
        volume, truth = open_case(images, index)
        scores += score_case(pair.image.name, segment(model, volume), truth, volume.spacing,
                             images.classes, tolerance)
    return scores


def open_case(images: LabelledImages, index: int) -> tuple[Volume, np.ndarray]:
    """Opens a volume and reads its class indices, both on the volume's own grid."""
    pair = images.pairs[index]
    volume, label = open_volume(pair.image), open_volume(pair.label_file).class_indices()
    return volume, images.mark(images.class_indices(label, pair), volume.read(), index)


def score_case(name: str, mask: np.ndarray, truth: np.ndarray, spacing: Sequence[float],
               classes: int, tolerance: float = TOLERANCE) -> list[CaseScore]:
    """Scores each class of a volume, except the background.

    Args:
        name: of the case.
        mask: predicted class indices, ``(D, H, W)``, or planes ``(D, H, W, classes)``.
        truth: the true ones, -1 where there is no class.
        spacing: size of a voxel along D, H, W in mm.
        classes: see `LabelledImages`.
        tolerance: of the surface Dice, in mm.
    """
    scores = []
    for label, a, b in _by_class(mask, truth, classes):
        both, either, size = (a & b).sum(), (a | b).sum(), a.sum() + b.sum()
        dice, iou = (2 * both / size, both / either) if either else (math.nan, math.nan)
        scores.append(CaseScore(name, label, float(dice), float(iou),
                                *_surface_scores(a, b, spacing, tolerance)))
    return scores


def _by_class(mask: np.ndarray, truth: np.ndarray,
              classes: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each class but the background, and where it is, among the voxels that have a class."""
    if mask.ndim == 4:
        for label in range(classes):
            yield (label, (mask[..., label] > 0) & (truth[..., label] >= 0),
                   truth[..., label] > 0)
    else:
        for label in range(1, max(classes, 2)):
            yield label, (mask == label) & (truth >= 0), truth == label


def segment(model: SegmentationModel, volume: Volume, **options: Any) -> np.ndarray:
    """Predicts the classes of a volume as `decide` does; for options see `predict_volume`."""
    several = (model.classes,) if model.task == "multilabel" else ()
    mask = np.empty((*volume.shape, *several), np.uint8)
    for planes, scores in predict_volume(model, volume, **options):
        mask[planes] = decide(scores, model.task)
    return mask


def decide(scores: Tensor, task: str) -> np.ndarray:
    """Probabilities ``(classes, *spatial)`` as class indices ``(*spatial)``, or for "multilabel" as
    planes ``(*spatial, classes)`` of 0 and 1."""
    if task == "multilabel":
        return (scores > 0.5).movedim(0, -1).to("cpu", torch.uint8).numpy()
    return to_mask(scores, task)


def _surface_scores(a: np.ndarray, b: np.ndarray, spacing: Sequence[float],
                    tolerance: float) -> tuple[float, float]:
    """The Hausdorff distance and the surface Dice of two masks."""
    if not a.any() or not b.any():
        return (math.inf, 0.0) if a.any() or b.any() else (math.nan, math.nan)
    metrics = require("monai.metrics", "medical")
    planes = [torch.from_numpy(each)[None, None] for each in (a, b)]
    options = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised by MONAI's own code
        hd95 = metrics.compute_hausdorff_distance(*planes, percentile=95, **options)
        dice = metrics.compute_surface_dice(*planes, class_thresholds=[tolerance], **options)
    return hd95.item(), dice.item()
