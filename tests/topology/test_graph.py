import ast
import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from graphs import EXAMPLES, FINER, FULL_SCALE, OWN, PYRAMID, UNETPP_2, ancestors, random_graphs
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nestedseg
from nestedseg import Graph, GraphError
from nestedseg.topology.graph import MAX_EDGES, MAX_NODES, MAX_ROW, Node
from nestedseg.topology.rules import topology

PACKAGE = Path(nestedseg.__file__).parent
ANY = random_graphs(min_levels=1, beyond=1)
every_example = pytest.mark.parametrize("data", EXAMPLES.values(), ids=list(EXAMPLES))


def own(**changes):
    """The JSON object OWN, with other nodes or heads."""
    data = copy.deepcopy(OWN)
    data["nodes"] |= changes.pop("nodes", {})
    return data | changes


# -- what a graph holds ----------------------------------------------------------------------


def test_the_designs_example_is_unetpp_of_depth_2():
    assert Graph.from_dict(UNETPP_2) == topology("unetpp", 2)
    assert Graph.from_json(json.dumps(UNETPP_2)) == topology("unetpp", 2)
    assert topology("unetpp", 2).to_dict() == UNETPP_2


def test_nodes_hold_what_was_written():
    graph = Graph.from_dict(FULL_SCALE)
    assert graph.nodes["x1_2"] == Node("x1_2", ("x0_0", "x1_0", "x2_1", "x3_0"), 6, "sum")
    assert graph.nodes["x0_3"] == Node("x0_3", ("x0_0", "x1_2", "x2_1", "x3_0"))
    assert graph.nodes["x0_3"].fuse == "concat"
    assert [node.row for node in graph.nodes.values()] == [2, 1, 0]
    assert graph.heads == ("x0_3", "x1_2", "x2_1")


@pytest.mark.parametrize(("data", "depth", "levels", "encoder"), [
    (UNETPP_2, 2, 3, ("x0_0", "x1_0", "x2_0")),
    (OWN, 3, 4, ("x0_0", "x1_0", "x2_0", "x3_0")),
    (FINER, 2, 2, ("x1_0", "x2_0")),
    ({"nodes": {"x0_1": ["x0_0", "x10_0", "x2_0"]}, "heads": ["x0_1"]}, 10, 11,
     ("x0_0", "x2_0", "x10_0")),
])
def test_the_encoder_that_is_needed(data, depth, levels, encoder):
    graph = Graph.from_dict(data)
    assert (graph.depth, graph.levels, graph.encoder_nodes) == (depth, levels, encoder)


def test_repr_says_what_it_is():
    text = repr(Graph.from_dict(OWN, "mine"))
    assert text == "Graph('mine', depth=3, nodes=4, heads=['x0_1', 'x0_3'])"


# -- identity --------------------------------------------------------------------------------


@every_example
def test_to_dict_gives_back_what_was_written(data):
    assert Graph.from_dict(data).to_dict() == data


@pytest.mark.parametrize("value", [
    ["x0_0", "x1_0"],
    {"inputs": ["x0_0", "x1_0"], "channels": 5},
    {"inputs": ["x0_0", "x1_0"], "fuse": "sum"},
    {"inputs": ["x0_0", "x1_0"], "block": "residual"},
    {"inputs": ["x0_0", "x1_0"], "channels": 5, "fuse": "sum", "block": "residual"},
], ids=str)
def test_a_node_says_no_more_than_it_must(value):
    graph = Graph.from_dict(own(nodes={"x0_1": value}))
    assert graph.to_dict()["nodes"]["x0_1"] == value
    assert pickle.loads(pickle.dumps(graph)) == graph
    assert graph.prune(1).nodes["x0_1"] == graph.nodes["x0_1"]


@settings(max_examples=40, deadline=None)
@given(ANY)
def test_every_way_out_and_in_gives_an_equal_graph(graph):
    ways = [
        Graph.from_dict(graph.to_dict(), graph.name),
        Graph.from_json(graph.to_json(), graph.name),
        Graph.from_json(graph.to_json(indent=None), graph.name),
        Graph(graph.nodes, graph.heads, graph.encoder_row, graph.name),
        pickle.loads(pickle.dumps(graph)),
        copy.deepcopy(graph),
        dataclasses.replace(graph),
    ]
    for other in ways:
        assert other == graph and hash(other) == hash(graph)
        assert other.name == graph.name
        assert list(other.nodes.items()) == list(graph.nodes.items())


