"""Models on the meta device: shapes and autograd, but no memory and no arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, with one name for each tensor: some timm models share theirs."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def meta_copy(model: Model) -> Model:
    """A copy on the meta device. The weights themselves are not copied on the way."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


def fill_weights(ghost: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts weights in the place of those on the meta device, in place; shared ones stay shared.

    Buffers that no state dict holds are computed, by what timm calls the same in all its models.

    Args:
        tensors: by the names of `own_tensors`.

    Raises:
        ValueError: there is a buffer that cannot be computed so.
    """
    new = {id(old): nn.Parameter(tensors[name], old.requires_grad)
           if isinstance(old, nn.Parameter) else tensors[name]
           for name, old in own_tensors(ghost).items()}
    for module, name, old in list(_tensors(ghost)):
        if id(old) not in new and not hasattr(module, "init_non_persistent_buffers"):
            raise ValueError(f"the buffer {name!r} of a {type(module).__name__} is neither among "
                             "the weights nor can it be computed again; install a newer timm")
        value = new.get(id(old))
        setattr(module, name, torch.empty_like(old, device="cpu") if value is None else value)
    for module in ghost.modules():
        compute: Any = getattr(module, "init_non_persistent_buffers", None)
        if compute is not None:
            compute()


def _tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every place in a model where there is a parameter or buffer."""
    for module in model.modules():
        for found in (module.named_parameters, module.named_buffers):
            for name, tensor in found(recurse=False, remove_duplicate=False):
                yield module, name, tensor
