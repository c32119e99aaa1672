"""What the epochs of a training gave, and which of them was the best."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Args:
        epoch: counted from 1.
        loss: mean training loss, summed over the heads, or over the losses of a detector.
        score: of the validation images, by which the best epoch is chosen: the IoU of the model's
            output in eval mode, mean over the classes; of a detector the Data Science Bowl's score.
        scores: the IoU of each head, by depth; of a detector those of `InstanceScores`.
        seconds: how long it took.
    """

    epoch: int
    loss: float
    score: float
    scores: dict[str, float]
    seconds: float


def best_epoch(history: list[Epoch]) -> Epoch:
    """The first epoch with the best validation score.

    Args:
        history: as `fit` returns it, at least one epoch.
    """
    return max(history, key=lambda epoch: epoch.score)
