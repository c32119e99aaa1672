"""Drawings of a graph: SVG in the style of the paper's Fig. 1 and 2, and Mermaid."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

RADIUS = 24
STEP_X, STEP_Y = 62, 92  # between neighbours on a diagonal
MARGIN = 44
BEND = 2.6  # how far edges over several rows bend aside, in radii
LABEL = 30  # space for the label of the last head
ARC = 22  # how much higher a skip rises for each column that it passes over

STYLE = """
  .bg { fill: #ffffff } .edge { stroke: #57606a; fill: none; stroke-width: 1.6 }
  .skip { stroke: #0969da; fill: none; stroke-width: 1.4; stroke-dasharray: 5 4 }
  .encoder { fill: #dbe4ee; stroke: #57606a } .decoder { fill: #d5efdc; stroke: #2d7d46 }
  .node { stroke-width: 1.6 } .head { stroke-width: 3.6 }
  .tip { fill: #57606a } .skiptip { fill: #0969da }
  text { font: italic 19px Georgia, 'Times New Roman', serif; fill: #1f2328; text-anchor: middle }
  text .up { font-size: 13px; font-style: normal }
  .label { font: 15px system-ui, sans-serif; fill: #2d7d46; text-anchor: start;
    paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round }
  .pruned { opacity: .28; filter: grayscale(1) }
  @media (prefers-color-scheme: dark) {
    .bg { fill: #0d1117 } .edge { stroke: #9198a1 } .skip { stroke: #58a6ff }
    .encoder { fill: #2b3644; stroke: #9198a1 } .decoder { fill: #17402a; stroke: #56d364 }
    .tip { fill: #9198a1 } .skiptip { fill: #58a6ff } text { fill: #e6edf3 }
    .label { fill: #56d364; stroke: #0d1117 }
  }
"""


class DrawnNode(Protocol):
    """What a drawing needs to know about a node."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> Sequence[str]: ...


class DrawnGraph(Protocol):
    """What a drawing needs to know about a graph; a `Graph` has all of it."""

    @property
    def name(self) -> str: ...

    @property
    def nodes(self) -> Mapping[str, DrawnNode]: ...

    @property
    def heads(self) -> Sequence[str]: ...

    @property
    def encoder_row(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def depths(self) -> Sequence[int]: ...


def svg(graph: DrawnGraph, kept: DrawnGraph) -> str:
    """The graph as SVG, in light and dark themes; nodes that ``kept``, its pruned form, lacks
    are grey."""
    places = _places(graph)
    heads = {head: depth for head, depth in zip(graph.heads, graph.depths) if head in kept.heads}
    top = MARGIN + ARC * _longest_skip(graph) / 2
    width = max(x for x, _ in places.values()) + 2 * MARGIN + LABEL
    height = max(y for _, y in places.values()) + top + MARGIN
    edges = [_edge(places, source, target, _faded(kept, source, target))
             for source, target in _edges(graph)]
    # a head's label stands below right of its node, unless an arrow ends there
    above = {target for source, target in _edges(graph)
             if _row(source) > _row(target) and places[source][0] > places[target][0]}
    nodes = [_node(name, place, heads.get(name), name in above, _faded(kept, name))
             for name, place in places.items()]
    size = f'width="{width:g}" height="{height:g}"'
    return "\n".join([
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="{-MARGIN} {-top:g} {width:g} {height:g}" {size} role="img">',
        f"<title>{_escape(graph.name)}</title>", f"<style>{STYLE}</style>", "<defs>",
        _marker("tip"), _marker("skiptip"), "</defs>",
        f'<rect class="bg" x="{-MARGIN}" y="{-top:g}" {size} rx="6"/>',
        *edges, *nodes, "</svg>", ""])


def mermaid(graph: DrawnGraph) -> str:
    """The graph as a Mermaid flowchart: solid = up or down, dotted = skip, hexagon = head."""
    lines = ["flowchart LR"]
    for name in _places(graph):
        superscript = name[1:].replace("_", ",")
        left, right = ("{{", "}}") if name in graph.heads else ("((", "))")
        lines.append(f'  {name}{left}"X<sup>{superscript}</sup>"{right}')
    for source, target in _edges(graph):
        arrow = "-.->" if _row(source) == _row(target) else "-->"
        lines.append(f"  {source} {arrow} {target}")
    return "\n".join(lines) + "\n"


def _row(name: str) -> int:
    return int(name[1:].split("_")[0])


def _column(name: str) -> int:
    return int(name.split("_")[1])


def _places(graph: DrawnGraph) -> dict[str, tuple[int, int]]:
    """Centre of every node; the nodes of a row lie between those of the row above, as in Fig. 1.

    Rows and columns are counted from the first, so that a node stands at the same place in graphs
    of every depth.
    """
    names = [*(f"x{row}_0" for row in range(graph.encoder_row, graph.depth + 1)), *graph.nodes]
    first = min(map(_row, names))
    left = min(_row(name) + 2 * _column(name) for name in names)
    return {name: (STEP_X * (_row(name) + 2 * _column(name) - left), STEP_Y * (_row(name) - first))
            for name in names}


def _longest_skip(graph: DrawnGraph) -> int:
    """The most columns that a skip passes over."""
    return max((abs(_column(b) - _column(a)) - 1 for a, b in _edges(graph) if _row(a) == _row(b)),
               default=0)


def _edges(graph: DrawnGraph) -> Iterator[tuple[str, str]]:
    """Every edge (source, target): first those down the encoder, then the decoder's."""
    for row in range(graph.encoder_row, graph.depth):
        yield f"x{row}_0", f"x{row + 1}_0"
    for node in graph.nodes.values():
        for name in node.inputs:
            yield name, node.name


def _faded(kept: DrawnGraph, *names: str) -> str:
    """The CSS class of a pruned node or edge. The encoder runs to the deepest row of ``kept``,
    also through levels that no node reads."""
    stays = (name in kept.nodes or (_column(name) == 0 and _row(name) <= kept.depth)
             for name in names)
    return "" if all(stays) else " pruned"


def _edge(places: dict[str, tuple[int, int]], source: str, target: str, faded: str) -> str:
    (x1, y1), (x2, y2) = places[source], places[target]
    if _row(source) != _row(target):
        length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
        dx, dy = (x2 - x1) / length * RADIUS, (y2 - y1) / length * RADIUS
        # an edge over several rows bends aside: a straight one would run behind other nodes
        bend = BEND if abs(_row(source) - _row(target)) > 1 else 0
        middle = (x1 + x2) / 2 - dy * bend, (y1 + y2) / 2 + dx * bend
        return (f'<path class="edge{faded}" marker-end="url(#tip)" '
                f'd="M{x1 + dx:.1f} {y1 + dy:.1f}Q{middle[0]:.1f} {middle[1]:.1f} '
                f'{x2 - dx * 1.25:.1f} {y2 - dy * 1.25:.1f}"/>')
    rise = ARC * (abs(_column(target) - _column(source)) - 1)
    side = 1 if x2 > x1 else -1
    start, end = x1 + side * RADIUS * (0.72 if rise else 1), x2 - side * RADIUS * \
        (0.86 if rise else 1.25)
    lift = 0.7 * RADIUS if rise else 0
    return (f'<path class="skip{faded}" marker-end="url(#skiptip)" '
            f'd="M{start:.1f} {y1 - lift:.1f}Q{(x1 + x2) / 2:.1f} {y1 - lift - rise:.1f} '
            f'{end:.1f} {y2 - lift:.1f}"/>')


def _node(name: str, place: tuple[int, int], head: int | None, above: bool, faded: str) -> str:
    """A circle with the node's name as in the paper; ``head`` is the depth of the head on it."""
    x, y = place
    kind = ("encoder" if _column(name) == 0 else "decoder") + (" head" if head else "")
    parts = [f'<circle class="node {kind}" cx="{x}" cy="{y}" r="{RADIUS}"/>',
             f'<text x="{x}" y="{y + 7}">X<tspan class="up" dy="-7">'
             f"{_row(name)},{_column(name)}</tspan></text>"]
    if head:
        down = -RADIUS + 2 if above else RADIUS + 14
        parts.append(f'<text class="label" x="{x + (18 if above else 6)}" y="{y + down}">'
                     f"head {head}</text>")
    return f'<g class="{faded.strip()}">' + "".join(parts) + "</g>"


def _marker(name: str) -> str:
    return (f'<marker id="{name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path class="{name}" d="M0 0L8 4L0 8z"/></marker>')


def _escape(text: str) -> str:
    """Text escaped for XML, without the control characters that XML forbids."""
    return html.escape("".join(char for char in text if char.isprintable()))
