"""The data sets as folders of images and labels, and their split into three parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.paper.plan import Protocol
from nestedseg.base.extras import require
from nestedseg.data import LabelledImages, Pair, find_pairs, read_label

PARTS = ("training", "validation", "test")
SEED = 0  # of the split, the same in every trial


@dataclass(frozen=True)
class DataSet:
    """Where the images come from, and how the paper splits them.

    Args:
        title: what tables call it.
        source: where its images come from.
        dims: 2 = pictures, 3 = volumes.
        fractions: of the images for training, validation and test.
        shuffled: whether they are drawn at random; else by file order.
        printed: the data set of the paper that it is, or stands for.
        objects: what Fig. 7 measures the size of, if anything.
    """

    title: str
    source: str
    dims: int
    fractions: tuple[float, float, float]
    shuffled: bool
    printed: str
    objects: str | None = None


DATA = {
    "em": DataSet("EM", "ISBI 2012 EM challenge, training set; foreground = cell", 2,
                  (0.8, 0.1, 0.1), False, "EM"),
    "nuclei": DataSet("Nuclei", "2018 Data Science Bowl, stage 1, training set", 2,
                      (0.5, 0.2, 0.3), True, "Nuclei", "nucleus"),
    "hippocampus": DataSet("Hippocampus", "Medical Segmentation Decathlon, Task 04; both parts are "
                           "the foreground", 3, (0.5, 0.1, 0.4), True, "Lung Nodule",
                           "hippocampus"),
    "lidc": DataSet("Lung nodules", "LIDC-IDRI, crops of 64 mm", 3, (0.5, 0.1, 0.4), True,
                    "Lung Nodule", "nodule"),
}


def read_sets(folder: Path, data: str, protocol: Protocol) -> dict[str, LabelledImages]:
    """The three parts of a data set, read from ``folder/images`` and ``folder/labels``."""
    pairs = find_pairs(folder / "images", folder / "labels")
    if protocol.side is not None:
        pairs = [pair for pair in pairs if _side(pair.image) <= protocol.side]
    return {name: LabelledImages(part, binary=True) for name, part
            in split(pairs, DATA[data], protocol.images).items()}


def split(pairs: Sequence[Pair], data: DataSet, most: int | None = None) -> dict[str, list[Pair]]:
    """Training, validation and test part of at most so many of the images.

    Raises:
        ValueError: a part would have no image.
    """
    order = np.arange(len(pairs))
    if data.shuffled:
        order = np.random.default_rng(SEED).permutation(order)
    order = order[:most]
    bounds = np.round(np.cumsum([0, *data.fractions]) * len(order)).astype(int)
    if not np.diff(bounds).all():
        raise ValueError(f"{len(order)} images cannot be split into {data.fractions}: each part "
                         "needs one")
    return {part: [pairs[index] for index in order[first:last]]
            for part, first, last in zip(PARTS, bounds, bounds[1:])}


def read_objects(images: LabelledImages, index: int) -> np.ndarray:
    """The number of the object that each pixel belongs to, 0 = none; of a volume all is one."""
    return read_label(images.pairs[index].label) if images.dims == 2 else images[index][1]


def _side(path: Path) -> int:
    with require("PIL.Image").open(path) as image:  # reads the header alone
        return max(image.size)
