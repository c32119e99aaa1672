"""Helpers for error messages: each shows what was given and lists what is allowed."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

LISTED = 12  # names that a message lists; of a longer list only the nearest few are shown

Name = TypeVar("Name", bound=str)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


def show(value: object) -> str:
    """A short repr. A value from a stranger's file may be very long, or nested very deeply."""
    if isinstance(value, int) and abs(value) > 10 ** 80:
        return "a number of more than 80 digits"
    try:
        return _repr.repr(value)
    except (ValueError, RecursionError):  # the value contains such a number, or is too deep
        return f"a {type(value).__name__}"


def nearest(name: object, allowed: Iterable[str]) -> str:
    """The part of a message that lists what is allowed, with the nearest match to ``name``."""
    allowed = list(allowed)
    lower = {option.lower(): option for option in allowed}
    text = name.lower()[:80] if isinstance(name, str) else ""
    close = [lower[match] for match in difflib.get_close_matches(text, lower, n=5)]
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(allowed) <= LISTED:
        return f"{hint}Allowed: {', '.join(allowed)}"
    return f"{hint}{len(allowed)} are allowed, like {', '.join(close or allowed[:5])}"


def choose(kind: str, name: object, allowed: Iterable[Name]) -> Name:
    """``name``, if it is one of ``allowed``.

    Raises:
        ValueError: it is not; the message lists the allowed names, with the nearest match.
    """
    allowed = list(allowed)
    if not isinstance(name, str) or name not in allowed:  # an array has no truth value
        raise ValueError(f"unknown {kind} {show(name)}; {nearest(name, allowed)}")
    return allowed[allowed.index(name)]


def text(name: str, value: Any) -> str:
    """``value``, if it is a text.

    Raises:
        TypeError: it is of another type.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {show(value)}")
    return value


def as_path(name: str, value: Any) -> Path:
    """``value`` as a path, if it is one.

    Raises:
        TypeError: it is of another type.
    """
    if not isinstance(value, (str, PathLike)):
        raise TypeError(f"{name} must be a path, got {show(value)}")
    return Path(value)


def number(name: str, value: Any) -> Any:
    """``value``, if it is a number.

    Raises:
        TypeError: it is of another type.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {show(value)}")
    return value


def whole(name: str, value: Any, low: int, high: int) -> int:
    """``value``, if it is a whole number from ``low`` to ``high``.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is out of bounds.
    """
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number, got {show(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return value


def wholes(name: str, values: Any, low: int, high: int, most: int = 32) -> tuple[int, ...]:
    """``values`` as a tuple, if they are 1 to ``most`` whole numbers from ``low`` to ``high``."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of whole numbers, got {show(values)}")
    if not 1 <= len(values) <= most:
        raise ValueError(f"{name} needs 1 to {most} whole numbers, got {len(values)}")
    return tuple(whole(name, value, low, high) for value in values)


@contextmanager
def blamed(where: str) -> Iterator[None]:
    """Puts ``where``, for example a file's name, in front of the message of an error inside."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
