"""A node of the graph: its edges, their fusion, and its block."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from nestedseg.decoder.blocks import BLOCKS, alteration_of_block
from nestedseg.decoder.edges import Edge, alteration_of_edge
from nestedseg.decoder.layers import CONV, Level, Style
from nestedseg.decoder.lowering import forced, is_plain, join
from nestedseg.decoder.recomputation import Recomputable
from nestedseg.decoder.untouched import alteration, bypassed, global_alteration

CONVOLUTIONS = tuple(CONV.values())


@bypassed
class NodeModule(Recomputable):
    """X^{i,j}: brings the inputs to one resolution, fuses them, then applies the block H."""

    edges: Any  # an nn.ModuleDict, of `Edge`s by the name of their input
    block: Any  # a `Block`, or what a user puts in its place

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

    @torch.compiler.assume_constant_result
    def runs(self) -> str:
        """The execution that is used now: "fast", or "reference", with the reason if that was not
        asked for."""
        if (forced() or self.execution) == "reference":
            return "reference"
        obstacle = self.obstacle()
        return "fast" if obstacle is None else f"reference: {obstacle}"

    def obstacle(self) -> str | None:
        """Why the node has no fast form now; ``None`` if it has one.

        Only a concatenation before a plain 3x3 convolution has a fast form, and only while nobody
        has altered the modules that the fast form does not call.
        """
        if self.fuse != "concat":
            return f"{self.fuse} fusion"
        if (changed := alteration_of_block(self.block)) is not None:
            return f"the block was altered: {changed}"
        first = self.block.first
        if type(first) not in CONVOLUTIONS or not is_plain(first):
            return "its first layer is not a plain 3x3 convolution"
        if (changed := alteration(first, CONVOLUTIONS)) is not None:
            return f"its first layer was altered: {changed}"
        for name, edge in self.edges._modules.items():
            if (changed := alteration_of_edge(edge)) is not None:
                return f"the edge from {name} was altered: {changed}"
        return global_alteration()

    def compute(self, *inputs: Tensor) -> Tensor:
        edges = tuple(self.edges._modules.values())
        if len(edges) != len(inputs):
            raise RuntimeError(f"a node with {len(inputs)} inputs has {len(edges)} edges, from "
                               f"{[*self.edges]}: an edge was added or removed. Edges can be "
                               "replaced, but their number is that of the graph")
        if self.runs() == "fast":
            return self.block.finish(join(self.block.first, edges, inputs))
        maps = [edge(x) for edge, x in zip(edges, inputs)]
        return self.block(reduce(torch.add, maps) if self.fuse == "sum" else torch.cat(maps, 1))
