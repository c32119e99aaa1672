"""Instance maps: each pixel has the number of its instance; 0 is the background."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

MAX_MASK_BYTES = 2**30  # of all masks of one image; a mask has one byte per pixel


def renumber(instances: np.ndarray) -> np.ndarray:
    """Renumbers the instances of a map to 1 ... n, without gaps, in the order of their numbers.

    Args:
        instances: ``(H, W)`` of whole numbers >= 0.

    Returns:
        ``(H, W)``, int32.

    Raises:
        ValueError: the map does not have two axes, or has negative numbers or fractions.
    """
    instances = np.asarray(instances)
    if instances.ndim != 2 or instances.dtype.kind not in "biu":
        raise ValueError("an instance map must be (H, W), of whole numbers, got "
                         f"{instances.dtype} {instances.shape}")
    numbers, places = np.unique(instances, return_inverse=True)
    if numbers.size and numbers[0] < 0:
        raise ValueError("an instance map must have 0 for the background and numbers from 1 for "
                         f"instances, got {numbers[0]}")
    shift = 0 if numbers.size and numbers[0] == 0 else 1  # an image may have no background
    return (places.reshape(instances.shape) + shift).astype(np.int32)


def to_target(instances: np.ndarray, classes: Mapping[int, int] | None = None) -> dict[str, Tensor]:
    """A training target for torchvision's detectors: boxes, labels and masks of all instances.

    For an image without instances all three are empty; from such images detectors learn the
    background.

    Args:
        instances: ``(H, W)`` of whole numbers >= 0; gaps in the numbering do not matter.
        classes: the class (1, 2, ...) of each instance, by its number. Default: class 1 for all.

    Returns:
        ``boxes`` ``(n, 4)``: x and y of the upper left corner, then of the lower right, exclusive,
        so that the box of one pixel is one by one; ``labels`` ``(n,)``; ``masks`` ``(n, H, W)``,
        uint8.

    Raises:
        ValueError: it is not an instance map (see `renumber`); an instance has no class; or the
            masks would take more than 1 GiB, as for thousands of instances in a large image.
    """
    instances = np.asarray(instances)
    numbered = renumber(instances)
    count = int(numbered.max(initial=0))
    if count * numbered.size > MAX_MASK_BYTES:
        height, width = numbered.shape
        raise ValueError(f"the masks of {count} instances in an image of {width} x {height} pixels "
                         f"would take {count * numbered.size / 2**30:.1f} GiB; allowed are at most "
                         f"{MAX_MASK_BYTES / 2**30:g} GiB: cut the image into patches")
    numbers = np.unique(instances[numbered > 0]).tolist()
    missing = [number for number in numbers if number not in classes] if classes else []
    if missing:
        raise ValueError(f"classes has no entry for {len(missing)} instances, the first is "
                         f"{missing[0]}")
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
