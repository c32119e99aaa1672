"""The options of an encoder, and the description of it that is available before it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from nestedseg.base.errors import show, text, whole, wholes
from nestedseg.decoder.layers import Level
from nestedseg.topology.graph import MAX_CHANNELS

MAX_SIDE = 2 ** 16  # pixels
MAX_TAPS = 32
MAX_NAME = 200  # characters of a module's name
MAX_STRIDE = 4  # from one level of the plain encoder to the next, along one axis


@dataclass(frozen=True)
class Options:
    """The arguments of `nestedseg.create` that shape the encoder, checked; `create` documents them.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of bounds, or an option that this kind of encoder does not have.
    """

    encoder: str
    in_channels: int = 3
    dims: int = 2
    encoder_channels: tuple[int, ...] | None = None
    image_size: tuple[int, ...] | None = None
    stem: bool | int | tuple[int, ...] = False
    encoder_taps: tuple[int | str, ...] | None = None
    pyramid_channels: tuple[int, ...] | None = None
    strides: tuple[tuple[int, ...], ...] | None = None
    depth_strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        text("encoder", self.encoder)
        whole("in_channels", self.in_channels, 1, MAX_CHANNELS)
        whole("dims", self.dims, 2, 3)
        if type(self.stem) is int:
            whole("stem", self.stem, 1, MAX_CHANNELS)
        for name, low, high in (("encoder_channels", 1, MAX_CHANNELS), ("stem", 1, MAX_CHANNELS),
                                ("image_size", 1, MAX_SIDE), ("encoder_taps", 0, MAX_SIDE),
                                ("pyramid_channels", 1, MAX_CHANNELS), ("depth_strides", 1, 2)):
            value = getattr(self, name)
            needed = name == "encoder_channels" and self.encoder == "plain"
            if name == "encoder_taps" and are_names(value):
                object.__setattr__(self, name, different(name, value))
            elif (value is not None or needed) and not (name == "stem" and isinstance(value, int)):
                object.__setattr__(self, name, wholes(name, value, low, high))
        if self.image_size is not None and len(self.image_size) != self.dims:
            raise ValueError(f"image_size needs {self.dims} numbers for a {self.dims}-D model, "
                             f"got {self.image_size}")
        if self.encoder == "plain" and (self.encoder_taps or self.pyramid_channels
                                        or self.depth_strides):
            raise ValueError("encoder_taps, pyramid_channels and depth_strides are only for timm "
                             "encoders; the plain encoder has encoder_channels and strides")
        if self.depth_strides is not None and self.dims != 3:
            raise ValueError(f"depth_strides is only for volumes, dims=3, got dims={self.dims}")
        if self.strides is not None:
            object.__setattr__(self, "strides", self._check_strides())

    def _check_strides(self) -> tuple[tuple[int, ...], ...]:
        if self.encoder != "plain":
            raise ValueError("strides is only for the plain encoder, got encoder "
                             f"{self.encoder!r}; timm encoders have their own strides, and "
                             "depth_strides for volumes")
        if isinstance(self.strides, str) or not isinstance(self.strides, Sequence):
            raise TypeError("strides must be a sequence with one number per axis for each step, "
                            f"got {show(self.strides)}")
        steps = len(self.encoder_channels or ()) - 1
        if len(self.strides) != steps:
            raise ValueError(f"strides: {steps + 1} encoder_channels need {steps} strides, one "
                             f"from each level to the next, got {len(self.strides)}")
        strides = tuple(wholes("strides", step, 1, MAX_STRIDE) for step in self.strides)
        for step in strides:
            if len(step) != self.dims:
                raise ValueError(f"strides needs {self.dims} numbers a step for a {self.dims}-D "
                                 f"model, got {step}")
        return strides


def are_names(taps: Any) -> TypeGuard[Sequence[str]]:
    """Whether the taps are names of modules, not indices, and neither too many nor too long."""
    return (isinstance(taps, (list, tuple)) and 1 <= len(taps) <= MAX_TAPS
            and all(isinstance(tap, str) and len(tap) <= MAX_NAME for tap in taps))


def different(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """``values`` as a tuple, if none of them is there twice.

    Raises:
        ValueError: naming the one that is.
    """
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name} has {value!r} {values.count(value)} times; give it once")
    return tuple(values)


@dataclass(frozen=True)
class Description:
    """The levels of an encoder, and the images that it takes.

    Args:
        levels: channels and stride of each feature, finest first.
        multiples: for each level, what the sides of an image must be multiples of if that level is
            the deepest in use.
        preprocessing: mean, std, input_range, interpolation and size (H, W) of its images.
        pattern: how its strides grow: "plain", "doubling", "isotropic" or "irregular".
        smallest: the shortest sides that it takes, in pixels, along each axis.
        fixed_size: the only (H, W) that it takes; ``None`` = any.
        backbone: what else is needed to build it, depending on the kind of encoder.
    """

    levels: tuple[Level, ...]
    multiples: tuple[tuple[int, ...], ...]
    preprocessing: dict[str, Any]
    smallest: tuple[int, ...]
    pattern: str = "plain"
    fixed_size: tuple[int, ...] | None = None
    backbone: Any = None
