"""Makes instance maps from the predictions of a detector or a semantic model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from nestedseg.base.extras import require
from nestedseg.data.instance_maps import renumber


class Piece(NamedTuple):
    """One predicted instance in an image.

    Attributes:
        score: in [0, 1].
        mask: ``(h, w)`` boolean, cropped to the instance.
        row: row of the mask's upper left corner in the image.
        column: column of that corner.
    """

    score: float
    mask: np.ndarray
    row: int = 0
    column: int = 0


def find_pieces(prediction: Mapping[str, Tensor], score: float = 0.5,
                mask: float = 0.5) -> Iterator[Piece]:
    """The instances in a prediction, the best score first, each with its cropped mask.

    Args:
        prediction: see `from_prediction`.
        score: see `from_prediction`.
        mask: see `from_prediction`.

    Raises:
        ValueError: the prediction has no masks.
    """
    if "masks" not in prediction:
        raise ValueError("an instance map needs masks, which only mask_rcnn predicts; the "
                         f"prediction has {sorted(prediction)}")
    scores, masks = prediction["scores"], prediction["masks"][:, 0]
    for index in scores.argsort(descending=True, stable=True).tolist():
        if scores[index] < score:
            break
        whole = (masks[index] > mask).cpu().numpy()
        rows, columns = (np.flatnonzero(whole.any(axis)) for axis in (1, 0))
        if rows.size:
            covered = whole[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].copy()
            yield Piece(scores[index].item(), covered, int(rows[0]), int(columns[0]))


def put_together(pieces: Iterable[Piece], shape: Sequence[int],
                 visible: float = 0.5) -> np.ndarray:
    """Draws pieces into an instance map ``(H, W)``, int32, numbered in their order.

    Where pieces overlap, a pixel belongs to the first of them. Of two pieces that are the same
    instance, the second is left out, because the first covers it.

    Args:
        pieces: the best first.
        shape: of the map.
        visible: a piece is left out if less than this fraction of it is still free.
    """
    instances = np.zeros(shape, np.int32)
    count = 0
    for piece in pieces:
        height, width = piece.mask.shape
        place = instances[piece.row:piece.row + height, piece.column:piece.column + width]
        free = piece.mask & (place == 0)
        if free.any() and free.sum() >= visible * piece.mask.sum():
            count += 1
            place[free] = count
    return instances


def from_prediction(prediction: Mapping[str, Tensor], score: float = 0.5, mask: float = 0.5,
                    visible: float = 0.5) -> np.ndarray:
    """Converts the prediction of a Mask R-CNN for one image to an instance map.

    Where masks overlap, a pixel belongs to the instance with the best score.

    Args:
        prediction: ``scores`` ``(n,)`` and ``masks`` ``(n, 1, H, W)``, probabilities, as predicted
            by `nestedseg.instances.detectors.mask_rcnn`.
        score: instances with a lower score are left out.
        mask: a pixel belongs to an instance if its probability is above this.
        visible: an instance is left out if better ones leave less than this fraction of it.

    Returns:
        ``(H, W)``, int32, numbered from 1, the best score first.

    Raises:
        ValueError: the prediction has no masks.
    """
    pieces = list(find_pieces(prediction, score, mask))
    return put_together(pieces, prediction["masks"].shape[2:], visible)


def from_mask(mask: np.ndarray, smallest: int = 1) -> np.ndarray:
    """Converts a mask to an instance map: each connected part is an instance.

    Pixels are connected if they share a side.

    Args:
        mask: ``(H, W)``, above 0 = foreground, for example from `nestedseg.prediction.to_mask`.
        smallest: parts with fewer pixels are left out.

    Returns:
        ``(H, W)``, int32, numbered from 1.

    Raises:
        ValueError: the mask does not have two axes.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask must be (H, W), got {mask.shape}")
    parts, _ = require("scipy.ndimage").label(mask > 0)
    areas = np.bincount(parts.ravel())
    return renumber(np.where(areas[parts] >= smallest, parts, 0))
