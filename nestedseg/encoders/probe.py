"""What a timm model gives and takes, found by trying it: no weights, no table, no model names.

A model is built and run on the meta device, where a forward pass costs no arithmetic and no
memory. What timm declares of strides and sizes is wrong for about a hundred models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

# How a model may be told that images differ in size; the first that works is used.
DYNAMIC = ({}, {"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True})
FACTORS = (1, 2, 3, 4, 7, 8)  # of the deepest stride: windows, and strides within a stage
ODD_SIZES = (5, 11)  # coprime to the factors, so that a size is no multiple of one by chance
LIKE = 1.5  # how many times two measurements of one stride may differ, by rounding
RGB = 3


class Unfit(ValueError):
    """The model does not run so."""


@dataclass(frozen=True)
class Feature:
    """One tap: its channels, its stride to the input, and whether it fits its level as it is."""

    channels: int
    stride: float
    fits: bool

    @property
    def nominal(self) -> int:
        """The nearest power of two to the stride."""
        return nearest_power(self.stride)


@dataclass(frozen=True)
class Probe:
    """How a timm model is built and fed.

    Args:
        features: one for each tap that timm offers, in its order.
        arguments: what `timm.create_model` must be told about sizes, as sorted items.
        factor: images are padded to this multiple of the deepest stride.
        smallest: the shortest side that it takes, in pixels.
        runs_at: the one size (H, W) that it takes; ``None`` = any.
        in_channels: what the model itself takes: 3 where its front end is fixed.
        parameters: of the whole model, its classifier included.
    """

    features: tuple[Feature, ...]
    arguments: tuple[tuple[str, Any], ...]
    factor: int
    smallest: int
    runs_at: tuple[int, int] | None
    in_channels: int
    parameters: int


@lru_cache(maxsize=256)
def probe(name: str, in_channels: int, image_size: tuple[int, int] | None = None) -> Probe:
    """Tries a model at its own size, then at others.

    Args:
        name: a timm model, with or without a tag.
        image_size: (H, W) for models that are built for one size; others take any.

    Raises:
        ValueError: the model does not even run at its own size.
    """
    trial = Trial(name, in_channels)
    own = trial.native_size
    strides = strides_of(trial.run(own), own)
    deepest = max(map(nearest_power, strides))
    return _any_size(trial, strides, deepest) or _one_size(trial, image_size, deepest)


def _any_size(trial: Trial, strides: list[float], deepest: int) -> Probe | None:
    """The way in which the model takes any size, if there is one."""
    for factor, arguments in itertools.product(FACTORS, DYNAMIC):
        multiple = factor * deepest
        size = (ODD_SIZES[0] * multiple, ODD_SIZES[1] * multiple)
        if trial.fits(size, **arguments):
            found = strides_of(trial.run(size, **arguments), size)
            if max(a / b for a, b in zip(strides, found)) > LIKE:
                return None  # it resizes the image itself, to one size
            count = next((n for n in FACTORS if trial.fits((n * multiple,) * 2, **arguments)), 8)
            return trial.result(size, arguments, factor, count * multiple, None)
    return None


def _one_size(trial: Trial, image_size: tuple[int, int] | None, deepest: int) -> Probe:
    """The model built for this size where it can be, else for its own."""
    own = trial.native_size
    if image_size is not None and image_size != own:
        for factor in FACTORS:
            multiple = factor * deepest
            size = tuple(math.ceil(side / multiple) * multiple for side in image_size)
            if trial.fits(size, img_size=size):
                return trial.result(size, {"img_size": size}, factor, 1, size)
    return trial.result(own, {}, 1, 1, own)


class Trial:
    """A timm model on the meta device, built once for each set of arguments."""

    def __init__(self, name: str, in_channels: int) -> None:
        self.name, self.in_channels = name, in_channels
        self.device = "meta"
        self.native_size: tuple[int, int] = tuple(get_pretrained_cfg(name).input_size[-2:])
        self._models: dict[str, nn.Module | Unfit] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Finds out whether it runs on the meta device, and on other channels than RGB."""
        tries = [("meta", self.in_channels), ("meta", RGB), ("cpu", self.in_channels), ("cpu", RGB)]
        for self.device, self.in_channels in tries:
            self._models.clear()
            try:
                self.run(self.native_size)
                return
            except Unfit as error:
                reason = error
        raise ValueError(f"encoder {self.name!r} gives no feature maps: {reason}") from reason

    def run(self, size: tuple[int, int], **arguments: Any) -> list[tuple[int, int, int]]:
        """Channels, height and width of each tap for an image of this size."""
        model = self._build(arguments)
        try:
            with torch.no_grad(), torch.device(self.device):
                features = forward_taps(model, torch.zeros(1, self.in_channels, *size))
        except Exception as error:  # a model refuses a size in its own way, each another
            raise Unfit(f"{type(error).__name__}: {error}") from error
        return [tuple(feature.shape[1:]) for feature in features]

    def fits(self, size: tuple[int, int], **arguments: Any) -> bool:
        """Whether the model, built so, takes an image of this size."""
        try:
            self.run(size, **arguments)
        except Unfit:
            return False
        return True

    def result(self, size: tuple[int, int], arguments: dict[str, Any], factor: int,
               smallest: int, runs_at: tuple[int, int] | None) -> Probe:
        """The probe of the model built so, measured on an image of this size."""
        maps = self.run(size, **arguments)
        strides = strides_of(maps, size)
        fits = [(height * nearest_power(stride), width * nearest_power(stride)) == size
                for (_, height, width), stride in zip(maps, strides)]
        if runs_at and not all(fits):
            # The image is then padded to a size that all levels divide, and resized to this one.
            fits = [False] * len(fits)
        features = [Feature(channels, stride, fit)
                    for (channels, _, _), stride, fit in zip(maps, strides, fits)]
        parameters = sum(p.numel() for p in self._build(arguments).parameters())
        return Probe(tuple(features), tuple(sorted(arguments.items())), factor, smallest, runs_at,
                     self.in_channels, parameters)

    def _build(self, arguments: dict[str, Any]) -> nn.Module:
        key = repr(arguments)
        if key not in self._models:
            try:
                with torch.device(self.device):
                    self._models[key] = timm.create_model(
                        self.name, in_chans=self.in_channels, **arguments).eval()
            except Exception as error:  # an argument it does not know, or a size it is not for
                self._models[key] = Unfit(f"{type(error).__name__}: {error}")
        model = self._models[key]
        if isinstance(model, Unfit):
            raise model
        return model


def forward_taps(model: nn.Module, x: torch.Tensor,
                 taps: Sequence[int] | None = None) -> list[torch.Tensor]:
    """The features of a timm model at these taps (default: all), each ``(N, C, h, w)``."""
    return model.forward_intermediates(x, indices=taps, output_fmt="NCHW",
                                       intermediates_only=True)


def strides_of(maps: list[tuple[int, int, int]], size: tuple[int, int]) -> list[float]:
    """Of each feature, along the height."""
    return [size[0] / height for _, height, _ in maps]


def nearest_power(stride: float) -> int:
    """The power of two nearest to a stride."""
    return 2 ** max(0, round(math.log2(stride)))
