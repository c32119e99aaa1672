"""Images with their labels as one checked collection: every bad file is named before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nestedseg.data.files import Pair, read_image, read_label
from nestedseg.preprocess import to_unit

KEEP_BYTES = 2 * 2**30  # decoded pictures kept in memory; the rest are read again when needed


class LabelledImages:
    """Pairs of image and label files: each is read and checked once here, then served by index.

    Args:
        pairs: the files, as `nestedseg.data.find_pairs` gives them.
        classes: 1 = foreground or not; more = class indices 0 ... classes - 1.
        binary: labels are instance numbers or 0/255: every value above 0 is the foreground.

    Attributes:
        shapes: ``(H, W)`` of each image.
        in_channels: 1 if every image is grey, else 3.
        mean: of each channel over all pixels, on the scale [0, 1] that divides integer
            images by their dtype's largest value.
        std: likewise.
        foreground: the fraction of pixels whose class is not 0.

    Raises:
        ValueError: no pair given; a file that cannot be read; an image and a label that differ in
            size; a label value that is no class. The message names the file and its partner.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int = 1, binary: bool = False):
        if not pairs:
            raise ValueError("no image and label given; at least one pair is needed")
        if binary and classes != 1:
            raise ValueError(f"binary labels have one class, the foreground; got {classes} classes")
        self.pairs, self.classes, self.binary = list(pairs), classes, binary
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = KEEP_BYTES
        self.shapes: list[tuple[int, int]] = []
        moments = [self._admit(index) for index in range(len(self.pairs))]
        self.in_channels = max(len(each.mean) for each in moments)
        self.mean, self.std = _mean_and_std(moments, self.in_channels)
        pixels = [each.pixels for each in moments]
        self.foreground = float(np.average([each.foreground for each in moments], 0, pixels))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The image ``(H, W)`` or ``(H, W, 3)`` as stored, and its class indices, ``(H, W)``."""
        return self._kept[index] if index in self._kept else self._read(index)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pair = self.pairs[index]
        try:
            image, label = read_image(pair.image), read_label(pair.label)
        except ValueError as error:
            raise ValueError(f"{error} (pair: {pair.image}, {pair.label})") from error
        return image, self._class_indices(label, pair)

    def _class_indices(self, label: np.ndarray, pair: Pair) -> np.ndarray:
        if self.binary:
            return (label > 0).astype(np.uint8)
        largest = max(self.classes - 1, 1)
        if label.min() < 0 or label.max() > largest:
            hint = "; for instance numbers or 0/255, say binary" if self.classes == 1 else ""
            raise ValueError(f"the label {pair.label} (of {pair.image}) holds values from "
                             f"{label.min()} to {label.max()}; with classes={self.classes} they "
                             f"must be from 0 to {largest}{hint}")
        return label.astype(np.uint8 if largest < 256 else np.int32)

    def _admit(self, index: int) -> _Moments:
        """Check a pair, keep it if there is room, and measure it."""
        pair = self.pairs[index]
        image, target = self._read(index)
        if image.shape[:2] != target.shape:
            raise ValueError(f"{pair.image} is {image.shape[1]} x {image.shape[0]} pixels, its "
                             f"label {pair.label} {target.shape[1]} x {target.shape[0]}")
        self.shapes.append(target.shape)
        self._room -= image.nbytes + target.nbytes
        if self._room >= 0:
            self._kept[index] = image, target
        values = to_unit(image).reshape(target.size, -1)
        return _Moments(target.size, (target > 0).mean(), values.mean(0, np.float64),
                        np.square(values).mean(0, np.float64))


class _Moments(NamedTuple):
    pixels: int
    foreground: float
    mean: np.ndarray  # of each channel
    mean_square: np.ndarray


def _mean_and_std(moments: list[_Moments], channels: int) -> tuple[list[float], list[float]]:
    """Over all images, weighted by their pixels; a grey image counts for every channel."""
    weights = [each.pixels for each in moments]
    mean = np.average([np.broadcast_to(each.mean, channels) for each in moments], 0, weights)
    square = np.average([np.broadcast_to(each.mean_square, channels) for each in moments], 0,
                        weights)
    std = np.sqrt(np.clip(square - mean**2, 0, None))
    return mean.tolist(), np.where(std > 0, std, 1).tolist()
