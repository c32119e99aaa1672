"""Instance maps: each pixel holds the number of its instance, 0 is the background.

What torchvision's detectors are trained with is made from them, and they are made from what a
detector, or a semantic model, predicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nestedseg.extras import require

__all__ = ["Piece", "find_pieces", "from_mask", "from_prediction", "put_together", "renumber",
           "to_target"]

MAX_MASK_BYTES = 2**30  # of one image; a mask has a byte for each pixel


def renumber(instances: np.ndarray) -> np.ndarray:
    """The map with its instances numbered 1 ... n, without gaps, in the order of their numbers.

    Args:
        instances: ``(H, W)`` of whole numbers >= 0.

    Returns:
        ``(H, W)``, int32.

    Raises:
        ValueError: another number of axes, a negative number or a fraction.
    """
    instances = np.asarray(instances)
    if instances.ndim != 2 or instances.dtype.kind not in "biu":
        raise ValueError("an instance map is (H, W), of whole numbers; got "
                         f"{instances.dtype} {instances.shape}")
    numbers, places = np.unique(instances, return_inverse=True)
    if numbers.size and numbers[0] < 0:
        raise ValueError(f"instances are numbered from 1, 0 is the background; got {numbers[0]}")
    shift = 0 if numbers.size and numbers[0] == 0 else 1  # an image may have no background
    return (places.reshape(instances.shape) + shift).astype(np.int32)


def to_target(instances: np.ndarray, classes: Mapping[int, int] | None = None) -> dict[str, Tensor]:
    """What torchvision's detectors are trained with: boxes, labels and masks of all instances.

    An image without instances gives none of each, from which detectors learn the background.

    Args:
        instances: ``(H, W)`` of whole numbers >= 0; gaps in the numbering do not matter.
        classes: the class (1, 2, ...) of each instance by its number. Default: all are of class 1.

    Returns:
        ``boxes`` ``(n, 4)``, x and y of the upper left corner, then of the lower right, exclusive,
        so that one pixel has a box of one by one; ``labels`` ``(n,)``; ``masks`` ``(n, H, W)``,
        uint8.

    Raises:
        ValueError: no instance map (see `renumber`); an instance without a class; or masks that
            would fill more than 1 GiB, as those of 10,000 instances in a large image do.
    """
    instances = np.asarray(instances)
    numbered = renumber(instances)
    count = int(numbered.max(initial=0))
    if count * numbered.size > MAX_MASK_BYTES:
        height, width = numbered.shape
        raise ValueError(f"{count} instances in an image of {width} x {height} pixels need masks "
                         f"of {count * numbered.size / 2**30:.1f} GiB; at most "
                         f"{MAX_MASK_BYTES / 2**30:g} GiB are made: cut the image into patches")
    numbers = np.unique(instances[numbered > 0]).tolist()
    missing = [number for number in numbers if number not in classes] if classes else []
    if missing:
        raise ValueError(f"{len(missing)} instances have no class, the first is {missing[0]}")
    labels = [classes[number] for number in numbers] if classes else [1] * count
    masks = numbered == np.arange(1, count + 1).reshape(-1, 1, 1)
    return {"boxes": torch.from_numpy(find_boxes(numbered, count)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.from_numpy(masks.view(np.uint8))}


def find_boxes(numbered: np.ndarray, count: int) -> np.ndarray:
    """Boxes ``(count, 4)`` of the instances 1 ... ``count``, float32; see `to_target`."""
    rows, columns = np.nonzero(numbered)
    points, owners = np.stack([columns, rows], axis=1), numbered[rows, columns] - 1
    first, last = (np.full((count, 2), fill) for fill in (np.iinfo(np.int64).max, -1))
    np.minimum.at(first, owners, points)
    np.maximum.at(last, owners, points)
    return np.concatenate([first, last + 1], axis=1).astype(np.float32)


class Piece(NamedTuple):
    """An instance in an image.

    Attributes:
        score: in [0, 1].
        mask: ``(h, w)`` boolean, cut to what the instance covers.
        row: of the mask's upper left corner in the image.
        column: likewise.
    """

    score: float
    mask: np.ndarray
    row: int = 0
    column: int = 0


def find_pieces(prediction: Mapping[str, Tensor], score: float = 0.5,
                mask: float = 0.5) -> Iterator[Piece]:
    """The instances of a prediction, the best first, each with its mask cut to what it covers.

    Args:
        prediction: see `from_prediction`.
        score: see there.
        mask: see there.

    Raises:
        ValueError: a prediction without masks.
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
    """The instance map ``(H, W)``, int32, of pieces that come in the order of their numbers.

    Where they overlap, a pixel belongs to the first. Of two pieces that are the same instance, the
    second is left out, since the first hides it.

    Args:
        pieces: the best first.
        shape: of the map.
        visible: pieces of which those before leave a smaller part than this are left out.
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
    """The instance map of what `nestedseg.detection.mask_rcnn` predicts for one image.

    Where masks overlap, a pixel belongs to the one with the best score.

    Args:
        prediction: ``scores`` ``(n,)`` and ``masks`` ``(n, 1, H, W)``, probabilities.
        score: instances with a lower score are left out.
        mask: a pixel belongs to an instance where its probability is above this.
        visible: instances of which better ones leave a smaller part than this are left out.

    Returns:
        ``(H, W)``, int32, numbered from 1, the best score first.

    Raises:
        ValueError: a prediction without masks.
    """
    pieces = list(find_pieces(prediction, score, mask))
    return put_together(pieces, prediction["masks"].shape[2:], visible)


def from_mask(mask: np.ndarray, smallest: int = 1) -> np.ndarray:
    """The connected parts of a mask as instances: what a semantic model knows of them.

    Pixels are connected where they share a side.

    Args:
        mask: ``(H, W)``, above 0 = foreground, say from `nestedseg.inference.to_mask`.
        smallest: parts of fewer pixels are left out.

    Returns:
        ``(H, W)``, int32, numbered from 1.

    Raises:
        ValueError: another number of axes.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask is (H, W), got {mask.shape}")
    parts, _ = require("scipy.ndimage").label(mask > 0)
    areas = np.bincount(parts.ravel())
    return renumber(np.where(areas[parts] >= smallest, parts, 0))
