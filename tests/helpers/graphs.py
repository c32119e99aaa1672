"""Graphs for the tests: some named examples, and a hypothesis strategy for all others. No torch."""

from hypothesis import strategies as st

from nestedseg.topology.graph import Graph

# The design's whole description of UNet++ L^2.
UNETPP_2 = {
    "nodes": {
        "x0_1": ["x0_0", "x1_0"],
        "x1_1": ["x1_0", "x2_0"],
        "x0_2": ["x0_0", "x0_1", "x1_1"],
    },
    "heads": ["x0_1", "x0_2"],
}

# What a user writes in six lines (docs/topologies.md).
OWN = {
    "nodes": {"x0_1": ["x0_0", "x1_0"],
              "x2_1": ["x2_0", "x3_0"],
              "x1_2": {"inputs": ["x0_1", "x1_0", "x2_1"], "fuse": "sum"},
              "x0_3": ["x0_0", "x0_1", "x1_2"]},
    "heads": ["x0_1", "x0_3"],
}

# After UNet 3+: each node reads every row, from above and from two rows deeper; a head a row.
FULL_SCALE = {
    "nodes": {
        "x2_1": {"inputs": ["x0_0", "x1_0", "x2_0", "x3_0"], "fuse": "sum"},
        "x1_2": {"inputs": ["x0_0", "x1_0", "x2_1", "x3_0"], "fuse": "sum", "channels": 6},
        "x0_3": ["x0_0", "x1_2", "x2_1", "x3_0"],
    },
    "heads": ["x0_3", "x1_2", "x2_1"],
}

# A feature pyramid: heads on every row, in columns that do not grow; none reads all nodes.
PYRAMID = {
    "nodes": {
        "x2_1": {"inputs": ["x2_0", "x3_0"], "fuse": "sum", "channels": 4},
        "x1_1": {"inputs": ["x1_0", "x2_1"], "fuse": "sum", "channels": 4},
        "x0_1": {"inputs": ["x0_0", "x1_1"], "fuse": "sum", "channels": 4},
    },
    "heads": ["x0_1", "x1_1", "x2_1"],
}

# The encoder begins in row 1, so that x0_2 is up-sampled alone.
FINER = {
    "nodes": {"x1_1": ["x1_0", "x2_0"], "x0_2": ["x1_1"]},
    "heads": ["x0_2"],
    "encoder_row": 1,
}

EXAMPLES = {
    "unetpp_2": UNETPP_2,
    "own": OWN,
    "full_scale": FULL_SCALE,
    "pyramid": PYRAMID,
    "finer": FINER,
}


def inputs_of(value):
    """The inputs in a node's JSON value, which is a list or an object."""
    return value["inputs"] if isinstance(value, dict) else value


def ancestors(nodes, names):
    """By the definition: add the inputs of what is there until nothing is new."""
    found = set(names)
    while True:
        more = {name for node in found if node in nodes for name in inputs_of(nodes[node])}
        if more <= found:
            return found
        found |= more


@st.composite
def random_graphs(draw, max_depth=4, max_nodes=9, encoder_rows=(0, 1), min_levels=2, beyond=0):
    """Any valid graph: every edge that the order of computation allows, from above and below.

    Args:
        max_depth: of the deepest encoder feature, which is always read.
        max_nodes: decoder nodes, before those that no head needs are dropped.
        encoder_rows: the rows where the encoder may begin.
        min_levels: of the encoder.
        beyond: how many rows deeper than the encoder's deepest a decoder node may lie.
    """
    encoder_row = draw(st.sampled_from(encoder_rows))
    depth = draw(st.integers(max(1, encoder_row + min_levels - 1), max_depth))
    size = draw(st.integers(1, max_nodes))
    cells = draw(st.lists(
        st.tuples(st.integers(1, depth + 3), st.integers(0, depth + beyond)),
        min_size=min(size, 3 * depth), max_size=size, unique=True))
    if draw(st.booleans()):
        cells.sort()  # column by column, as in the paper; else an edge may lead back
    known = [f"x{row}_0" for row in range(encoder_row, depth + 1)]
    nodes = {}
    for column, row in cells:
        inputs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True))
        # The first node reads the deepest feature, else the graph would be shallower than was
        # drawn; the others often the node before, else most would be dead.
        if known[-1] not in inputs and (not nodes or draw(st.integers(0, 3))):
            inputs.append(known[-1])
        value = {"inputs": inputs}
        if draw(st.booleans()):
            value["fuse"] = draw(st.sampled_from(["concat", "sum"]))
        if draw(st.integers(0, 3)) == 3:
            value["channels"] = draw(st.integers(1, 8))
        name = f"x{row}_{column}"
        nodes[name] = value if len(value) > 1 else inputs
        known.append(name)
    names = list(reversed(nodes))  # hypothesis prefers the first, and the last node needs most
    heads = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    if names[-1] not in ancestors(nodes, heads):
        heads.append(names[-1])  # it alone is sure to read the deepest feature
    kept = ancestors(nodes, heads)
    nodes = {name: nodes[name] for name in draw(st.permutations(names)) if name in kept}
    return Graph(nodes, heads, encoder_row, "random")
