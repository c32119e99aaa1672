"""Random, lightly augmented patches whose content depends only on the seed and their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from nestedseg.data.labelled import LabelledImages, planes_first

FOREGROUND = {2: 0.0, 3: 1 / 3}  # images mostly have enough of it; 1/3 is nnU-Net's
CONTRAST = (0.8, 1.25)
BRIGHTNESS = (-0.25, 0.25)  # in standard deviations of the prepared image


class Patches(Dataset[tuple[Tensor, Tensor]]):
    """An endless stream of patches, counted from 0: patch ``k`` depends only on ``(seed, k)``.

    So the patches are the same for any number of workers or processes, and when training is
    interrupted and resumed. An epoch is a stretch of the stream, see `EpochSampler`. Large images
    come up more often: in proportion to the number of patches that tile them.

    Args:
        images: the images that patches are cut from.
        size: of a patch in pixels along each axis, or one number for all.
        prepare: ``prepare(raw, moments=moments)`` normalises a raw part of an image, ``(*spatial)``
            or ``(*spatial, C)``, with the moments of the whole image, to ``(1, C, *spatial)``. If
            an image has a value for pixels that were not measured, ``nodata`` is given as well.
        seed: of positions and augmentation (mirroring, rotations, brightness, contrast).
        foreground: the fraction of patches centred on a random pixel of the foreground, as far as
            the border allows; other patches lie anywhere. Default: 0 for images, 1/3 for volumes.
        mirror: whether patches are mirrored and, where pixels are square, rotated by 90 degrees.
        std: standard deviation of prepared images, the unit in which brightness is changed.
        reflect: extend an image that is smaller than the patch by reflection; otherwise its patches
            are as small as the image.
    """

    def __init__(self, images: LabelledImages, size: int | Sequence[int],
                 prepare: Callable[..., Tensor], seed: int = 0, foreground: float | None = None,
                 mirror: bool = True, std: float = 1.0, reflect: bool = True):
        self.images, self.prepare, self.seed, self.mirror = images, prepare, seed, mirror
        self.std, self.reflect = std, reflect
        self.size = (size,) * images.dims if isinstance(size, int) else tuple(size)
        if len(self.size) != images.dims:
            raise ValueError(f"size must have {images.dims} numbers for these images, or be one "
                             f"number, got {self.size}")
        self.foreground = FOREGROUND[images.dims] if foreground is None else foreground
        tiles = [np.prod([-(-length // side) for length, side in zip(shape, self.size)])
                 for shape in images.shapes]
        # Shuffled once, so that also a short epoch has patches from all over the images.
        self._image_of = np.random.default_rng(seed).permutation(
            np.repeat(np.arange(len(images)), tiles))

    def __len__(self) -> int:
        """How many patches tile all images: the length of an epoch, before rounding up."""
        return len(self._image_of)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """A patch ``(C, *size)``, normalised, and its class indices, int64, with -1 for no class.

        Class indices are ``(*size)``; of multilabel images they are ``(classes, *size)``.
        """
        rng = np.random.default_rng([self.seed, number])
        index = self._image_of[number % len(self)]
        image, target = self._crop(index, rng)
        nodata = self.images.nodata_of(index)
        more = {} if nodata is None else {"nodata": nodata}
        patch = self.prepare(image, moments=self.images.moments[index], **more)[0]
        labels = torch.from_numpy(planes_first(target, self.images.dims).astype(np.int64))
        if self.mirror:
            patch, labels = _mirror(patch, labels, self.images.spacings[index], rng)
        patch = patch * rng.uniform(*CONTRAST) + self.std * rng.uniform(*BRIGHTNESS)
        return patch.contiguous(), labels.contiguous()

    def _crop(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        shape = self.images.shapes[index]
        lack = [max(0, side - length) for side, length in zip(self.size, shape)]
        margin = [(gap // 2, gap - gap // 2) if self.reflect else (0, 0) for gap in lack]
        room = [max(0, length - side) for length, side in zip(shape, self.size)]
        corner = self._around_foreground(index, rng)
        if corner is None:
            corner = np.array([rng.integers(most + 1) for most in room])
        window = [slice(int(start), int(min(start + side, length))) for start, side, length
                  in zip(np.clip(corner, 0, room), self.size, shape)]
        image, target = self.images.read(index, window)
        if np.any(margin):
            image, target = (
                np.pad(each, margin + [(0, 0)] * (each.ndim - len(shape)), mode="reflect")
                for each in (image, target))
        return image, target

    def _around_foreground(self, index: int, rng: np.random.Generator) -> np.ndarray | None:
        """The corner of a patch around a random foreground pixel, perhaps outside of the image.

        ``None`` = the patch lies anywhere: by chance, or because there is no foreground.
        """
        if not self.foreground or rng.random() >= self.foreground:
            return None
        places = self.images.findings[index].places
        if not len(places):
            return None
        centre = np.unravel_index(places[rng.integers(len(places))], self.images.shapes[index])
        return np.subtract(centre, [side // 2 for side in self.size])


class EpochSampler(Sampler[int]):
    """A sampler of the numbers of an epoch's patches, shuffled by ``(seed, epoch)``.

    Args:
        length: patches in an epoch.
        seed: of the order.
    """

    def __init__(self, length: int, seed: int = 0) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, counted from 0, for the next pass over the sampler."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        yield from (self.epoch * self.length + order).tolist()


def _mirror(patch: Tensor, labels: Tensor, spacing: Sequence[float],
            rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Applies a random symmetry to patch and labels: one of eight for a square patch.

    Two axes are only swapped if both the pixels and the patch have the same length along them.
    """
    shape, dims = patch.shape[1:], patch.ndim - 1
    flips = [axis - dims for axis in range(dims) if rng.integers(2)]
    order = list(range(-dims, 0))
    for axis in range(1, dims):  # Fisher-Yates shuffle, among axes of the same length
        alike = [other for other in range(axis + 1) if shape[other] == shape[axis]
                 and math.isclose(spacing[other], spacing[axis], rel_tol=0.01)]
        other = alike[rng.integers(len(alike))]
        order[axis], order[other] = order[other], order[axis]
    turned, turned_labels = (each.flip(flips).permute(*range(each.ndim - dims), *order)
                             for each in (patch, labels))
    return turned, turned_labels