def test_a_json_file_names_the_graph(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(FINER))
    graph = Graph.from_json(path)
    assert graph == Graph.from_dict(FINER)
    assert graph.name == "mine"


@pytest.mark.parametrize("change", [
    {"heads": ["x0_3"]},
    {"heads": ["x0_3", "x0_1"]},
    {"nodes": {"x0_3": ["x0_1", "x0_0", "x1_2"]}},  # the order of concatenation counts
    {"nodes": {"x0_3": ["x0_0", "x1_2"]}},
    {"nodes": {"x1_2": ["x0_1", "x1_0", "x2_1"]}},
    {"nodes": {"x0_1": {"inputs": ["x0_0", "x1_0"], "channels": 5}}},
    {"nodes": {"x0_1": {"inputs": ["x0_0", "x1_0"], "block": "residual"}}},
    {"nodes": {"x4_1": ["x3_0"]}, "heads": ["x0_1", "x0_3", "x4_1"]},
], ids=str)
def test_each_part_counts_in_a_comparison(change):
    graph, other = Graph.from_dict(OWN), Graph.from_dict(own(**change))
    assert graph != other
    assert len({graph, other}) == 2


def test_the_encoders_row_counts_in_a_comparison():
    nodes, heads = FINER["nodes"], FINER["heads"]
    assert Graph(nodes, heads, 1) != Graph(nodes, heads, 0)


def test_a_name_is_no_part_of_the_identity():
    assert Graph.from_dict(OWN, "a") == Graph.from_dict(OWN, "b")
    assert len({Graph.from_dict(OWN, "a"), Graph.from_dict(OWN, "b")}) == 1
    assert Graph.from_dict(OWN) != OWN


def test_a_long_and_a_short_spelling_are_equal():
    long = {"inputs": ["x0_0", "x1_0"], "fuse": "concat", "channels": None, "block": None}
    assert Graph.from_dict(own(nodes={"x0_1": long})) == Graph.from_dict(OWN)


# -- frozen ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["nodes", "heads", "encoder_row", "name", "other"])
def test_attributes_cannot_be_assigned(attribute):
    graph = Graph.from_dict(OWN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(graph, attribute, graph.heads)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(graph, attribute)


def test_nodes_cannot_be_changed():
    graph = Graph.from_dict(OWN)
    with pytest.raises(TypeError):
        graph.nodes["x0_1"] = graph.nodes["x0_3"]
    with pytest.raises(TypeError):
        del graph.nodes["x0_1"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.nodes["x0_1"].channels = 3
    assert isinstance(graph.nodes["x0_1"].inputs, tuple)


def test_the_users_dict_is_read_once_and_left_alone():
    data = own()
    graph = Graph.from_dict(data)
    assert data == OWN
    data["nodes"]["x0_1"].append("x0_3")
    data["heads"].clear()
    del data["nodes"]["x2_1"]
    assert graph == Graph.from_dict(OWN)
    graph.to_dict()["nodes"]["x0_1"].append("x0_3")
    assert graph.to_dict() == OWN


# -- order -----------------------------------------------------------------------------------


def test_order_goes_by_anti_diagonals():
    assert topology("unetpp", 3).order() == ("x0_1", "x1_1", "x0_2", "x2_1", "x1_2", "x0_3")
    assert Graph.from_dict(PYRAMID).order() == ("x2_1", "x1_1", "x0_1")


@settings(max_examples=40, deadline=None)
@given(ANY)
def test_each_node_comes_after_its_inputs(graph):
    order = graph.order()
    assert sorted(order) == sorted(graph.nodes)
    done = {f"x{row}_0" for row in range(graph.encoder_row, graph.depth + 1)}
    for name in order:
        assert done.issuperset(graph.nodes[name].inputs)
        done.add(name)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_order_does_not_depend_on_the_order_of_the_dict(data):
    graph = data.draw(ANY)
    shuffled = dict(data.draw(st.permutations(list(graph.to_dict()["nodes"].items()))))
    other = Graph(shuffled, graph.heads, graph.encoder_row)
    assert other.order() == graph.order()
    assert other == graph and hash(other) == hash(graph)


# -- heads, depths, pruning ------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "depths"), [
    (["x0_1"], (1,)),
    (["x0_3"], (3,)),  # one head: the deepest row that it needs, as L^3 ends in X^{0,3}
    (["x0_1", "x0_3"], (1, 3)),
    (["x0_1", "x1_2", "x0_3"], (1, 2, 3)),
    (["x0_3", "x0_1"], (1, 2)),  # does not grow: counted
    (["x0_1", "x2_1", "x0_3"], (1, 2, 3)),
    (["x0_3", "x2_1", "x1_2"], (1, 2, 3)),
])
def test_depths_are_rows_of_the_encoder_that_grow_or_else_a_count(heads, depths):
    kept = ancestors(OWN["nodes"], heads)
    nodes = {name: value for name, value in OWN["nodes"].items() if name in kept}
    graph = Graph(nodes, heads)
    assert graph.depths == depths
    assert [graph.head(depth) for depth in depths] == heads


