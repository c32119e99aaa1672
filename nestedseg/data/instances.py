"""Images with instance maps: a checked collection, and training patches for detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from nestedseg.base.errors import blamed
from nestedseg.data.files import Pair
from nestedseg.data.instance_maps import renumber, to_target
from nestedseg.data.labelled import LabelledImages, is_lossy
from nestedseg.data.labels import check_lossless, check_objects, one_channel, whole_numbers
from nestedseg.data.patches import Patches

MAX_MASK_BYTES = 2**29  # of the masks of a batch, as bytes; torchvision makes floats of them
CURES = "save it losslessly, as a 16-bit PNG with the instances numbered 1 to n without gaps"


class LabelledInstances(LabelledImages):
    """Pairs of images and instance maps, each read and checked once, then available by index.

    Like `LabelledImages`, but labels are instance maps ``(H, W)``, int32, numbered from 1 without
    gaps. In the files there may be gaps, and maps with one instance or none.

    Args:
        pairs: the files, as returned by `nestedseg.data.find_pairs`.

    Raises:
        ValueError: see `LabelledImages`; or a label is not an instance map, for example because it
            is a JPEG, whose noise would be counted as instances.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__(pairs)

    def class_indices(self, label: np.ndarray, pair: Pair, checked: bool = False) -> np.ndarray:
        """Converts a label as it was read to an instance map without gaps.

        Args:
            label: ``(H, W)`` or ``(H, W, C)``.
            pair: its files, for messages.
            checked: see `LabelledImages.class_indices`.

        Raises:
            ValueError: it is not an instance map.
        """
        with blamed(f"the label {pair.label} (of {pair.image})"):
            numbers = whole_numbers(one_channel(label, self.dims, cures=False))
            if is_lossy(pair) and not checked:
                check_lossless(numbers, True, CURES)
            if not checked:
                check_objects(numbers, cures=CURES)
            return renumber(numbers)

    def mark(self, target: np.ndarray, image: np.ndarray, index: int) -> np.ndarray:
        """The instances as they are: pixels that were not measured belong to none.

        Args:
            target: the instance map.
            image: see `LabelledImages.mark`.
            index: see `LabelledImages.mark`.
        """
        return target


class InstancePatches(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """`Patches` with targets for torchvision's detectors.

    Images that are smaller than a patch are not extended by reflection, because an instance and its
    mirror image would have the same number. So patches may differ in size.

    Args:
        images: the images that patches are cut from.
        size: of a patch in pixels along each axis, or one number for both.
        prepare: see `Patches`.
        batch: how many patches will be in memory at once.
        options: further arguments of `Patches`: ``seed``, ``foreground``, ``mirror``.

    Raises:
        ValueError: there are so many instances that the masks of a batch may not fit in memory.
    """

    def __init__(self, images: LabelledInstances, size: int | Sequence[int],
                 prepare: Callable[..., Tensor], batch: int, **options: Any):
        self.patches = Patches(images, size, prepare, reflect=False,
                               std=float(np.mean(images.std)), **options)
        for index, pair in enumerate(images.pairs):
            check_crowd(images[index][1], self.patches.size, batch, pair)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """A patch ``(C, h, w)``, and the target of its instances; see `to_target`."""
        patch, instances = self.patches[number]
        return patch, to_target(instances.numpy())


def check_crowd(instances: np.ndarray, size: Sequence[int], batch: int, pair: Pair) -> None:
    """Checks that the masks of every batch of patches from an image will fit in memory.

    If the whole image has too many instances, they are counted in all blocks of two by two tiles of
    the patch's size: every patch lies within such a block.

    Raises:
        ValueError: a block has too many instances.
    """
    sides = np.minimum(size, instances.shape)
    allowed = MAX_MASK_BYTES // (batch * int(np.prod(sides)))
    if instances.max(initial=0) <= allowed:
        return
    height, width = sides.tolist()
    starts = product(range(0, instances.shape[0], height), range(0, instances.shape[1], width))
    most = max(len(np.unique(instances[row:row + 2 * height, column:column + 2 * width]))
               for row, column in starts)
    if most > allowed:
        raise ValueError(f"{pair.label} (of {pair.image}) has too many instances: up to {most} in "
                         f"a patch of {width} x {height} pixels; with a batch of {batch}, at most "
                         f"{allowed} are allowed; use a smaller patch or batch")
