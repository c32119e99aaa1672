"""Random, lightly augmented patches whose content depends on the seed and their number alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from nestedseg.data.labelled import LabelledImages

CONTRAST = (0.8, 1.25)
BRIGHTNESS = (-0.25, 0.25)  # in standard deviations of the normalised image


class Patches(Dataset[tuple[Tensor, Tensor]]):
    """An endless stream of patches, counted from 0: patch ``k`` depends on ``(seed, k)`` alone.

    So nothing about it changes with the number of workers or processes, or when training is
    interrupted and resumed. An epoch is a stretch of the stream, see `EpochSampler`. Large images
    come up more often: once for every patch that tiles them.

    Args:
        images: where patches are cut from. One smaller than the patch is reflected at its border.
        size: height and width of a patch in pixels.
        prepare: a raw ``(H, W)`` or ``(H, W, 3)`` array to a normalised tensor ``(1, C, H, W)``.
        seed: of positions and augmentation (flips, quarter turns, brightness, contrast).
    """

    def __init__(self, images: LabelledImages, size: int,
                 prepare: Callable[[np.ndarray], Tensor], seed: int = 0):
        self.images, self.size, self.prepare, self.seed = images, size, prepare, seed
        tiles = [-(-height // size) * -(-width // size) for height, width in images.shapes]
        # Shuffled once, so that an epoch of fewer patches than this sees images from everywhere.
        self._image_of = np.random.default_rng(seed).permutation(
            np.repeat(np.arange(len(images)), tiles))

    def __len__(self) -> int:
        """How many patches tile all images: the length of an epoch, before it is rounded up."""
        return len(self._image_of)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Patch ``(C, size, size)``, normalised, and its class indices ``(size, size)``, int64."""
        rng = np.random.default_rng([self.seed, number])
        image, target = self.images[self._image_of[number % len(self)]]
        image, target = _crop(image, target, self.size, rng)
        patch = self.prepare(image)[0]
        patch, labels = _turn(patch, torch.from_numpy(target.astype(np.int64)), rng)
        patch = patch * rng.uniform(*CONTRAST) + rng.uniform(*BRIGHTNESS)
        return patch.contiguous(), labels.contiguous()


class EpochSampler(Sampler[int]):
    """The numbers of an epoch's patches, shuffled by ``(seed, epoch)``.

    Args:
        length: patches in an epoch.
        seed: of the order.
    """

    def __init__(self, length: int, seed: int = 0):
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next pass over the sampler gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        yield from (self.epoch * self.length + order).tolist()


def _crop(image: np.ndarray, target: np.ndarray, size: int,
          rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    lack = [max(0, size - length) for length in target.shape]
    if any(lack):
        margin = [(gap // 2, gap - gap // 2) for gap in lack]
        image = np.pad(image, margin + [(0, 0)] * (image.ndim - 2), mode="reflect")
        target = np.pad(target, margin, mode="reflect")
    top, left = (int(rng.integers(length - size + 1)) for length in target.shape)
    window = slice(top, top + size), slice(left, left + size)
    return image[window], target[window]


def _turn(patch: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One of the eight symmetries of the square, the same for both."""
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    both = (torch.rot90(each, turns, (-2, -1)) for each in (patch, labels))
    patch, labels = (each.flip(-1) if flip else each for each in both)
    return patch, labels
