import re
from collections import Counter
from itertools import combinations, pairwise
from math import dist
from xml.etree import ElementTree

import pytest
from graphs import EXAMPLES, FULL_SCALE, OWN, PYRAMID, UNETPP_2, random_graphs
from hypothesis import given, settings

from nestedseg import Graph, GraphError
from nestedseg.topology.rules import list_topologies, topology

SVG = "{http://www.w3.org/2000/svg}"
ANY = random_graphs(min_levels=1, beyond=1)
every_example = pytest.mark.parametrize("data", EXAMPLES.values(), ids=list(EXAMPLES))


def numbers(text):
    return [float(number) for number in re.findall(r"-?[\d.]+", text)]


def classes(element):
    return set(element.get("class", "").split())


class Drawing:
    """What a reader sees in an SVG: circles by name, and lines between them."""

    def __init__(self, text):
        self.root = ElementTree.fromstring(text)
        self.circles, self.pruned, self.labels, self.places = {}, set(), {}, {}
        for group in self.root.iter(f"{SVG}g"):
            circle = group.find(f"{SVG}circle")
            name, *labels = ["".join(t.itertext()) for t in group.iter(f"{SVG}text")]
            name = re.fullmatch(r"X(\d+),(\d+)", name).expand(r"x\1_\2")
            assert name not in self.circles
            self.circles[name] = circle
            self.pruned |= {name} if "pruned" in classes(group) else set()
            assert len(labels) <= 1
            if labels:
                self.labels[name] = labels[0]
                label = group.findall(f"{SVG}text")[-1]
                self.places[name] = float(label.get("x")), float(label.get("y"))
        self.centres = {name: (float(circle.get("cx")), float(circle.get("cy")))
                        for name, circle in self.circles.items()}
        assert len(list(self.root.iter(f"{SVG}circle"))) == len(self.circles)
        paths = self.root.findall(f"{SVG}path")
        self.edges = [self._ends(path) for path in paths]
        self.skips = [self._ends(path) for path in paths if "skip" in classes(path)]
        self.faded = [self._ends(path) for path in paths if "pruned" in classes(path)]
        self.lines = [numbers(path.get("d")) for path in paths]
        assert all(len(classes(path) & {"edge", "skip"}) == 1 for path in paths)
        assert all(path.get("marker-end") for path in paths)

    def _ends(self, path):
        """The nodes where a line begins and ends: those whose circles are nearest."""
        *_, x, y = line = numbers(path.get("d"))
        ends = [min(self.centres, key=lambda name: dist(self.centres[name], at))
                for at in (line[:2], (x, y))]
        for name, at in zip(ends, (line[:2], (x, y))):  # at its rim, not in it nor far off
            radius = float(self.circles[name].get("r"))
            assert 0.8 * radius < dist(self.centres[name], at) < 1.6 * radius
        return tuple(ends)


def row(name):
    return int(name[1:].split("_")[0])


def encoder(graph):
    """Down the encoder, from its finest row to the deepest that is read."""
    return [f"x{i}_0" for i in range(graph.encoder_row, graph.depth + 1)]


def edges(graph):
    """Every arrow: down the encoder, and from each input."""
    chain = encoder(graph)
    read = [(name, node.name) for node in graph.nodes.values() for name in node.inputs]
    return [*pairwise(chain), *read]


# -- SVG -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(ANY)
def test_each_node_is_one_circle_and_each_edge_one_line(graph):
    drawing = Drawing(graph.to_svg())
    assert sorted(drawing.circles) == sorted([*encoder(graph), *graph.nodes])
    assert Counter(drawing.edges) == Counter(edges(graph))
    assert drawing.pruned == set() and drawing.faded == []
    for name, circle in drawing.circles.items():
        kind = "encoder" if name.endswith("_0") else "decoder"
        assert classes(circle) & {"encoder", "decoder"} == {kind}


@settings(max_examples=30, deadline=None)
@given(ANY)
def test_lines_within_a_row_are_dashed_and_no_others(graph):
    drawing = Drawing(graph.to_svg())
    within = [(a, b) for a, b in edges(graph) if row(a) == row(b)]
    assert Counter(drawing.skips) == Counter(within)
    style = drawing.root.find(f"{SVG}style").text
    assert re.search(r"\.skip \{[^}]*stroke-dasharray", style)
    assert not re.search(r"\.edge \{[^}]*stroke-dasharray", style)


@settings(max_examples=30, deadline=None)
@given(ANY)
def test_heads_are_marked_and_labelled_with_their_depth(graph):
    drawing = Drawing(graph.to_svg())
    marked = {name for name, circle in drawing.circles.items() if "head" in classes(circle)}
    assert marked == set(graph.heads)
    assert drawing.labels == {head: f"head {depth}"
                              for head, depth in zip(graph.heads, graph.depths)}