@settings(max_examples=40, deadline=None)
@given(ANY)
def test_depths_grow_and_name_each_head(graph):
    assert all(a < b for a, b in pairwise(graph.depths))
    assert tuple(graph.head(depth) for depth in graph.depths) == graph.heads
    rows = [graph.prune(depth).depth for depth in graph.depths]
    grows = rows == sorted(set(rows)) and rows[0] > 0
    assert graph.depths == tuple(rows if grows else range(1, len(rows) + 1))


@settings(max_examples=40, deadline=None)
@given(ANY)
def test_prune_keeps_exactly_the_ancestors(graph):
    for depth, head in zip(graph.depths, graph.heads):
        pruned = graph.prune(depth)
        expected = ancestors(graph.to_dict()["nodes"], [head])
        assert {*pruned.nodes, *pruned.encoder_nodes} == expected == graph.ancestors([head])
        assert pruned.heads == (head,)
        assert pruned.encoder_row == graph.encoder_row and pruned.name == graph.name
        assert all(pruned.nodes[name] == graph.nodes[name] for name in pruned.nodes)


@settings(max_examples=40, deadline=None)
@given(ANY)
def test_prune_is_idempotent(graph):
    for depth in graph.depths:
        pruned = graph.prune(depth)
        assert pruned.prune(pruned.depths[-1]) == pruned
        if len(graph.heads) == 1:
            assert pruned == graph


@pytest.mark.parametrize("name", ["unet_plus", "unetpp"])
def test_a_pruned_depth_keeps_its_number(name):
    graph = topology(name, 4)
    for depth in (1, 2, 3, 4):
        pruned = graph.prune(depth)
        assert pruned.depths == (depth,) and pruned.depth == depth
        assert pruned.prune(depth) == pruned
        assert len(pruned.nodes) == depth * (depth + 1) // 2
    assert set(graph.prune(4).nodes) == set(graph.nodes)


def test_prune_by_hand():
    pruned = Graph.from_dict(OWN).prune(1)
    assert pruned.to_dict() == {"nodes": {"x0_1": ["x0_0", "x1_0"]}, "heads": ["x0_1"]}
    assert pruned.depth == 1
    assert Graph.from_dict(PYRAMID).prune(3).to_dict() == {
        "nodes": {"x2_1": PYRAMID["nodes"]["x2_1"]}, "heads": ["x2_1"]}
    finer = Graph.from_dict(FINER)
    assert finer.prune(2) == finer and finer.prune(2).encoder_row == 1


@pytest.mark.parametrize("depth", [0, 2, 4, -1, None, "1", True, 1.0, [1]], ids=repr)
def test_a_depth_without_a_head_is_refused(depth):
    graph = Graph.from_dict(OWN, "mine")
    for method in (graph.prune, graph.head):
        with pytest.raises(GraphError, match=r"topology 'mine'.*\[1, 3\]"):
            method(depth)


# -- malformed graphs ------------------------------------------------------------------------

LONG = "x" * 100_000
HUGE = 10**5_000  # int() and str() refuse numbers of more than 4,300 digits
DEEP = []
for _ in range(100_000):
    DEEP = [DEEP]


