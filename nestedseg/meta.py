"""Models on the meta device: shapes and autograd, but no memory and no arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from nestedseg.storage import own_tensors


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device. The weights themselves are not copied on the way."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)


def fill(ghost: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts weights in the place of those on the meta device, in place; shared ones stay shared.

    Buffers that no state dict holds are computed by timm, whose models alone have such.

    Args:
        tensors: by the names of `storage.own_tensors`.
    """
    olds = own_tensors(ghost)
    new = {id(old): nn.Parameter(tensors[name], old.requires_grad)
           if isinstance(old, nn.Parameter) else tensors[name] for name, old in olds.items()}
    for module, name, old in list(_tensors(ghost)):
        setattr(module, name, new.get(id(old), torch.empty_like(old, device="cpu")))
    for module in ghost.modules():
        if hasattr(module, "init_non_persistent_buffers"):  # what timm calls it in all its models
            module.init_non_persistent_buffers()


def _tensors(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every place in a model where there is a parameter or buffer."""
    for module in model.modules():
        for found in (module.named_parameters, module.named_buffers):
            for name, tensor in found(recurse=False, remove_duplicate=False):
                yield module, name, tensor
