"""Images with labels as a checked collection: unusable files are reported before training starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from nestedseg.base.errors import blamed
from nestedseg.base.extras import require
from nestedseg.data import images, volumes
from nestedseg.data.cache import Cache
from nestedseg.data.files import Pair, spatial_axes
from nestedseg.data.findings import Findings, examine
from nestedseg.data.labels import LOSSY, VOID, make_rules
from nestedseg.data.preprocessing import Moments, missing, scale
from nestedseg.data.source import Source, blocks

SHOWN = 1024  # pixels along each axis, of a part that a report shows
KEEP_BYTES = 2 * 2**30  # of decoded images kept in memory, without a cache
OPEN = {2: images.open_image_pair, 3: volumes.open_volume_pair}


class LabelledImages:
    """Pairs of image and label files: each is examined once, then read by index, or in windows.

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
        dims: 3 = TIFF stacks and Zarr arrays are volumes; default: they are images.
        nodata: the value of pixels that were not measured, where a file does not say it itself.
        cache: a folder in which decoded images are kept, memory-mapped, with what was found out
            about them; see `nestedseg.data.Cache`. Default: images are kept in memory, up to 2 GiB.
        workers: processes that examine the files, if there is a cache.

    Attributes:
        dims: 2 for images, 3 for volumes.
        shapes: ``(H, W)`` or ``(D, H, W)`` of each image.
        spacings: the size of each image's pixels or voxels along each axis; 1 for images.
        in_channels: channels of the images. Grey images among RGB images count as RGB.
        findings: what is known of each image; see `nestedseg.data.findings.Findings`.
        moments: of each image, on the scale that `nestedseg.preprocess` starts from.
        mean: mean of each channel over all measured pixels of all images.
        std: standard deviation of each channel, likewise.
        foreground: the fraction of pixels whose class is not 0; with ``multilabel`` of those that
            have any class.
        rules: how stored numbers become class indices.

    Raises:
        ValueError: no pairs are given; a file cannot be read; an image and its label differ in
            size or place; images differ in channels; or a label has a value that is not a class.
            The message names the file and its partner, says how many such values there are, and
            what can be done.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int = 1, binary: bool = False,
                 spacing: Sequence[float] | None = None, *, multilabel: bool = False,
                 threshold: float | None = None, ignore_index: int | Sequence[int] | None = None,
                 label_colours: str | Path | Mapping[str, Sequence[int]] | None = None,
                 dims: int | None = None, nodata: float | None = None,
                 cache: Cache | str | Path | None = None, workers: int = 0):
        if not pairs:
            raise ValueError("pairs is empty; at least one pair of image and label is needed")
        self.rules = make_rules(classes, binary, multilabel, threshold, ignore_index, label_colours)
        self.pairs, self.classes, self.binary = list(pairs), classes, binary
        self.nodata = nodata
        self.spacing = None if spacing is None else check_spacing(spacing)
        self.dims = spatial_axes((path for pair in self.pairs for path in pair.pictures), dims)
        self.cache = Cache(cache) if isinstance(cache, (str, Path)) else cache
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = KEEP_BYTES if self.cache is None else 0
        opened = [self._open(pair) for pair in self.pairs]
        self.spacings = [spacing for _, _, spacing in opened]
        self._files = [(image, label) for image, label, _ in opened]
        self.shapes = [image.shape for image, _ in self._files]
        self.in_channels = self._channels()
        self.findings = self._examine_all(workers)
        self.moments = [each.moments for each in self.findings]
        whole = _together(self.moments, self.in_channels,
                          [np.max(each.pixels) for each in self.findings])
        self.mean, self.std = whole.mean.tolist(), whole.std.tolist()
        counts = [each.counts for each in self.findings]
        self.foreground = float(sum(each[1:].sum() for each in counts)
                                / max(1, sum(each.sum() for each in counts)))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """An image, ``(*spatial)`` or ``(*spatial, C)``, and its class indices ``(*spatial)``.

        Class indices are -1 where a pixel has no class (see ``ignore_index``) or was not measured.
        With ``multilabel`` they are ``(*spatial, classes)``: 1 where a pixel has the class, else 0.
        Images have the type of their file; volumes are in canonical orientation.
        """
        return self.read(index, tuple(slice(0, length) for length in self.shapes[index]))

    def read(self, index: int, window: Sequence[slice]) -> tuple[np.ndarray, np.ndarray]:
        """A window of an image, ``(*window)`` or ``(*window, C)``, and its class indices.

        Args:
            index: of the image.
            window: a slice with start and stop for each axis, within the image.

        Raises:
            ValueError: a file has become unreadable.
        """
        return self._read(index, window, checked=True)

    def _read(self, index: int, window: Sequence[slice], checked: bool
              ) -> tuple[np.ndarray, np.ndarray]:
        kept = self._kept.get(index)
        if kept is not None:
            return kept[0][tuple(window)], kept[1][tuple(window)]
        with self._naming(index):
            image, label = (squeezed(each.read(window)) for each in self._files[index])
            target = self.class_indices(label, self.pairs[index], checked)
            return image, self.mark(target, image, index)

    def middle(self, index: int, side: int = SHOWN) -> tuple[np.ndarray, np.ndarray]:
        """The middle part of an image, for pictures of a report, and its class indices.

        Args:
            index: of the image.
            side: how long the part is at most along each axis, in pixels.
        """
        starts = [max(0, length - side) // 2 for length in self.shapes[index]]
        return self.read(index, [slice(start, min(start + side, length))
                                 for start, length in zip(starts, self.shapes[index])])

    def nodata_of(self, index: int) -> float | None:
        """The value of pixels that were not measured; ``None`` = there is none.

        Args:
            index: of the image.
        """
        return self._files[index][0].nodata if self.nodata is None else self.nodata

    def largest_type(self) -> np.dtype:
        """The type of number that holds the pixels of all images."""
        return np.result_type(*(image.dtype for image, _ in self._files))

    def value_range(self) -> list[list[float]]:
        """The values of all channels between which nearly all pixels lie: ``[[low, high]]``.

        These are the percentiles 0.5 and 99.5 of a sample of all images, weighted by their pixels.
        """
        values, weights = self._sample()
        order = np.argsort(values, axis=None)
        share = np.repeat(weights, values.shape[1])[order].cumsum() / weights.sum()
        places = np.searchsorted(share / values.shape[1], (0.005, 0.995)).clip(max=values.size - 1)
        low, high = values.ravel()[order][places].tolist()
        return [[low, high if high > low else low + 1]]

    def preprocessing(self, standardise: bool | None = None,
                      value_range: Sequence[Sequence[float]] | None = None,
                      clip: bool = False) -> dict[str, Any]:
        """The preprocessing of a model trained on these images, as arguments for
        `SegmentationModel.set_preprocessing`.

        Args:
            standardise: scale each image by its own mean and standard deviation instead of by those
                of all images. Default: only volumes, because the values of MRI scans have no unit;
                use ``False`` for CT, whose values have one.
            value_range: pairs (low, high) of values that become 0 and 1, one for all channels or
                one for each, for example a window of CT; see `nestedseg.preprocess`.
            clip: whether values outside of ``value_range`` become 0 and 1 too.

        Raises:
            ValueError: ``standardise`` together with ``value_range``, or another number of pairs.
        """
        if standardise and value_range is not None:
            raise ValueError("standardise=True scales each image by its own moments, so that a "
                             "value_range has no effect; leave out one of the two")
        if value_range is not None and len(value_range) not in (1, self.in_channels):
            raise ValueError("value_range needs one pair (low, high), or one for each of "
                             f"{self.in_channels} channels, got {len(value_range)}")
        if standardise is None:
            standardise = self.dims == 3 and value_range is None
        mean, std = self.mean, self.std
        if value_range is not None:
            mean, std = self._scaled_moments(value_range, clip)
        elif standardise:
            mean, std = [0.0] * self.in_channels, [1.0] * self.in_channels
        known = {"input_range": [0.0, 1.0], "mean": mean, "std": std, "standardise": standardise,
                 "spacing": self.spacing}
        if value_range is not None:
            known |= {"value_range": [list(pair) for pair in value_range], "clip": clip}
        return known | ({} if self.nodata is None else {"nodata": self.nodata})

    def prepared_std(self, preprocessing: Mapping[str, Any]) -> float:
        """The standard deviation of the images as a model sees them.

        Args:
            preprocessing: that of the model.
        """
        low, high = preprocessing["input_range"]
        unit = np.mean((high - low) / np.asarray(preprocessing["std"]))
        if preprocessing.get("standardise"):
            return float(unit)
        _, std = self._scaled_moments(preprocessing.get("value_range"),
                                      preprocessing.get("clip", False))
        return float(np.mean(std) * unit)

    def _scaled_moments(self, value_range: Sequence[Sequence[float]] | None,
                        clip: bool) -> tuple[list[float], list[float]]:
        """The mean and standard deviation of each channel, with ``value_range`` as 0 ... 1."""
        if value_range is None:
            return self.mean, self.std
        values, weights = self._sample()
        values = scale(values, value_range, clip)
        mean = np.average(values, 0, weights)
        std = np.sqrt(np.average((values - mean) ** 2, 0, weights))
        return mean.tolist(), np.where(std > 0, std, 1).tolist()

    def _sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Values of pixels of all images, ``(n, C)``, and how many pixels each stands for."""
        values = [np.broadcast_to(each.sample, (len(each.sample), self.in_channels))
                  for each in self.findings]
        weights = [np.full(len(each.sample), np.max(each.pixels) / max(len(each.sample), 1))
                   for each in self.findings]
        return np.concatenate(values).astype(np.float64), np.concatenate(weights)

    def class_indices(self, label: np.ndarray, pair: Pair, checked: bool = False) -> np.ndarray:
        """Converts a label as it was read to class indices.

        Args:
            label: ``(*spatial)`` or ``(*spatial, C)``.
            pair: its files, for messages.
            checked: whether the whole label was checked before for values that are no classes.

        Raises:
            ValueError: a value is not a class.
        """
        with blamed(f"the label {pair.label} (of {pair.image})"):
            return self.rules.indices(label, self.dims, is_lossy(pair), checked)

    def _open(self, pair: Pair) -> tuple[Source, Source, tuple[float, ...]]:
        """Opens both files; images that can only be decoded as a whole come from the cache."""
        try:
            image, label, spacing = OPEN[self.dims](pair, self.spacing)
        except ValueError as error:
            raise ValueError(f"{error} (pair: {pair.image}, {pair.label})") from error
        if self.cache is None:
            return image, label, spacing
        return (self.cache.wrap(image, "image", self.spacing),
                self.cache.wrap(label, "label", self.spacing, pair.label), spacing)

    def _examine_all(self, workers: int) -> list[Findings]:
        """The findings of all images, in worker processes where asked for, with a progress bar."""
        passes = _Passes(self)
        found: Iterable[Findings] = map(passes.__getitem__, range(len(self)))
        if self.cache is not None and workers:
            found = DataLoader(passes, batch_size=None, num_workers=workers)
        bar = require("tqdm").tqdm(found, "examining the files", len(self), unit="file",
                                   leave=False, disable=None)
        return list(bar)

    def _examine(self, index: int) -> Findings:
        """What is known of an image: from the cache, or by reading it; kept if there is room."""
        image, entry = self._files[index][0], None
        if self.cache is not None:
            pair = self.pairs[index]
            entry = self.cache.entry(pair.files, pair.label, type(self).__name__, self.rules,
                                     self.spacing, self.nodata, suffix=".npz")
            found = Findings.load(entry)
            if found is not None:
                return found
        with self._naming(index):
            checked = self._check_before(index)
            self._keep(index, checked)
            found = examine(lambda window: self._read(index, window, checked), image.shape,
                            image.channels, self.nodata_of(index))
        if self.cache is not None and entry is not None:
            with self.cache.part(entry) as part:
                found.save(part)
        return found

    def _check_before(self, index: int) -> bool:
        """Whether the values of a label need no check when it is read: those of a drawn label are
        what they are meant to be, and one that is resampled is checked here as its file has it,
        for grey edges are thicker or gone afterwards."""
        pair = self.pairs[index]
        if not isinstance(pair.label, Path):
            return True
        if self.spacing is None:
            return False
        label = volumes.open_volume(pair.label_file)
        for window in blocks(label.shape):
            self.class_indices(squeezed(label.read(window)), pair)
        return True

    def _keep(self, index: int, checked: bool) -> None:
        """Keeps an image in memory, decoded, if there is room for it."""
        image = self._files[index][0]
        size = int(np.prod(image.shape)) * (image.channels * image.dtype.itemsize + 1)
        if size <= self._room:
            window = [slice(0, length) for length in image.shape]
            pixels = self._read(index, window, checked)
            self._room -= sum(each.nbytes for each in pixels)
            self._kept[index] = pixels

    def mark(self, target: np.ndarray, image: np.ndarray, index: int) -> np.ndarray:
        """The class indices, with -1 for pixels of which no channel was measured.

        Args:
            target: the class indices, which are changed.
            image: the same part of the image.
            index: of the image.
        """
        gone = missing(image.reshape(*image.shape[:self.dims], -1), self.nodata_of(index))
        if gone is not None:
            target[gone.all(-1)] = VOID
        return target

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """A context in which errors name both files of a pair."""
        pair = self.pairs[index]
        try:
            yield
        except ValueError as error:
            if str(pair.label) in str(error) and str(pair.image) in str(error):
                raise
            raise ValueError(f"{error} (pair: {pair.image}, {pair.label})") from error

    def _channels(self) -> int:
        counts = [image.channels for image, _ in self._files]
        allowed = {max(counts)} | ({1} if self.dims == 2 else set())
        if not allowed.issuperset(counts):
            other = next(n for n, count in enumerate(counts) if count not in allowed)
            first = counts.index(max(counts))
            raise ValueError("all images must have the same channels, but "
                             f"{self.pairs[first].image} has {counts[first]} and "
                             f"{self.pairs[other].image} has {counts[other]}")
        return max(counts)


class _Passes(Dataset[Findings]):
    """The findings of each image, for a `DataLoader`."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Findings:
        return self.images._examine(index)


def squeezed(pixels: np.ndarray) -> np.ndarray:
    """Without the axis of channels, if there is one channel."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def is_lossy(pair: Pair) -> bool:
    """Whether the format of a label changes its numbers."""
    return isinstance(pair.label, Path) and pair.label.suffix.lower() in LOSSY


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
