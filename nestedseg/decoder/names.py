"""The tensors that a decoder must have, known before its many nodes are built.

The shapes of some depend on the encoder, which has not been tried yet. Those of a node's other
tensors follow from its block and its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from nestedseg.decoder.blocks import BLOCKS
from nestedseg.decoder.compiler import build_decoder, head_name, width_of
from nestedseg.decoder.fuse import fuse_decoder
from nestedseg.decoder.layers import Level, Style, make_head
from nestedseg.topology.graph import Graph

BLOCK = "double_conv"  # of nodes that name none
WIDTH = 16  # of the node that is built to see
WIDER = 1024  # times: beyond all rounding of widths that a block derives from its input's
MOST_BUILT = 64  # blocks that are built to see their shapes; those of further nodes are not certain

Shapes = Mapping[str, tuple[int, ...]]


def needed_names(graph: Graph, style: Style, fused: bool = False, heads: bool = True) -> set[str]:
    """Those of the blocks of all nodes, and of the heads. What edges have besides is left out.

    Args:
        fused: whether it is the inference-only form.
        heads: whether heads have tensors.
    """
    kinds = {(node.block or BLOCK, node.fuse) for node in graph.nodes.values()}
    of_block = {kind: names_in_block(*kind, style, fused) for kind in kinds if kind[0] in BLOCKS}
    names = {f"{node.name}.{name}" for node in graph.nodes.values()
             for name in of_block.get((node.block or BLOCK, node.fuse), ())}
    if heads:
        names |= {f"{head_name(head)}.{kind}" for head in graph.heads
                  for kind in ("weight", "bias")}
    return names


def names_in_block(block: str, fuse: str, style: Style, fused: bool) -> list[str]:
    """The names of the tensors in a node's block: they do not depend on its inputs and width."""
    graph = Graph({"x0_1": {"inputs": ["x0_0"], "block": block, "fuse": fuse}}, ["x0_1"])
    with torch.device("meta"):
        decoder = build_decoder(graph, [Level(WIDTH, (1,) * style.dims)], 1, [WIDTH], style).eval()
        if fused:
            fuse_decoder(decoder)
    names = decoder.node("x0_1").state_dict()
    return [name for name in names if name.startswith("block.")]


def block_shapes(graph: Graph, channels: Sequence[int], style: Style) -> dict[str, tuple[int, ...]]:
    """Names and shapes of those tensors of nodes whose shapes do not depend on the encoder.

    Args:
        channels: default width of the nodes of each row.

    Raises:
        GraphError: a width is missing.
    """
    found: dict[tuple[str, str, int], Shapes] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for node in graph.nodes.values():
        kind = node.block or BLOCK, node.fuse, width_of(graph, node.name, channels)
        if kind not in found and len(found) < MOST_BUILT:
            found[kind] = shapes_in_block(*kind, style)
        shapes |= {f"{node.name}.block.{name}": shape
                   for name, shape in found.get(kind, {}).items()}
    return shapes


def shapes_in_block(block: str, fuse: str, width: int, style: Style) -> Shapes:
    """Those that are the same whatever a concatenation brings. A sum brings the node's width."""
    try:
        with torch.device("meta"):
            one, other = (_shapes(BLOCKS[block](given, width, style))
                          for given in (width, width if fuse == "sum" else WIDER * width))
    except Exception:  # a block may be a user's; the message is that of the node which has it
        return {}
    return {name: shape for name, shape in one.items() if other.get(name) == shape}


def head_shapes(graph: Graph, channels: Sequence[int], classes: int, dims: int,
                kernel: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of the heads on nodes.

    Raises:
        GraphError: a width is missing.
    """
    widths = {head: width_of(graph, head, channels) for head in graph.heads if head in graph.nodes}
    with torch.device("meta"):
        made = {width: _shapes(make_head(width, classes, dims, kernel)) for width in
                {*widths.values()}}
    return {f"{head_name(head)}.{name}": shape for head, width in widths.items()
            for name, shape in made[width].items()}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
