"""From the numbers that a label file holds to class indices, or an error that says what is wrong.

A grey edge or a JPEG's noise is above 0 as the foreground is, so a mask that has them is refused.
Numbers of instances or classes are as legitimate, and differ by their shape: each is found
somewhere as a solid block of 3 pixels a side, or lies alone; a shade between 0 and 255 lies beside
other shades, in lines that are thinner.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.base.errors import as_path, number, show, whole, wholes

VOID = -1  # in class indices: a pixel that has no class and counts nowhere
MAX_VALUE = 10**9  # of a number in a label file that is left out
THIN = 0.25  # of all values: maps of real nuclei have far fewer, grey edges far more
LISTED = 6  # values that a message lists with their counts
PROBABILITIES = ". If they are probabilities of the foreground, use threshold=0.5 (--threshold 0.5)"
LOSSY = (".jpg", ".jpeg")


@dataclass(frozen=True)
class LabelRules:
    """How the numbers of a label file become class indices, and `VOID` where there is no class.

    Args:
        classes: see `LabelledImages`.
        binary: see `LabelledImages`.
        multilabel: see `LabelledImages`.
        threshold: see `LabelledImages`.
        ignore: the stored numbers that mean no class.
        colours: the names of classes and their colours, in the order of the class indices.

    Raises:
        ValueError: a value out of bounds, or options that exclude each other.
        TypeError: a value of the wrong type.
    """

    classes: int = 1
    binary: bool = False
    multilabel: bool = False
    threshold: float | None = None
    ignore: tuple[int, ...] = ()
    colours: Mapping[str, tuple[int, ...]] | None = None

    def __post_init__(self) -> None:
        if self.binary and self.classes != 1:
            raise ValueError("binary=True needs classes=1, the foreground, got "
                             f"classes={self.classes}; leave out one of the two")
        if self.threshold is not None:
            if not 0 < number("threshold", self.threshold) < math.inf:
                raise ValueError(f"threshold must be a number above 0, got {self.threshold}")
            if self.classes != 1 and not self.multilabel:
                raise ValueError("threshold=... decides between background and foreground, so it "
                                 f"needs classes=1 or multilabel=True, got classes={self.classes}")
        if self.colours is not None:
            if self.multilabel or self.binary or self.threshold is not None:
                raise ValueError("label_colours gives each colour a class, so binary, multilabel "
                                 "and threshold must be left out")
            self._check_colours(self.colours)
        if 0 in self.ignore and self.classes == 1 and not self.multilabel:
            raise ValueError("ignore_index=0 leaves out the background, so that only the "
                             "foreground is left; if 0 marks pixels without a class, use "
                             "classes=3 for labels of 0, 1 and 2, for example")

    @property
    def largest(self) -> int:
        """The largest class index."""
        return max(self.classes - 1, 1)

    @property
    def names(self) -> list[str]:
        """The names of the colours that are classes."""
        return [name for index, name in enumerate(self.colours or {}) if index not in self.ignore]

    def indices(self, stored: np.ndarray, dims: int, lossy: bool = False,
                checked: bool = False) -> np.ndarray:
        """The class indices of a label as its file holds it, of a small signed type.

        Args:
            stored: ``(*spatial)``, or ``(*spatial, C)`` with channels.
            dims: the number of spatial axes.
            lossy: whether the file's format changes numbers, as JPEG does.
            checked: whether the whole label was checked, of which this may be a window: a grey edge
                cannot be told from an object that is cut.

        Returns:
            ``(*spatial)``; with ``multilabel`` ``(*spatial, classes)`` of 0 and 1.

        Raises:
            ValueError: the label has values or colours that are no classes.
        """
        if self.multilabel:
            planes = stored if stored.ndim > dims else stored[..., None]
            if planes.shape[-1] == self.classes + 1:
                planes = _without_alpha(planes)
            if planes.shape[-1] != self.classes:
                raise ValueError(f"it has {planes.shape[-1]} channels; with multilabel=True and "
                                 f"classes={self.classes} it must have one for each class")
            return np.stack([self._one(plane, lossy, checked)
                             for plane in np.moveaxis(planes, -1, 0)], -1)
        if self.colours is not None:
            return self._one(_look_up(stored, dims, self.colours), lossy, checked)
        return self._one(one_channel(stored, dims), lossy, checked)

    def _one(self, numbers: np.ndarray, lossy: bool, checked: bool) -> np.ndarray:
        void = np.isin(numbers, self.ignore)
        known = np.where(void, np.zeros((), numbers.dtype), numbers)
        if self.threshold is not None:
            classes = _finite(known) >= self.threshold
        else:
            classes = whole_numbers(known, PROBABILITIES)
            if lossy and self.colours is None and not checked:
                check_lossless(classes, self.binary or self.multilabel or self.classes == 1)
            if self.binary or self.multilabel:
                _check_signs(classes)
                if not checked:
                    check_objects(classes, self.ignore)
                classes = classes > 0
            else:
                self._check_range(classes)
        indices = classes.astype(np.min_scalar_type(-self.largest - 1))
        indices[void] = VOID
        return indices

    def _check_range(self, numbers: np.ndarray) -> None:
        low, high = numbers.min(), numbers.max()
        if low >= 0 and high <= self.largest:
            return
        values, counts = _values(numbers)
        other = (values < 0) | (values > self.largest)
        text = f"it has values from {low} to {high}; with classes={self.classes} they must be " \
               f"from 0 to {self.largest}. Others are {_listed(values[other], counts[other])}"
        if self.classes == 1:
            check_objects(numbers, self.ignore)  # says why these are no mask, if they are none
            raise ValueError(f"{text}. If every value above 0 is the foreground, use binary=True "
                             "(--binary)" + _void_cure(numbers, self.ignore))
        raise ValueError(text + _void_cure(numbers, self.ignore))

    def _check_colours(self, colours: Mapping[str, tuple[int, ...]]) -> None:
        last = max((index for index in range(len(colours)) if index not in self.ignore), default=-1)
        if last > self.largest or last < 1:
            raise ValueError(f"label_colours has the classes {self.names}, numbered to {last}; "
                             f"with classes={self.classes} they must be numbered to "
                             f"{self.largest}; use classes={last + 1 if last > 1 else 1}, or leave "
                             "out the number of a colour that is no class with ignore_index=...")


def make_rules(classes: int = 1, binary: bool = False, multilabel: bool = False,
               threshold: float | None = None, ignore_index: int | Sequence[int] | None = None,
               label_colours: str | Path | Mapping[str, Sequence[int]] | None = None) -> LabelRules:
    """The rules of the arguments that `LabelledImages` takes, checked.

    Raises:
        ValueError: a value out of bounds, or options that exclude each other.
        TypeError: a value of the wrong type.
    """
    colours = None if label_colours is None else read_colours(label_colours)
    return LabelRules(whole("classes", classes, 1, MAX_VALUE), binary, multilabel, threshold,
                      check_ignored(ignore_index), colours)


def check_ignored(values: Any) -> tuple[int, ...]:
    """The stored numbers that mean no class, as a tuple without repeats, in order.

    Raises:
        TypeError: they are not whole numbers.
        ValueError: one is out of bounds.
    """
    values = () if values is None else (values,) if isinstance(values, int) else values
    if isinstance(values, (list, tuple)) and not values:
        return ()
    return tuple(sorted({*wholes("ignore_index", values, -MAX_VALUE, MAX_VALUE)}))


def read_colours(source: str | Path | Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Names of classes and their colours, as they are or from a JSON file.

    Args:
        source: ``{"background": [0, 0, 0], "cell": [255, 0, 0]}``, in the order of the class
            indices, or the path of a JSON file with such an object.

    Raises:
        ValueError: the file cannot be read, or a colour is not three numbers from 0 to 255, or two
            names have the same one.
        TypeError: the source is neither a path nor an object.
    """
    where = "label_colours"
    if not isinstance(source, Mapping):
        path = as_path(where, source)
        try:
            source, where = json.loads(path.read_text(encoding="utf-8")), f"label_colours {path}"
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read label_colours {path}: {error}") from error
    if not isinstance(source, Mapping) or not source or not all(
            isinstance(name, str) and name for name in source):
        raise ValueError(f"{where} must be an object of names and colours, like "
                         f'{{"background": [0, 0, 0], "cell": [255, 0, 0]}}, got {show(source)}')
    colours = {name: wholes(f"the colour of {name!r}", colour, 0, 65535)
               for name, colour in source.items()}
    for name, colour in colours.items():
        if len(colour) != 3:
            raise ValueError(f"{where}: the colour of {name!r} must be 3 numbers, red, green and "
                             f"blue, got {list(colour)}")
        other = next(other for other in colours if colours[other] == colour)
        if other != name:
            raise ValueError(f"{where}: {other!r} and {name!r} have the same colour "
                             f"{list(colour)}; give each class its own")
    return colours


