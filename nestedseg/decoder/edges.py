"""An edge of the graph: one input of a node, brought to the node's resolution and width."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.decoder.layers import (
    CONV,
    CONV_TRANSPOSE,
    LINEAR,
    Level,
    Style,
    init_he,
    max_pool,
)
from nestedseg.decoder.untouched import alteration, bypassed

TRANSPOSED = tuple(CONV_TRANSPOSE.values())


@bypassed
class Edge(nn.Module):
    """Brings one input of a node to the node's resolution, and to another width where needed.

    Inputs from deeper rows are up-sampled, inputs from shallower rows max-pooled, inputs from the
    same row passed on. There are parameters only where needed: ``up`` is a transposed convolution,
    ``project`` a 1x1 convolution that changes the width, for a sum or for ``up_channels``.
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
        for layer in self.children():
            init_he(layer)

    @property
    def composes(self) -> bool:
        """Whether the edge is only nearest up-sampling, which a kernel can be composed with."""
        return self.rises and self.mode == "nearest" and "project" not in self._modules

    @property
    def transposes(self) -> bool:
        """Whether the edge is a transposed convolution."""
        return "up" in self._modules

    def forward(self, x: Tensor) -> Tensor:
        if "project" in self._modules:  # before up-sampling: the same result from fewer pixels
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


def alteration_of_edge(edge: nn.Module) -> str | None:
    """What a user has changed about an edge; see `nestedseg.decoder.untouched.alteration`."""
    changed = alteration(edge, (Edge,))
    if changed is None and "up" in edge._modules:
        up: Any = edge._modules["up"]
        changed = alteration(up, TRANSPOSED)
        if changed is None and not is_plain_up(up, edge):
            changed = f"it is {up}"
        return changed and f"up: {changed}"
    return changed


def is_plain_up(up: Any, edge: Any) -> bool:
    """Whether it is a transposed convolution as `Edge` makes it: its stride is its kernel."""
    return (up.kernel_size == up.stride == edge.up_by and up.out_channels == edge.out_channels
            and up.groups == 1 and not any((*up.padding, *up.output_padding))
            and {*up.dilation} == {1})
