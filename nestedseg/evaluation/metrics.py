"""Segmentation scores from pixel counts accumulated over batches."""

from typing import TypedDict

import torch
from torch import Tensor

from nestedseg.base.errors import choose, number, whole
from nestedseg.models.targets import (
    TASKS,
    Task,
    check_classes,
    check_ignore_index,
    check_tensors,
    class_planes,
    one_hot,
    valid_planes,
    without_void,
)
from nestedseg.topology.graph import MAX_CHANNELS

__all__ = ["Score", "SegmentationScores"]


class Score(TypedDict):
    """One score as a fraction in [0, 1]; nan where undefined. Made by `SegmentationScores`.

    Attributes:
        mean: mean over the classes whose score is defined.
        per_class: the score of each class.
    """

    mean: float
    per_class: list[float]


class SegmentationScores:
    """Pixel-wise IoU, Dice, sensitivity, specificity, F1 and F2 of all batches seen so far.

    Pixels are counted over all images together, per class (for "multiclass" one class against the
    rest, background included), and the scores are ratios of these counts, so they do not depend
    on how the images were batched. Dice and F1 are the same ratio under two names. The scores are
    those of Zhou et al., IEEE TMI 2020, Tables IV and VI, DOI 10.1109/TMI.2019.2959609.

    A ratio whose denominator is 0 is nan and left out of the mean; if all classes are left out,
    the mean is nan. So a class that is neither in the truth nor in the prediction has no score,
    except a specificity of 1, because all of its pixels were rightly rejected.

    The whole state is ``counts``, an int64 tensor (classes, 4) of true positives, false positives,
    false negatives and true negatives. Add the counts of another object to merge them, sum them
    over processes, or assign them to restore a state. They stay on their device, at first the CPU.

    Args:
        task: "binary", "multiclass" or "multilabel". Default: "binary".
        classes: number of logit channels. Default: 1.
        threshold: a "binary" or "multilabel" pixel is foreground where its probability, the
            sigmoid of the logit, is above this; between 0 and 1. Default: 0.5. "multiclass"
            takes the class with the largest logit instead.
        ignore_index: the value in the target of pixels that have no class, and are not counted;
            with "multilabel" a pixel may have it for some classes only. Default: there are none.

    Raises:
        ValueError: the task is unknown or does not allow ``classes``, or the threshold is not
            between 0 and 1.

    Examples:
        >>> import torch
        >>> from nestedseg.metrics import SegmentationScores
        >>> scores = SegmentationScores("binary")
        >>> logits = torch.tensor([[[[2.0, 2.0, -1.0, -1.0]]]])  # (N, classes, H, W)
        >>> scores.update(logits, torch.tensor([[[1, 0, 0, 1]]]))
        >>> scores.update(logits, torch.tensor([[[1, 1, 0, 0]]]))  # the next batch
        >>> scores.compute()["iou"]
        {'mean': 0.6, 'per_class': [0.6]}
    """

    def __init__(self, task: Task = "binary", classes: int = 1, threshold: float = 0.5,
                 ignore_index: int | None = None) -> None:
        self.task = choose("task", task, TASKS)
        self.classes = check_classes(self.task, whole("classes", classes, 0, MAX_CHANNELS))
        if not 0 < number("threshold", threshold) < 1:
            raise ValueError(f"threshold must be a probability between 0 and 1, got {threshold}")
        self.threshold = threshold
        self.ignore_index = check_ignore_index(ignore_index)
        self.reset()

    def reset(self) -> None:
        """Forgets all batches."""
        self.counts = torch.zeros(self.classes, 4, dtype=torch.int64)

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Counts the pixels of one batch.

        Args:
            logits: (N, classes, *spatial), 2-D or 3-D, any floating dtype, any device.
            target: "binary": (N, *spatial) or (N, 1, *spatial), of 0 and 1;
                "multiclass": (N, *spatial), integer class indices;
                "multilabel": (N, classes, *spatial), of 0 and 1.

        Raises:
            TypeError: the arguments are not tensors, but for example the tuple of a model's heads.
            ValueError: the logits have another number of classes, or the target does not fit.
        """
        check_tensors(logits, target)
        target, valid = without_void(target, self.ignore_index)
        truth = _hard(class_planes(self.task, logits, target))
        if truth.shape[1] != self.classes:
            raise ValueError(
                f"these scores are for {self.classes} classes, got logits with "
                f"{truth.shape[1]}, of shape {tuple(logits.shape)}"
            )
        counts = _count(self._predict(logits), truth, valid_planes(logits, valid))
        self.counts += counts.to(self.counts.device)

    def compute(self) -> dict[str, Score]:
        """Computes the scores of the pixels counted so far.

        Returns:
            ``{"iou": {"mean": 0.75, "per_class": [0.9, 0.6]}, ...}`` with the keys iou, dice,
            sensitivity, specificity, f1 and f2; plain floats, fractions in [0, 1] or nan.
        """
        # Empty classes need no code of their own: 0/0 is nan, and so is nanmean of nothing.
        tp, fp, fn, tn = self.counts.double().unbind(dim=1)
        dice = 2 * tp / (2 * tp + fp + fn)
        scores = {
            "iou": tp / (tp + fp + fn),
            "dice": dice,
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "f1": dice,
            "f2": 5 * tp / (5 * tp + fp + 4 * fn),
        }
        return {
            name: {"mean": score.nanmean().item(), "per_class": score.tolist()}
            for name, score in scores.items()
        }

    def _predict(self, logits: Tensor) -> Tensor:
        if self.task == "multiclass":
            return one_hot(logits.argmax(dim=1), self.classes)
        # In float32, because bf16 would round a probability just above the threshold down to it.
        return logits.float().sigmoid() > self.threshold


def _hard(planes: Tensor) -> Tensor:
    hard = planes.bool()
    if (hard != planes).any():
        raise ValueError("scores need a target of only 0 and 1, got values between them")
    return hard


def _count(predicted: Tensor, truth: Tensor, valid: Tensor | None) -> Tensor:
    """Counts tp, fp, fn, tn, as (classes, 4), in boolean planes (N, classes, *spatial)."""
    pixels = [0, *range(2, truth.ndim)]
    outcomes = [predicted & truth, predicted & ~truth, ~predicted & truth, ~predicted & ~truth]
    if valid is not None:
        outcomes = [outcome & valid for outcome in outcomes]
    return torch.stack([outcome.sum(pixels) for outcome in outcomes], dim=1)