def one_channel(stored: np.ndarray, dims: int, cures: bool = True) -> np.ndarray:
    """The numbers ``(*spatial)`` of a label; of a picture whose colours are grey, the grey.

    Args:
        stored: ``(*spatial)`` or ``(*spatial, C)``.
        dims: the number of spatial axes.
        cures: whether the message may offer other options of `LabelledImages`.

    Raises:
        ValueError: the channels differ.
    """
    if stored.ndim == dims:
        return stored
    colours = _without_alpha(stored) if dims == 2 else stored
    channels = colours.shape[-1]
    if channels == 1 or (dims == 2 and channels == 3 and (colours == colours[..., :1]).all()):
        return colours[..., 0]
    several = ", or with multilabel=True (--label-parts channels) one channel for each class" \
        if cures else ""
    if channels != 3 or dims != 2:
        raise ValueError(f"it has {channels} channels; expected one whole number per "
                         f"{'voxel' if dims == 3 else 'pixel'}{several}")
    found, _, counts = _colours_of(colours)
    named = ". Give their classes with label_colours=... (--label-colours)" if cures else ""
    raise ValueError(f"it has colours, {_listed(found, counts)}; expected one whole number per "
                     f"pixel{several}{named}")


def whole_numbers(numbers: np.ndarray, cure: str = "") -> np.ndarray:
    """The numbers as integers; ``cure`` is the end of the message.

    Raises:
        ValueError: there are fractions, NaN or infinity.
    """
    if numbers.dtype.kind != "f":
        return numbers.astype(np.uint8) if numbers.dtype == bool else numbers
    whole = _finite(numbers).astype(np.int64)
    wrong = whole != numbers
    if wrong.any():
        raise ValueError(f"it has fractions in {wrong.sum()} places, such as {numbers[wrong][0]}; "
                         f"expected whole numbers{cure}")
    return whole


