import copy
import json

import pytest
from graphs import EXAMPLES, FULL_SCALE, OWN, PYRAMID, random_graphs
from hypothesis import given, settings

from nestedseg import Graph, GraphError
from nestedseg.topology import rules
from nestedseg.topology.rules import (
    list_topologies,
    read_graph,
    register_topology,
    resolve,
    topology,
    with_supervision,
)

NAMES = ["unet", "unet_e", "unet_plus", "unetpp"]
PYRAMIDS = ["fpn", "fpn_plus", "fpnpp"]

# Fig. 1 for L = 3, read off by eye: the skips, then the node below.
FIGURE_1 = {
    "unet": {
        "x2_1": ["x2_0", "x3_0"],
        "x1_2": ["x1_0", "x2_1"],
        "x0_3": ["x0_0", "x1_2"],
    },
    "unet_e": {
        "x0_1": ["x0_0", "x1_0"],
        "x1_1": ["x1_0", "x2_0"],
        "x2_1": ["x2_0", "x3_0"],
        "x0_2": ["x0_0", "x1_1"],
        "x1_2": ["x1_0", "x2_1"],
        "x0_3": ["x0_0", "x1_2"],
    },
    "unet_plus": {
        "x0_1": ["x0_0", "x1_0"],
        "x1_1": ["x1_0", "x2_0"],
        "x2_1": ["x2_0", "x3_0"],
        "x0_2": ["x0_1", "x1_1"],
        "x1_2": ["x1_1", "x2_1"],
        "x0_3": ["x0_2", "x1_2"],
    },
    "unetpp": {
        "x0_1": ["x0_0", "x1_0"],
        "x1_1": ["x1_0", "x2_0"],
        "x2_1": ["x2_0", "x3_0"],
        "x0_2": ["x0_0", "x0_1", "x1_1"],
        "x1_2": ["x1_0", "x1_1", "x2_1"],
        "x0_3": ["x0_0", "x0_1", "x0_2", "x1_2"],
    },
}
HEADS = {
    "unet": ["x0_3"],
    "unet_e": ["x0_1", "x0_2", "x0_3"],
    "unet_plus": ["x0_1", "x0_2", "x0_3"],
    "unetpp": ["x0_1", "x0_2", "x0_3"],
}


def skips(name, i, j):
    """The columns of row i that X^{i,j} reads: what Eq. 1 puts beside the node below."""
    return {"unet": [0], "unet_e": [0], "unet_plus": [j - 1], "unetpp": list(range(j))}[name]


@pytest.fixture
def register():
    """Registers rules under names that are forgotten after the test."""
    before = dict(rules._RULES)
    yield register_topology
    rules._RULES.clear()
    rules._RULES.update(before)


# -- the paper's four ------------------------------------------------------------------------


def test_the_papers_topologies_are_known():
    assert set(NAMES) <= set(list_topologies())
    assert list_topologies() == sorted(list_topologies())


@pytest.mark.parametrize("name", NAMES)
def test_figure_1(name):
    assert topology(name, 3).to_dict() == {"nodes": FIGURE_1[name], "heads": HEADS[name]}


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_equation_1(name, depth):
    graph = topology(name, depth)
    assert (graph.name, graph.depth, graph.encoder_row) == (name, depth, 0)
    single = name == "unet"
    cells = [(i, j) for i in range(depth + 1) for j in range(1, depth + 1)
             if (i + j == depth if single else i + j <= depth)]
    expected = {f"x{i}_{j}": (*(f"x{i}_{k}" for k in skips(name, i, j)), f"x{i + 1}_{j - 1}")
                for i, j in cells}
    assert {key: node.inputs for key, node in graph.nodes.items()} == expected
    assert len(graph.nodes) == (depth if single else depth * (depth + 1) // 2)
    assert all(node.fuse == "concat" and node.channels is None and node.block is None
               for node in graph.nodes.values())
    assert graph.depths == ((depth,) if single else tuple(range(1, depth + 1)))
    assert graph.heads == tuple(f"x0_{j}" for j in graph.depths)
    assert len(graph.encoder_nodes) == depth + 1 or name == "unet_plus"


def test_all_four_are_the_same_unet_at_depth_1():
    assert len({topology(name, 1) for name in NAMES}) == 1


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_depth_of_unet_e_is_the_unet_of_that_depth(depth):
    assert topology("unet_e", 4).prune(depth) == topology("unet", depth)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["unet_e", "unet_plus", "unetpp"])
def test_a_depth_taken_from_a_deeper_network_is_the_same(name, depth):
    assert topology(name, 5).prune(depth) == topology(name, depth).prune(depth)


@pytest.mark.parametrize(("alias", "name"), [
    ("unet^e", "unet_e"), ("unet+", "unet_plus"), ("dla", "unet_plus"), ("unet++", "unetpp")])
