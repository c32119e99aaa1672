"""Whether a user has altered a module, so that a fast path must not bypass it.

A fast path reads the weights of a layer instead of calling the layer. The result is the layer's
only while nobody has changed what a call does: by a hook, a subclass, a new ``forward`` of the
layer or of its whole class, or a weight that is computed from other parameters. Every fast path
therefore asks here each time it runs, and calls the modules if something was changed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module

# The dicts in which torch keeps the hooks that it calls for every module.
GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks,
                torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks)
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Where a call of any module begins.
CALL = nn.Module.__call__, nn.Module._call_impl
# What it runs then, and a fast path does not.
BYPASSED = ("forward", "compute", "_conv_forward", "_output_padding")
OWN = (*BYPASSED, "_call_impl")
# These methods of each class as they were at first: some profilers replace them for a while.
METHODS: dict[type, dict[str, Any]] = {}
Class = TypeVar("Class", bound=type)


def bypassed(cls: Class) -> Class:
    """A decorator for classes that a fast path may bypass: remembers their methods."""
    METHODS[cls] = {name: getattr(cls, name) for name in BYPASSED if hasattr(cls, name)}
    return cls


for _cls in (*CONVOLUTIONS, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.Identity, nn.ReLU,
             nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.GELU, nn.PReLU):
    bypassed(_cls)


def alteration(module: nn.Module, kinds: Collection[type]) -> str | None:
    """What a user has changed about a module; ``None`` if nothing.

    This runs in every forward pass, for several modules of each node, so it must be fast.

    Args:
        kinds: the classes that an unaltered module may have.
    """
    kind, own = type(module), module.__dict__
    if kind not in kinds:
        return f"it is a {kind.__name__}"
    if (own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"]
            or own["_backward_pre_hooks"]):
        return "it has hooks"
    for name in OWN:
        if name in own:
            return f"it has its own {name}"
    if own.get("_compiled_call_impl") is not None:
        return "it was compiled"
    if kind in METHODS:
        for name, at_first in METHODS[kind].items():
            if getattr(kind, name) is not at_first:
                return f"{kind.__name__}.{name} was replaced"
    if kind.__call__ is not nn.Module.__call__ or kind._call_impl is not nn.Module._call_impl:
        return f"the call of {kind.__name__} was replaced"
    if isinstance(module, CONVOLUTIONS) and own["_parameters"].get("weight") is None:
        return "its weight is computed from other parameters"
    return None


def global_alteration() -> str | None:
    """What a user has changed about all modules at once."""
    if any(GLOBAL_HOOKS):
        return "there are hooks on all modules"
    if ((nn.Module.__call__, nn.Module._call_impl) != CALL
            and not torch.compiler.is_compiling()):  # torch.export replaces it too
        return "the call of all modules was replaced"
    return None
