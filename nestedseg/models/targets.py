"""Segmentation targets: the checks of each task, and conversion to one plane per class."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from nestedseg.base.errors import choose, whole

Task = Literal["binary", "multiclass", "multilabel"]
TASKS: tuple[Task, ...] = get_args(Task)
MAX_IGNORED = 10**9


def check_tensors(logits: object, target: object) -> None:
    """Refuses what is given in the place of two tensors, such as all heads of a model at once.

    Raises:
        TypeError: naming what was given, and what to do with it.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"expected one tensor of logits, got {_heads(logits)}")
    if not isinstance(target, Tensor):
        raise TypeError(f"expected a tensor as target, got {type(target).__name__}; "
                        "torch.as_tensor(target) makes one from an array or a list")


def _heads(logits: object) -> str:
    """What was given in the place of logits, and how to give one head of it."""
    if isinstance(logits, (tuple, list)):
        return (f"a {type(logits).__name__} of {len(logits)}, as a model with several heads gives "
                "in training. Give one of them, model(x)[-1] for the deepest, or call "
                "model.eval(), or take the loss of all with "
                "nestedseg.training.DeepSupervision(loss)")
    if isinstance(logits, Mapping):
        return (f"a {type(logits).__name__} of {len(logits)}, as model.forward_heads(x) gives. "
                "Give one of its values, or loop over them")
    return f"{type(logits).__name__}"


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


def without_void(target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """The target with 0 in the place of the ignored value, and where it has another one.

    Returns:
        The target, and a boolean tensor of its shape, or ``None`` if no pixel is ignored.
    """
    if ignore_index is None or not _can_hold(target.dtype, ignore_index):
        return target, None
    void = target == ignore_index
    return target.masked_fill(void, 0), ~void


def _can_hold(dtype: torch.dtype, value: int) -> bool:
    # torch compares an unsigned tensor with -1 as if that were 255
    if dtype == torch.bool or dtype.is_floating_point or dtype.is_complex:
        return dtype != torch.bool
    return torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def check_ignore_index(value: int | None) -> int | None:
    """The value of a target that marks pixels without a class, if it is a whole number.

    Raises:
        TypeError: it is not.
        ValueError: it is too large.
    """
    return None if value is None else whole("ignore_index", value, -MAX_IGNORED, MAX_IGNORED)


def valid_planes(logits: Tensor, valid: Tensor | None) -> Tensor | None:
    """Where a target has a class, as ``(N, 1 or classes, *spatial)``, to go with its planes."""
    if valid is None:
        return None
    return valid.reshape(logits.shape[0], -1, *logits.shape[2:])


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
            f"target, got from {low} to {high}; if one of them marks pixels without a class, give "
            "it as ignore_index"
        )
