"""A timm model on trial: built and run on the meta device, without weights or arithmetic."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from nestedseg.encoders.description import are_names

Size = tuple[int, ...]  # (H, W)


def pretrained_cfg(name: str) -> PretrainedCfg:
    """What timm says of a model, or of those weights of it that the tag in its name means."""
    cfg = get_pretrained_cfg(name)
    if cfg is None:
        raise ValueError(f"timm says nothing of the model {name!r}")
    return cfg


class Unfit(ValueError):
    """The model does not run so."""


@dataclass(frozen=True)
class Maps:
    """The features of one run.

    Args:
        size: (H, W) of the image.
        shapes: channels, height and width at each tap that timm offers, in its order.
    """

    size: Size
    shapes: tuple[tuple[int, ...], ...]

    @property
    def strides(self) -> list[float]:
        """Along the height; no whole numbers where the model rounds."""
        return [self.size[0] / height for _, height, _ in self.shapes]

    @property
    def deepest(self) -> int:
        return max(map(nearest_power, self.strides))

    @property
    def fits(self) -> list[bool]:
        """Of each feature, whether its size is the image's over the nearest power of two."""
        return [(height * nearest_power(stride), width * nearest_power(stride)) == self.size
                for (_, height, width), stride in zip(self.shapes, self.strides)]


class Trial:
    """Builds a model once for each set of arguments, and runs it once for each size."""

    def __init__(self, name: str, in_channels: int, device: str) -> None:
        self.name, self.in_channels, self.device = name, in_channels, device
        self.own_size: Size = pretrained_cfg(name).input_size[-2:]
        self._models: dict[str, nn.Module | Unfit] = {}
        self._runs: dict[Any, Maps | Unfit] = {}

    def run(self, size: Size, taps: tuple[str, ...] | None = None, **arguments: Any) -> Maps:
        """The features of an image of this size.

        Args:
            taps: names of modules, if the features are to be theirs.
            arguments: of `timm.create_model`.

        Raises:
            Unfit: the model, built so, does not take it.
        """
        return _kept(self._runs, (size, taps, repr(arguments)),
                     lambda: self._run(size, taps, arguments))

    def fits(self, size: Size, **arguments: Any) -> bool:
        """Whether the model, built so, takes an image of this size."""
        try:
            self.run(size, **arguments)
        except Unfit:
            return False
        return True

    def parameters(self, **arguments: Any) -> int:
        """Of the whole model, its classifier included."""
        return sum(parameter.numel() for parameter in self._model(arguments).parameters())

    def modules(self, **arguments: Any) -> list[str]:
        """The names of its modules."""
        return [name for name, _ in self._model(arguments).named_modules()]

    def _run(self, size: Size, taps: tuple[str, ...] | None, arguments: dict[str, Any]) -> Maps:
        model = self._model(arguments)
        with torch.no_grad(), torch.device(self.device):
            x = torch.zeros(1, self.in_channels, *size)
            if taps:
                model = copy.deepcopy(model)
                listen(model, taps)
                check_unchanged(model, x, taps)
            features = forward_taps(model, x, taps)
        return Maps(size, tuple(tuple(feature.shape[1:]) for feature in features))

    def _model(self, arguments: dict[str, Any]) -> nn.Module:
        return _kept(self._models, repr(arguments), lambda: self._build(arguments))

    def _build(self, arguments: dict[str, Any]) -> nn.Module:
        if self.device != "meta":
            self._models.clear()  # real weights: one model at a time
        return build_on(self.device, self.name, self.in_channels, arguments)


def _kept(results: dict[Any, Any], key: Any, make: Any) -> Any:
    """What was made for this key before, a failure included."""
    if key not in results:
        try:
            results[key] = make()
        except Exception as error:  # each model refuses a size or an argument in its own way
            results[key] = Unfit(f"{type(error).__name__}: {error}")
    if isinstance(results[key], Unfit):
        raise results[key]
    return results[key]


def build_on(device: str, name: str, in_channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    """A timm model without its weights, in eval mode."""
    with torch.device(device):
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
        Unfit: naming the first.
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
            raise Unfit(f"a later layer changes what {name!r} gives in place")


def nearest_power(stride: float) -> int:
    """The power of two nearest to a stride."""
    return 2 ** max(0, round(math.log2(stride)))
