"""Losses on logits: cross-entropy + soft Dice, and deep supervision, their sum over the heads."""

import math
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestedseg.base.errors import choose, number, show
from nestedseg.models.targets import (
    TASKS,
    Task,
    check_ignore_index,
    check_tensors,
    class_planes,
    valid_planes,
    without_void,
)

__all__ = ["DeepSupervision", "HybridLoss", "PaperHybridLoss"]


class _SegmentationLoss(nn.Module):
    """The base class of the losses: checks the target, and computes in float32 or more."""

    def __init__(self, task: Task, ignore_index: int | None = None) -> None:
        super().__init__()
        self.task = choose("task", task, TASKS)
        self.ignore_index = check_ignore_index(ignore_index)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: (N, classes, *spatial), 2-D or 3-D, any floating dtype.
            target: "binary": (N, *spatial) or (N, 1, *spatial), values in [0, 1];
                "multiclass": (N, *spatial), integer class indices;
                "multilabel": (N, classes, *spatial), values in [0, 1].

        Returns:
            A scalar; float64 for float64 logits, otherwise float32.

        Raises:
            TypeError: the arguments are not tensors, but for example the tuple of a model's heads.
            ValueError: the shape of the logits, or the shape, the dtype or a value of the target,
                does not fit the task.
        """
        check_tensors(logits, target)
        # Sums over pixels in half precision stop counting at 256 (bf16) or overflow (fp16).
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target, valid = without_void(target, self.ignore_index)
        y = class_planes(self.task, logits, target).to(logits.dtype)
        valid = valid_planes(logits, valid)
        if valid is not None:  # so that void pixels have no gradient, whatever their logits are
            logits = torch.where(valid, logits, 0)
        return self._loss(logits, y, valid)

    @abstractmethod
    def _loss(self, logits: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
        """The loss of logits in float32 or more, given one plane per class, and where it counts."""


class HybridLoss(_SegmentationLoss):
    """Cross-entropy + soft Dice loss, equally weighted; at least 0.

    Cross-entropy is binary for "binary" and "multilabel", categorical for "multiclass", and is
    averaged over pixels. The soft Dice loss of one class in one image is
    1 - (2 Σ py + 1) / (Σ p + Σ y + 1), with sums over the pixels, and is averaged over classes and
    images; "multiclass" counts the background as a class. Each image counts as if it had only the
    pixels that have a class (see ``ignore_index``); one without any adds 0.

    The two terms are those of UNet++ (Zhou et al., IEEE TMI 2020, § II-B.2, DOI
    10.1109/TMI.2019.2959609), with the Dice coefficient over regions, as is usual; the paper's
    own formula, pixel by pixel, is ``PaperHybridLoss``.

    Args:
        task: "binary", "multiclass" or "multilabel".
        ignore_index: the value in the target of pixels that have no class; with "multilabel" a
            pixel may have it for some classes only. Default: there are none.

    Raises:
        ValueError: the task is unknown.

    Examples:
        >>> import torch
        >>> from nestedseg.losses import HybridLoss
        >>> logits = torch.zeros(2, 3, 64, 64, requires_grad=True)
        >>> labels = torch.randint(0, 3, (2, 64, 64))
        >>> loss = HybridLoss("multiclass")(logits, labels)
        >>> loss.backward()
        >>> loss.shape, logits.grad.shape
        (torch.Size([]), torch.Size([2, 3, 64, 64]))
    """

    def _loss(self, logits: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
        if self.task == "multiclass":
            p, entropy = logits.softmax(1), F.cross_entropy(logits, y, reduction="none")[:, None]
        else:
            p = logits.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        return _mean(entropy, valid).mean() + _soft_dice_loss(p, y, valid)


class PaperHybridLoss(_SegmentationLoss):
    """Equation 2 of the UNet++ paper, exactly as printed.

        L(Y, P) = -1/N Σ_c Σ_n [ y log p + 2 y p / (y² + p²) ],   N: pixels in the batch

    p is the softmax of the logits for "multiclass", the sigmoid for the other tasks; 0/0 (where
    y = p = 0) counts as 0. A perfect prediction gives -1 for "binary" and "multiclass" (one c is
    true at every pixel), -classes for "multilabel".

    For sigmoids, c runs over each class and its complement, the background with 1 - y and 1 - p.
    In Eq. 2 a pixel with y = 0 adds nothing, so with only the foreground p ≡ 1 would be optimal.

    Each image counts as if it had only the pixels that have a class (see ``ignore_index``).

    Source: Zhou et al., IEEE TMI 2020, Eq. 2, DOI 10.1109/TMI.2019.2959609.

    Args:
        task: "binary", "multiclass" or "multilabel".
        ignore_index: see `HybridLoss`.

    Raises:
        ValueError: the task is unknown.
    """

    def _loss(self, logits: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
        if self.task == "multiclass":
            log_p = logits.log_softmax(1)
        else:
            y = torch.cat([1 - y, y], dim=1)
            valid = None if valid is None else torch.cat([valid, valid], dim=1)
            log_p = F.logsigmoid(torch.cat([-logits, logits], dim=1))  # 1 - p(x) = p(-x)
        p = log_p.exp()
        # The clamp turns 0/0 into 0 with a finite gradient; it only affects squares that underflow.
        dice = 2 * y * p / (y**2 + p**2).clamp_min(torch.finfo(p.dtype).tiny)
        return -_mean(y * log_p + dice, valid).sum(dim=1).mean()


class DeepSupervision(nn.Module):
    """The sum of a loss over the heads of a deeply supervised network: Σ_i η_i L(Y, P^i).

    All heads are compared with the same target at full resolution. Source: Zhou et al., IEEE TMI
    2020, § II-B.2, DOI 10.1109/TMI.2019.2959609.

    Args:
        loss: any ``loss(logits, target) -> scalar``, from this module,
            segmentation_models.pytorch, MONAI, ...
        weights: η_i, one for each head, shallow to deep. Default: 1 for every head (the paper's).

    Raises:
        ValueError: a weight is negative or not finite; or, when called, there are no heads, or the
            number of weights is not the number of heads.

    Examples:
        >>> import torch
        >>> import nestedseg
        >>> from nestedseg.losses import DeepSupervision, HybridLoss
        >>> model = nestedseg.create("unetpp", depth=3, deep_supervision=True)
        >>> loss = DeepSupervision(HybridLoss(model.task), weights=(0.5, 0.5, 1))
        >>> images, labels = torch.rand(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
        >>> logits = model(images)
        >>> len(logits), logits[0].shape, loss(logits, labels).shape
        (3, torch.Size([2, 1, 64, 64]), torch.Size([]))
    """

    def __init__(
        self, loss: Callable[[Tensor, Tensor], Tensor], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.weights = None if weights is None else _check_weights(weights)

    def forward(self, outputs: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Computes the weighted sum of the losses of all heads.

        Args:
            outputs: logits (N, classes, *spatial) of one head, or a tuple or list of the logits of
                all heads, shallow to deep.
            target: in the form that the loss takes.

        Returns:
            A scalar.

        Raises:
            TypeError: ``outputs`` is neither a tensor nor a tuple or list.
        """
        if not isinstance(outputs, (Tensor, tuple, list)):
            raise TypeError("deep supervision takes a tensor of logits, or a tuple or list of "
                            f"them, got {type(outputs).__name__}; of model.forward_heads(x), give "
                            "tuple(heads.values())")
        heads = [outputs] if isinstance(outputs, Tensor) else outputs
        if not heads:
            raise ValueError("deep supervision needs the logits of at least 1 head, got none")
        weights = [1.0] * len(heads) if self.weights is None else self.weights
        if len(weights) != len(heads):
            raise ValueError(f"weights needs one number for each head, {len(heads)} in all, got "
                             f"{len(weights)}: {list(weights)}")
        pairs = zip(weights, heads, strict=True)
        return reduce(operator.add, [weight * self.loss(head, target) for weight, head in pairs])


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over the pixels that count, per image and plane, ``(N, planes)``; 0 of no pixel.

    Averaged per image first, so that N GPUs with equal shares of a batch train like one process
    with the whole batch.
    """
    space = tuple(range(2, values.ndim))
    if valid is None:
        return values.mean(space)
    return (values * valid).sum(space) / valid.sum(space).clamp_min(1)


def _soft_dice_loss(p: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
    # Computed per image and class, and averaged last, so that the loss is a plain mean over images:
    # N GPUs with equal shares of a batch then train like one process with the whole batch. With
    # sums over the batch (SMP's, and MONAI's batch=True) they would not.
    space = tuple(range(2, p.ndim))
    if valid is not None:
        p, y = p * valid, y * valid
    overlap, size = (p * y).sum(space), (p + y).sum(space)
    # With a smoothing of 1, an absent class that is predicted as absent costs 0, with a gradient.
    return (1 - (2 * overlap + 1) / (size + 1)).mean()


def _check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(weights, Iterable) or isinstance(weights, (str, bytes, Mapping)):
        raise TypeError(f"weights must be a sequence of numbers, got {show(weights)}")
    weights = tuple(float(number("each of the weights", weight)) for weight in weights)
    refused = [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]
    if refused:
        raise ValueError(f"weights must be finite numbers >= 0, got {refused} in {list(weights)}")
    return weights
