"""Images with labels as a checked collection: unusable files are reported before training starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.base.errors import blamed
from nestedseg.data import images, volumes
from nestedseg.data.files import Pair, spatial_axes
from nestedseg.data.labels import LOSSY, make_rules
from nestedseg.data.preprocessing import Moments, measure, to_float

KEEP_BYTES = 2 * 2**30  # of decoded images kept in memory; others are read again when needed
READ = {2: images.read_image_pair, 3: volumes.read_volume_pair}


class LabelledImages:
    """Pairs of image and label files: each is read and checked once, then available by index.

    Args:
        pairs: the files, as returned by `nestedseg.data.find_pairs`: images or volumes.
        classes: 1 = labels are 0 and 1; more = labels are class indices 0 ... classes - 1.
        binary: every label above 0 is the foreground, for instance numbers or 0/255. A label whose
            values are shades of a grey edge, or of a JPEG, is refused.
        spacing: along D, H, W in mm, to which volumes are resampled; default: they are not.
        multilabel: labels have a channel for each class, of 0 and one other value; classes may
            overlap.
        threshold: values from this on are the foreground, others the background; for grey masks.
        ignore_index: the values in the files, one or several, of pixels that have no class; they
            count in no loss and no score. With ``label_colours`` the position of a colour.
        label_colours: for labels in colours: the name and the colour (red, green, blue) of each
            class, in the order of the class indices; or the path of a JSON file with that.

    Attributes:
        dims: 2 for images, 3 for volumes.
        shapes: ``(H, W)`` or ``(D, H, W)`` of each image.
        spacings: the size of each image's pixels or voxels along each axis; 1 for images.
        in_channels: channels of the images. Grey images among RGB images count as RGB.
        moments: of each image, on the scale that `nestedseg.preprocess` starts from.
        mean: mean of each channel over all pixels of all images.
        std: standard deviation of each channel, likewise.
        foreground: the fraction of pixels whose class is not 0; with ``multilabel`` of those that
            have any class.
        rules: how stored numbers become class indices.

    Raises:
        ValueError: no pairs are given; a file cannot be read; an image and its label differ in
            size or place; volumes differ in channels; or a label has a value that is not a class.
            The message names the file and its partner, says how many such values there are, and
            what can be done.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int = 1, binary: bool = False,
                 spacing: Sequence[float] | None = None, *, multilabel: bool = False,
                 threshold: float | None = None, ignore_index: int | Sequence[int] | None = None,
                 label_colours: str | Path | Mapping[str, Sequence[int]] | None = None):
        if not pairs:
            raise ValueError("pairs is empty; at least one pair of image and label is needed")
        self.rules = make_rules(classes, binary, multilabel, threshold, ignore_index, label_colours)
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

        Class indices are -1 where a pixel has no class (see ``ignore_index``). With ``multilabel``
        they are ``(*spatial, classes)``: 1 where a pixel has the class, else 0. Images have the
        type of their file; volumes are float32, in canonical orientation.
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
            label: ``(*spatial)`` or ``(*spatial, C)``.
            pair: its files, for messages.

        Raises:
            ValueError: a value is not a class.
        """
        with blamed(f"the label {pair.label} (of {pair.image})"):
            return self.rules.indices(label, self.dims, is_lossy(pair))

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
        pair = self.pairs[index]
        try:
            image, label, spacing = READ[self.dims](pair, self.spacing)
        except ValueError as error:
            raise ValueError(f"{error} (pair: {pair.image}, {pair.label})") from error
        # checked before it is resampled, because grey edges are thicker or gone afterwards
        target, shape = self.class_indices(label, pair), image.shape[:self.dims]
        same = target.shape[:self.dims] == shape
        return image, target if same else volumes.resize_label(target, shape), spacing

    def _admit(self, index: int) -> float:
        """Checks and measures a pair, keeps it if there is room; returns its foreground fraction.
        """
        image, target, spacing = self._read(index)
        shape = target.shape[:self.dims]
        self.shapes.append(shape)
        self.spacings.append(spacing)
        self._room -= image.nbytes + target.nbytes
        if self._room >= 0:
            self._kept[index] = image, target
        self.moments.append(measure([to_float(image.reshape(*shape, -1))]))
        return foreground_of(target, self.dims).mean()

    def _channels(self) -> int:
        counts = [len(each.mean) for each in self.moments]
        if self.dims == 3 and len(set(counts)) > 1:
            other = next(n for n, count in enumerate(counts) if count != counts[0])
            raise ValueError(f"volumes must have the same channels, but {self.pairs[0].image} has "
                             f"{counts[0]} and {self.pairs[other].image} has {counts[other]}")
        return max(counts)


def is_lossy(pair: Pair) -> bool:
    """Whether the format of a label changes its numbers."""
    return pair.label.suffix.lower() in LOSSY


def foreground_of(target: np.ndarray, dims: int) -> np.ndarray:
    """Which pixels have a class above 0, or of several planes any class."""
    above: np.ndarray = target > 0
    return above if target.ndim == dims else np.any(above, axis=-1)


def planes_first(target: np.ndarray, dims: int) -> np.ndarray:
    """The target as losses and scores take it: planes of classes, if there are, come first."""
    return target if target.ndim == dims else np.moveaxis(target, -1, 0)


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
