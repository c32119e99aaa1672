"""Divides pairs into training and validation: at random, in folds, or as a list says.

Images of one group, for example of one patient, always stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nestedseg.base.errors import whole
from nestedseg.data.files import Pair

SPLITS = ("train", "val", "test")
MOST_FOLDS = 1000

def split_pairs(pairs: Sequence[Pair], fraction: float,
                seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs at random into training and validation; the same seed gives the same split.

    Args:
        pairs: of at least two groups; a pair without a group is one by itself.
        fraction: the fraction of pairs for validation, in (0, 1); each side gets at least one
            group. With groups the fraction is kept as nearly as they allow.
        seed: of the random choice.

    Returns:
        ``(training, validation)``.

    Raises:
        ValueError: fewer than two pairs or groups, or a fraction outside (0, 1).
    """
    groups = _groups(pairs)
    if len(groups) < 2 or not 0 < fraction < 1:
        what = "groups of images" if len(groups) < len(pairs) else "images"
        raise ValueError(f"a split needs at least 2 {what} and a fraction between 0 and 1, got "
                         f"{len(groups)} {what} and a fraction of {fraction}")
    wanted, chosen = max(1, round(fraction * len(pairs))), set[int]()
    for index in np.random.default_rng(seed).permutation(len(groups)).tolist():
        size = len(chosen) + len(groups[index])
        if size < len(pairs) and abs(size - wanted) < abs(len(chosen) - wanted):
            chosen.update(groups[index])
    return _divide(pairs, chosen or {*min(groups, key=len)})


def fold_pairs(pairs: Sequence[Pair], fold: int, folds: int,
               seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """The training and validation pairs of one of several folds (cross-validation).

    Each pair is in the validation of exactly one fold. The folds are as nearly of one size as the
    groups allow: the largest groups are dealt first, each to the fold that is smallest so far.

    Args:
        pairs: of at least ``folds`` groups; a pair without a group is one by itself.
        fold: which, counted from 0.
        folds: how many.
        seed: of the random order in which groups of one size are dealt.

    Returns:
        ``(training, validation)``.

    Raises:
        ValueError: there are fewer groups than folds, or no such fold.
    """
    whole("folds", folds, 2, MOST_FOLDS)
    if not 0 <= whole("fold", fold, -2**31, 2**31) < folds:
        raise ValueError(f"folds are counted from 0: with {folds} folds, fold must be from 0 to "
                         f"{folds - 1}, got {fold}")
    groups = _groups(pairs)
    if len(groups) < folds:
        what = "groups of images" if len(groups) < len(pairs) else "images"
        raise ValueError(f"{folds} folds need at least {folds} {what}, got {len(groups)}")
    shuffled = np.random.default_rng(seed).permutation(len(groups)).tolist()
    members: list[set[int]] = [set() for _ in range(folds)]
    for group in sorted(shuffled, key=lambda group: -len(groups[group])):  # stable
        min(members, key=len).update(groups[group])
    return _divide(pairs, members[fold])


def _groups(pairs: Sequence[Pair]) -> list[list[int]]:
    """The indices of the pairs of each group, in the order in which groups come first."""
    members: dict[tuple[str, int], list[int]] = {}
    for index, pair in enumerate(pairs):
        members.setdefault((pair.group, -1 if pair.group else index), []).append(index)
    return [*members.values()]


def _divide(pairs: Sequence[Pair], chosen: set[int]) -> tuple[list[Pair], list[Pair]]:
    return ([pair for index, pair in enumerate(pairs) if index not in chosen],
            [pair for index, pair in enumerate(pairs) if index in chosen])