def node(**value):
    return own(nodes={"x0_1": {"inputs": ["x0_0", "x1_0"]} | value})


def edge(name):
    return own(nodes={"x0_1": ["x0_0", name]})


def named(name):
    return own(nodes={name: ["x0_0", "x1_0"]})


MALFORMED = {
    # what stands at the top
    "no object": ([1], ["'nodes'", "'heads'", "list"]),
    "null": (None, ["'nodes'", "NoneType"]),
    "no nodes": ({"heads": ["x0_1"]}, ["'nodes'", "missing"]),
    "no heads": ({"nodes": UNETPP_2["nodes"]}, ["'heads'", "missing"]),
    "unknown key": (own(head=["x0_1"]), ["'head'", "did you mean 'heads'?", "encoder_row"]),
    "key that is no text": (own() | {5: 1}, ["5", "encoder_row"]),
    "nodes empty": (own() | {"nodes": {}}, ["'nodes' is empty"]),
    "nodes list": (own() | {"nodes": [["x0_1", ["x0_0"]]]}, ["'nodes'", "list"]),
    "nodes text": (own() | {"nodes": "x0_1"}, ["'nodes'", "str"]),
    "nodes many": (own() | {"nodes": {f"x{i % 30}_{i // 30 + 1}": ["x0_0"] for i in range(1001)}},
                   ["1001 nodes", "at most 1000"]),
    "encoder_row -1": (own(encoder_row=-1), ["'encoder_row'", "from 0 to 31", "-1"]),
    "encoder_row 32": (own(encoder_row=32), ["'encoder_row'", "from 0 to 31", "32"]),
    "encoder_row True": (own(encoder_row=True), ["'encoder_row'", "True"]),
    "encoder_row 0.0": (own(encoder_row=0.0), ["'encoder_row'", "0.0"]),
    "encoder_row null": (own(encoder_row=None), ["'encoder_row'", "None"]),
    # names
    "x0_01": (named("x0_01"), ["'x0_01'", "x0_1"]),
    "y1_1": (named("y1_1"), ["'y1_1'", "x0_1"]),
    "x1": (named("x1"), ["'x1'", "x0_1"]),
    "x-1_2": (named("x-1_2"), ["'x-1_2'", "x0_1"]),
    "x1_-2": (named("x1_-2"), ["'x1_-2'", "x0_1"]),
    "X0_1": (named("X0_1"), ["'X0_1'", "x0_1"]),
    "line break": (named("x0_1\n"), [r"'x0_1\n'"]),
    "other digits in a row": (named("x1\u0663_1"), ["is not a node name"]),
    "other digits in a column": (named("x0_1\u0663"), ["is not a node name"]),
    "x1_2_3": (named("x1_2_3"), ["'x1_2_3'"]),
    "no text": (named(5), ["5 is not a node name"]),
    "empty name": (named(""), ["'' is not a node name"]),
    "row too deep": (named("x32_1"), ["'x32_1'", "32", "31"]),
    "column 0": (named("x0_0"), ["'x0_0'", "encoder", "column 1"]),
    # values
    "value null": (own(nodes={"x0_1": None}), ["node 'x0_1'", "None"]),
    "value text": (own(nodes={"x0_1": "x0_0"}), ["node 'x0_1'", "'x0_0'", "list"]),
    "value number": (own(nodes={"x0_1": 1}), ["node 'x0_1'", "1"]),
    "unknown node key": (node(input=["x0_0"]),
                         ["node 'x0_1'", "'input'", "did you mean 'inputs'?"]),
    "node key name": (node(name="x0_1"),
                      ["node 'x0_1'", "'name'", "inputs, channels, fuse, block"]),
    "no inputs": (own(nodes={"x0_1": []}), ["node 'x0_1'", "'inputs'", "[]"]),
    "inputs missing": (own(nodes={"x0_1": {"fuse": "sum"}}), ["node 'x0_1'", "'inputs'", "None"]),
    "inputs text": (node(inputs="x0_0"), ["node 'x0_1'", "'inputs'", "'x0_0'"]),
    "inputs object": (node(inputs={"x0_0": 1}), ["node 'x0_1'", "'inputs'"]),
    **{f"channels {value!r}": (node(channels=value),
                               ["node 'x0_1'", "'channels'", "from 1 to 65536", repr(value)])
       for value in (0, -1, True, "8", 8.0, 1e9, 65_537, float("nan"), [8])},
    "fuse": (node(fuse="concatenate"), ["node 'x0_1'", "'concatenate'", "did you mean 'concat'?",
                                        "concat, sum"]),
    "fuse null": (node(fuse=None), ["node 'x0_1'", "None", "concat, sum"]),
    "fuse list": (node(fuse=["sum"]), ["node 'x0_1'", "['sum']", "concat, sum"]),
    "block": (node(block=5), ["node 'x0_1'", "'block'", "5"]),
    # edges
    "unknown input": (edge("x1_3"), ["node 'x0_1'", "'x1_3'", "did you mean 'x1_2'?", "x0_3"]),
    "input bad": (edge("x1-0"), ["node 'x0_1'", "'x1-0'", "is not a node name"]),
    "input number": (edge(5), ["node 'x0_1'", "5", "is not a node name"]),
    "input list": (edge(["x1_0"]), ["node 'x0_1'", "['x1_0']", "is not a node name"]),
    "input too deep": (edge("x32_0"), ["node 'x0_1'", "'x32_0'", "31"]),
    "duplicate input": (edge("x0_0"), ["node 'x0_1'", "'x0_0'", "twice"]),
    "encoder above its row": (FINER | {"nodes": {"x0_2": ["x0_0", "x1_0"]}},
                              ["node 'x0_2'", "'x0_0'", "'x1_0'"]),
    "cycle of 1": (edge("x0_1"), ["node 'x0_1'", "x0_1 <- x0_1"]),
    "cycle of 2": (edge("x0_3"), ["node 'x0_1'", "cycle", "x0_1 <- x0_3 <- x0_1"]),
    "cycle of 3": (own(nodes={"x2_1": ["x2_0", "x0_3"]}),
                   ["node 'x0_3'", "cycle", "x0_3 <- x1_2 <- x2_1 <- x0_3"]),
    "cycle below": (own(nodes={"x3_1": ["x2_1"], "x2_1": ["x3_1"]}),
                    ["node 'x2_1'", "form a cycle: x2_1 <- x3_1 <- x2_1"]),
    # Each node reads something, so without the encoder the inputs must form a cycle.
    "no node reads the encoder": (
        {"nodes": {"x0_1": ["x1_1"], "x1_1": ["x0_1"]}, "heads": ["x0_1"]},
        ["node 'x0_1'", "cycle", "x0_1 <- x1_1 <- x0_1"]),
    "dead node": (own(nodes={"x1_1": ["x1_0", "x2_0"]}), ["node 'x1_1'", "dead"]),
    "dead chain": (own(nodes={"x3_2": ["x3_0"], "x2_3": ["x3_2"]}), ["node 'x2_3'", "dead"]),
    # heads
    "heads empty": (own(heads=[]), ["'heads'", "[]"]),
    "heads text": (own(heads="x0_3"), ["'heads'", "'x0_3'"]),
    "heads null": (own(heads=None), ["'heads'", "None"]),
    "heads numbers": (own(heads=["x0_3", 5]), ["'heads'", "5"]),
    "heads nested": (own(heads=[["x0_3"]]), ["'heads'", "[['x0_3']]"]),
    "head twice": (own(heads=["x0_1", "x0_3", "x0_1"]), ["'x0_1'", "twice"]),
    "head unknown": (own(heads=["x0_1", "x0_33"]), ["'x0_33'", "did you mean 'x0_3'?", "x2_1"]),
    "head encoder": (own(heads=["x0_0"]), ["'x0_0'", "x0_1"]),
}


