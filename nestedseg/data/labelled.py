"""Images with labels as a checked collection: unusable files are reported before training starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nestedseg.data import images, volumes
from nestedseg.data.files import Pair, spatial_axes
from nestedseg.data.preprocessing import Moments, measure, to_float

KEEP_BYTES = 2 * 2**30  # of decoded images kept in memory; others are read again when needed
READ = {2: images.read_image_pair, 3: volumes.read_volume_pair}


class LabelledImages:
    """Pairs of image and label files: each is read and checked once, then available by index.

    Args:
        pairs: the files, as returned by `nestedseg.data.find_pairs`: images or volumes.
        classes: 1 = labels are 0 and 1; more = labels are class indices 0 ... classes - 1.
        binary: every label above 0 is the foreground, for instance numbers or 0/255.
        spacing: along D, H, W in mm, to which volumes are resampled; default: they are not.

    Attributes:
        dims: 2 for images, 3 for volumes.
        shapes: ``(H, W)`` or ``(D, H, W)`` of each image.
        spacings: the size of each image's pixels or voxels along each axis; 1 for images.
        in_channels: channels of the images. Grey images among RGB images count as RGB.
        moments: of each image, on the scale that `nestedseg.preprocess` starts from.
        mean: mean of each channel over all pixels of all images.
        std: standard deviation of each channel, likewise.
        foreground: the fraction of pixels whose class is not 0.

    Raises:
        ValueError: no pairs are given; a file cannot be read; an image and its label differ in
            size or place; volumes differ in channels; or a label has a value that is not a class.
            The message names the file and its partner.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int = 1, binary: bool = False,
                 spacing: Sequence[float] | None = None):
        if not pairs:
            raise ValueError("pairs is empty; at least one pair of image and label is needed")
        if binary and classes != 1:
            raise ValueError("binary=True needs classes=1, the foreground, got "
                             f"classes={classes}; leave out one of the two")
        self.pairs, self.classes, self.binary = list(pairs), classes, binary
        self.spacing = None if spacing is None else check_spacing(spacing)
        self.dims = spatial_axes(path for pair in self.pairs for path in pair)
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = KEEP_BYTES
        self.shapes: list[tuple[int, ...]] = []
        self.spacings: list[tuple[float, ...]] = []
        self.moments: list[Moments] = []
        fractions = [self._admit(index) for index in range(len(self.pairs))]
        pixels = [np.prod(shape, dtype=float) for shape in self.shapes]
        self.in_channels = self._channels()
        whole = _together(self.moments, self.in_channels, pixels)
        self.mean, self.std = whole.mean.tolist(), whole.std.tolist()
        self.foreground = float(np.average(fractions, 0, pixels))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """An image, ``(*spatial)`` or ``(*spatial, C)``, and its class indices ``(*spatial)``.

        Images have the type of their file; volumes are float32, in canonical orientation.
        """
        return self._kept[index] if index in self._kept else self._read(index)[:2]

    def preprocessing(self, standardise: bool | None = None) -> dict[str, Any]:
        """The preprocessing of a model trained on these images, as arguments for
        `SegmentationModel.set_preprocessing`.

        Args:
            standardise: scale each image by its own mean and standard deviation instead of by those
                of all images. Default: only volumes, because the values of MRI scans have no unit;
                use ``False`` for CT, whose values have one.
        """
        standardise = self.dims == 3 if standardise is None else standardise
        zeros = [0.0] * self.in_channels
        mean, std = (zeros, [1.0] * len(zeros)) if standardise else (self.mean, self.std)
        return {"input_range": [0.0, 1.0], "mean": mean, "std": std, "standardise": standardise,
                "spacing": self.spacing}

    def class_indices(self, label: np.ndarray, pair: Pair) -> np.ndarray:
        """Converts a label as it was read to class indices.

        Args:
            label: ``(*spatial)``, whole numbers.
            pair: its files, for messages.

        Raises:
            ValueError: a value is not a class.
        """
        if self.binary:
            return (label > 0).astype(np.uint8)
        largest = max(self.classes - 1, 1)
        if label.min() < 0 or label.max() > largest:
            hint = "; for instance numbers or 0/255 use binary=True (--binary)" \
                if self.classes == 1 else ""
            raise ValueError(f"the label {pair.label} (of {pair.image}) has values from "
                             f"{label.min()} to {label.max()}; with classes={self.classes} they "
                             f"must be from 0 to {largest}{hint}")
        return label.astype(np.uint8 if largest < 256 else np.int32)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
        pair = self.pairs[index]
        try:
            image, label, spacing = READ[self.dims](pair, self.spacing)
        except ValueError as error:
            raise ValueError(f"{error} (pair: {pair.image}, {pair.label})") from error
        return image, self.class_indices(label, pair), spacing

    def _admit(self, index: int) -> float:
        """Checks and measures a pair, keeps it if there is room; returns its foreground fraction.
        """
        image, target, spacing = self._read(index)
        self.shapes.append(target.shape)
        self.spacings.append(spacing)
        self._room -= image.nbytes + target.nbytes
        if self._room >= 0:
            self._kept[index] = image, target
        self.moments.append(measure([to_float(image.reshape(*target.shape, -1))]))
        return (target > 0).mean()

    def _channels(self) -> int:
        counts = [len(each.mean) for each in self.moments]
        if self.dims == 3 and len(set(counts)) > 1:
            other = next(n for n, count in enumerate(counts) if count != counts[0])
            raise ValueError(f"volumes must have the same channels, but {self.pairs[0].image} has "
                             f"{counts[0]} and {self.pairs[other].image} has {counts[other]}")
        return max(counts)


def check_spacing(spacing: Sequence[float]) -> list[float]:
    """The spacing as a list, if it is three lengths in mm.

    Raises:
        ValueError: it is not.
    """
    if len(spacing) != 3 or not all(0 < length < math.inf for length in spacing):
        raise ValueError(f"spacing needs three lengths in mm, along D, H and W, got {spacing}")
    return [float(length) for length in spacing]


def _together(moments: list[Moments], channels: int, pixels: list[float]) -> Moments:
    """The moments over all images, weighted by their pixels; a grey image counts for each channel.
    """
    return Moments(*(np.average([np.broadcast_to(each, channels) for each in kind], 0, pixels)
                     for kind in zip(*moments)))
