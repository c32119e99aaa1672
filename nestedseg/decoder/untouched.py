"""Whether a module is still exactly what the library made, so that a fast path may bypass it.

A fast path reads a layer's weights instead of calling the layer. That gives the layer's result only
as long as nobody has changed what calling it does: by a hook, a subclass, a ``forward`` of its own,
or a weight that is computed from others. Every fast path asks here first, each time it runs, and
calls the modules where something has been changed.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules import module as torch_module

# The hooks that torch calls for every module: the dicts themselves, which are filled in place.
GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks,
                torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks)
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What torch's classes did when they were imported: some profilers replace it for a while.
FORWARD = {cls: cls.forward for cls in (
    *CONVOLUTIONS, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.Identity, nn.ReLU,
    nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.GELU, nn.PReLU)}


def alteration(module: nn.Module, kinds: Collection[type]) -> str | None:
    """What has been done to a module since the library made it; ``None`` if nothing was.

    This runs in every forward pass, so it reads only what a change must leave behind.

    Args:
        kinds: the classes that the library makes such modules of.
    """
    kind, own = type(module), module.__dict__
    if kind not in kinds:
        return f"it is a {kind.__name__}"
    if (own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"]
            or own["_backward_pre_hooks"]):
        return "it has hooks"
    if "forward" in own or "_conv_forward" in own:
        return "it has a forward of its own"
    if own.get("_compiled_call_impl") is not None:
        return "it was compiled by itself"
    if kind in FORWARD and kind.forward is not FORWARD[kind]:
        return f"{kind.__name__}.forward was replaced"
    if isinstance(module, CONVOLUTIONS) and own["_parameters"].get("weight") is None:
        return "its weight is computed from other parameters"
    return None


def global_alteration() -> str | None:
    """The same for what concerns all modules at once."""
    return "there are hooks on all modules" if any(GLOBAL_HOOKS) else None
