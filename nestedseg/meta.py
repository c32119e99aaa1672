"""Models on the meta device: shapes and autograd, but no memory and no arithmetic."""

from __future__ import annotations

import copy

from torch import nn


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device. The weights themselves are not copied on the way."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, memo)
