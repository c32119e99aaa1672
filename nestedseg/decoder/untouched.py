"""Whether a user has altered a module, so that a fast path must not bypass it.

A fast path reads the weights of a layer instead of calling the layer. The result is the layer's
only while nobody has changed what a call does: by a hook, a subclass, a new ``forward``, or a
weight that is computed from other parameters. Every fast path therefore asks here each time it
runs, and calls the modules if something was changed.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.modules import module as torch_module

# The dicts in which torch keeps the hooks that it calls for every module.
GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks,
                torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks)
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# The forward of these classes when they were imported: some profilers replace it for a while.
FORWARD = {cls: cls.forward for cls in (
    *CONVOLUTIONS, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.Identity, nn.ReLU,
    nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.GELU, nn.PReLU)}


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
    if "forward" in own or "_conv_forward" in own:
        return "it has its own forward"
    if own.get("_compiled_call_impl") is not None:
        return "it was compiled"
    if kind in FORWARD and kind.forward is not FORWARD[kind]:
        return f"{kind.__name__}.forward was replaced"
    if isinstance(module, CONVOLUTIONS) and own["_parameters"].get("weight") is None:
        return "its weight is computed from other parameters"
    return None


def global_alteration() -> str | None:
    """What a user has changed about all modules at once."""
    return "there are hooks on all modules" if any(GLOBAL_HOOKS) else None