@settings(max_examples=30, deadline=None)
@given(ANY)
def test_what_a_depth_does_not_need_is_grey(graph):
    for depth in graph.depths:
        kept = graph.prune(depth)
        drawing = Drawing(graph.to_svg(keep=depth))
        needed = {*kept.nodes, *encoder(kept)}
        assert set(drawing.circles) - drawing.pruned == needed
        stays = Counter(drawing.edges) - Counter(drawing.faded)
        assert stays == Counter(edges(kept))
        assert drawing.labels == {graph.head(depth): f"head {depth}"}
        everything = Drawing(graph.to_svg())
        assert drawing.centres == everything.centres  # nothing moves


@pytest.mark.parametrize("name", list_topologies())
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_no_label_hides_the_tip_of_an_arrow_or_a_node(name, depth):
    drawing = Drawing(topology(name, depth).to_svg())
    radius = float(drawing.circles["x0_0"].get("r"))
    for left, baseline in drawing.places.values():
        box = [left, baseline - 13, left + 48, baseline + 4]  # "head 5" at 15 px
        for *_, bx, by, x, y in drawing.lines:
            for back in (0, 5, 10):  # the arrowhead is 11 px long
                part = back / dist((bx, by), (x, y))
                at = x + part * (bx - x), y + part * (by - y)
                assert not (box[0] < at[0] < box[2] and box[1] < at[1] < box[3])
        for x, y in drawing.centres.values():
            assert dist((x, y), (max(box[0], min(x, box[2])), max(box[1], min(y, box[3])))) > radius


@pytest.mark.parametrize("name", list_topologies())
def test_a_node_stands_at_the_same_place_at_every_depth(name):
    shallow, deep = (Drawing(topology(name, depth).to_svg()).centres for depth in (2, 5))
    assert {node: deep[node] for node in shallow.keys() & deep} == {
        node: shallow[node] for node in shallow.keys() & deep}


def test_figure_2():
    drawing = Drawing(topology("unetpp", 4).to_svg(keep=2))
    kept = {"x0_0", "x1_0", "x2_0", "x0_1", "x1_1", "x0_2"}
    assert len(drawing.circles) == 15
    assert set(drawing.circles) - drawing.pruned == kept
    # 4 down; 10 nodes with one node below each; and 1 skip in the first column, 2 in the second …
    assert len(drawing.edges) == 4 + 10 + (4 * 1 + 3 * 2 + 2 * 3 + 1 * 4)
    assert len(drawing.skips) == 20
    assert len(drawing.edges) - len(drawing.faded) == 2 + 3 + (2 * 1 + 1 * 2)


@settings(max_examples=30, deadline=None)
@given(ANY)
def test_nodes_do_not_overlap(graph):
    drawing = Drawing(graph.to_svg())
    radii = {float(circle.get("r")) for circle in drawing.circles.values()}
    assert len(radii) == 1
    for a, b in combinations(drawing.centres.values(), 2):
        assert dist(a, b) > 2 * max(radii)


@settings(max_examples=30, deadline=None)
@given(ANY)
def test_rows_lie_below_each_other_and_columns_to_the_right(graph):
    centres = Drawing(graph.to_svg()).centres
    for a, b in combinations(centres, 2):
        (xa, ya), (xb, yb) = centres[a], centres[b]
        assert (ya < yb) == (row(a) < row(b)) and (ya == yb) == (row(a) == row(b))
        if row(a) == row(b):
            assert (xa < xb) == (int(a.split("_")[1]) < int(b.split("_")[1]))


def assert_on_canvas(graph):
    drawing = Drawing(graph.to_svg())
    left, top, width, height = numbers(drawing.root.get("viewBox"))
    for name, (x, y) in drawing.centres.items():
        r = float(drawing.circles[name].get("r"))
        assert left <= x - r and x + r <= left + width
        assert top <= y - r and y + r <= top + height
    for x1, y1, *bend, x2, y2 in drawing.lines:
        bx, by = bend or ((x1 + x2) / 2, (y1 + y2) / 2)
        for t in (0.25, 0.5, 0.75):
            x, y = (a * (1 - t)**2 + 2 * b * t * (1 - t) + c * t**2
                    for a, b, c in ((x1, bx, x2), (y1, by, y2)))
            assert left <= x <= left + width and top <= y <= top + height


@settings(max_examples=30, deadline=None)
@given(ANY)
def test_all_lies_on_the_canvas(graph):
    assert_on_canvas(graph)


@pytest.mark.parametrize(("source", "target"), [("x0_0", "x0_12"), ("x0_1", "x0_12"),
                                                ("x0_12", "x0_1")])
def test_a_long_skip_rises_no_higher_than_the_canvas(source, target):
    nodes = {target: [source]}  # no other edge may make room for it
    if source != "x0_0":
        nodes[source] = ["x0_0"] if source == "x0_1" else ["x1_0"]
    assert_on_canvas(Graph(nodes, [target]))


