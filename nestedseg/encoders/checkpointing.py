"""Gradient checkpointing of timm's models without side effects.

With it, timm computes the blocks of a model again in the backward pass. Batch norms would then
count each batch twice in their running statistics, and blocks would be computed in the mode that
the model has by then. Hooks on all modules with buffers prevent both.
"""

from __future__ import annotations

from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn


def guard_state(model: nn.Module, enable: bool) -> None:
    """Adds a `StateGuard` to every module that has buffers, or removes all guards."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items()
                        if isinstance(getattr(hook, "__self__", None), StateGuard)]:
                del hooks[key]
        if enable and module._buffers:
            guard = StateGuard()
            module.register_forward_pre_hook(guard.enter)
            module.register_forward_hook(guard.leave)


class StateGuard:
    """Hooks that restore the buffers of a module when it was computed again for a backward pass."""

    def __init__(self) -> None:
        self.training = True  # in the last forward pass
        self.before: dict[int, dict[str, Tensor]] = {}  # by thread

    def enter(self, module: nn.Module, args: Any) -> None:
        if not in_backward():
            self.training = module.training
            return
        if module.training != self.training:
            raise RuntimeError(
                f"the mode of a {type(module).__name__} has changed since the forward pass. With "
                "gradient checkpointing, which computes it again in the backward pass, call "
                "backward() before train() or eval()")
        self.before[get_ident()] = {name: buffer.clone() for name, buffer
                                    in module._buffers.items() if buffer is not None}

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        for name, buffer in self.before.pop(get_ident(), {}).items():
            module.get_buffer(name).data.copy_(buffer)  # .data: no change for autograd


def in_backward() -> bool:
    """Whether autograd is computing gradients in this thread."""
    return torch._C._current_graph_task_id() != -1
