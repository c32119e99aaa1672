"""The building blocks of nodes in 2-D and 3-D: layers by name, shapes, pooling, heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nestedseg.decoder.kernels import Conv3d, GroupNorm

# By number of spatial axes. Typed as Any, because torch's annotations fix the length of a kernel.
CONV: dict[int, type[Any]] = {2: nn.Conv2d, 3: Conv3d}
CONV_TRANSPOSE: dict[int, type[Any]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}

UPSAMPLINGS = ("nearest", "bilinear", "bilinear_corners", "bicubic", "transpose")
NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": lambda channels, dims, **options: BATCH_NORM[dims](channels, **options),
    "instance": lambda channels, dims, **options: GroupNorm(channels, channels, **options),
    "group": lambda channels, dims, groups=8, **options: GroupNorm(
        math.gcd(groups, channels), channels, **options),
}
ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda **options: nn.LeakyReLU(inplace=True, **options),
    "elu": lambda **options: nn.ELU(inplace=True, **options),
    "silu": lambda: nn.SiLU(inplace=True),
    "mish": lambda: nn.Mish(inplace=True),
    "gelu": nn.GELU,
    "prelu": nn.PReLU,
}
# Options of a choice like {"name": "leaky_relu", "negative_slope": 0.1}, each with its bounds.
OPTIONS: dict[str, dict[str, tuple[float, float]]] = {
    "batch": {"eps": (0, 1), "momentum": (0, 1)},
    "instance": {"eps": (0, 1)},
    "group": {"eps": (0, 1), "groups": (1, 65_536)},
    "leaky_relu": {"negative_slope": (0, 1)},
    "elu": {"alpha": (0, 100)},
}
Choice = str | Mapping[str, Any]


@dataclass(frozen=True)
class Style:
    """The options that all blocks of a model share; see `nestedseg.create` for their meaning."""

    dims: int = 2
    norm: Choice | None = "batch"
    activation: Choice = "relu"
    dropout: float = 0.0
    upsample: str = "nearest"
    execution: str = "fast"
    bias: bool = False

    def make_norm(self, channels: int) -> nn.Module:
        if self.norm is None:
            return nn.Identity()
        name, options = split_choice(self.norm)
        return NORMS[name](channels, self.dims, **options)

    def make_activation(self) -> nn.Module:
        name, options = split_choice(self.activation)
        return ACTIVATIONS[name](**options)


def split_choice(choice: Choice) -> tuple[str, dict[str, Any]]:
    """The name of a norm or activation, and its options."""
    if not isinstance(choice, Mapping):
        return choice, {}
    options = dict(choice)
    return options.pop("name", None), options


@dataclass(frozen=True)
class Level:
    """The shape of one feature map: channels, and stride relative to the image along each axis."""

    channels: int
    stride: tuple[int, ...]


def max_pool(x: Tensor, factor: Sequence[int]) -> Tensor:
    """Max pooling of ``(N, C, *spatial)`` by a factor for each axis."""
    return MAX_POOL[x.dim() - 2](x, factor) if max(factor) > 1 else x


def steps_between(levels: Sequence[Level]) -> list[tuple[int, ...]]:
    """The factor from each level's stride to the next, along each axis; 1 for the first level."""
    strides = [level.stride for level in levels]
    return [tuple(b // a for a, b in zip(*pair)) for pair in zip(strides[:1] + strides, strides)]


def make_head(channels: int, classes: int, dims: int, kernel: int = 1) -> nn.Module:
    """A convolution to ``classes`` logits, 1x1 by default."""
    head = CONV[dims](channels, classes, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def init_he(module: nn.Module) -> None:
    """Initialises as He et al. 2015 (arXiv 1502.01852), like the authors' code.

    Networks without norms need it to train.
    """
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        if module.weight.is_meta:
            return  # there are no values, and torch takes long to find out
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resize_logits(logits: Tensor, factor: Sequence[int]) -> Tensor:
    """Logits up-sampled linearly by ``factor``, the stride of their level, to the image's size."""
    if all(f == 1 for f in factor):
        return logits
    return F.interpolate(logits, scale_factor=tuple(map(float, factor)),
                         mode=LINEAR[len(factor)])


def batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """All batch norms in a module, including timm's with a fused activation."""
    return (child for child in module.modules() if isinstance(child, _BatchNorm))
