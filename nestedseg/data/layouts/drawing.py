"""Labels that are drawn: regions given by polygons, circles or run lengths, and their pixels.

Coordinates are x to the right and y down, from the upper left corner of the image: the first pixel
reaches from 0 to 1, and its centre is at (0.5, 0.5). A pixel belongs to a region if its centre is
inside, so that polygons which share an edge share no pixel and leave none out. Lines that cross are
filled by the even-odd rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nestedseg.base.errors import blamed
from nestedseg.data.files import DrawnLabel
from nestedseg.data.source import by, check_size, whole

MOST_CROSSINGS = 2**26  # of the lines of one polygon with rows of pixels


@dataclass(frozen=True, eq=False)
class Polygons:
    """A region that is the union of polygons; each is ``(n, 2)`` of x and y."""

    parts: tuple[np.ndarray, ...]

    def paint(self, label: np.ndarray, value: int) -> None:
        """Gives the pixels of the region a value; ``label`` is ``(H, W)``."""
        points = np.concatenate(self.parts)
        (left, top), (right, bottom) = (
            np.clip(corner, 0, label.shape[::-1]).astype(int).tolist()
            for corner in (np.floor(points.min(0)), np.ceil(points.max(0))))
        inside = np.zeros((bottom - top, right - left), bool)
        for part in self.parts:
            fill(inside, part, top, left)
        label[top:bottom, left:right][inside] = value


@dataclass(frozen=True)
class Circle:
    """A region that is a circle."""

    x: float
    y: float
    radius: float

    def paint(self, label: np.ndarray, value: int) -> None:
        """Gives the pixels of the region a value; ``label`` is ``(H, W)``."""
        rows, columns = np.ogrid[:label.shape[0], :label.shape[1]]
        label[(columns + 0.5 - self.x) ** 2 + (rows + 0.5 - self.y) ** 2
              <= self.radius**2] = value


@dataclass(frozen=True, eq=False)
class Runs:
    """A region in run lengths, as COCO has them: pixels outside and inside in turn, by columns."""

    size: tuple[int, int]
    counts: np.ndarray

    def paint(self, label: np.ndarray, value: int) -> None:
        """Gives the pixels of the region a value; ``label`` is ``(H, W)``."""
        if label.shape != self.size:
            raise ValueError(f"it has run lengths of {by(self.size)} pixels, in an image of "
                             f"{by(label.shape)}")
        inside = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        label[inside.reshape(self.size[::-1]).T] = value


Region = Polygons | Circle | Runs


def fill(inside: np.ndarray, points: np.ndarray, top: int = 0, left: int = 0) -> None:
    """Adds the pixels of a polygon.

    Args:
        inside: ``(h, w)``, bool, a window of the image; written to.
        points: ``(n, 2)`` of x and y.
        top: first row of the window.
        left: first column of the window.

    Raises:
        ValueError: it has so many points that this would take too long.
    """
    height, width = inside.shape
    # each edge from its upper end to its lower one, so that neighbours compute the same crossings
    ends = np.stack([points, np.roll(points, -1, 0)], 1)
    turned = ends[:, 0, 1] > ends[:, 1, 1]
    ends[turned] = ends[turned, ::-1]
    (x0, y0), (x1, y1) = ends[:, 0].T, ends[:, 1].T
    first, last = (np.clip(np.ceil(y - 0.5), top, top + height).astype(int) for y in (y0, y1))
    counts = last - first
    if counts.sum() > MOST_CROSSINGS:
        raise ValueError(f"a polygon of {len(points)} points is too long to be drawn")
    edges = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    crossings = x0[edges] + (rows + 0.5 - y0[edges]) * ((x1 - x0)[edges] / (y1 - y0)[edges])
    columns = np.clip(np.ceil(crossings - 0.5) - left, 0, width).astype(int)
    turns = np.zeros((height, width + 1), np.int32)
    np.add.at(turns, (rows - top, columns), 1)
    inside |= np.cumsum(turns[:, :-1], 1) % 2 == 1


def decode_runs(text: str, most: int) -> np.ndarray:
    """The run lengths in a text of COCO's compressed form, which pycocotools writes.

    Each number is written in groups of five bits, the lowest first; from the fourth on it is the
    difference from the number two places before.

    Args:
        text: of printable characters.
        most: pixels that all runs may have together.

    Raises:
        ValueError: it is not such a text.
    """
    counts: list[int] = []
    value = place = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or place > 60:
            raise ValueError(f"its run lengths have the letter {letter!r}, which is none of theirs")
        value |= (bits & 31) << place
        place += 5
        if bits & 32:  # more of the same number follows
            continue
        if bits & 16:
            value -= 1 << place
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        if not 0 <= counts[-1] <= most:
            raise ValueError(f"it has a run of {counts[-1]} pixels, in an image of {most}")
        value = place = 0
    return np.array(counts, np.int64)


@dataclass(frozen=True, repr=False, eq=False)
class Drawing(DrawnLabel):
    """A label of regions, from a file of annotations.

    Args:
        path: of the file.
        image: which of the file's images it is of; "" if the file is of one image.
        size: ``(H, W)`` of the image, as the file says; ``None`` if it does not.
        regions: with the value of their pixels; later ones lie on earlier ones.
        meaning: what the values depend on besides the file.
    """

    path: Path
    image: str
    size: tuple[int, int] | None
    regions: tuple[tuple[int, Region], ...]
    meaning: str = ""

    def __str__(self) -> str:
        return f"{self.path}, image {self.image}" if self.image else str(self.path)

    def __repr__(self) -> str:  # the file and these tell it from all others
        return f"Drawing({str(self)!r}, {self.meaning})"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def draw(self, shape: tuple[int, ...]) -> np.ndarray:
        if self.size is not None and self.size != tuple(shape):
            raise ValueError(f"the label {self} is of an image of {self.size[1]} x {self.size[0]} "
                             f"pixels, but the image is {shape[1]} x {shape[0]}")
        label = np.zeros(shape, np.int32)
        with blamed(f"the label {self}"):
            for value, region in self.regions:
                region.paint(label, value)
        return label


class Drawn:
    """A drawn label as it is opened for an image; a `Source`.

    Args:
        label: to draw.
        shape: ``(H, W)`` of the image.
    """

    windowed = mapped = False
    nodata: float | None = None
    dtype = np.dtype(np.int32)

    def __init__(self, label: DrawnLabel, shape: tuple[int, ...]) -> None:
        self.label, self.path, self.shape, self.channels = \
            label, label.files[0], shape, label.channels
        check_size(shape, label.channels, self.dtype)

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window; see `Source`."""
        label = self.label.draw(self.shape).reshape(*self.shape, self.channels)
        return label[tuple(window or whole(self.shape))].astype(self.dtype)
