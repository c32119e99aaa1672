"""Paints masks over images, in colours that colour-blind readers can distinguish (Okabe, Ito)."""

from __future__ import annotations

import colorsys
from collections import defaultdict

import numpy as np

from nestedseg.data.preprocessing import to_unit

CLASS_COLOURS = ((86, 180, 233), (0, 158, 115), (204, 121, 167), (0, 114, 178), (230, 159, 0))
MISSED = (240, 228, 66)
WRONG = (213, 94, 0)
INK = "#24292f"  # colour of text and lines
GOLDEN = (5**0.5 - 1) / 2  # of a turn: hues that follow each other are far apart
LUMA = np.array((0.299, 0.587, 0.114))
HATCHING = (6, 40)  # the distance of lines: at least so many pixels, or this part of the picture
NEAR = 3  # pixels; instances that are this near get different colours


def colours_of(classes: int) -> np.ndarray:
    """The colours of so many classes, ``(classes, 3)`` uint8: the palette, then others in turn."""
    turns = np.arange(max(0, classes - len(CLASS_COLOURS))) * GOLDEN % 1
    shades = np.resize((0.95, 0.7, 0.5), len(turns))
    more = [colorsys.hsv_to_rgb(turn, 0.75, shade) for turn, shade in zip(turns, shades)]
    colours = [*CLASS_COLOURS, *(np.round(255 * np.array(each)) for each in more)]
    return np.array(colours[:classes], np.uint8).reshape(-1, 3)


COLOURS = colours_of(255)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image of any bit depth as RGB uint8, ``(H, W, 3)``, with its contrast stretched.

    Of several channels the first three are shown, and of two the first; what was not measured is
    black.
    """
    image = image if image.ndim == 3 else image[..., None]
    values = to_unit(image[..., :3] if image.shape[-1] > 2 else image[..., :1])
    low, high = np.nanpercentile(values, (0.5, 99.8))
    values = np.nan_to_num(np.clip((values - low) / max(high - low, 1e-6), 0, 1))
    return np.broadcast_to(np.round(255 * values), (*image.shape[:2], 3)).astype(np.uint8)


def paint_classes(rgb: np.ndarray, mask: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Paints each class in its colour, with an outline, over the image in grey.

    Args:
        rgb: ``(H, W, 3)`` uint8.
        mask: class indices, ``(H, W)``; 0, the background, stays grey, and what is below 0, no
            class, is hatched. Or planes ``(H, W, classes)``, painted one over the other.
        opacity: of the paint, in [0, 1].
    """
    if mask.ndim == 2:
        return hatch(_paint(_grey(rgb), mask, mask.astype(np.int64) - 1, opacity), void_of(mask))
    painted = _grey(rgb)
    for index, plane in enumerate(np.moveaxis(mask, -1, 0)):
        painted = _paint(painted, plane, np.full(plane.shape, index), opacity)
    return hatch(painted, void_of(mask))


def paint_instances(rgb: np.ndarray, instances: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Paints each instance in another colour than its neighbours, outlined, over the grey image.

    Args:
        rgb: ``(H, W, 3)`` uint8.
        instances: ``(H, W)``, numbered from 1 without gaps; 0, the background, stays grey.
        opacity: of the paint, in [0, 1].
    """
    return _paint(_grey(rgb), instances, _choose_colours(instances)[instances], opacity)


def paint_errors(rgb: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Paints correct pixels in their class's colour, missed ones in `MISSED`, others in `WRONG`.

    Pixels that have no class in the truth are hatched, whatever the mask says. See `paint_classes`.
    """
    known, right = truth >= 0, mask == truth
    painted = paint_classes(rgb, np.where(known & right, mask, np.minimum(truth, 0)), 0.35)
    for colour, where in ((MISSED, mask == 0), (WRONG, mask > 0)):
        errors = known & ~right & where
        painted = _blend(painted, colour, errors if errors.ndim == 2 else errors.any(-1), 0.85)
    return painted


def _choose_colours(instances: np.ndarray) -> np.ndarray:
    """The index of a colour for each instance; if possible, one that no instance near it has."""
    chosen = np.full(instances.max(initial=0) + 1, -1)
    near = _neighbours(instances)
    for number in range(1, len(chosen)):
        taken = {chosen[other] for other in near[number]}
        turned = (np.arange(len(CLASS_COLOURS)) + number) % len(CLASS_COLOURS)
        chosen[number] = next((colour for colour in turned if colour not in taken), turned[0])
    return chosen


def _neighbours(instances: np.ndarray) -> dict[int, set[int]]:
    """For each instance, the instances within `NEAR` pixels of it along rows or columns."""
    near = defaultdict(set)
    for array in (instances, instances.T):
        for step in range(1, min(NEAR, len(array) - 1) + 1):
            first, second = array[step:].ravel(), array[:-step].ravel()
            meet = (first > 0) & (second > 0) & (first != second)
            for a, b in {*zip(first[meet].tolist(), second[meet].tolist())}:
                near[a].add(b)
                near[b].add(a)
    return near


def _grey(rgb: np.ndarray) -> np.ndarray:
    return np.broadcast_to(rgb @ LUMA, (3, *rgb.shape[:2])).transpose(1, 2, 0)


def _paint(grey: np.ndarray, mask: np.ndarray, colours: np.ndarray, opacity: float) -> np.ndarray:
    """Paints where ``mask`` is above 0, in the colours with these indices, over a picture."""
    palette = COLOURS[colours % len(COLOURS)]
    painted = _blend(grey, palette, mask > 0, opacity)
    return _blend(painted, palette, _outline(mask), 1)


def void_of(mask: np.ndarray) -> np.ndarray:
    """Where there is no class, ``(H, W)``: below 0, or of planes ``(H, W, classes)`` in all."""
    below: np.ndarray = mask < 0
    return below if mask.ndim == 2 else np.all(below, axis=-1)


def hatch(painted: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Draws diagonal lines, black beside white, which show on any picture."""
    least, part = HATCHING
    step = max(least, min(where.shape) // part)
    phase = np.add.outer(np.arange(where.shape[0]), np.arange(where.shape[1])) % step
    width = max(1, step // 4)
    painted = _blend(painted, (255, 255, 255), where & (phase < width), 1)
    return _blend(painted, (0, 0, 0), where & (phase >= width) & (phase < 2 * width), 1)


def _outline(mask: np.ndarray) -> np.ndarray:
    """The foreground pixels that have a neighbour of another class."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (mask > 0) & np.any([mask != each for each in neighbours], axis=0)


def _blend(rgb: np.ndarray, colour: np.ndarray | tuple[int, ...], where: np.ndarray,
           opacity: float) -> np.ndarray:
    mixed = (1 - opacity) * rgb + opacity * np.asarray(colour)
    return np.where(where[..., None], np.round(mixed), rgb).astype(np.uint8)
