"""The names that the tensors of a decoder must have, known before its many nodes are built."""

from __future__ import annotations

import torch

from nestedseg.decoder.blocks import BLOCKS
from nestedseg.decoder.compiler import build_decoder, head_name
from nestedseg.decoder.fuse import fuse_decoder
from nestedseg.decoder.layers import Level, Style
from nestedseg.topology.graph import Graph

BLOCK = "double_conv"  # of nodes that name none
WIDTH = 16  # of the node that is built to see


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