def _check_signs(numbers: np.ndarray) -> None:
    low = numbers.min()
    if low < 0:
        raise ValueError(f"it has values below 0, down to {low}; if they mark pixels without a "
                         f"class, use ignore_index={low} (--ignore {low})")


def _finite(numbers: np.ndarray) -> np.ndarray:
    if numbers.dtype.kind == "f" and not (np.abs(numbers) <= MAX_VALUE).all():
        raise ValueError("it has NaN or infinite values, or values above "
                         f"{MAX_VALUE}; replace them, by a number that ignore_index=... (--ignore) "
                         "names if they mean no class")
    return numbers


def check_lossless(numbers: np.ndarray, mask: bool, cures: str | None = None) -> None:
    """Refuses a JPEG unless it has only 0 and 255, because any noise would show in these.

    Args:
        numbers: ``(*spatial)``, whole.
        mask: whether two values are enough; a JPEG of class indices may have made one of another.
        cures: see `check_objects`.

    Raises:
        ValueError: the label has other values.
    """
    values, counts = _values(numbers)
    if not mask:
        raise ValueError("it is a JPEG, which changes class indices when it is written; save it "
                         "losslessly, for example as PNG")
    other = (values != 0) & (values != 255)
    if other.any():
        raise ValueError(_no_mask(values, counts, 255, cures))


def check_objects(numbers: np.ndarray, ignore: Sequence[int] = (),
                  cures: str | None = None) -> None:
    """Checks that all values above 0 are objects or classes, not shades of a grey edge.

    Args:
        numbers: ``(*spatial)``, whole.
        ignore: what is left out already, for the message.
        cures: the end of the message; default: those for a mask.

    Raises:
        ValueError: there are shades; the message says how many.
    """
    values, counts = _values(numbers)
    above = values > 0
    if above.sum() < 2:
        return
    top, (touching, thin) = int(values[-1]), _shades(numbers)
    # Numbering reaches the largest value of the type after all smaller ones; white does without.
    gaps = top == np.iinfo(numbers.dtype).max > above.sum() and top in touching
    if gaps or len(thin) >= THIN * above.sum():
        main = top if gaps else int(values[above][counts[above].argmax()])
        numbered = "" if cures else ". If all values above 0 are numbers of instances or " \
            "classes, say so with threshold=1 (--threshold 1)"
        raise ValueError(_no_mask(values, counts, main, cures) + numbered
                         + ("" if cures else _void_cure(numbers, ignore)))


