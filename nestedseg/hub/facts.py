"""Facts about a model's training, which its config keeps and its card shows."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from nestedseg.base.errors import show

MAX_NUMBER = 1e9
MAX_TEXT = 200  # characters of a name or a text value
MAX_FACTS = 1_000


def check_training(facts: Any, by_depth: bool = True) -> dict[str, Any]:
    """Checks facts about a training: short texts, numbers, and objects of these, at most two deep.

    Two keys have a meaning for model cards: ``dataset`` is a name, and ``metrics`` are scores by
    depth and name, or only by name for a model without depths (``by_depth=False``).

    Raises:
        TypeError: ``facts`` is not an object, or ``dataset`` is not a text.
        ValueError: a value is not allowed, there are too many, or ``metrics`` has another form.
    """
    if not isinstance(facts, Mapping):
        raise TypeError(f"training must be an object, got {show(facts)}")
    flat = list(_flatten(facts, 3))
    if len(flat) > MAX_FACTS:
        raise ValueError(f"training has {len(flat)} values; at most {MAX_FACTS} are allowed")
    if not isinstance(facts.get("dataset", ""), str):
        raise TypeError(f"dataset must be a name, got {show(facts['dataset'])}")
    metrics = facts.get("metrics", {})
    if not (_are_scores_by_depth if by_depth else _are_scores)(metrics):
        form = "by depth and by name, like {2: {'iou': 0.9}}" if by_depth else \
            "by name, like {'iou': 0.9}"
        raise ValueError(f"metrics must be scores {form}, got {show(metrics)}")
    return copy.deepcopy(dict(facts))


def _are_scores_by_depth(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        str(depth).isdecimal() and _are_scores(scores) for depth, scores in value.items())


def _are_scores(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        type(score) in (int, float) for score in value.values())


def _flatten(facts: Mapping[Any, Any], levels: int) -> Iterator[Any]:
    """All values in nested facts, each checked."""
    for key, value in facts.items():
        if isinstance(value, Mapping) and levels > 1:
            yield from _flatten(value, levels - 1)
        elif not (is_text(key) and (value is None or isinstance(value, bool) or is_text(value)
                  or (type(value) in (int, float) and abs(value) <= MAX_NUMBER))):
            raise ValueError(f"invalid value in training, {show(key)}: {show(value)}; allowed are "
                             f"texts "
                             f"of at most {MAX_TEXT} characters, numbers, and objects of these")
        else:
            yield value


def is_text(value: Any) -> bool:
    """Whether a value is a short, printable text."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()
