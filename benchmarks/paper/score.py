"""What a trained model reaches on the test images: each image and head, and objects by size."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.paper.data import read_objects
from nestedseg.base.extras import require
from nestedseg.data import LabelledImages
from nestedseg.data.preprocessing import preprocess
from nestedseg.evaluation.metrics import SegmentationScores
from nestedseg.models.model import SegmentationModel
from nestedseg.prediction.sliding_window import slide

ENSEMBLE = "ensemble"
BUCKETS = 7  # of Fig. 7


def score(model: SegmentationModel, images: LabelledImages, window: int | tuple[int, ...],
          overlap: float, objects: bool) -> dict[str, Any]:
    """Pixel counts of every image and head, and IoU by size of the objects.

    Args:
        model: binary, in eval mode.
        images: of the test.
        window: a patch, as in training.
        overlap: of neighbouring windows, as a fraction of one.
        objects: whether there are any to measure.

    Returns:
        ``counts``: by head, for each image true and false positives, false and true negatives;
        and of the objects, see `by_size`.
    """
    counts, found = defaultdict(list), []
    for index in range(len(images)):
        image, target = images[index]
        heads = vote(model, image, window, overlap)
        for head, probability in heads.items():
            scores = SegmentationScores()
            scores.update(probability - 0.5, torch.from_numpy(target)[None])  # above 0 = above 1/2
            counts[head].append(scores.counts[0].tolist())
        if objects:
            mask = heads[ENSEMBLE][0, 0].numpy() > 0.5
            found += object_scores(mask, read_objects(images, index))
    return {"counts": dict(counts)} | ({"objects": by_size(found)} if objects else {})


@torch.no_grad()
def vote(model: SegmentationModel, image: np.ndarray, window: int | tuple[int, ...],
         overlap: float) -> dict[str, Tensor]:
    """The probabilities ``(1, 1, *spatial)`` of each head, by depth, and their mean.

    Windows are patches, as in the paper; where they overlap, their probabilities are averaged.
    """
    def forward(x: Tensor) -> dict[int, Tensor]:
        return {depth: logits.sigmoid() for depth, logits in model.forward_heads(x).items()}

    x = preprocess(image, model).to(next(model.parameters()).device)
    heads = {str(depth): each.cpu() for depth, each in slide(forward, x, window, overlap).items()}
    return heads | {ENSEMBLE: torch.stack(list(heads.values())).mean(0)}


def object_scores(mask: np.ndarray, objects: np.ndarray) -> list[tuple[int, float]]:
    """Size in pixels, and IoU, of each object.

    Every pixel of the mask counts for the object that it lies in, else for the nearest one: so
    over all objects of an image no pixel is lost and none is counted twice.

    Args:
        mask: predicted foreground, ``(*spatial)``.
        objects: numbers of the objects, 0 = none.
    """
    if not objects.any():
        return []
    nearest = require("scipy.ndimage", "medical").distance_transform_edt(
        objects == 0, return_distances=False, return_indices=True)
    owner = objects[tuple(nearest)]
    most = int(objects.max()) + 1
    size, predicted, both = (np.bincount(each.ravel(), minlength=most) for each in
                             (objects, owner[mask], objects[mask]))
    size[0] = 0
    return [(int(size[number]), both[number] / (size[number] + predicted[number] - both[number]))
            for number in np.flatnonzero(size)]


def by_size(objects: list[tuple[int, float]]) -> dict[str, list[Any]]:
    """Objects in seven groups of about as many each, by size.

    Returns:
        ``edges``: eight sizes, of which a group goes from one up to the next; ``number`` of
        objects, and ``iou``, their mean, in each.
    """
    sizes, ious = np.array(objects, float).reshape(-1, 2).T
    edges = np.quantile(sizes, np.linspace(0, 1, BUCKETS + 1))
    bucket = np.searchsorted(edges[1:-1], sizes, side="right")
    groups = [ious[bucket == index] for index in range(BUCKETS)]
    return {"edges": edges.tolist(), "number": [len(group) for group in groups],
            "iou": [float(group.mean()) if len(group) else None for group in groups]}