def _no_mask(values: np.ndarray, counts: np.ndarray, main: int, cures: str | None) -> str:
    other = (values != 0) & (values != main)
    middle = (int(values[-1]) + 1) // 2
    cures = cures or (f"use threshold={middle} (--threshold {middle}), or save the mask "
                      "losslessly, as a PNG of two values")
    return (f"it is no clean mask: besides 0 and {main} it has {_some(other.sum(), 'other value')} "
            f"in {_some(counts[other].sum(), 'pixel')}, {_listed(values[other], counts[other])}. "
            f"Grey edges and JPEG make such values: {cures}")


def _shades(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values above 0 that touch another one, and those of them that are thin: nowhere a block
    of 3 pixels a side."""
    solid = numbers > 0
    meet = []
    for axis in range(numbers.ndim):
        before, after = _neighbours(numbers, axis)
        left, right = _neighbours(solid, axis)
        for other in (before, after):
            meet.append(numbers[(numbers > 0) & (other > 0) & (other != numbers)])
        solid = solid & left & right & (before == numbers) & (after == numbers)
    touching = np.unique(np.concatenate(meet))
    return touching, np.setdiff1d(touching, numbers[solid])


def _neighbours(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """For each place the ones before and after it along an axis; at the border itself."""
    places = np.arange(array.shape[axis])
    return (array.take(np.maximum(places - 1, 0), axis),
            array.take(np.minimum(places + 1, places[-1]), axis))


def _look_up(stored: np.ndarray, dims: int,
             colours: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """The position of each pixel's colour among ``colours``."""
    pixels = _without_alpha(stored) if stored.ndim > dims else stored[..., None]
    if pixels.shape[-1] != 3:
        raise ValueError("it has no colours, but numbers; leave out label_colours, or save it in "
                         "the colours of the classes")
    found, places, counts = _colours_of(pixels)
    table = {colour: index for index, colour in enumerate(colours.values())}
    index = np.array([table.get(tuple(colour), -1) for colour in found.tolist()])
    other = index < 0
    if other.any():
        known = ", ".join(f"{name} {list(colour)}" for name, colour in colours.items())
        raise ValueError(f"it has {other.sum()} colours that are no class, in "
                         f"{counts[other].sum()} pixels: {_listed(found[other], counts[other])}; "
                         f"the classes are {known}. Add the colours, with ignore_index=... "
                         "(--ignore) if they are no class; if they are edges or noise of a JPEG, "
                         "save the label losslessly")
    return index[places].reshape(pixels.shape[:-1])


def _without_alpha(stored: np.ndarray) -> np.ndarray:
    """The colours of a label ``(*spatial, C)``; it must be opaque."""
    channels = stored.shape[-1]
    if channels not in (2, 4) or stored.dtype.kind not in "iu":
        return stored
    alpha, opaque = stored[..., -1], np.iinfo(stored.dtype).max
    if (alpha != opaque).any():
        raise ValueError(f"it has {channels} channels, of which the last, the transparency, has "
                         f"values from {alpha.min()} to {alpha.max()}; save the label opaque, or "
                         "with multilabel=True (--label-parts channels) each channel is a class "
                         "of its own")
    return stored[..., :-1]


def _values(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values in order, and how often each comes up."""
    if numbers.dtype in (np.uint8, np.uint16):  # counting is faster than sorting
        counts = np.bincount(numbers.ravel())
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(numbers, return_counts=True)


def _colours_of(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different colours ``(n, 3)``, which of them each pixel has, and how often each comes up.
    """
    red, green, blue = np.moveaxis(pixels.reshape(-1, 3).astype(np.int64), -1, 0)
    codes, places, counts = np.unique((red << 32) | (green << 16) | blue, return_inverse=True,
                                      return_counts=True)
    return np.stack([codes >> 32, (codes >> 16) & 0xFFFF, codes & 0xFFFF], -1), places, counts


def _listed(values: np.ndarray, counts: np.ndarray) -> str:
    """The most frequent values with their counts."""
    order = np.argsort(-counts, kind="stable")[:LISTED]
    shown = ", ".join(f"{values[n].tolist()} ({_some(counts[n], 'pixel')})" for n in order)
    more = len(values) - len(order)
    return shown + (f" and {more} more" if more else "")


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _void_cure(numbers: np.ndarray, ignore: Sequence[int]) -> str:
    """A part of a message for numbers that may be 255 for no class."""
    if 255 in ignore or numbers.max() != 255 or not (numbers == 255).any():
        return ""
    return ". If 255 marks pixels without a class, as in VOC and Cityscapes, use " \
           "ignore_index=255 (--ignore 255)"
