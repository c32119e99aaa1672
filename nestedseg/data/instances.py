"""Pictures with their instance maps: checked before training, cut into what detectors take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from nestedseg.data.files import Pair
from nestedseg.data.instance_maps import renumber, to_target
from nestedseg.data.labelled import LabelledImages
from nestedseg.data.patches import Patches

MAX_MASK_BYTES = 2**29  # in a batch, a byte a pixel; torchvision makes floats of them


class LabelledInstances(LabelledImages):
    """Pairs of pictures and instance maps, each read and checked once, then served by index.

    Like `LabelledImages`, but that labels come as instance maps ``(H, W)``, int32, numbered from 1
    without gaps. A map may have gaps, one instance alone, or none.

    Args:
        pairs: the files, as `nestedseg.data.find_pairs` gives them.

    Raises:
        ValueError: as of `LabelledImages`, or a label that is no instance map.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__(pairs)

    def class_indices(self, label: np.ndarray, pair: Pair) -> np.ndarray:
        """A label as it was read, as an instance map without gaps.

        Args:
            label: ``(H, W)``, whole numbers.
            pair: its files, for messages.

        Raises:
            ValueError: it is none.
        """
        try:
            return renumber(label)
        except ValueError as error:
            raise ValueError(f"the label {pair.label} (of {pair.image}): {error}") from error


class InstancePatches(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """`Patches` with targets as torchvision's detectors take them.

    Images that are smaller than a patch are not reflected: the number of an instance would stand
    for its mirror image too. So patches differ in size.

    Args:
        images: where patches are cut from.
        size: of a patch in pixels along each axis, or one number for both.
        prepare: as of `Patches`.
        batch: how many patches will be in memory at once.
        options: others of `Patches`: ``seed``, ``foreground``, ``mirror``.

    Raises:
        ValueError: so many instances that the masks of a batch of patches may not fit in memory.
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
        """Patch ``(C, h, w)``, and the target of its instances; see `nestedseg.instances`."""
        patch, instances = self.patches[number]
        return patch, to_target(instances.numpy())


def check_crowd(instances: np.ndarray, size: Sequence[int], batch: int, pair: Pair) -> None:
    """Refuses an image of which a patch may hold more instances than there is memory for.

    A patch lies within two by two tiles of its size; the instances in these are counted where those
    of the whole image are too many.
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
                         f"a patch of {width} x {height} pixels, of which a batch of {batch} may "
                         f"hold {allowed} each; make patch or batch smaller")
