"""Compiles a graph over an encoder's levels to a decoder with generated, readable forward code."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from nestedseg.base.errors import nearest, show
from nestedseg.decoder.blocks import BLOCKS
from nestedseg.decoder.kernels import preferred_layout
from nestedseg.decoder.layers import Level, Style, make_head
from nestedseg.decoder.nodes import NodeModule
from nestedseg.topology.graph import Graph, GraphError, Node, is_encoder, position


@dataclass(frozen=True)
class Program:
    """A generated forward pass: a method of a decoder that calls its modules by name."""

    code: str
    forward: Callable[..., tuple[Tensor, ...]]


class Decoder(nn.Module):
    """The nodes and heads of a graph, run by code compiled from it.

    ``print(decoder.code)`` shows that code; ``decoder.x0_1`` is the module of X^{0,1},
    ``decoder.head_x0_1`` its head.

    Args:
        graph: the topology.
        modules: the module of each node and each head, by name.
        strides: the stride of each node along each axis.
    """

    def __init__(self, graph: Graph, modules: Mapping[str, nn.Module],
                 strides: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.graph = graph
        self.strides = dict(strides)
        for name, module in modules.items():
            self.add_module(name, module)
        self._programs: dict[tuple[int, ...], Program] = {}
        self.program(graph.depths)  # now, so that torch.compile never traces the code generation

    @property
    def code(self) -> str:
        """The forward pass compiled from the graph, as code with one line per node, as in Eq. 1."""
        return self.program(self.graph.depths).code

    @property
    def executions(self) -> dict[str, str]:
        """How each node is computed now; see `nestedseg.execution`."""
        return {name: runs(self.node(name)) for name in self.graph.nodes}

    def node(self, name: str) -> Any:
        """The module of a node: a `NodeModule`, or the `FusedNode` that `fuse` replaces it by."""
        return self.get_submodule(name)

    def program(self, depths: tuple[int, ...]) -> Program:
        """The compiled forward pass for the heads at ``depths``; nodes that only other heads need
        are not computed."""
        if depths not in self._programs:
            heads = [self.graph.head(depth) for depth in depths]
            self._programs[depths] = compile_graph(self.graph, heads, root=self)
        return self._programs[depths]

    def forward(self, features: Sequence[Tensor], depths: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Logits of the heads at ``depths``, each ``(N, classes, *spatial)`` at its own stride.

        ``features`` are the encoder's, finest first; the first belongs to row ``encoder_row``.
        """
        features = [preferred_layout(x) for x in features[:self.graph.levels]]
        return self.program(depths).forward(self, *features)

    def prune(self, depth: int) -> Decoder:
        """A new decoder with copies of the modules that the head of this depth needs."""
        graph = self.graph.prune(depth)
        names = [*graph.nodes, *(head_name(head) for head in graph.heads)]
        modules = {name: copy.deepcopy(self.get_submodule(name)) for name in names}
        return Decoder(graph, modules, {name: self.strides[name] for name in graph.nodes})

    def __getstate__(self) -> dict[str, object]:
        # Generated functions cannot be pickled; a copy compiles them again.
        return self.__dict__ | {"_programs": [*self._programs]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_programs": {}})
        for depths in state["_programs"]:
            self.program(depths)


def runs(node: Any) -> str:
    """How a node is computed now, be it one of a user's."""
    return node.runs() if hasattr(node, "runs") else f"reference: it is a {type(node).__name__}"


def head_name(node: str) -> str:
    """The name of the head on a node: ``"x0_1"`` -> ``"head_x0_1"``."""
    return f"head_{node}"


def compile_graph(graph: Graph, heads: Sequence[str], root: nn.Module) -> Program:
    """Generates the forward pass of these heads, as code that calls the modules of ``root``.

    It takes all features of the encoder, needed or not, so that all programs are called in the same
    way. A head is called right after its node, so that the node's map can be freed early.
    """
    needed = graph.ancestors(heads)
    program = fx.Graph()
    rows = range(graph.encoder_row, graph.depth + 1)
    values = {f"x{row}_0": program.placeholder(f"x{row}_0") for row in rows}
    logits: dict[str, fx.Node] = {}
    for node in graph.nodes.values():
        if node.name in needed:
            inputs = tuple(values[name] for name in node.inputs)
            values[node.name] = _call(program, node.name, inputs)
            if node.name in heads:
                logits[node.name] = _call(program, head_name(node.name), (values[node.name],))
    program.output(tuple(logits[head] for head in heads))
    program.lint()
    module = fx.GraphModule(root, program, class_name="Decoder")
    return Program(module.code.strip(), type(module).forward)


def _call(program: fx.Graph, target: str, args: tuple[fx.Node, ...]) -> fx.Node:
    return program.create_node("call_module", target, args, name=target)


def build_decoder(graph: Graph, encoder_levels: Sequence[Level], classes: int | None,
                  channels: Sequence[int], style: Style, block: str = "double_conv",
                  head_kernel: int = 1) -> Decoder:
    """Infers the shape of every node, then builds the modules of nodes and heads.

    Args:
        graph: the topology.
        encoder_levels: channels and strides of the encoder's features, finest first.
        classes: channels of the logits; ``None`` = heads return the features themselves.
        channels: default width of the nodes of each row, finest first.
        style: the options that all blocks share.
        block: the block of nodes that do not name one.
        head_kernel: side of the heads' convolutions, odd.

    Raises:
        GraphError: an encoder level or a width is missing, a block is unknown, or a block cannot be
            made with its channels.
    """
    shapes = infer_levels(graph, encoder_levels, channels)
    modules: dict[str, nn.Module] = {}
    for node in graph.nodes.values():
        modules[node.name] = make_node(graph, node, shapes, style, node.block or block)
    for head in graph.heads:
        modules[head_name(head)] = (
            nn.Identity() if classes is None else
            make_head(shapes[head].channels, classes, style.dims, head_kernel))
    return Decoder(graph, modules, {name: shapes[name].stride for name in graph.nodes})


def make_node(graph: Graph, node: Node, shapes: Mapping[str, Level], style: Style,
              block: str) -> NodeModule:
    """The module of a node.

    Raises:
        GraphError: its block refuses the channels that it is to take and give.
    """
    inputs = {name: shapes[name] for name in node.inputs}
    try:
        return NodeModule(inputs, shapes[node.name], node.fuse, block, style, node.up_channels)
    except Exception as error:  # a block may be a user's, and refuses in its own way
        raise GraphError(f"topology {graph.name!r}, node {node.name!r}: its block {block!r} cannot "
                         f"be made: {error}") from error


def infer_levels(graph: Graph, encoder_levels: Sequence[Level],
                 channels: Sequence[int]) -> dict[str, Level]:
    """Channels and stride of every node, encoder nodes included.

    Raises:
        GraphError: an encoder level or a width is missing, or a block is unknown.
    """
    for node in graph.nodes.values():
        if node.block is not None and node.block not in BLOCKS:
            raise GraphError(f"topology {graph.name!r}, node {node.name!r}: unknown block "
                             f"{show(node.block)}; {nearest(node.block, BLOCKS)}")
    if graph.levels > len(encoder_levels):
        last = graph.encoder_row + len(encoder_levels) - 1
        raise GraphError(
            f"topology {graph.name!r} reads {graph.encoder_nodes[-1]!r}, but the encoder has "
            f"{len(encoder_levels)} levels, x{graph.encoder_row}_0 ... x{last}_0, with strides "
            f"{[level.stride[0] for level in encoder_levels]}")
    shapes = {}
    for name in (*graph.encoder_nodes, *graph.nodes):
        row = position(name)[0]
        if is_encoder(name):
            shapes[name] = encoder_levels[row - graph.encoder_row]
        else:
            shapes[name] = Level(width_of(graph, name, channels),
                                 _row_stride(graph, row, encoder_levels))
    return shapes


def width_of(graph: Graph, name: str, channels: Sequence[int]) -> int:
    """The channels of a node: its own, or those of its row.

    Raises:
        GraphError: neither is given.
    """
    row = position(name)[0]
    width = graph.nodes[name].channels or (channels[row] if row < len(channels) else None)
    if width is None:
        rows = 1 + max(node.row for node in graph.nodes.values() if node.channels is None)
        raise GraphError(f"topology {graph.name!r}, node {name!r}: decoder_channels needs {rows} "
                         f"values, one for each row up to row {rows - 1}, got {len(channels)}: "
                         f"{tuple(channels)}")
    return width


def _row_stride(graph: Graph, row: int, encoder_levels: Sequence[Level]) -> tuple[int, ...]:
    """The stride of a row: the encoder's; above and below its rows it halves or doubles per row."""
    level = row - graph.encoder_row
    if level < 0:
        finest = encoder_levels[0].stride
        if max(finest) % 2 ** -level:
            raise GraphError(f"topology {graph.name!r}: row {row} is {-level} above the encoder's "
                             f"finest row, whose stride is {max(finest)}: it would be finer than "
                             "the image; use a smaller encoder_row")
        return tuple(max(1, stride // 2 ** -level) for stride in finest)
    beyond = max(0, level - len(encoder_levels) + 1)
    return tuple(stride * 2 ** beyond for stride in encoder_levels[level - beyond].stride)
