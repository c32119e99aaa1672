"""A skip topology as data: decoder nodes, the inputs of each, and the heads.

Nodes carry the paper's names: ``x{i}_{j}`` is X^{i,j}, row i = level (0 = finest), column j, where
column 0 is the encoder. Resampling on an edge follows from the two rows: same row = skip, input
from a deeper row = up, input from a shallower row = down.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nestedseg.base.errors import nearest, show
from nestedseg.base.regular_files import read_at_most
from nestedseg.topology import drawing

FUSIONS = ("concat", "sum")
MAX_BYTES = 10_000_000  # of a file; 1,000 nodes with all their inputs need less
MAX_NODES = 1_000
MAX_EDGES = 20_000
MAX_ROW = 31  # a stride of 2^31 is beyond any image
MAX_CHANNELS = 65_536

_NAME = re.compile(r"x(0|[1-9][0-9]{0,3})_(0|[1-9][0-9]{0,3})")


class GraphError(ValueError):
    """A malformed topology. The message names the topology, the node, the edge and the fix."""


def position(name: str) -> tuple[int, int]:
    """Row and column of a node: ``"x1_3"`` -> ``(1, 3)``."""
    row, column = name[1:].split("_")
    return int(row), int(column)


def is_encoder(name: str) -> bool:
    """Column 0 holds the encoder's features; they are inputs, never computed by the graph."""
    return name.endswith("_0")


@dataclass(frozen=True)
class Node:
    """One decoder node X^{i,j}: its inputs, and options that differ from the defaults.

    Args:
        name: ``"x{i}_{j}"``, j >= 1.
        inputs: names of its inputs, in the order in which they are concatenated.
        channels: output channels; ``None`` = the default of its level.
        fuse: ``"concat"`` or ``"sum"`` (inputs of other widths are first projected by a 1x1
            convolution).
        block: name of a registered block; ``None`` = the model's default.
        up_channels: channels of each input from a deeper row, once up-sampled: the transposed
            convolution's, else a 1x1 convolution's. ``None`` = the node's own after a transposed
            convolution, else the input's.
    """

    name: str
    inputs: tuple[str, ...]
    channels: int | None = None
    fuse: str = "concat"
    block: str | None = None
    up_channels: int | None = None

    @property
    def row(self) -> int:
        return position(self.name)[0]

    def to_value(self) -> list[str] | dict[str, Any]:
        """The node's JSON value: a list of inputs, or an object if other options are set."""
        value: dict[str, Any] = {"inputs": list(self.inputs)}
        for field in fields(self)[2:]:
            if getattr(self, field.name) != field.default:
                value[field.name] = getattr(self, field.name)
        return value if len(value) > 1 else value["inputs"]


