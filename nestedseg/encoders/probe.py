"""What a timm model gives and takes, found by trying it: no weights, no table, no model names.

What timm declares of strides and sizes is wrong for about a hundred models.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from nestedseg.base.errors import nearest, show
from nestedseg.encoders.prober import Maps, Prober, Size, nearest_power
from nestedseg.encoders.timm_model import DoesNotRun

# How a model may be told that images differ in size; the first that works is used.
DYNAMIC: tuple[dict[str, Any], ...] = (
    {}, {"dynamic_img_size": True, "dynamic_img_pad": True}, {"dynamic_img_size": True})
FACTORS = (1, 2, 3, 4, 7, 8)  # of the deepest stride: windows, and strides within a stage
ODD_SIZES = (5, 11)  # coprime to the factors, so that a size is no multiple of one by chance
LIKE = 1.5  # how many times two measurements of one stride may differ, by rounding
RGB = 3


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
    runs_at: Size | None
    in_channels: int
    parameters: int


@lru_cache(maxsize=256)
def probe(name: str, in_channels: int = RGB, image_size: Size | None = None) -> Probe:
    """Tries a model at its own size, then at others.

    Args:
        name: a timm model, with or without a tag.
        image_size: (H, W) for models that are built for one size; others take any.

    Raises:
        ValueError: the model does not even run at its own size.
    """
    prober = _prober_of(name)
    found = _any_size(prober) or _one_size(prober, image_size)
    if in_channels == RGB:
        return found
    other = Prober(name, in_channels, prober.device)
    takes = other.fits(found.runs_at or (found.smallest,) * 2, **dict(found.arguments))
    return replace(found, in_channels=in_channels) if takes else found


@lru_cache(maxsize=256)
def probe_named(name: str, found: Probe, taps: tuple[str, ...]) -> tuple[Feature, ...]:
    """What modules of a timm model give, ``(N, C, h, w)``.

    Args:
        found: how the model is built and fed.
        taps: the names of the modules.

    Raises:
        ValueError: no such module, or what it gives is no feature map.
    """
    prober, arguments = _prober_of(name), dict(found.arguments)
    known = prober.modules(**arguments)
    for tap in taps:
        if tap not in known:
            raise ValueError(f"encoder {name!r} has no module {show(tap)}; {nearest(tap, known)}")
    multiple = found.factor * max(feature.nominal for feature in found.features)
    size = found.runs_at or (ODD_SIZES[0] * multiple, ODD_SIZES[1] * multiple)
    try:
        return _features(prober.run(size, taps, **arguments))
    except DoesNotRun as error:
        raise ValueError(f"modules {list(taps)} of encoder {name!r} give no feature maps: "
                         f"{error}") from error


@lru_cache(maxsize=1)  # a model is often asked for again at once, for other sizes or channels
def _prober_of(name: str) -> Prober:
    for device in ("meta", "cpu"):  # some models read values, which meta has not
        prober = Prober(name, RGB, device)
        try:
            prober.run(prober.own_size)
            return prober
        except DoesNotRun as error:
            reason = error
    raise ValueError(f"encoder {name!r} gives no feature maps: {reason}")


def _any_size(prober: Prober) -> Probe | None:
    """The way in which the model takes any size, if there is one."""
    own = prober.run(prober.own_size)
    for factor, arguments in itertools.product(FACTORS, DYNAMIC):
        multiple = factor * own.deepest
        size = (ODD_SIZES[0] * multiple, ODD_SIZES[1] * multiple)
        if prober.fits(size, **arguments):
            maps = prober.run(size, **arguments)
            if max(a / b for a, b in zip(own.strides, maps.strides)) > LIKE:
                return None  # it resizes the image itself, to one size
            smallest = next(n for n in itertools.count(1)
                            if n == ODD_SIZES[0] or prober.fits((n * multiple,) * 2, **arguments))
            return _result(prober, maps, arguments, factor, smallest * multiple, None)
    return None


def _one_size(prober: Prober, image_size: Size | None) -> Probe:
    """The model built for this size where it can be, else for its own."""
    own = prober.run(prober.own_size)
    if image_size is not None and image_size != own.size:
        for factor in FACTORS:
            multiple = factor * own.deepest
            size = tuple(math.ceil(side / multiple) * multiple for side in image_size)
            if prober.fits(size, img_size=size):
                maps = prober.run(size, img_size=size)
                return _result(prober, maps, {"img_size": size}, factor, 1, size)
    return _result(prober, own, {}, 1, 1, own.size)


def _result(prober: Prober, maps: Maps, arguments: dict[str, Any], factor: int, smallest: int,
            runs_at: Size | None) -> Probe:
    return Probe(_features(maps), tuple(sorted(arguments.items())), factor, smallest, runs_at,
                 prober.in_channels, prober.parameters(**arguments))


def _features(maps: Maps) -> tuple[Feature, ...]:
    return tuple(Feature(channels, stride, fit)
                 for (channels, _, _), stride, fit in zip(maps.shapes, maps.strides, maps.fits))