@pytest.mark.parametrize("deep", [2, 4, 8])
def test_an_edge_over_many_rows_bends_no_further_than_the_canvas(deep):
    assert_on_canvas(Graph({"x0_1": ["x0_0", f"x{deep}_0"]}, ["x0_1"]))
    assert_on_canvas(Graph({f"x{deep}_1": ["x0_0", f"x{deep}_0"]}, [f"x{deep}_1"]))


def test_one_head_of_several_is_kept():
    graph = Graph.from_dict(PYRAMID)
    drawing = Drawing(graph.to_svg(keep=3))
    assert drawing.labels == {"x2_1": "head 3"}
    assert drawing.pruned == {"x0_1", "x1_1"}
    # The encoder runs through the rows above, read or not.
    assert set(drawing.faded) == {("x0_0", "x0_1"), ("x1_1", "x0_1"),
                                  ("x1_0", "x1_1"), ("x2_1", "x1_1")}


def test_a_depth_without_a_head_cannot_be_kept():
    with pytest.raises(GraphError, match=r"no head at depth 2.*\[1, 3\]"):
        Graph.from_dict(OWN).to_svg(keep=2)


@pytest.mark.parametrize("name", ["a<b>&\"c'", "]]>", "</title><script>", "&amp;", "ünet ∘", ""])
def test_names_are_escaped(name):
    drawing = Drawing(Graph.from_dict(OWN, name).to_svg())
    assert (drawing.root.find(f"{SVG}title").text or "") == name
    assert [element.tag for element in drawing.root.iter(f"{SVG}script")] == []


def test_a_name_with_characters_that_xml_forbids_is_drawn_without_them():
    drawing = Drawing(Graph.from_dict(OWN, "a\x00b\x1b\ud800c").to_svg())
    assert drawing.root.find(f"{SVG}title").text == "abc"


def test_the_svg_draws_itself_alone():
    text = topology("unetpp", 4).to_svg()
    assert "href" not in text and "@import" not in text
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {
        f"#{name}" for name in re.findall(r' id="([^"]*)"', text)}


# -- Mermaid ---------------------------------------------------------------------------------

MERMAID_NODE = re.compile(r'  (x\d+_\d+)(\(\(|\{\{)"X<sup>(\d+),(\d+)</sup>"(\)\)|\}\})')
MERMAID_EDGE = re.compile(r"  (x\d+_\d+) (-->|-\.->) (x\d+_\d+)")


@settings(max_examples=30, deadline=None)
@given(ANY)
def test_mermaid_lists_each_node_and_each_edge_once(graph):
    text = graph.to_mermaid()
    first, *lines = text.splitlines()
    assert first == "flowchart LR" and text.endswith("\n")
    nodes = [match for match in map(MERMAID_NODE.fullmatch, lines) if match]
    arrows = [match for match in map(MERMAID_EDGE.fullmatch, lines) if match]
    assert len(nodes) + len(arrows) == len(lines)
    assert sorted(m[1] for m in nodes) == sorted([*encoder(graph), *graph.nodes])
    assert all(m[1] == f"x{m[3]}_{m[4]}" for m in nodes)
    assert {m[1] for m in nodes if (m[2], m[5]) == ("{{", "}}")} == set(graph.heads)
    assert all((m[2], m[5]) in {("{{", "}}"), ("((", "))")} for m in nodes)
    assert Counter((m[1], m[3]) for m in arrows) == Counter(edges(graph))
    assert all((m[2] == "-.->") == (row(m[1]) == row(m[3])) for m in arrows)


def test_mermaid_by_hand():
    assert Graph.from_dict(UNETPP_2).to_mermaid() == """\
flowchart LR
  x0_0(("X<sup>0,0</sup>"))
  x1_0(("X<sup>1,0</sup>"))
  x2_0(("X<sup>2,0</sup>"))
  x0_1{{"X<sup>0,1</sup>"}}
  x1_1(("X<sup>1,1</sup>"))
  x0_2{{"X<sup>0,2</sup>"}}
  x0_0 --> x1_0
  x1_0 --> x2_0
  x0_0 -.-> x0_1
  x1_0 --> x0_1
  x1_0 -.-> x1_1
  x2_0 --> x1_1
  x0_0 -.-> x0_2
  x0_1 -.-> x0_2
  x1_1 --> x0_2
"""


@every_example
def test_a_drawing_is_the_same_each_time(data):
    shuffled = data | {"nodes": dict(reversed(data["nodes"].items()))}
    graph, other = Graph.from_dict(data), Graph.from_dict(shuffled)
    assert graph.to_svg() == other.to_svg()
    assert graph.to_mermaid() == other.to_mermaid()


def test_inputs_from_above_point_down():
    drawing = Drawing(Graph.from_dict(FULL_SCALE).to_svg())
    assert ("x0_0", "x2_1") in drawing.edges and ("x2_1", "x0_0") not in drawing.edges
    assert ("x3_0", "x0_3") in drawing.edges and ("x3_0", "x0_3") not in drawing.skips
