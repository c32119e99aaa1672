"""How a timm model is built, and how its features are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nestedseg.encoders.description import are_names

# What gives new parameters their values, which on the meta device takes most of a build's time.
INITIAL = frozenset(getattr(Tensor, f"{name}_") for name in (
    "uniform", "normal", "erfinv", "mul", "add", "clamp", "fill", "zero"))


class SkipInitialValues(TorchFunctionMode):
    """While a model is built, gives no values to tensors on the meta device, which have none.

    It must not be on while a model runs: autograd would miss what is computed in place.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in INITIAL and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs or {})


class DoesNotRun(ValueError):
    """The model does not run so."""


def pretrained_cfg(name: str) -> PretrainedCfg:
    """What timm says of a model, or of those weights of it that the tag in its name means."""
    cfg = get_pretrained_cfg(name)
    if cfg is None:
        raise ValueError(f"timm says nothing of the model {name!r}")
    return cfg


def build_on(device: str, name: str, in_channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    """A timm model without its weights, in eval mode."""
    with torch.device(device), SkipInitialValues():
        return timm.create_model(name, in_chans=in_channels, **arguments).eval()


def forward_taps(model: Any, x: Tensor,
                 taps: Sequence[int | str] | None = None) -> list[Tensor]:
    """The features of a timm model at these taps (default: all its own), each ``(N, C, h, w)``."""
    if are_names(taps):
        return forward_named(model, x, taps)
    return model.forward_intermediates(x, indices=taps, output_fmt="NCHW",
                                       intermediates_only=True)


class Listener:
    """A forward hook that holds what its module gave, until it is taken."""

    output: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.output = output

    def take(self) -> Tensor:
        output, self.output = self.output, None
        if output is None:
            raise RuntimeError("a module was not run")
        return output


def listen(model: nn.Module, names: Sequence[str]) -> None:
    """Puts a listener on the modules of these names. Copies of the model have their own."""
    for name in names:
        model.get_submodule(name).register_forward_hook(Listener())


def forward_named(model: Any, x: Tensor, names: Sequence[str]) -> list[Tensor]:
    """What the modules of these names give, to which `listen` has listened."""
    model.forward_features(x)
    return [hook.take() for name in names
            for hook in model.get_submodule(name)._forward_hooks.values()
            if isinstance(hook, Listener)]


def check_unchanged(model: nn.Module, x: Tensor, names: Sequence[str]) -> None:
    """Refuses modules whose output a later layer changes in place.

    Raises:
        DoesNotRun: naming the first.
    """
    versions: dict[str, int] = {}
    hooks = [model.get_submodule(name).register_forward_hook(
        lambda module, args, output, name=name: versions.__setitem__(name, output._version))
        for name in names]
    outputs = forward_named(model, x, names)
    for hook in hooks:
        hook.remove()
    for name, output in zip(names, outputs):
        if output._version != versions[name]:
            raise DoesNotRun(f"a later layer changes what {name!r} gives in place")
