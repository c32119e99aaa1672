"""The history of a training run: the results of its epochs, and the best of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch.

    Args:
        epoch: counted from 1.
        loss: mean training loss, summed over the heads, or over the losses of a detector.
        score: the validation score by which the best epoch is chosen: the IoU of the model's output
            in eval mode, mean over the classes; for a detector the Data Science Bowl's score.
        scores: all validation scores: the IoU of each head, by depth; for a detector those of
            `InstanceScores`.
        seconds: how long the epoch took.
    """

    epoch: int
    loss: float
    score: float
    scores: dict[str, float]
    seconds: float


def best_epoch(history: list[Epoch]) -> Epoch:
    """The first epoch with the best validation score.

    Args:
        history: as returned by `fit`, at least one epoch.
    """
    return max(history, key=lambda epoch: epoch.score)
