"""Whether the config of a model describes it fully, so that loading gives the same model.

A config contains no code. If a user has changed more than the weights of a model, the change would
be lost, and the loaded model would compute something else. So before a model is saved, it is
compared with the model that its config builds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nestedseg.base.errors import show
from nestedseg.decoder.meta import own_tensors

# Parts of the names of tensors from which a weight is computed, and how to make it a plain one.
COMPUTED = {
    ".parametrizations.": "torch.nn.utils.parametrize.remove_parametrizations",
    "weight_orig": "torch.nn.utils.remove_spectral_norm",
    "weight_mask": "torch.nn.utils.prune.remove",
    "weight_g": "torch.nn.utils.remove_weight_norm",
    "lora_": "merge the adapter into the weights (in peft: merge_and_unload)",
}
STATE_DICT = "or save its state_dict() yourself"


def check_rebuilt(model: nn.Module, rebuilt: nn.Module) -> None:
    """Checks that a model differs only by its weights from the one that its config builds.

    Args:
        rebuilt: the model that its config builds, on the meta device.

    Raises:
        ValueError: it differs; the message names what, and how to solve it.
    """
    check_tensors(own_tensors(model), own_tensors(rebuilt))
    check_modules(dict(model.named_modules()), dict(rebuilt.named_modules()))


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Checks the names and shapes of all tensors."""
    for name in sorted(tensors.keys() - expected.keys()):
        cure = next((cure for part, cure in COMPUTED.items() if part in name), None)
        raise ValueError(
            f"cannot save the model: its config does not contain {name!r}. " + (
                f"The weight is computed; make it a plain one first ({cure})" if cure else
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
    """Checks the classes and settings of all modules; warns about hooks, which are not saved."""
    hooked = []
    for path, module in modules.items():
        if path not in expected:
            raise ValueError(f"cannot save the model: its config does not contain the module "
                             f"{path!r}, {show(module)}; remove it, {STATE_DICT}")
        ours, theirs = settings_of(module), settings_of(expected[path])
        if ours != theirs:
            raise ValueError(f"cannot save the model: {path!r} is {ours}, its config says "
                             f"{theirs}. Where `nestedseg.create` has an option for that, use it; "
                             f"else put the original back, {STATE_DICT}")
        if "forward" in vars(module):
            raise ValueError(f"cannot save the model: {path!r} has its own forward, which a "
                             f"config cannot contain; remove it (del module.forward), {STATE_DICT}")
        if has_hooks(module):
            hooked.append(path)
    if hooked:
        warnings.warn(f"hooks are not saved with a model; there are some on {show(hooked)}",
                      stacklevel=2)


def settings_of(module: nn.Module) -> str:
    """The class of a module and its settings, except those that only matter in training."""
    if isinstance(module, _BatchNorm):
        return f"{type(module).__name__}(eps={module.eps}, affine={module.affine})"
    if isinstance(module, (_DropoutNd, nn.ParameterDict, nn.ParameterList)):
        return type(module).__name__
    return f"{type(module).__name__}({module.extra_repr()})"


def has_hooks(module: nn.Module) -> bool:
    """Whether a user has registered forward hooks; the library's own do not count."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not type(getattr(hook, "__self__", None)).__module__.startswith("nestedseg.")
               for hook in hooks)
