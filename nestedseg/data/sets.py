"""Images whose classes overlap (multilabel): each pixel has a set of classes.

A set is a whole number: bit ``c`` says whether class ``c`` is there. So such a label is an array
like that of class indices, which is cut, mirrored and cached in the same way; `planes` makes what a
loss takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nestedseg.data.files import Pair
from nestedseg.data.labelled import LabelledImages


class LabelledSets(LabelledImages):
    """Like `LabelledImages`, but each pixel has a set of classes, ``(H, W)``, int32.

    Args:
        pairs: whose labels are of `nestedseg.data.layouts.parts`: a mask or channel for each class.
        classes: how many there are; there is no background among them.
        options: further arguments of `LabelledImages`: ``nodata``, ``cache``, ``workers``.

    Raises:
        ValueError: see `LabelledImages`.
    """

    def __init__(self, pairs: Sequence[Pair], classes: int, **options: Any) -> None:
        super().__init__(pairs, classes, **options)

    def class_indices(self, label: np.ndarray, pair: Pair) -> np.ndarray:
        """Checks a label as it was read, which has the sets already.

        Args:
            label: ``(H, W)``.
            pair: its files, for messages.

        Raises:
            ValueError: it is no label of sets of so many classes.
        """
        if label.min() < 0 or label.max() >= 2**self.classes:
            raise ValueError(f"the label {pair.label} (of {pair.image}) has no sets of "
                             f"{self.classes} classes")
        return label.astype(np.int32)

    def _examined(self, index: int, window: Sequence[slice]) -> tuple[np.ndarray, np.ndarray]:
        """A window of an image, and where any of the classes is."""
        image, sets = self.read(index, window)
        return image, sets > 0


def planes(sets: Tensor, classes: int) -> Tensor:
    """Sets ``(N, *spatial)`` as planes ``(N, classes, *spatial)`` of 0 and 1, float32.

    Args:
        sets: of whole numbers.
        classes: how many.
    """
    bits = torch.arange(classes, device=sets.device).view(-1, *[1] * (sets.ndim - 1))
    return ((sets.long().unsqueeze(1) >> bits) & 1).float()


def topmost(sets: np.ndarray) -> np.ndarray:
    """The last class of each set, counted from 1; 0 = the empty set. For pictures.

    Args:
        sets: of whole numbers >= 0.
    """
    return np.frexp(sets.astype(np.float64))[1].astype(np.uint8)
