"""Segmentation targets: the checks of each task, and conversion to one plane per class."""

from typing import Literal, get_args

import torch
from torch import Tensor

from nestedseg.base.errors import choose

Task = Literal["binary", "multiclass", "multilabel"]
TASKS: tuple[Task, ...] = get_args(Task)


def choose_task(task: str | None, classes: int) -> Task:
    """The requested task; by default "binary" for one class, else "multiclass".

    Raises:
        ValueError: the task is unknown.
    """
    if task is None:
        return "binary" if classes == 1 else "multiclass"
    return choose("task", task, TASKS)


def check_classes(task: Task, classes: int) -> int:
    """Return ``classes``, the number of logit channels, if ``task`` can have that many.

    Raises:
        ValueError: "binary" with other than 1 class, "multiclass" with fewer than 2, or
            "multilabel" with fewer than 1.
    """
    at_least = 2 if task == "multiclass" else 1
    if classes < at_least or (task == "binary" and classes > 1):
        allowed = "exactly 1 class" if task == "binary" else f"{at_least} or more classes"
        raise ValueError(f"task {task!r} needs {allowed} (logit channels), got {classes}")
    return classes


def one_hot(indices: Tensor, classes: int) -> Tensor:
    """Class indices (N, *spatial) as boolean planes (N, classes, *spatial)."""
    # Unlike F.one_hot, this puts channels at axis 1, and takes 1 byte per element instead of 8.
    planes = torch.arange(classes, device=indices.device).view(-1, *[1] * (indices.ndim - 1))
    return indices.unsqueeze(1) == planes


def class_planes(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """Check a target against the logits it belongs to and give it their shape.

    Args:
        task: one of ``TASKS``.
        logits: (N, classes, *spatial), 2-D or 3-D; only the shape is read.
        target: "binary": (N, *spatial) or (N, 1, *spatial), values in [0, 1];
            "multiclass": (N, *spatial), integer class indices below ``classes``;
            "multilabel": (N, classes, *spatial), values in [0, 1].

    Returns:
        (N, classes, *spatial): boolean for "multiclass", otherwise in the target's dtype.

    Raises:
        ValueError: the shape of the logits, or the shape, the dtype or a value of the target, does
            not fit the task.
    """
    if logits.ndim not in (4, 5):
        raise ValueError(
            "logits must be (N, classes, H, W) or (N, classes, D, H, W), got "
            f"{tuple(logits.shape)}"
        )
    check_classes(task, logits.shape[1])
    _check_shape(task, logits, target)
    if task == "multiclass":
        _check_integer(target)
        target = target.long()
    _check_range(task, logits.shape[1], target)
    if task == "multiclass":
        return one_hot(target, logits.shape[1])
    return target.reshape(logits.shape)


def _check_shape(task: Task, logits: Tensor, target: Tensor) -> None:
    n, _, *spatial = logits.shape
    allowed = {
        "binary": [(n, *spatial), (n, 1, *spatial)],
        "multiclass": [(n, *spatial)],
        "multilabel": [tuple(logits.shape)],
    }[task]
    if tuple(target.shape) not in allowed:
        raise ValueError(
            f"task {task!r} with logits of shape {tuple(logits.shape)} needs a target of shape "
            f"{' or '.join(map(str, allowed))}, got {tuple(target.shape)}"
        )


def _check_integer(target: Tensor) -> None:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(
            f"task 'multiclass' needs integer class indices as target, got {target.dtype}"
        )


def _check_range(task: Task, classes: int, target: Tensor) -> None:
    # Without this check torch would fail on an index out of range inside a kernel, and compute
    # nonsense for a 0/255 mask. It costs one pass and one synchronisation with the device.
    low, high = torch.stack(target.aminmax()).tolist()
    limit = classes - 1 if task == "multiclass" else 1
    if not (low >= 0 and high <= limit):  # in this form nan is rejected too
        allowed = "class indices" if task == "multiclass" else "values"
        raise ValueError(
            f"task {task!r} with {classes}-channel logits needs {allowed} from 0 to {limit} as "
            f"target, got from {low} to {high}"
        )