NODE_KEYS = tuple(field.name for field in fields(Node))[1:]
GRAPH_KEYS = ("nodes", "heads", "encoder_row")


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Graph:
    """A skip topology: frozen, hashable, valid by construction.

    Args:
        nodes: decoder nodes by name, each a list of inputs or an object with the keys ``inputs``,
            ``channels``, ``fuse``, ``block`` (see `Node`).
        heads: the nodes that carry a segmentation head, shallow -> deep.
        encoder_row: the row of the encoder's finest feature. Rows above it have no encoder node
            and are reached only by up-sampling (segmentation_models.pytorch's last block).
        name: what messages call this topology; graphs that differ only in name are equal.

    Raises:
        GraphError: cycle, unknown input or key, duplicate, dead node, head that is not a node, more
            than 1,000 nodes or 20,000 inputs.

    Examples:
        >>> from nestedseg import Graph
        >>> graph = Graph(nodes={"x0_1": ["x0_0", "x1_0"],
        ...                      "x1_1": ["x1_0", "x2_0"],
        ...                      "x0_2": ["x0_0", "x0_1", "x1_1"]},
        ...               heads=["x0_1", "x0_2"])
        >>> graph.depth, graph.depths, graph.order()
        (2, (1, 2), ('x0_1', 'x1_1', 'x0_2'))
        >>> graph.prune(1).to_json(indent=None)
        '{"nodes": {"x0_1": ["x0_0", "x1_0"]}, "heads": ["x0_1"]}'
    """

    nodes: Mapping[str, Node]
    heads: tuple[str, ...]
    encoder_row: int
    name: str

    def __init__(self, nodes: Mapping[str, Sequence[str] | Mapping[str, Any]],
                 heads: Sequence[str], encoder_row: int = 0, name: str = "graph") -> None:
        vars(self).update(nodes=nodes, heads=heads, encoder_row=encoder_row, name=name)
        parsed = _parse(self)
        object.__setattr__(self, "nodes", MappingProxyType(parsed))
        _check_edges(self)
        ordered = {name: parsed[name] for name in _sorted(self)}
        object.__setattr__(self, "nodes", MappingProxyType(ordered))
        object.__setattr__(self, "heads", _parse_heads(self))
        _check_heads(self)

    # -- identity ---------------------------------------------------------------------------

    def _key(self) -> tuple[Any, ...]:
        return (tuple(self.nodes.values()), self.heads, self.encoder_row)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Graph) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[Any, ...]:
        return Graph, (self.to_dict()["nodes"], list(self.heads), self.encoder_row, self.name)

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, depth={self.depth}, nodes={len(self.nodes)}, " \
               f"heads={list(self.heads)})"

    # -- structure --------------------------------------------------------------------------

    def order(self) -> tuple[str, ...]:
        """Decoder nodes in an order in which each comes after its inputs: by anti-diagonals."""
        return tuple(self.nodes)

    @property
    def encoder_nodes(self) -> tuple[str, ...]:
        """The encoder's features X^{i,0} that the nodes read, finest first."""
        used = {name for node in self.nodes.values() for name in node.inputs if is_encoder(name)}
        return tuple(sorted(used, key=position))

    @property
    def depth(self) -> int:
        """The deepest row that is read from the encoder: L for the paper's topologies."""
        return position(self.encoder_nodes[-1])[0]

    @property
    def levels(self) -> int:
        """How many levels of the encoder the graph needs."""
        return self.depth - self.encoder_row + 1

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """The depth of each head: the number by which `prune` selects it.

        It is the deepest encoder row that the head needs, as in the paper, where L^d ends in
        X^{0,d}. If these rows do not increase from head to head, heads are numbered from 1 instead.
        """
        rows = tuple(max(position(name)[0] for name in self.ancestors([head]) if is_encoder(name))
                     for head in self.heads)
        grows = all(a < b for a, b in pairwise((0, *rows)))
        return rows if grows else tuple(range(1, len(rows) + 1))

    def head(self, depth: int) -> str:
        """The node under the head of this depth.

        Raises:
            GraphError: there is no head at this depth.
        """
        if type(depth) is not int or depth not in self.depths:
            raise GraphError(
                f"topology {self.name!r} has no head at depth {depth!r}; it has heads at "
                f"{list(self.depths)}. For a head at each depth create the model with "
                "deep_supervision=True, and train it")
        return self.heads[self.depths.index(depth)]

    def ancestors(self, names: Iterable[str]) -> frozenset[str]:
        """The nodes ``names`` and all nodes that they are computed from, also of the encoder."""
        seen: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += self.nodes[name].inputs if name in self.nodes else ()
        return frozenset(seen)

    def prune(self, depth: int) -> Graph:
        """The graph with only the head of this depth and what it needs (the paper's L^depth).

        Raises:
            GraphError: there is no head at this depth.
        """
        head = self.head(depth)
        keep = self.ancestors([head])
        nodes = {name: node.to_value() for name, node in self.nodes.items() if name in keep}
        return Graph(nodes, [head], self.encoder_row, self.name)

    # -- in and out -------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: ``{"nodes": {...}, "heads": [...]}``."""
        data: dict[str, Any] = {
            "nodes": {name: node.to_value() for name, node in self.nodes.items()},
            "heads": list(self.heads),
        }
        return data | ({"encoder_row": self.encoder_row} if self.encoder_row else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], name: str = "graph") -> Graph:
        """The graph described by a dict, written by `to_dict` or by hand.

        Args:
            data: an object with the keys ``nodes`` and ``heads``, and ``encoder_row`` where it is
                not 0; see `Graph`.
            name: what messages call it.

        Raises:
            GraphError: an unknown or missing key, or a graph that `Graph` rejects.
        """
        if not isinstance(data, Mapping):
            raise GraphError(f"topology {name!r}: expected an object with the keys 'nodes' and "
                             f"'heads', got {type(data).__name__}")
        for key in data:
            if key not in GRAPH_KEYS:
                raise GraphError(f"topology {name!r}: unknown key {show(key)}; "
                                 f"{nearest(key, GRAPH_KEYS)}")
        for key in GRAPH_KEYS[:2]:
            if key not in data:
                raise GraphError(f"topology {name!r}: the key {key!r} is missing")
        return cls(data["nodes"], data["heads"], data.get("encoder_row", 0), name)

    def to_json(self, indent: int | None = 2) -> str:
        """The JSON text that `from_json` reads.

        Args:
            indent: spaces for each level; ``None`` = all in one line.
        """
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str | Path, name: str = "graph") -> Graph:
        """The graph in a JSON text, or in the file at a `Path`.

        Args:
            text: the JSON text, or the file's `Path`. A string is always read as JSON, never as a
                file name.
            name: what messages call it. For a file, the file's name is used instead.

        Raises:
            GraphError: invalid JSON, a key that appears twice, or a graph that `from_dict`
                rejects.
            OSError: the file cannot be read.
        """
        name = text.stem if isinstance(text, Path) else name
        try:
            if isinstance(text, Path):
                text = read_at_most(text, MAX_BYTES).decode()
            data = json.loads(text, object_pairs_hook=no_duplicates)
        except (ValueError, RecursionError) as error:
            raise GraphError(f"topology {name!r} is not valid JSON: {error}") from error
        return cls.from_dict(data, name)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart (GitHub and model cards draw it)."""
        return drawing.mermaid(self)

    def to_svg(self, keep: int | None = None) -> str:
        """The graph as an SVG text, drawn as a grid like the paper's Fig. 1.

        Args:
            keep: a depth; nodes that this depth does not need are drawn grey, as in Fig. 2.
                Default: no node is grey.

        Raises:
            GraphError: there is no head at this depth.
        """
        return drawing.svg(self, self if keep is None else self.prune(keep))


# -- validation: each function raises GraphError for one kind of mistake -------------------------


def _fail(graph: Graph, message: str, node: str | None = None) -> None:
    where = f"topology {graph.name!r}" + (f", node {node!r}" if node else "")
    raise GraphError(f"{where}: {message}")


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for `json.loads` that rejects a key that appears twice."""
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {show(key)} appears twice in the same object")
        seen[key] = value
    return seen


