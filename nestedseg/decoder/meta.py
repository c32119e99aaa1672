"""Models on torch's meta device, which has shapes and autograd, but no memory and no arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with only one name for each tensor: some timm models share tensors."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def meta_copy(model: Model) -> Model:
    """A copy on the meta device. The weights are not copied in memory to make it."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


def fill_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a model on the meta device its weights, in place; shared tensors stay shared.

    Buffers that a state dict does not contain are computed by the ``init_non_persistent_buffers``
    that timm's modules have.

    Args:
        model: on the meta device.
        tensors: by the names of `own_tensors`.

    Raises:
        ValueError: a buffer is not in ``tensors`` and its module cannot compute it.
    """
    new = {id(old): nn.Parameter(tensors[name], old.requires_grad)
           if isinstance(old, nn.Parameter) else tensors[name]
           for name, old in own_tensors(model).items()}
    for module, name, old in list(_tensors(model)):
        if id(old) not in new and not hasattr(module, "init_non_persistent_buffers"):
            raise ValueError(f"the buffer {name!r} of a {type(module).__name__} is not among the "
                             "weights, and the module cannot compute it; install a newer timm")
        value = new.get(id(old))
        setattr(module, name, torch.empty_like(old, device="cpu") if value is None else value)
    for module in model.modules():
        compute: Any = getattr(module, "init_non_persistent_buffers", None)
        if compute is not None:
            compute()


def _tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every parameter and buffer of a model, with its module and name there."""
    for module in model.modules():
        for found in (module.named_parameters, module.named_buffers):
            for name, tensor in found(recurse=False, remove_duplicate=False):
                yield module, name, tensor
