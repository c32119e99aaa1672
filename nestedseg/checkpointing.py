"""Modules that can compute their intermediate maps again in the backward pass, to save memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Recomputable(nn.Module):
    """``forward`` is ``compute``; with ``checkpointing``, training keeps its inputs alone."""

    checkpointing = False

    def forward(self, *inputs: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return self.compute(*inputs)
        return checkpoint(self.compute, *inputs, use_reentrant=False,
                          context_fn=lambda: (nullcontext(), _without_statistics(self)))


@contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """The second pass must not count in a batch norm's running statistics again."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