def _parse(graph: Graph) -> dict[str, Node]:
    if not isinstance(graph.nodes, Mapping):
        _fail(graph, f"'nodes' must map node names to inputs, got {type(graph.nodes).__name__}")
    if not graph.nodes:
        _fail(graph, "'nodes' is empty; the smallest topology is "
                     '{"nodes": {"x0_1": ["x0_0", "x1_0"]}, "heads": ["x0_1"]}')
    if len(graph.nodes) > MAX_NODES:
        _fail(graph, f"{len(graph.nodes)} nodes; at most {MAX_NODES} are allowed")
    row = graph.encoder_row
    if type(row) is not int or not 0 <= row <= MAX_ROW:
        _fail(graph, f"'encoder_row' must be a whole number from 0 to {MAX_ROW}, got {show(row)}")
    return {name: _parse_node(graph, name, value) for name, value in graph.nodes.items()}


def _parse_node(graph: Graph, name: Any, value: Any) -> Node:
    _check_name(graph, name)
    if is_encoder(name):
        _fail(graph, "column 0 belongs to the encoder and is not computed from inputs; "
                     "remove this node, or put it in column 1 or later", name)
    if isinstance(value, Node):
        value = value.to_value()
    value = {"inputs": value} if isinstance(value, (list, tuple)) else value
    if not isinstance(value, Mapping):
        _fail(graph, f"expected a list of inputs or an object, got {show(value)}", name)
    for key in value:
        if key not in NODE_KEYS:
            _fail(graph, f"unknown key {show(key)}; {nearest(key, NODE_KEYS)}", name)
    inputs = value.get("inputs")
    if not isinstance(inputs, (list, tuple)) or not inputs:
        _fail(graph, "'inputs' must be a list with at least one node name, "
                     f"got {show(inputs)}", name)
    node = Node(name, tuple(inputs), value.get("channels"), value.get("fuse", "concat"),
                value.get("block"), value.get("up_channels"))
    _check_options(graph, node)
    return node