def test_aliases(alias, name):
    assert topology(alias, 3) == topology(name, 3)
    assert topology(alias, 3).name == name
    assert alias not in list_topologies()


def test_the_deepest_that_rows_allow():
    assert topology("unet", 31).depth == 31
    assert len(topology("unetpp", 31).nodes) == 31 * 32 // 2


# -- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "match"), [
    ("unetp", "'unetpp'"), ("UNet++", "'unet++'"), ("unet_pluss", "'unet_plus'"),
    ("unet_plus.jsn", "'unet_plus'")])
def test_an_unknown_name_gets_its_nearest_match_and_all_others(name, match):
    with pytest.raises(ValueError) as caught:
        topology(name, 3)
    message = str(caught.value)
    assert repr(name) in message and f"did you mean {match}?" in message
    for allowed in (*NAMES, "unet^e", "unet+", "dla", "unet++"):
        assert allowed in message


@pytest.mark.parametrize("name", ["", "zzz", None, 5, "x" * 100_000], ids=lambda x: str(x)[:5])
def test_a_name_like_no_other_gets_the_list(name):
    with pytest.raises(ValueError, match=r"unknown topology .*unetpp") as caught:
        topology(name, 3)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("depth", [0, -1, True, "4", 4.0, None, [4], 32, 1000, 10**9, 10**5000],
                         ids=lambda depth: repr(depth)[:6] if depth != 10**5000 else "huge")
@pytest.mark.parametrize("name", ["unet", "unet++"])
def test_a_depth_that_is_none_is_refused(name, depth):
    with pytest.raises(GraphError) as caught:
        topology(name, depth)
    message = str(caught.value)
    assert f"topology {name!r}" in message and "depth" in message and "from 1 to 31" in message
    assert len(message) < 500


# -- a rule of one's own ---------------------------------------------------------------------


def test_a_new_topology_is_one_function(register):
    @register("pairs")
    def pairs(i, j, depth):
        if j == 1 or (i, j) == (0, 2):
            return {"inputs": [f"x{i}_{j - 1}", f"x{i + 1}_{j - 1}"], "fuse": "sum"}

    assert pairs(3, 2, 4) is None  # the function itself is left as it was
    assert list_topologies() == sorted([*NAMES, *PYRAMIDS, "pairs"])
    graph = with_supervision(topology("pairs", 2), None)
    assert graph.to_dict() == {
        "nodes": {"x0_1": {"inputs": ["x0_0", "x1_0"], "fuse": "sum"},
                  "x1_1": {"inputs": ["x1_0", "x2_0"], "fuse": "sum"},
                  "x0_2": {"inputs": ["x0_1", "x1_1"], "fuse": "sum"}},
        "heads": ["x0_2"]}
    assert graph.name == "pairs"
    assert resolve("pairs", None, 2, True).heads == ("x0_1", "x0_2")
    with pytest.raises(ValueError, match=r"did you mean 'pairs'\?"):
        topology("pair", 2)


def test_a_rule_is_asked_for_each_node_of_the_triangle_once(register):
    asked = []

    @register("asked")
    def rule(i, j, depth):
        asked.append((i, j, depth))
        return [f"x{i}_{j - 1}", f"x{i + 1}_{j - 1}"]

    topology("asked", 3)
    assert sorted(asked) == [(0, 1, 3), (0, 2, 3), (0, 3, 3), (1, 1, 3), (1, 2, 3), (2, 1, 3)]
    asked.clear()
    for depth in (0, 32, 1000):
        with pytest.raises(GraphError):
            topology("asked", depth)
    assert asked == []  # it could be asked half a million times for nothing


@pytest.mark.parametrize("name", [*NAMES, "unet+", "unet^e", "dla", "unet++"])
def test_a_name_that_is_taken_is_refused(register, name):
    before = topology(name, 3)
    with pytest.raises(ValueError, match="is registered already"):
        register(name)(lambda i, j, depth: ["x0_0"])
    assert topology(name, 3) == before


def test_a_name_can_be_registered_once(register):
    register("once")(rules.unet)
    with pytest.raises(ValueError, match="'once' is registered already"):
        register("once")(rules.unet)


@pytest.mark.parametrize(("rule", "part"), [
    (lambda i, j, depth: None, "'nodes' is empty"),
    (lambda i, j, depth: [f"x{i}_0"] if i else None, "'heads'"),
    (lambda i, j, depth: [f"x{i}_{j}"], "cycle"),
    (lambda i, j, depth: [f"x{i + 9}_{j}"], "unknown input"),
    (lambda i, j, depth: "x0_0", "'x0_0'"),
])
def test_a_wrong_rule_is_named_in_the_message(register, rule, part):
    register("wrong")(rule)
    with pytest.raises(GraphError, match="topology 'wrong'") as caught:
        topology("wrong", 2)
    assert part in str(caught.value)


