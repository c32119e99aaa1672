"""From logits to outputs: probabilities, the ensemble of the heads, and the choice of a depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ensemble(logits: Sequence[Tensor], task: str) -> Tensor:
    """Logits whose probabilities are the mean of the heads' probabilities.

    They are computed from logarithms, so that small probabilities do not round to 0: log of a mean
    = logsumexp of the logs - log n. For a softmax that is already a logit. For a sigmoid the logit
    is the log-odds, log p - log(1 - p), in which log n cancels.
    """
    stacked = torch.stack(tuple(logits))
    if task == "multiclass":
        return F.log_softmax(stacked, dim=2).logsumexp(dim=0) - math.log(len(logits))
    return F.logsigmoid(stacked).logsumexp(dim=0) - F.logsigmoid(-stacked).logsumexp(dim=0)


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Probabilities of logits: a softmax over the classes for "multiclass", else sigmoids."""
    return logits.softmax(dim=1) if task == "multiclass" else logits.sigmoid()


def choose_depth(scores: Mapping[int, float], tolerance: float = 0.0) -> int:
    """The shallowest depth whose score lies within ``tolerance`` of the best.

    The paper chooses the level of pruning in this way, on the validation set (section IV-C).

    Args:
        scores: a score for each depth, higher is better, as in ``{1: 0.81, 2: 0.88, 3: 0.89}``.
        tolerance: in the unit of the scores, >= 0.

    Raises:
        ValueError: no scores, a score that is not finite, or a negative tolerance.

    Examples:
        >>> import nestedseg
        >>> nestedseg.choose_depth({1: 0.81, 2: 0.88, 3: 0.893, 4: 0.89}, tolerance=0.005)
        3
    """
    if not scores or not all(math.isfinite(score) for score in scores.values()):
        raise ValueError(f"expected a finite score for each depth, got {dict(scores)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be >= 0, got {tolerance}")
    best = max(scores.values())
    return min(depth for depth, score in scores.items() if score >= best - tolerance)
