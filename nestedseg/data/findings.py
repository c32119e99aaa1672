"""What one pass over an image and its label finds out: moments, the range of values, classes.

Nothing is kept of a picture but these few numbers, so that pictures larger than memory can be
examined, block by block, and so that a later run need not examine them again.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from nestedseg.data.preprocessing import Moments, measure, missing, to_float
from nestedseg.data.source import blocks

SAMPLE = 4096  # values of each channel, and places of the foreground, that are kept of an image


@dataclass(frozen=True)
class Findings:
    """What is known of one image and its label.

    Args:
        pixels: that were measured, for each channel ``(C,)``.
        mean: of each channel, on the scale that `nestedseg.preprocess` starts from.
        mean_square: of each channel, likewise.
        sample: values of measured pixels as they are stored, ``(n, C)``, chosen at random; n is at
            most 4096.
        counts: pixels of each class index, ``(classes,)``; of several planes, those without any
            class and those with one.
        places: flat indices of pixels of the foreground, chosen at random; at most 4096.
    """

    pixels: np.ndarray
    mean: np.ndarray
    mean_square: np.ndarray
    sample: np.ndarray
    counts: np.ndarray
    places: np.ndarray

    @property
    def moments(self) -> Moments:
        return Moments(self.mean, self.mean_square)

    @property
    def foreground(self) -> float:
        """The fraction of pixels whose class is not 0."""
        return float(self.counts[1:].sum() / max(self.counts.sum(), 1))

    def save(self, path: Path) -> None:
        """Writes the numbers to a ``.npz`` file."""
        with path.open("wb") as file:
            np.savez(file, **{each.name: getattr(self, each.name) for each in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Findings | None:
        """Reads what `save` wrote; ``None`` if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(*(file[each.name] for each in fields(cls)))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def examine(read: Callable[[Sequence[slice]], tuple[np.ndarray, np.ndarray]],
            shape: Sequence[int], channels: int, nodata: float | None = None) -> Findings:
    """Examines an image and its label, block by block.

    Args:
        read: gives a window of the image, ``(*window)`` or ``(*window, C)``, and its class indices,
            ``(*window)``; others than 0 are foreground.
        shape: ``(H, W)`` or ``(D, H, W)``.
        channels: of the image.
        nodata: the value of pixels that were not measured.

    Raises:
        ValueError: a file is damaged, or a pixel is infinite.
    """
    chance = np.random.default_rng(0)
    parts = [_examine_block(*read(window), window, shape, channels, nodata, chance)
             for window in blocks(shape)]
    pixels, total, squares, samples, counts, places = zip(*parts)
    measured = np.sum(pixels, 0)
    return Findings(measured, np.sum(total, 0) / np.maximum(measured, 1),
                    np.sum(squares, 0) / np.maximum(measured, 1), np.concatenate(samples),
                    _sum(counts), _choose(chance, np.concatenate(places), 1))


def _examine_block(raw: np.ndarray, target: np.ndarray, window: Sequence[slice],
                   shape: Sequence[int], channels: int, nodata: float | None,
                   chance: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The pixels, sum, sum of squares, sample, counts and places of one block."""
    raw = raw.reshape(*target.shape[:len(shape)], channels)
    gone = missing(raw, nodata)
    moments = measure([(to_float(raw), gone)])
    measured = raw.reshape(-1, channels)
    pixels, share = np.full(channels, len(measured)), len(measured) / math.prod(shape)
    if gone is not None:
        lost = gone.reshape(measured.shape)
        pixels, measured = pixels - lost.sum(0), measured[~lost.any(1)]
    start = window[0].start * math.prod(shape[1:])
    above = foreground_of(target, len(shape))
    classes = target[target >= 0] if target.ndim == len(shape) else above
    return (pixels, moments.mean * pixels, moments.mean_square * pixels,
            _choose(chance, measured, share), np.bincount(classes.ravel().astype(np.int64)),
            _choose(chance, np.flatnonzero(above) + start, max(share, 2**-6)))


def foreground_of(target: np.ndarray, dims: int) -> np.ndarray:
    """Which pixels have a class above 0, or of several planes any class."""
    above: np.ndarray = target > 0
    return above if target.ndim == dims else np.any(above, axis=-1)


def _sum(counts: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of counts that are of unlike length."""
    most = max(map(len, counts))
    return np.sum([np.pad(each, (0, most - len(each))) for each in counts], 0)


def _choose(chance: np.random.Generator, values: np.ndarray, share: float) -> np.ndarray:
    """At most ``share * SAMPLE`` of the values, in order, chosen at random."""
    count = min(len(values), max(1, round(share * SAMPLE)))
    return values[np.sort(chance.choice(len(values), count, replace=False))] if len(values) \
        else values
