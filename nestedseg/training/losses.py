"""Training objectives on logits: cross-entropy + soft Dice, summed over the supervised heads."""

import math
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestedseg.base.errors import choose, number, show
from nestedseg.models.targets import TASKS, Task, check_tensors, class_planes

__all__ = ["DeepSupervision", "HybridLoss", "PaperHybridLoss"]


class _SegmentationLoss(nn.Module):
    """What the losses share: a task, a checked target, and a safe precision."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = choose("task", task, TASKS)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: (N, classes, *spatial), 2-D or 3-D, any floating dtype.
            target: "binary": (N, *spatial) or (N, 1, *spatial), values in [0, 1];
                "multiclass": (N, *spatial), integer class indices;
                "multilabel": (N, classes, *spatial), values in [0, 1].

        Returns:
            A scalar; float64 for float64 logits, otherwise float32.

        Raises:
            TypeError: if these are no tensors, but, say, the tuple of a model's heads.
            ValueError: if the logits' shape, or the target's shape, dtype or a value of it, is not
                what the task takes.
        """
        check_tensors(logits, target)
        # Sums over pixels in half precision stop counting at 256 (bf16) or overflow (fp16).
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        y = class_planes(self.task, logits, target).to(logits.dtype)
        return self._loss(logits, y)

    @abstractmethod
    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits in float32 or more, given one plane per class."""


class HybridLoss(_SegmentationLoss):
    """Cross-entropy + soft Dice loss, both averaged, equally weighted; at least 0.

    Cross-entropy is binary for "binary" and "multilabel", categorical for "multiclass". The soft
    Dice loss of one class in one image is 1 - (2 Σ py + 1) / (Σ p + Σ y + 1), sums over the
    pixels; "multiclass" counts the background as a class.

    The two terms are those of UNet++ (Zhou et al., IEEE TMI 2020, § II-B.2, DOI
    10.1109/TMI.2019.2959609), with the Dice coefficient over regions, as is usual; the paper's
    own formula, pixel by pixel, is ``PaperHybridLoss``.

    Args:
        task: "binary", "multiclass" or "multilabel".

    Raises:
        ValueError: if the task is unknown.
    """

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.task == "multiclass":
            return F.cross_entropy(logits, y) + _soft_dice_loss(logits.softmax(1), y)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, y)
        return cross_entropy + _soft_dice_loss(logits.sigmoid(), y)


class PaperHybridLoss(_SegmentationLoss):
    """Equation 2 of the UNet++ paper, to the letter.

        L(Y, P) = -1/N Σ_c Σ_n [ y log p + 2 y p / (y² + p²) ],   N: pixels in the batch

    p is the softmax of the logits for "multiclass", the sigmoid for the other tasks; 0/0 (where
    y = p = 0) counts as 0. A perfect prediction gives -1 for "binary" and "multiclass" (one c is
    true at every pixel), -classes for "multilabel".

    Where p is a sigmoid, c runs over each class and its complement, background with 1 - y and
    1 - p: a pixel with y = 0 adds nothing to Eq. 2, so over the foreground alone p ≡ 1 would be
    optimal.

    Source: Zhou et al., IEEE TMI 2020, Eq. 2, DOI 10.1109/TMI.2019.2959609.

    Args:
        task: "binary", "multiclass" or "multilabel".

    Raises:
        ValueError: if the task is unknown.
    """

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.task == "multiclass":
            log_p = logits.log_softmax(1)
        else:
            y = torch.cat([1 - y, y], dim=1)
            log_p = F.logsigmoid(torch.cat([-logits, logits], dim=1))  # 1 - p(x) = p(-x)
        p = log_p.exp()
        # The clamp makes 0/0 a 0 with a finite gradient; only squares that underflow meet it.
        dice = 2 * y * p / (y**2 + p**2).clamp_min(torch.finfo(p.dtype).tiny)
        return -(y * log_p + dice).sum(dim=1).mean()


class DeepSupervision(nn.Module):
    """A loss summed over the heads of a deeply supervised network: Σ_i η_i L(Y, P^i).

    Every head is compared with the same, full-resolution target. Source: Zhou et al., IEEE TMI
    2020, § II-B.2, DOI 10.1109/TMI.2019.2959609.

    Args:
        loss: any ``loss(logits, target) -> scalar``: one of this module's, of
            segmentation_models.pytorch's, of MONAI's, ...
        weights: η_i, one for each head, shallow to deep. Default: 1 for every head (the paper's).

    Raises:
        ValueError: if a weight is negative or not finite; when called, if there is no head, or
            not one weight for each.
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.weights = None if weights is None else _check_weights(weights)

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Compute the weighted sum.

        Args:
            outputs: logits (N, classes, *spatial), or a tuple or list of them, shallow to deep.
                A tensor is one head.
            target: as the loss takes it.

        Returns:
            What the loss returns: a scalar.

        Raises:
            TypeError: if the outputs are neither.
        """
        if not isinstance(outputs, (Tensor, tuple, list)):
            raise TypeError("deep supervision takes a tensor of logits, or a tuple or list of "
                            f"them, got {type(outputs).__name__}; of model.forward_heads(x), give "
                            "tuple(heads.values())")
        heads = [outputs] if isinstance(outputs, Tensor) else outputs
        if not heads:
            raise ValueError("no logits given: deep supervision needs 1 head or more")
        weights = [1.0] * len(heads) if self.weights is None else self.weights
        if len(weights) != len(heads):
            raise ValueError(f"{len(weights)} weights given for {len(heads)} heads: one for each")
        pairs = zip(weights, heads, strict=True)
        return reduce(operator.add, [weight * self.loss(head, target) for weight, head in pairs])


def _soft_dice_loss(p: Tensor, y: Tensor) -> Tensor:
    # Per image and class, averaged last: the loss is then a plain mean over samples, and N GPUs
    # with an equal share of the batch each train as one process with the whole batch would. Sums
    # over the batch (SMP's, and MONAI's batch=True) have no such equality.
    space = tuple(range(2, p.ndim))
    overlap, size = (p * y).sum(space), (p + y).sum(space)
    # Smoothing 1: an absent class, predicted absent, costs 0 and has a gradient.
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


def _check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(weights, Iterable) or isinstance(weights, (str, bytes, Mapping)):
        raise TypeError(f"weights must be a sequence of numbers, got {show(weights)}")
    weights = tuple(float(number("each of the weights", weight)) for weight in weights)
    refused = [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]
    if refused:
        raise ValueError(f"weights are finite numbers from 0 up; {refused} in {list(weights)}")
    return weights
