"""A node of the graph: its edges, their fusion, and its block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nestedseg.decoder.blocks import BLOCKS
from nestedseg.decoder.edges import Edge
from nestedseg.decoder.layers import Level, Style
from nestedseg.decoder.lowering import join, which
from nestedseg.decoder.recomputation import Recomputable


class NodeModule(Recomputable):
    """X^{i,j}: brings the inputs to one resolution, fuses them, then applies the block H."""

    edges: Any  # an nn.ModuleDict, of `Edge`s by the name of their input

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
        """The execution that is used now; if it is not the requested one, with the reason."""
        return which(self.block.first, self.fuse, self.execution)

    @property
    def has_fast_form(self) -> bool:
        """Whether the node can be computed by the execution "fast"."""
        return which(self.block.first, self.fuse, "fast") == "fast"

    def compute(self, *inputs: Tensor) -> Tensor:
        edges = tuple(self.edges.values())
        return self.block.finish(join(self.block.first, edges, inputs, self.fuse, self.execution))