def _check_options(graph: Graph, node: Node) -> None:
    for key in ("channels", "up_channels"):
        value = getattr(node, key)
        if value is not None and (type(value) is not int or not 1 <= value <= MAX_CHANNELS):
            _fail(graph, f"{key!r} must be a whole number from 1 to {MAX_CHANNELS}, "
                         f"got {show(value)}", node.name)
    if node.fuse not in FUSIONS:
        _fail(graph, f"unknown fuse {show(node.fuse)}; {nearest(node.fuse, FUSIONS)}", node.name)
    if node.fuse == "sum" and node.up_channels is not None:
        _fail(graph, "'up_channels' is for fuse 'concat'; a sum has one width, 'channels'",
              node.name)
    if node.block is not None and not isinstance(node.block, str):
        _fail(graph, f"'block' must be the name of a block, got {show(node.block)}", node.name)


def _check_name(graph: Graph, name: Any, reader: str | None = None) -> None:
    """Checks the name of a node or, if ``reader`` is given, of an input of the node ``reader``."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        _fail(graph, f"{show(name)} is not a node name; nodes are named 'x{{row}}_{{column}}', "
                     "like 'x0_1'", reader)
    if position(name)[0] > MAX_ROW:
        _fail(graph, f"the row of {name!r} is deeper than the deepest allowed, {MAX_ROW}", reader)


def _check_edges(graph: Graph) -> None:
    edges = sum(len(node.inputs) for node in graph.nodes.values())
    if edges > MAX_EDGES:
        _fail(graph, f"{edges} inputs in all; at most {MAX_EDGES} are allowed")
    for node in graph.nodes.values():
        seen: set[str] = set()
        for name in node.inputs:
            _check_name(graph, name, node.name)
            if name in seen:
                _fail(graph, f"input {name!r} is listed twice; list it once", node.name)
            seen.add(name)
            if is_encoder(name):
                if position(name)[0] < graph.encoder_row:
                    _fail(graph, f"input {name!r} does not exist: the encoder's finest feature "
                                 f"is 'x{graph.encoder_row}_0'", node.name)
            elif name not in graph.nodes:
                _fail(graph, f"unknown input {name!r}; {nearest(name, graph.nodes)}", node.name)


def _sorted(graph: Graph) -> list[str]:
    """Node names in topological order (Kahn's algorithm).

    Among nodes that are ready, the smallest anti-diagonal i + j comes first, then the column.
    """
    consumers: dict[str, list[str]] = {name: [] for name in graph.nodes}
    waiting: dict[str, int] = {}
    for node in graph.nodes.values():
        computed = [name for name in node.inputs if not is_encoder(name)]
        waiting[node.name] = len(computed)
        for name in computed:
            consumers[name].append(node.name)
    ready = [_rank(name) for name, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = heapq.heappop(ready)[-1]
        order.append(name)
        for consumer in consumers[name]:
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                heapq.heappush(ready, _rank(consumer))
    if len(order) < len(graph.nodes):
        cycle = _cycle(graph, set(graph.nodes) - set(order))
        shown = cycle if len(cycle) <= 12 else [*cycle[:10], "...", cycle[-1]]
        _fail(graph, "the inputs form a cycle: " + " <- ".join(shown), cycle[0])
    return order


def _rank(name: str) -> tuple[int, int, str]:
    row, column = position(name)
    return row + column, column, name


def _cycle(graph: Graph, stuck: set[str]) -> list[str]:
    """A cycle among the nodes that could not be ordered, found by walking from input to input.

    Each of these nodes has at least one input among them, so that the walk must come back.
    """
    path = [min(stuck, key=position)]
    while True:
        name = next(name for name in graph.nodes[path[-1]].inputs if name in stuck)
        if name in path:
            return [*path[path.index(name):], name]
        path.append(name)


def _parse_heads(graph: Graph) -> tuple[str, ...]:
    heads = graph.heads
    if not isinstance(heads, (list, tuple)) or not heads \
            or not all(isinstance(head, str) for head in heads):
        _fail(graph, f"'heads' must be a list with at least one node name, got {show(heads)}")
    return tuple(heads)


def _check_heads(graph: Graph) -> None:
    heads = graph.heads
    for index, head in enumerate(heads):
        if head in heads[:index]:
            _fail(graph, f"head {show(head)} is listed twice; list it once")
        if head not in graph.nodes:
            _fail(graph, f"head {show(head)} is not a node of the graph; "
                         f"{nearest(head, graph.nodes)}")
    dead = set(graph.nodes) - graph.ancestors(heads)
    if dead:
        _fail(graph, "no head depends on this node (dead node); remove it or put a head on it",
              min(dead, key=position))

