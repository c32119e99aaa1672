"""How every error message of the library names what is allowed and shows what was given."""

import difflib
import reprlib
from collections.abc import Iterable

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


def show(value: object) -> str:
    """A short repr: what a stranger's file holds may be very long."""
    return _repr.repr(value)


def nearest(name: object, allowed: Iterable[str]) -> str:
    """The part of a message that lists what is allowed, with the nearest match to ``name``."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(name)[:80], allowed, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(allowed[:12]) + (", ..." if len(allowed) > 12 else "")
    return f"{hint}Allowed: {listed}"


def choose(kind: str, name: object, allowed: Iterable[str]) -> str:
    """``name``, if it is one of those allowed.

    Raises:
        ValueError: it is not; the message lists what is, with the nearest match.
    """
    allowed = list(allowed)
    if name not in allowed:
        raise ValueError(f"unknown {kind} {show(name)}; {nearest(name, allowed)}")
    return str(name)
