"""Instance maps: each pixel holds the number of its instance, 0 is the background."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

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
