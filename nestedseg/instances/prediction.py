"""Predicts the instance map of a whole image of any size, by a detector or a semantic model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from nestedseg.data.preprocessing import preprocess
from nestedseg.instances.maps import Piece, find_pieces, from_mask, put_together
from nestedseg.models.model import SegmentationModel
from nestedseg.prediction import predict_image, to_mask
from nestedseg.prediction.sliding_window import OVERLAP, slab_starts, window_sides

if TYPE_CHECKING:
    from nestedseg.instances.detectors import Detector

__all__ = ["predict_instances"]

SCORE = 0.5


def predict_instances(model: SegmentationModel | Detector, image: np.ndarray,
                      score: float = SCORE, window: int | Sequence[int] | None = None,
                      overlap: float = OVERLAP) -> np.ndarray:
    """Predicts the instances in an image as it was read.

    For a semantic model they are the connected parts of its mask, for a Mask R-CNN the detections
    with at least ``score``. A Mask R-CNN that does not resize images takes large ones in windows.
    An instance that is cut by a window is only used if no other window contains it whole, so
    windows should overlap by at least the length of an instance.

    Args:
        model: a Mask R-CNN of `nestedseg.instances.detectors`, or a binary model for images; used
            in eval mode.
        image: ``(H, W)`` or ``(H, W, C)``; see `nestedseg.preprocess`.
        score: instances with a lower score are left out; only for detectors.
        window: see `nestedseg.prediction.slide`.
        overlap: see `nestedseg.prediction.slide`.

    Returns:
        ``(H, W)``, int32: 0 is the background, instances are numbered from 1.

    Raises:
        ValueError: the image does not fit the model, the model does not predict instances, or the
            score is out of bounds.
    """
    check_finds_instances(model)
    if not 0 <= score <= 1:
        raise ValueError(f"score must be a probability in [0, 1], got {score}")
    if isinstance(model, SegmentationModel):
        return from_mask(to_mask(predict_image(model, image, window, overlap), model.task))
    if model.config["resize"]:
        window = max(image.shape[:2])  # in one window: parts would be resized by another factor
    return put_together(best_first(model.eval(), image, score, window, overlap), image.shape[:2])


def check_finds_instances(model: SegmentationModel | Detector) -> None:
    """Checks that a model predicts instances, or a binary mask whose parts can be instances.

    Raises:
        ValueError: it is a detector that predicts only boxes, or has several classes, or is for
            volumes.
    """
    config = model.config
    if not isinstance(model, SegmentationModel):
        if config["detector"] != "mask_rcnn":
            raise ValueError("instances need masks, which only mask_rcnn predicts; the model is a "
                             f"{config['detector']}")
    elif config["dims"] != 2 or model.task != "binary":
        raise ValueError("instances can only be found by a binary model with dims=2, whose mask is "
                         f"split into parts; this model has task {model.task!r} and "
                         f"dims={config['dims']}")


@torch.no_grad()
def best_first(model: Detector, image: np.ndarray, score: float,
               window: int | Sequence[int] | None, overlap: float) -> Iterator[Piece]:
    """The detections in all windows of an image: first those that no window cuts, by score."""
    x = preprocess(image, model)[0].to(next(model.parameters()).device)
    size = image.shape[:2]
    sides = window_sides(window, overlap, size)
    starts = [slab_starts(length, side, overlap) for length, side in zip(size, sides)]
    pieces = []
    with least_score(model, score):
        for row, column in product(*starts):
            part = x[:, row:row + sides[0], column:column + sides[1]]
            for piece in find_pieces(model([part])[0], score):
                moved = piece._replace(row=piece.row + row, column=piece.column + column)
                pieces.append((is_cut(moved, (row, column), sides, size), moved))
    pieces.sort(key=lambda each: (each[0], -each[1].score))
    return (piece for _, piece in pieces)


@contextmanager
def least_score(model: Detector, score: float) -> Iterator[None]:
    """A context in which torchvision drops instances with a lower score before it makes masks.

    Masks take most of the time. The other instances stay the same, because an instance is only ever
    dropped in favour of one with a better score.
    """
    heads, before = model.roi_heads, model.roi_heads.score_thresh
    heads.score_thresh = max(before, score)
    try:
        yield
    finally:
        heads.score_thresh = before


def is_cut(piece: Piece, corner: Sequence[int], sides: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a piece touches a side of its window that is not a side of the image."""
    return any((start > 0 and first == start)
               or (start + side < length and first + extent == start + side)
               for first, extent, start, side, length in zip(
                   (piece.row, piece.column), piece.mask.shape, corner, sides, size))
