"""The blocks H of nodes and of the plain encoder's levels; `BLOCKS` has them by name.

Each is ``finish(first(x))``, ``(N, in_channels, *spatial)`` -> ``(N, out_channels, *spatial)``.
If ``first`` is a plain 3x3 convolution, a node computes it without concatenating its inputs
(`nestedseg.decoder.lowering`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.decoder.layers import BATCH_NORM, CONV, Style, init_he
from nestedseg.decoder.recomputation import Recomputable, remade
from nestedseg.decoder.stateless import stateless
from nestedseg.decoder.untouched import alteration


class Block(Recomputable):
    """Base class of blocks: ``finish(first(x))``. A subclass defines ``first``, and ``finish`` if
    anything follows it."""

    @property
    def first(self) -> Any:
        """The first layer."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """Everything after the first layer."""
        return x

    def compute(self, x: Tensor) -> Tensor:
        return self.finish(self.first(x))


CALLED = (Block.forward, Block.compute)  # what a block must not replace, as they are at first


def alteration_of_block(block: nn.Module) -> str | None:
    """What a user has changed about a block, so that it may differ from ``finish(first(x))``."""
    kind: Any = type(block)
    if not isinstance(block, Block) or (kind.forward, kind.compute) != CALLED:
        return f"it is a {kind.__name__} with its own forward"
    return alteration(block, (kind,))


class DoubleConv(Block):
    """H: twice (3x3 convolution, norm, activation, dropout). The paper's has no norm: norm=None."""

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
    def first(self) -> Any:
        return self.conv1

    def finish(self, x: Tensor) -> Tensor:
        """Everything after the first convolution."""
        x = remade(lambda x: self.act1(self.norm1(x)), lambda x: self.conv2(self.dropout(x)), x,
                   again=stateless(self.norm1, self.act1))
        return self.dropout(self.act2(self.norm2(x)))


class SCSE(nn.Module):
    """scSE attention: x (c + s) with channel weights c and pixel weights s, ``(N, C, *spatial)``.

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
    """H with scSE attention on its output."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__(in_channels, out_channels, style)
        self.attention = SCSE(out_channels, style.dims)

    def finish(self, x: Tensor) -> Tensor:
        return self.attention(super().finish(x))


class SCSEBoth(SCSEOut):
    """H with scSE attention on its input and on its output.

    The attention on the input depends on all inputs of the node, so they must be concatenated.
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__(in_channels, out_channels, style)
        self.entry = SCSE(in_channels, style.dims)

    @property
    def first(self) -> Any:
        return nn.Sequential(self.entry, self.conv1)


class BatchNorm(Block):
    """Only a batch norm, for encoders whose deepest feature comes without its last norm."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        check_same_width("batch_norm", in_channels, out_channels)
        self.norm = BATCH_NORM[style.dims](in_channels)

    @property
    def first(self) -> Any:
        return self.norm


class SingleConv(Block):
    """3x3 convolution, norm, activation, dropout."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        self.conv = CONV[style.dims](in_channels, out_channels, 3, padding=1,
                                     bias=style.bias or style.norm is None)
        self.norm = style.make_norm(out_channels)
        self.act = style.make_activation()
        self.dropout = nn.Dropout(style.dropout)
        self.apply(init_he)

    @property
    def first(self) -> Any:
        return self.conv

    def finish(self, x: Tensor) -> Tensor:
        return self.dropout(self.act(self.norm(x)))


class PlainConv(Block):
    """A convolution with a bias, without norm or activation."""

    def __init__(self, in_channels: int, out_channels: int, style: Style, kernel: int) -> None:
        super().__init__()
        self.conv = CONV[style.dims](in_channels, out_channels, kernel, padding=kernel // 2)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="linear")
        nn.init.zeros_(self.conv.bias)

    @property
    def first(self) -> Any:
        return self.conv


class Identity(Block):
    """No layers: the node's output is its fused inputs, for example their sum."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        check_same_width("identity", in_channels, out_channels)
        self.same = nn.Identity()

    @property
    def first(self) -> Any:
        return self.same


def check_same_width(block: str, in_channels: int, out_channels: int) -> None:
    """Checks the channels of a block that cannot change their number.

    Raises:
        ValueError: input and output channels differ.
    """
    if in_channels != out_channels:
        raise ValueError(f"block {block!r} cannot change the number of channels, got {in_channels} "
                         f"input and {out_channels} output channels; give its node 'channels': "
                         f"{in_channels}")


BLOCKS: dict[str, Callable[[int, int, Style], Block]] = {
    "double_conv": DoubleConv, "single_conv": SingleConv, "identity": Identity,
    "conv1x1": partial(PlainConv, kernel=1), "conv3x3": partial(PlainConv, kernel=3),
    "scse": SCSEBoth, "scse_out": SCSEOut, "batch_norm": BatchNorm,
}
