"""What is asked of an encoder, and what is known of it before it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestedseg.errors import whole, wholes
from nestedseg.graph import MAX_CHANNELS
from nestedseg.layers import Level

MAX_SIDE = 2 ** 16  # pixels
MAX_TAPS = 32
MAX_NAME = 200  # characters, of a module


@dataclass(frozen=True)
class Options:
    """The arguments of `nestedseg.create` that shape the encoder, checked. See there for each.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of bounds, or one that the plain encoder has no use for.
    """

    encoder: str
    in_channels: int = 3
    dims: int = 2
    encoder_channels: tuple[int, ...] | None = None
    image_size: tuple[int, int] | None = None
    stem: bool | int | tuple[int, ...] = False
    encoder_taps: tuple[int, ...] | tuple[str, ...] | None = None
    pyramid_channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        whole("in_channels", self.in_channels, 1, MAX_CHANNELS)
        whole("dims", self.dims, 2, 3)
        if type(self.stem) is int:
            whole("stem", self.stem, 1, MAX_CHANNELS)
        for name, low, high in (("encoder_channels", 1, MAX_CHANNELS), ("stem", 1, MAX_CHANNELS),
                                ("image_size", 1, MAX_SIDE), ("encoder_taps", 0, MAX_SIDE),
                                ("pyramid_channels", 1, MAX_CHANNELS)):
            value = getattr(self, name)
            needed = name == "encoder_channels" and self.encoder == "plain"
            if name == "encoder_taps" and are_names(value):
                object.__setattr__(self, name, tuple(value))
            elif (value is not None or needed) and not (name == "stem" and isinstance(value, int)):
                object.__setattr__(self, name, wholes(name, value, low, high))
        if self.image_size is not None and len(self.image_size) != self.dims:
            raise ValueError(f"image_size needs {self.dims} numbers for a {self.dims}-D model, "
                             f"got {self.image_size}")
        if self.encoder == "plain" and (self.encoder_taps or self.pyramid_channels):
            raise ValueError("encoder_taps and pyramid_channels are for timm encoders; the plain "
                             "one has encoder_channels")


def are_names(taps: Any) -> bool:
    """Whether these are the names of modules, and not too many or too long."""
    return (isinstance(taps, (list, tuple)) and 1 <= len(taps) <= MAX_TAPS
            and all(isinstance(tap, str) and len(tap) <= MAX_NAME for tap in taps))


@dataclass(frozen=True)
class Description:
    """An encoder's pyramid.

    Args:
        levels: channels and stride of each feature, finest first.
        multiples: for each level, what an image's sides must be a multiple of, where that level is
            the deepest.
        preprocessing: mean, std, input_range, interpolation and size (H, W) of its images.
        pattern: how its strides grow: "plain", "doubling", "isotropic" or "irregular".
        smallest: the shortest side that it takes, in pixels.
        fixed_size: the one (H, W) that it takes; ``None`` = any.
        backbone: what the kind of encoder must know more, to be built.
    """

    levels: tuple[Level, ...]
    multiples: tuple[tuple[int, ...], ...]
    preprocessing: dict[str, Any]
    pattern: str = "plain"
    smallest: int = 1
    fixed_size: tuple[int, int] | None = None
    backbone: Any = None
