"""Masks painted over images, in colours that colour-blind readers tell apart (Okabe and Ito)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from nestedseg.data.preprocessing import to_unit

CLASS_COLOURS = ((86, 180, 233), (0, 158, 115), (204, 121, 167), (0, 114, 178), (230, 159, 0))
MISSED = (240, 228, 66)
WRONG = (213, 94, 0)
INK = "#24292f"  # of text and lines
LUMA = np.array((0.299, 0.587, 0.114))
NEAR = 3  # pixels between instances that must differ in colour


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image of any depth as RGB uint8, ``(H, W, 3)``, its contrast stretched to be seen."""
    values = to_unit(image)
    low, high = np.percentile(values, (0.5, 99.8))
    values = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    values = values if values.ndim == 3 else values[..., None]
    return np.broadcast_to(np.round(255 * values), (*image.shape[:2], 3)).astype(np.uint8)


def paint_classes(rgb: np.ndarray, mask: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Each class in its colour, outlined, over the image in grey, so that colour means class.

    Args:
        rgb: ``(H, W, 3)`` uint8.
        mask: class indices, ``(H, W)``; 0, the background, stays grey. Where there are more
            classes than colours, colours come round again.
        opacity: of the paint, in [0, 1].
    """
    return _paint(rgb, mask, mask.astype(np.int64) - 1, opacity)


def paint_instances(rgb: np.ndarray, instances: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Each instance outlined and in another colour than its neighbours, over the image in grey.

    Args:
        rgb: ``(H, W, 3)`` uint8.
        instances: ``(H, W)``, numbered from 1 without gaps; 0, the background, stays grey.
        opacity: of the paint, in [0, 1].
    """
    return _paint(rgb, instances, _choose_colours(instances)[instances], opacity)


def paint_errors(rgb: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Right pixels in their class's colour, missed ones in `MISSED`, other errors in `WRONG`."""
    right = mask == truth
    painted = paint_classes(rgb, np.where(right, mask, 0), 0.35)
    missed = ~right & (mask == 0)
    painted = _blend(painted, MISSED, missed, 0.85)
    return _blend(painted, WRONG, ~right & ~missed, 0.85)


def _choose_colours(instances: np.ndarray) -> np.ndarray:
    """For each number, the number of a colour that no instance near it has, where one is left."""
    chosen = np.full(instances.max(initial=0) + 1, -1)
    near = _neighbours(instances)
    for number in range(1, len(chosen)):
        taken = {chosen[other] for other in near[number]}
        turned = (np.arange(len(CLASS_COLOURS)) + number) % len(CLASS_COLOURS)
        chosen[number] = next((colour for colour in turned if colour not in taken), turned[0])
    return chosen


def _neighbours(instances: np.ndarray) -> dict[int, set[int]]:
    """The instances within `NEAR` pixels of each, along rows or columns."""
    near = defaultdict(set)
    for array in (instances, instances.T):
        for step in range(1, min(NEAR, len(array) - 1) + 1):
            first, second = array[step:].ravel(), array[:-step].ravel()
            meet = (first > 0) & (second > 0) & (first != second)
            for a, b in {*zip(first[meet].tolist(), second[meet].tolist())}:
                near[a].add(b)
                near[b].add(a)
    return near


def _paint(rgb: np.ndarray, mask: np.ndarray, colours: np.ndarray, opacity: float) -> np.ndarray:
    """What is not 0 in the colour of that number, outlined, over the image in grey."""
    palette = np.array(CLASS_COLOURS, np.uint8)[colours % len(CLASS_COLOURS)]
    grey = np.broadcast_to(rgb @ LUMA, (3, *mask.shape)).transpose(1, 2, 0)
    painted = _blend(grey, palette, mask > 0, opacity)
    return _blend(painted, palette, _outline(mask), 1)


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a class, not the background, with a neighbour of another."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (mask > 0) & np.any([mask != each for each in neighbours], axis=0)


def _blend(rgb: np.ndarray, colour: np.ndarray | tuple[int, ...], where: np.ndarray,
           opacity: float) -> np.ndarray:
    mixed = (1 - opacity) * rgb + opacity * np.asarray(colour)
    return np.where(where[..., None], np.round(mixed), rgb).astype(np.uint8)
