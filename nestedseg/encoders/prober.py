"""Runs a timm model at several sizes: on the meta device, without weights or arithmetic."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nestedseg.encoders.timm_model import (
    DoesNotRun,
    build_on,
    check_unchanged,
    forward_taps,
    listen,
    pretrained_cfg,
)

Size = tuple[int, ...]  # (H, W)


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


class Prober:
    """Builds a model once for each set of arguments, and runs it once for each size."""

    def __init__(self, name: str, in_channels: int, device: str) -> None:
        self.name, self.in_channels, self.device = name, in_channels, device
        self.own_size: Size = pretrained_cfg(name).input_size[-2:]
        self._models: dict[str, nn.Module | DoesNotRun] = {}
        self._runs: dict[Any, Maps | DoesNotRun] = {}

    def run(self, size: Size, taps: tuple[str, ...] | None = None, **arguments: Any) -> Maps:
        """The features of an image of this size.

        Args:
            taps: names of modules, if the features are to be theirs.
            arguments: of `timm.create_model`.

        Raises:
            DoesNotRun: the model, built so, does not take it.
        """
        return _cached(self._runs, (size, taps, repr(arguments)),
                       lambda: self._run(size, taps, arguments))

    def fits(self, size: Size, **arguments: Any) -> bool:
        """Whether the model, built so, takes an image of this size."""
        try:
            self.run(size, **arguments)
        except DoesNotRun:
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
        return _cached(self._models, repr(arguments), lambda: self._build(arguments))

    def _build(self, arguments: dict[str, Any]) -> nn.Module:
        if self.device != "meta":
            self._models.clear()  # real weights: one model at a time
        return build_on(self.device, self.name, self.in_channels, arguments)


def _cached(results: dict[Any, Any], key: Any, make: Any) -> Any:
    """What was made for this key before, a failure included."""
    if key not in results:
        try:
            results[key] = make()
        except Exception as error:  # each model refuses a size or an argument in its own way
            results[key] = DoesNotRun(f"{type(error).__name__}: {error}")
    if isinstance(results[key], DoesNotRun):
        raise results[key]
    return results[key]


def nearest_power(stride: float) -> int:
    """The power of two nearest to a stride."""
    return 2 ** max(0, round(math.log2(stride)))
