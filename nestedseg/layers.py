"""The building blocks, in 2-D and 3-D: H, the resampling on an edge, a node, a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.checkpointing import Recomputable, remade
from nestedseg.kernels import Conv3d, GroupNorm
from nestedseg.lowering import join, which

CONV = {2: nn.Conv2d, 3: Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
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
# What an object like {"name": "leaky_relu", "negative_slope": 0.1} may say, with its bounds.
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
    """What all blocks of a model have in common. The fields are those of `nestedseg.create`."""

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
    """The shape contract of one feature map: channels, and stride to the input along each axis."""

    channels: int
    stride: tuple[int, ...]


class DoubleConv(Recomputable):
    """H: twice (3x3 convolution, norm, activation, dropout). The paper's plain form: norm=None.

    ``(N, in_channels, *spatial)`` -> ``(N, out_channels, *spatial)``. Like every block of a node it
    is ``finish(first(x))``; where ``first`` is a plain 3x3 convolution, a node computes that one
    without concatenating its inputs.
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        conv, bias = CONV[style.dims], style.bias or style.norm is None
        self.conv1 = conv(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm1 = style.make_norm(out_channels)
        self.act1 = style.make_activation()
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = style.make_norm(out_channels)
        self.act2 = style.make_activation()
        self.dropout = nn.Dropout(style.dropout)
        self.apply(init_he)

    @property
    def first(self) -> nn.Module:
        return self.conv1

    def finish(self, x: Tensor) -> Tensor:
        """All that follows the first convolution."""
        x = remade(lambda x: self.act1(self.norm1(x)), lambda x: self.conv2(self.dropout(x)), x,
                   module=self.norm1)
        return self.dropout(self.act2(self.norm2(x)))

    def compute(self, x: Tensor) -> Tensor:
        return self.finish(self.first(x))


class SCSE(nn.Module):
    """x (c + s): weights for the channels, and for the pixels, of a map ``(N, C, *spatial)``.

    Source: Roy et al., Concurrent spatial and channel squeeze & excitation, 2018, arXiv 1803.02579.
    """

    def __init__(self, channels: int, dims: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = CONV[dims](channels, hidden, 1)
        self.excite = CONV[dims](hidden, channels, 1)
        self.spatial = CONV[dims](channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=tuple(range(2, x.dim())), keepdim=True)
        channels = self.excite(F.relu(self.squeeze(mean))).sigmoid()
        return x * (channels + self.spatial(x).sigmoid())


class SCSEOut(DoubleConv):
    """H, what it gives weighted by scSE."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__(in_channels, out_channels, style)
        self.attention = SCSE(out_channels, style.dims)

    def finish(self, x: Tensor) -> Tensor:
        return self.attention(super().finish(x))


class SCSEBoth(SCSEOut):
    """H, what it takes and what it gives weighted by scSE.

    The weights of its inputs depend on all of them, so that these must be concatenated.
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__(in_channels, out_channels, style)
        self.entry = SCSE(in_channels, style.dims)

    @property
    def first(self) -> nn.Module:
        return nn.Sequential(self.entry, self.conv1)


class BatchNorm(Recomputable):
    """A batch norm alone, for encoders whose deepest feature comes without its last one."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f"a node of the block 'batch_norm' gives the {in_channels} channels "
                             f"that it takes, not {out_channels}")
        self.norm = BATCH_NORM[style.dims](in_channels)

    @property
    def first(self) -> nn.Module:
        return self.norm
    def finish(self, x: Tensor) -> Tensor:
        return x

    def compute(self, x: Tensor) -> Tensor:
        return self.norm(x)


class SingleConv(nn.Module):
    """3x3 convolution, norm, activation, dropout."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        self.conv = CONV[style.dims](in_channels, out_channels, 3, padding=1,
                                     bias=style.norm is None)
        self.norm = style.make_norm(out_channels)
        self.act = ACTIVATIONS[style.activation]()
        self.dropout = nn.Dropout(style.dropout)
        self.apply(init_he)

    @property
    def first(self) -> nn.Module:
        return self.conv

    def finish(self, x: Tensor) -> Tensor:
        return self.dropout(self.act(self.norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.first(x))


class PlainConv(nn.Module):
    """A convolution with a bias, and nothing after it."""

    def __init__(self, in_channels: int, out_channels: int, style: Style, kernel: int) -> None:
        super().__init__()
        self.conv = CONV[style.dims](in_channels, out_channels, kernel, padding=kernel // 2)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="linear")
        nn.init.zeros_(self.conv.bias)

    @property
    def first(self) -> nn.Module:
        return self.conv

    def finish(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


class Identity(nn.Module):
    """Nothing: the node is what its inputs add up to."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise ValueError(f"a node of the block 'identity' gives the {in_channels} channels "
                             f"that it takes, not {out_channels}")
        self.first = nn.Identity()

    def finish(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return x


BLOCKS: dict[str, Callable[[int, int, Style], nn.Module]] = {
    "double_conv": DoubleConv, "single_conv": SingleConv, "identity": Identity,
    "conv1x1": partial(PlainConv, kernel=1), "conv3x3": partial(PlainConv, kernel=3),
    "scse": SCSEBoth, "scse_out": SCSEOut, "batch_norm": BatchNorm,
}


class Edge(nn.Module):
    """Brings one input of a node to the node's resolution, and to its width where asked.

    Deeper inputs are up-sampled, shallower ones max-pooled, the others pass. Parameters exist only
    where needed: ``up`` for transposed convolutions, ``project`` (1x1) for other widths in a sum.
    """

    def __init__(self, source: Level, target: Level, style: Style, project: bool,
                 up_channels: int | None = None) -> None:
        super().__init__()
        self.up_by = tuple(s // t for s, t in zip(source.stride, target.stride))
        self.down_by = tuple(t // s for s, t in zip(source.stride, target.stride))
        self.rises = any(factor > 1 for factor in self.up_by)
        self.falls = any(factor > 1 for factor in self.down_by)
        linear = style.upsample in ("bilinear", "bilinear_corners")
        self.mode = LINEAR[style.dims] if linear else style.upsample
        self.corners = True if style.upsample == "bilinear_corners" else None
        self.out_channels = source.channels
        wanted = (self.rises and up_channels) or target.channels
        if self.rises and style.upsample == "transpose":
            self.up = CONV_TRANSPOSE[style.dims](source.channels, wanted, self.up_by,
                                                 stride=self.up_by)
            self.out_channels = wanted
        elif (project or (self.rises and up_channels)) and source.channels != wanted:
            self.project = CONV[style.dims](source.channels, wanted, 1)
            self.out_channels = wanted
        self.apply(init_he)

    @property
    def composes(self) -> bool:
        """Whether it is nearest up-sampling and nothing else."""
        return self.rises and self.mode == "nearest" and not hasattr(self, "project")

    @property
    def transposes(self) -> bool:
        """Whether it is a transposed convolution."""
        return hasattr(self, "up")

    def drop_weights(self) -> None:
        """Removes what a composed kernel does in its place."""
        if self.transposes:
            del self.up

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "project"):  # before up-sampling, with which it commutes: fewer pixels
            x = self.project(x)
        if self.transposes:
            return self.up(x)
        if self.rises:
            return F.interpolate(x, scale_factor=tuple(map(float, self.up_by)), mode=self.mode,
                                 align_corners=self.corners)
        return max_pool(x, self.down_by) if self.falls else x

    def extra_repr(self) -> str:
        if self.rises:
            return f"up {'x'.join(map(str, self.up_by))}, {self.mode}"
        return f"down {'x'.join(map(str, self.down_by))}, max" if self.falls else "skip"


class Node(Recomputable):
    """X^{i,j}: the inputs brought to one resolution, fused, then the block H."""

    def __init__(self, inputs: Mapping[str, Level], target: Level, fuse: str, block: str,
                 style: Style, up_channels: int | None = None) -> None:
        super().__init__()
        self.fuse, self.dims = fuse, style.dims
        self.edges = nn.ModuleDict({
            name: Edge(level, target, style, project=fuse == "sum", up_channels=up_channels)
            for name, level in inputs.items()})
        widths = [edge.out_channels for edge in self.edges.values()]
        self.in_channels = target.channels if fuse == "sum" else sum(widths)
        self.block = BLOCKS[block](self.in_channels, target.channels, style)
        self.execution = style.execution

    @property
    def runs(self) -> str:
        """Which execution runs now, and why where it is not the one that was asked for."""
        return which(self.block.first, self.fuse, self.execution)

    @property
    def has_fast_form(self) -> bool:
        """Whether it need not concatenate its inputs."""
        return which(self.block.first, self.fuse, "fast") == "fast"

    def compute(self, *inputs: Tensor) -> Tensor:
        edges = tuple(self.edges.values())
        return self.block.finish(join(self.block.first, edges, inputs, self.fuse, self.execution))


def max_pool(x: Tensor, factor: Sequence[int]) -> Tensor:
    """Max pooling by a factor along each axis, ``(N, C, *spatial)``."""
    return MAX_POOL[x.dim() - 2](x, factor) if max(factor) > 1 else x


def steps_between(levels: Sequence[Level]) -> list[tuple[int, ...]]:
    """By how much each level is coarser than the one before, along each axis; the first by 1."""
    strides = [level.stride for level in levels]
    return [tuple(b // a for a, b in zip(*pair)) for pair in zip(strides[:1] + strides, strides)]


def make_head(channels: int, classes: int, dims: int, kernel: int = 1) -> nn.Module:
    """A convolution to ``classes`` logits, 1x1 by default."""
    head = CONV[dims](channels, classes, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def init_he(module: nn.Module) -> None:
    """He et al. 2015 (arXiv 1502.01852), as the authors' code does: plain networks need it."""
    if isinstance(module, (*CONV.values(), *CONV_TRANSPOSE.values())):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def resize_logits(logits: Tensor, factor: Sequence[int]) -> Tensor:
    """Logits at a level's stride, brought to the input's size (linear)."""
    if all(f == 1 for f in factor):
        return logits
    return F.interpolate(logits, scale_factor=tuple(map(float, factor)),
                         mode=LINEAR[len(factor)])
