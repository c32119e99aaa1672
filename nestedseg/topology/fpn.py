"""Feature pyramids as graphs: the skips of a topology between 1x1 and 3x3 convolutions.

Column 1 holds a 1x1 convolution of each encoder feature (a "lateral"). The topology's own nodes
follow, shifted by one column, and add up their inputs. U-Net's skips give the feature pyramid
network (Lin et al., 2017, arXiv 1612.03144), UNet++'s the pyramid of Mask RCNN++ (Zhou et al.,
2020, section IV-B). Nodes on the last diagonal only add, as in Lin's network. The nodes before it,
which Lin's network does not have, also convolve and apply the activation: without that, dense skips
would only add up the same few maps in other proportions. The output level of each row is a 3x3
convolution of the row's last node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nestedseg.topology.graph import Graph, position

Rule = Callable[[int, int, int], "list[str] | dict[str, Any] | None"]
Nodes = dict[str, dict[str, Any]]


def feature_pyramid(rule: Rule, depth: int, name: str) -> Graph:
    """The pyramid of ``depth + 1`` levels, each a head, finest first."""
    nodes = sums(rule, depth)
    return Graph(nodes, add_levels(nodes, depth), name=name)


def semantic_pyramid(rule: Rule, depth: int, name: str) -> Graph:
    """The feature pyramid with its levels merged into one segmentation, as in Panoptic FPN.

    Each level is convolved (3x3, norm, activation) and up-sampled by 2 until it is as fine as the
    finest; then all are added up (Kirillov et al., 2019, arXiv 1901.02446). The head is on this
    sum. A topology that contains shallower pyramids has a head for each of them too, on its last
    node in row 0.
    """
    nodes = sums(rule, depth)
    shallower = [f"x0_{j}" for j in range(2, depth + 1) if f"x0_{j}" in nodes]
    levels = add_levels(nodes, depth)
    merged = [add_steps(nodes, level) for level in levels]
    return Graph(nodes, [*shallower, add(nodes, 0, merged, fuse="sum", block="identity")],
                 name=name)


def sums(rule: Rule, depth: int) -> Nodes:
    """The 1x1 convolutions of column 1, and the nodes that add up their inputs."""
    nodes: Nodes = {f"x{i}_1": {"inputs": [f"x{i}_0"], "block": "conv1x1"}
                    for i in range(depth + 1)}
    for j in range(1, depth + 1):
        for i in range(depth + 1 - j):
            value = rule(i, j, depth)
            if value is not None:
                inputs = value["inputs"] if isinstance(value, dict) else value
                nodes[f"x{i}_{j + 1}"] = {
                    "inputs": [one_further(node) for node in inputs], "fuse": "sum",
                    "block": "identity" if i + j == depth else "single_conv"}
    return nodes


def one_further(name: str) -> str:
    """The node one column further: ``"x0_1"`` -> ``"x0_2"``."""
    row, column = position(name)
    return f"x{row}_{column + 1}"


def add_levels(nodes: Nodes, depth: int) -> list[str]:
    """Adds the 3x3 convolution of each row's last node."""
    return [add(nodes, row, [f"x{row}_{depth + 1 - row}"], block="conv3x3")
            for row in range(depth + 1)]


def add_steps(nodes: Nodes, level: str) -> str:
    """Adds the convolutions of one level, one for each row from its own down to row 1.

    The finest level, row 0, gets one convolution too.
    """
    row = position(level)[0]
    for step in range(row, 0, -1) or [0]:
        level = add(nodes, step, [level], block="single_conv")
    return level


def add(nodes: Nodes, row: int, inputs: Sequence[str], **options: str) -> str:
    """Adds a node at the end of its row and returns its name."""
    last = max(position(name)[1] for name in nodes if position(name)[0] == row)
    name = f"x{row}_{last + 1}"
    nodes[name] = {"inputs": [*inputs], **options}
    return name
