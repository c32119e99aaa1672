"""Whether a model is what its config says, so that loading it gives the same model again.

A config holds no code. What a user has changed in a model besides its weights would be lost, and
the loaded model would be another function. So a model is compared, before it is saved, with the one
that its config builds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nestedseg.base.errors import show
from nestedseg.decoder.meta import own_tensors

# Parts of names that torch gives to what computes a weight, and how to be rid of them.
COMPUTED = {
    ".parametrizations.": "torch.nn.utils.parametrize.remove_parametrizations",
    "weight_orig": "torch.nn.utils.remove_spectral_norm",
    "weight_mask": "torch.nn.utils.prune.remove",
    "weight_g": "torch.nn.utils.remove_weight_norm",
    "lora_": "merge the adapter into the weights (in peft: merge_and_unload)",
}
STATE_DICT = "or save its state_dict() yourself"


def check_rebuilt(model: nn.Module, rebuilt: nn.Module) -> None:
    """Refuses a model that differs from the one its config builds in more than its weights.

    Args:
        rebuilt: the model that its config builds, on the meta device.

    Raises:
        ValueError: naming what differs, and the way out.
    """
    check_tensors(own_tensors(model), own_tensors(rebuilt))
    check_modules(dict(model.named_modules()), dict(rebuilt.named_modules()))


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuses other tensors than those that the config's model has, or in other shapes."""
    for name in sorted(tensors.keys() - expected.keys()):
        cure = next((cure for part, cure in COMPUTED.items() if part in name), None)
        raise ValueError(
            f"cannot save the model: its config does not say that it has {name!r}. " + (
                f"Its weight is computed; make it a plain one before ({cure})" if cure else
                f"A module was added or replaced; put the original back, {STATE_DICT}"))
    for name in sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"cannot save the model: {name!r} is missing. A module was removed or "
                         "replaced, or shares its tensor with another one; put the original back "
                         f"(for a shared tensor, a clone of it), {STATE_DICT}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"cannot save the model: {name!r} has shape {tuple(tensors[name].shape)}, its "
                f"config says {tuple(tensor.shape)}. Create a model of the wanted shape, and copy "
                f"the weights into it, {STATE_DICT}")


def check_modules(modules: Mapping[str, nn.Module], expected: Mapping[str, nn.Module]) -> None:
    """Refuses modules of other classes or settings than the config's model has."""
    hooked = []
    for path, module in modules.items():
        if path not in expected:
            raise ValueError(f"cannot save the model: its config does not say that it has the "
                             f"module {path!r}, {show(module)}; remove it, {STATE_DICT}")
        ours, theirs = settings_of(module), settings_of(expected[path])
        if ours != theirs:
            raise ValueError(f"cannot save the model: {path!r} is {ours}, its config says "
                             f"{theirs}. Where `nestedseg.create` has an option for that, use it; "
                             f"else put the original back, {STATE_DICT}")
        if "forward" in vars(module):
            raise ValueError(f"cannot save the model: {path!r} has a forward of its own, which is "
                             f"no part of a config; remove it (del module.forward), {STATE_DICT}")
        if has_hooks(module):
            hooked.append(path)
    if hooked:
        warnings.warn(f"hooks are not saved with a model; there are some on {show(hooked)}",
                      stacklevel=2)


def settings_of(module: nn.Module) -> str:
    """The class of a module and what it computes with, but for what matters in training alone."""
    if isinstance(module, _BatchNorm):
        return f"{type(module).__name__}(eps={module.eps}, affine={module.affine})"
    if isinstance(module, (_DropoutNd, nn.ParameterDict)):  # whose text says where its tensors are
        return type(module).__name__
    return f"{type(module).__name__}({module.extra_repr()})"


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody else than this library has registered hooks on its forward pass."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not type(getattr(hook, "__self__", None)).__module__.startswith("nestedseg.")
               for hook in hooks)
