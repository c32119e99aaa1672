"""The instance map of a whole image of any size: by a detector, or by a semantic model."""

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
    """The instances that a model finds in an image as it was read.

    Of a semantic model, the connected parts of its mask. Of a Mask R-CNN, those with a good score;
    if it does not resize images, larger ones go through it in windows, and what a window cuts
    counts only where no other window has it whole, so windows should overlap by as much as an
    instance is long.

    Args:
        model: a Mask R-CNN of `nestedseg.instances.detectors`, or a binary model for pictures; used
            in eval mode.
        image: ``(H, W)`` or ``(H, W, C)``; see `nestedseg.preprocess`.
        score: instances with a lower score are left out; of detectors alone.
        window: see `nestedseg.prediction.slide`.
        overlap: see there.

    Returns:
        ``(H, W)``, int32: 0 is the background, instances are numbered from 1.

    Raises:
        ValueError: an image that does not fit the model, a model that knows no instances, or a
            score out of bounds.
    """
    check_finds_instances(model)
    if not 0 <= score <= 1:
        raise ValueError(f"score must be a probability in [0, 1], got {score}")
    if isinstance(model, SegmentationModel):
        return from_mask(to_mask(predict_image(model, image, window, overlap), model.task))
    if model.config["resize"]:
        window = max(image.shape[:2])  # at once: a part would be resized in another way
    return put_together(best_first(model.eval(), image, score, window, overlap), image.shape[:2])


def check_finds_instances(model: SegmentationModel | Detector) -> None:
    """Refuses a model that predicts neither instances nor a mask whose parts they could be.

    Raises:
        ValueError: it is a detector of boxes, or has several classes, or is for volumes.
    """
    config = model.config
    if not isinstance(model, SegmentationModel):
        if config["detector"] != "mask_rcnn":
            raise ValueError(f"instances need masks, which mask_rcnn alone predicts; the model is "
                             f"a {config['detector']}")
    elif config["dims"] != 2 or model.task != "binary":
        raise ValueError("instances are parts of the mask of a binary model for pictures; this "
                         f"one is {model.task}, for images of {config['dims']} axes")


@torch.no_grad()
def best_first(model: Detector, image: np.ndarray, score: float,
               window: int | Sequence[int] | None, overlap: float) -> Iterator[Piece]:
    """What a detector finds in the windows of an image: first all that is whole in its window."""
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
    """Within it, torchvision makes no masks of instances with a lower score, which take most time.

    What is left is the same: an instance is only ever dropped for one with a better score.
    """
    heads, before = model.roi_heads, model.roi_heads.score_thresh
    heads.score_thresh = max(before, score)
    try:
        yield
    finally:
        heads.score_thresh = before


def is_cut(piece: Piece, corner: Sequence[int], sides: Sequence[int], size: Sequence[int]) -> bool:
    """Whether it reaches a side of its window beyond which the image goes on."""
    return any((start > 0 and first == start)
               or (start + side < length and first + extent == start + side)
               for first, extent, start, side, length in zip(
                   (piece.row, piece.column), piece.mask.shape, corner, sides, size))
