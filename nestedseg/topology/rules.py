"""The topologies of the UNet++ paper, one rule each: ``(i, j, depth) -> inputs of X^{i,j}``.

A new topology is one registered function, here or in a user's own code, or a JSON object. Each rule
also yields a feature pyramid, see `nestedseg.topology.fpn`.
Source: Zhou et al., UNet++, IEEE TMI 2020, Fig. 1 and Eq. 1, doi:10.1109/TMI.2019.2959609.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nestedseg.base.errors import nearest, show
from nestedseg.topology.fpn import Rule, feature_pyramid, semantic_pyramid
from nestedseg.topology.graph import MAX_ROW, Graph, GraphError, position

_RULES: dict[str, Rule] = {}
_PYRAMIDS = {"fpn": "unet", "fpn_plus": "unet_plus", "fpnpp": "unetpp"}  # whose skips each uses
_ALIASES = {"unet^e": "unet_e", "unet+": "unet_plus", "dla": "unet_plus", "unet++": "unetpp"}


def register_topology(name: str) -> Callable[[Rule], Rule]:
    """Registers a topology: a rule ``(i, j, depth) -> inputs of X^{i,j}``, or ``None`` for no node.

    The rule is called for all 0 <= i, 1 <= j, i + j <= depth; every node of row 0 carries a head.

    Args:
        name: the name under which `create` and `topology` find it from now on, in this process.

    Raises:
        ValueError: the name is taken.

    Examples:
        >>> import nestedseg
        >>> @nestedseg.register_topology("neighbours")
        ... def neighbours(i, j, depth):
        ...     return [f"x{i}_{j - 1}", f"x{i + 1}_{j - 1}"]
        >>> nestedseg.topology("neighbours", depth=2).to_dict()["nodes"]
        {'x0_1': ['x0_0', 'x1_0'], 'x1_1': ['x1_0', 'x2_0'], 'x0_2': ['x0_1', 'x1_1']}
        >>> nestedseg.create("neighbours").depths
        (4,)
    """
    def register(rule: Rule) -> Rule:
        if name in _RULES or name in _PYRAMIDS or name in _ALIASES:
            raise ValueError(f"topology {name!r} is registered already")
        _RULES[name] = rule
        return rule
    return register


def list_topologies() -> list[str]:
    """The names of all topologies that `topology` and `create` accept, without aliases."""
    return sorted([*_RULES, *_PYRAMIDS])


def topology(name: str, depth: int) -> Graph:
    """The graph of a registered topology, with all of its heads.

    Args:
        name: one of `list_topologies`, or an alias ("unet^e", "unet+", "dla", "unet++"). The levels
            of a feature pyramid are merged.
        depth: L, the row of the deepest encoder feature, >= 1.

    Raises:
        ValueError: unknown name.
        GraphError: ``depth`` is not a whole number from 1 to 31.
    """
    key = _check(name, depth)
    if key in _PYRAMIDS:
        return semantic_pyramid(_RULES[_PYRAMIDS[key]], depth, key)
    rule = _RULES[key]
    values = {f"x{i}_{j}": rule(i, j, depth)
              for j in range(1, depth + 1) for i in range(depth + 1 - j)}
    nodes = {node: value for node, value in values.items() if value is not None}
    return Graph(nodes, [node for node in nodes if position(node)[0] == 0], name=key)


def pyramid_topology(name: str, depth: int) -> Graph:
    """The feature pyramid over ``depth + 1`` levels of an encoder, with a head on each level.

    Args:
        name: "fpn", "fpn_plus", "fpnpp", or another topology, whose skips the pyramid then has.
        depth: as in `topology`.

    Raises:
        ValueError: unknown name.
        GraphError: ``depth`` is not a whole number from 1 to 31.
    """
    key = _check(name, depth)
    return feature_pyramid(_RULES[_PYRAMIDS.get(key, key)], depth, key)


def _check(name: str, depth: int) -> str:
    """The registered name that ``name``, perhaps an alias, stands for; checks ``depth`` too."""
    key = _ALIASES.get(name, name) if isinstance(name, str) else None
    if key not in list_topologies():
        raise ValueError(f"unknown topology {show(name)}; "
                         f"{nearest(name, [*list_topologies(), *_ALIASES])}")
    if type(depth) is not int or not 1 <= depth <= MAX_ROW:
        raise GraphError(f"topology {name!r}: depth must be a whole number from 1 to {MAX_ROW}, "
                         f"got {show(depth)}")
    return key


def resolve(spec: str | Path | Mapping[str, Any] | Graph, depth: int | None, default_depth: int,
            deep_supervision: bool | None) -> Graph:
    """The graph, with its heads, that the arguments of `nestedseg.create` describe.

    Args:
        spec: the name of a topology, or a graph, its dict or its .json file.
        depth: of a named topology: how deep it is (default: ``default_depth``); of a graph: the
            head to prune it to (default: it stays as it is).
        default_depth: the deepest row that the encoder has.
        deep_supervision: see `with_supervision`; with ``None`` a graph keeps its heads.

    Raises:
        ValueError: unknown name, or heads that cannot be had, see `with_supervision`.
        GraphError: malformed, or a named topology that is deeper than the encoder.
    """
    if not isinstance(deep_supervision, (bool, type(None))):
        raise ValueError("deep_supervision must be True, False or None, "
                         f"got {show(deep_supervision)}")
    if default_depth < 1:
        raise ValueError("a topology needs an encoder with at least 2 levels; this one has 1")
    if isinstance(spec, str) and not spec.endswith(".json"):
        graph = topology(spec, default_depth if depth is None else depth)
        if graph.depth > default_depth:
            raise GraphError(f"topology {spec!r}: depth={depth} is deeper than the encoder, whose "
                             f"{default_depth + 1} levels allow a depth of 1 to {default_depth}; "
                             "choose a depth in that range or an encoder with more levels (of the "
                             "plain encoder: longer encoder_channels)")
        return with_supervision(graph, deep_supervision)
    graph = read_graph(spec)
    graph = graph if depth is None else graph.prune(depth)
    return graph if deep_supervision is None else with_supervision(graph, deep_supervision)


def read_graph(spec: str | Path | Mapping[str, Any] | Graph) -> Graph:
    """The graph that a user wrote: a Graph, its dict, or the path of a .json file."""
    if isinstance(spec, Graph):
        return spec
    if isinstance(spec, Mapping):
        return Graph.from_dict(spec)
    if not isinstance(spec, (str, Path)):
        raise TypeError("a topology must be a name, a Graph, its dict or the path of a .json file, "
                        f"got {type(spec).__name__}")
    path = Path(spec)
    if not path.is_file():
        raise FileNotFoundError(f"topology file {str(path)!r} does not exist")
    return Graph.from_json(path)


def with_supervision(graph: Graph, deep_supervision: bool | None) -> Graph:
    """The graph with all of its heads, or with only the deepest.

    Args:
        graph: with every head that its topology has.
        deep_supervision: ``True`` keeps all heads, ``False`` only the deepest. ``None`` keeps only
            the deepest, unless nodes would then feed no head: U-Net^e keeps all, because its
            decoders share nothing but the encoder.

    Raises:
        ValueError: ``True`` for a graph that has only one head although it is deeper than 1;
            ``False`` for a graph with nodes that only the shallower heads need.
    """
    deepest = graph.prune(graph.depths[-1])
    required = len(deepest.nodes) < len(graph.nodes)
    if deep_supervision and len(graph.heads) == 1 and graph.depth > 1:
        raise ValueError(f"topology {graph.name!r} has one head, {graph.heads[0]!r}, so "
                         "deep_supervision=True has no further heads to add; leave it out")
    if deep_supervision is False and required:
        raise ValueError(f"topology {graph.name!r} needs deep_supervision=True (or None): the "
                         "deepest head reads only "
                         f"{len(deepest.nodes)} of its {len(graph.nodes)} decoder nodes")
    return graph if deep_supervision or required else deepest


@register_topology("unet")
def unet(i: int, j: int, depth: int) -> list[str] | None:
    """U-Net L^depth: one decoder, plain skips."""
    return [f"x{i}_0", f"x{i + 1}_{j - 1}"] if i + j == depth else None


@register_topology("unet_e")
def unet_e(i: int, j: int, depth: int) -> list[str]:
    """U-Net^e: U-Nets of every depth over one encoder."""
    return [f"x{i}_0", f"x{i + 1}_{j - 1}"]


@register_topology("unet_plus")
def unet_plus(i: int, j: int, depth: int) -> list[str]:
    """UNet+ (topologically DLA): the skip comes from the neighbour."""
    return [f"x{i}_{j - 1}", f"x{i + 1}_{j - 1}"]


@register_topology("unetpp")
def unetpp(i: int, j: int, depth: int) -> list[str]:
    """UNet++: dense skips, Eq. 1."""
    return [f"x{i}_{k}" for k in range(j)] + [f"x{i + 1}_{j - 1}"]
