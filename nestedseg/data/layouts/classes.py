"""The classes of labels whose files name them: which value each name gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nestedseg.base.errors import nearest, show

BACKGROUND = "background"


class Classes(NamedTuple):
    """The values of the names of a data set.

    Attributes:
        values: the value of each name's pixels.
        names: for a model: of all its classes; with several, the background is the first.
    """

    values: dict[str, int]
    names: list[str]


def choose_classes(found: Sequence[str], wanted: Sequence[str] | None, where: str) -> Classes:
    """Numbers the names from 1.

    Args:
        found: all names of the data set, in the order in which they are numbered by default.
        wanted: only these, in this order; the first may be "background", which every data set has.
        where: they were found, for messages.

    Raises:
        ValueError: a name is not among those that were found, or is there twice, or there is none.
    """
    names = list(found if wanted is None else wanted)
    if names[:1] == [BACKGROUND] and BACKGROUND not in found:
        names = names[1:]
    for name in names:
        if name not in found:
            raise ValueError(f"{where} has no class {show(name)}; {nearest(name, found)}")
        if names.count(name) > 1:
            raise ValueError(f"the class {show(name)} is named twice")
    if not names:
        raise ValueError(f"{where} has no classes")
    values = {name: value for value, name in enumerate(names, 1)}
    return Classes(values, names if len(names) == 1 else [BACKGROUND, *names])