@pytest.mark.parametrize(("data", "parts"), MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_graph_is_refused_with_one_message(data, parts):
    with pytest.raises(GraphError) as caught:
        Graph.from_dict(data, "mine")
    assert type(caught.value) is GraphError
    message = str(caught.value)
    for part in ["topology 'mine'", *parts]:
        assert part in message


def test_what_the_malformed_graphs_are_made_from_is_sound():
    # Else each of them could be refused for another reason than the one in its name.
    sound = [own(), node(), node(channels=8), node(fuse="sum"), node(block="b"), edge("x1_0"),
             edge("x31_0"), own(encoder_row=0), FINER]
    for data in sound:
        assert isinstance(Graph.from_dict(data), Graph)
    assert Graph.from_dict(node(channels=65_536)).nodes["x0_1"].channels == 65_536


EVERYWHERE = {
    "key": lambda value: own() | {value: 1},
    "nodes": lambda value: own() | {"nodes": value},
    "encoder_row": lambda value: own(encoder_row=value),
    "heads": lambda value: own(heads=value),
    "head": lambda value: own(heads=[value]),
    "head twice": lambda value: own(heads=["x0_1", value, value]),
    "node": named,
    "value": lambda value: own(nodes={"x0_1": value}),
    "node key": lambda value: node(**{value: 1}) if isinstance(value, str)
    else own(nodes={"x0_1": {value: 1}}),
    "inputs": lambda value: node(inputs=value),
    "input": edge,
    "channels": lambda value: node(channels=value),
    "fuse": lambda value: node(fuse=value),
    "block": lambda value: node(block=value),
}


@pytest.mark.parametrize("value", [LONG, HUGE, DEEP, [LONG] * 50, float("inf")],
                         ids=["long", "huge", "deep", "wide", "inf"])
@pytest.mark.parametrize("place", EVERYWHERE)
def test_a_monstrous_value_is_refused_with_a_short_message(place, value):
    if place in ("key", "node", "node key") and isinstance(value, list):
        value = (LONG,) * 50  # keys are hashable
    if place == "block" and isinstance(value, str):
        value = [value]  # any text may be the name of a block until a model is made
    with pytest.raises(GraphError) as caught:
        Graph.from_dict(EVERYWHERE[place](value), "mine")
    assert "topology 'mine'" in str(caught.value)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize(("text", "parts"), [
    ("", ["not valid JSON"]),
    ("{", ["not valid JSON"]),
    ("nonsense", ["not valid JSON"]),
    ("[1, 2]", ["list"]),
    ("NaN", ["float"]),
    ("\ufeff{}", ["not valid JSON"]),
    ("[" * 100_000, ["not valid JSON"]),
    ('{"nodes":' * 100_000, ["not valid JSON"]),
    ("[" * 100_000 + "]" * 100_000, ["not valid JSON"]),
    ("9" * 5_000, ["not valid JSON"]),
    ('{"nodes": {"x0_1": {"inputs": ["x0_0"], "channels": NaN}}, "heads": ["x0_1"]}', ["nan"]),
    ('{"nodes": {"x0_1": {"inputs": ["x0_0"], "channels": 1e999}}, "heads": ["x0_1"]}', ["inf"]),
    ('{"nodes": {"x0_1": ["x0_0"]}, "heads": ["x0_1"], "heads": ["x0_1"]}', ["'heads'", "twice"]),
    ('{"nodes": {"x0_1": ["x0_0"], "x0_1": ["x1_0"]}, "heads": ["x0_1"]}', ["'x0_1'", "twice"]),
    ('{"nodes": {"x0_1": {"inputs": ["x0_0"], "inputs": ["x1_0"]}}, "heads": ["x0_1"]}',
     ["'inputs'", "twice"]),
    (f'{{"{LONG}": 1, "{LONG}": 1}}', ["twice"]),
], ids=lambda value: value[:20] if isinstance(value, str) else "")
def test_malformed_json_is_refused_with_one_message(text, parts):
    with pytest.raises(GraphError) as caught:
        Graph.from_json(text, "mine")
    message = str(caught.value)
    assert len(message) < 1_000
    for part in ["topology 'mine'", *parts]:
        assert part in message


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"\x00", b"", b"{"], ids=repr)
def test_a_file_that_is_no_json_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(GraphError, match="topology 'broken'"):
        Graph.from_json(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_a_file_that_may_never_end_is_not_read(tmp_path, kind):
    path = tmp_path / "endless.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(GraphError, match=r"topology 'endless' .*(regular file|too large)"):
        Graph.from_json(path)


# -- limits ----------------------------------------------------------------------------------


def test_a_chain_as_long_as_allowed_needs_no_recursion():
    names = [f"x{i % 2}_{i // 2 + 1}" for i in range(MAX_NODES)]
    chain = {name: [before] for before, name in pairwise(["x1_0", *names])}
    graph = Graph(dict(reversed(chain.items())), [names[-1]])
    assert graph.order() == tuple(names)
    assert graph.prune(graph.depths[0]) == graph
    assert pickle.loads(pickle.dumps(graph)) == graph
    with pytest.raises(GraphError, match="cycle"):
        Graph(chain | {names[0]: [names[-1]]}, [names[-1]])


def test_as_many_edges_as_allowed_are_read():
    names = [f"x{i % 30}_{i // 30 + 1}" for i in range(MAX_NODES)]
    dense = {name: ["x0_0", *names[max(0, index - 19):index]] for index, name in enumerate(names)}
    dense[names[-1]] += names[:MAX_EDGES - sum(map(len, dense.values()))]
    graph = Graph(dense, [names[-1]])
    assert graph.order() == tuple(names)  # each reads the one before
    assert sum(len(node.inputs) for node in graph.nodes.values()) == MAX_EDGES
    dense[names[-2]].append("x1_0")
    with pytest.raises(GraphError, match=f"{MAX_EDGES + 1} inputs in all; at most {MAX_EDGES}"):
        Graph(dense, [names[-1]])


def test_the_deepest_row_is_allowed():
    graph = Graph({f"x{MAX_ROW}_1": [f"x{MAX_ROW}_0"]}, [f"x{MAX_ROW}_1"], MAX_ROW)
    assert (graph.depth, graph.levels) == (MAX_ROW, 1)


# -- anything at all -------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner,
                                                                max_size=4),
    max_leaves=12)