# -- deep supervision ------------------------------------------------------------------------

ALL = ("x0_1", "x0_2", "x0_3")
DEEPEST = ("x0_3",)


@pytest.mark.parametrize(("name", "deep_supervision", "heads"), [
    ("unet", None, DEEPEST),  # not offered
    ("unet", False, DEEPEST),
    ("unet_e", None, ALL),  # required
    ("unet_e", True, ALL),
    ("unet_plus", None, DEEPEST),  # optional
    ("unet_plus", False, DEEPEST),
    ("unet_plus", True, ALL),
    ("unetpp", None, DEEPEST),
    ("unetpp", False, DEEPEST),
    ("unetpp", True, ALL),
])
def test_heads_as_in_the_paper(name, deep_supervision, heads):
    graph = with_supervision(topology(name, 3), deep_supervision)
    assert graph.heads == heads
    assert dict(graph.nodes) == dict(topology(name, 3).nodes)
    assert graph.name == name
    assert resolve(name, None, 3, deep_supervision) == graph


@pytest.mark.parametrize(("name", "deep_supervision"), [("unet", True), ("unet_e", False)])
def test_supervision_that_the_paper_does_not_offer_is_refused(name, deep_supervision):
    with pytest.raises(ValueError, match=f"'{name}'.*deep_supervision=True"):
        with_supervision(topology(name, 3), deep_supervision)


@pytest.mark.parametrize("deep_supervision", [None, True, False])
@pytest.mark.parametrize("name", NAMES)
def test_at_depth_1_there_is_one_head_to_choose(name, deep_supervision):
    assert with_supervision(topology(name, 1), deep_supervision) == topology("unet", 1)


def test_heads_of_a_pyramid_are_all_required():
    graph = Graph.from_dict(PYRAMID)
    assert with_supervision(graph, None) == with_supervision(graph, True) == graph
    with pytest.raises(ValueError, match="reads only 1 of its 3 decoder nodes"):
        with_supervision(graph, False)


@settings(max_examples=40, deadline=None)
@given(random_graphs(min_levels=1))
def test_supervision_drops_heads_but_never_a_node(graph):
    default = with_supervision(graph, None)
    assert default.nodes == graph.nodes
    assert default.heads in (graph.heads, graph.heads[-1:])
    needed = set(graph.ancestors(graph.heads[-1:]))
    if set(graph.nodes) <= needed:
        assert default.heads == graph.heads[-1:]
        assert with_supervision(graph, False) == default
    else:
        assert default == graph
        with pytest.raises(ValueError, match="deep_supervision=True"):
            with_supervision(graph, False)
    if len(graph.heads) > 1:
        assert with_supervision(graph, True) == graph


# -- a name, a graph, its dict or its file ---------------------------------------------------


@pytest.mark.parametrize("data", EXAMPLES.values(), ids=list(EXAMPLES))
def test_a_graph_its_dict_and_its_file_are_read_alike(tmp_path, data):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(data))
    graph = Graph.from_dict(data)
    for spec in (graph, data, path, str(path)):
        assert read_graph(spec) == graph
        assert resolve(spec, None, 4, None) == graph  # with the heads that it says
    assert read_graph(path).name == "own"


def test_a_depth_prunes_what_is_given_and_chooses_what_is_named():
    assert resolve(OWN, 1, 4, None) == Graph.from_dict(OWN).prune(1)
    assert resolve(FULL_SCALE, 2, 4, None).heads == ("x1_2",)
    assert resolve("unetpp", 2, 4, True) == topology("unetpp", 2)
    assert resolve("unetpp", None, 4, True) == topology("unetpp", 4)
    with pytest.raises(GraphError, match=r"no head at depth 2.*\[1, 3\]"):
        resolve(OWN, 2, 4, None)


def test_supervision_of_ones_own_graph_is_as_asked():
    data = copy.deepcopy(OWN)
    assert resolve(data, None, 4, True).heads == ("x0_1", "x0_3")
    assert resolve(data, None, 4, False).heads == ("x0_3",)
    with pytest.raises(ValueError, match="one head"):
        resolve(data, 3, 4, True)


@pytest.mark.parametrize("value", ["yes", 2, "", []], ids=repr)
def test_supervision_is_yes_or_no_or_left_open(value):
    with pytest.raises(ValueError, match="deep_supervision must be True, False or None"):
        resolve("unetpp", 2, 4, value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_graph(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        resolve("none.json", None, 4, None)


@pytest.mark.parametrize("spec", [None, 5, ["x0_1"], b"unet"], ids=repr)
def test_what_is_no_topology_is_refused(spec):
    with pytest.raises(TypeError, match=r"a topology must be a name.*got"):
        read_graph(spec)