ODD = JSON | st.sampled_from(["x0_1", "x1_1", "x0_2", "x1_0", "x0_0", "x9_0", "x32_1", "x01_1",
                              "sum", 1, 8])


def places(value):
    """Every (container, key) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


@st.composite
def spoiled(draw):
    """A graph's JSON object in which one key or value, anywhere, is replaced by another."""
    data = draw(ANY).to_dict()
    container, key = draw(st.sampled_from(list(places(data))[::-1]))  # leaves first
    if isinstance(container, dict) and draw(st.integers(0, 3)) == 3:
        container[draw(ODD.filter(lambda odd: isinstance(odd, str)))] = container.pop(key)
    else:
        container[key] = draw(ODD)
    return data


@settings(max_examples=100, deadline=None)
@given(JSON | spoiled())
@example(UNETPP_2)
def test_any_json_is_a_graph_or_a_graph_error(data):
    try:
        graph = Graph.from_dict(data, "any")
    except GraphError as error:
        assert "topology 'any'" in str(error)
        assert len(str(error)) < 1_000
    else:
        assert Graph.from_json(graph.to_json()) == graph
        assert set(graph.to_dict()["nodes"]) == set(data["nodes"])
        assert graph.ancestors(graph.heads) >= set(data["nodes"])


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20) | JSON.map(json.dumps))
def test_any_text_is_a_graph_or_a_graph_error(text):
    try:
        assert isinstance(Graph.from_json(text, "any"), Graph)
    except GraphError as error:
        assert "topology 'any'" in str(error)


# -- no torch --------------------------------------------------------------------------------


MODULES = [*(PACKAGE / "base" / f"{name}.py" for name in ("errors", "regular_files")),
           *(PACKAGE / "topology").glob("*.py")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_only_the_standard_library_and_each_other_are_imported(path):
    allowed = ("nestedseg.base.errors", "nestedseg.base.regular_files", "nestedseg.topology")
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0
            names = [statement.module]
        else:
            continue
        for name in names:
            assert name.startswith(allowed) or name.split(".")[0] in sys.stdlib_module_names


def test_graphs_work_where_torch_cannot_be_imported():
    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "timm", "numpy"]))  # None: importing them raises
import nestedseg
graph = nestedseg.topology("unetpp", 3)
print(len(graph.prune(2).nodes), graph.to_svg(keep=1).count("<circle"), len(graph.to_mermaid()) > 9)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.split() == ["3", "10", "True"], run.stderr
