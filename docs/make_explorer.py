"""Write the drawings and tables of docs/explorer/index.md: python docs/make_explorer.py"""

import json
from pathlib import Path

import torch

import nestedseg

FILE = Path(__file__).parent / "explorer/drawings.js"
DEPTHS = range(1, 6)
CHANNELS = [32, 64, 128, 256, 512, 1024]  # the plain encoder's, and its doubling for a depth of 5
SIZE = 256


def main() -> None:
    FILE.write_text(script(drawings(), figures()), encoding="utf-8")


def drawings() -> dict[str, str]:
    """SVG by "topology/depth/keep", where keep is a depth or "all" heads."""
    found = {}
    for graph in graphs():
        for keep in (None, *(graph.depths if len(graph.heads) > 1 else ())):
            found[f"{graph.name}/{graph.depth}/{keep or 'all'}"] = graph.to_svg(keep)
    return found


def figures() -> dict[str, list[list[int]]]:
    """Rows of depth, parameters and MACs by "topology/depth"."""
    return {f"{graph.name}/{graph.depth}": costs(graph) for graph in graphs()}


def graphs() -> list[nestedseg.Graph]:
    return [nestedseg.topology(name, depth)
            for name in nestedseg.list_topologies() for depth in DEPTHS]


def costs(graph: nestedseg.Graph) -> list[list[int]]:
    with torch.device("meta"):  # only sizes are needed, no weights
        model = nestedseg.create(graph, encoder_channels=CHANNELS)
    return [[row.depth, row.parameters, row.macs] for row in model.summary(SIZE)]


def script(drawn: dict[str, str], costs: dict[str, list[list[int]]]) -> str:
    """Stores each line of the drawings once, as they share most of them; a drawing is a list."""
    lines = list(dict.fromkeys(line for svg in drawn.values() for line in svg.split("\n")))
    number = {line: index for index, line in enumerate(lines)}
    listed = {key: [number[line] for line in svg.split("\n")] for key, svg in drawn.items()}
    return "\n".join(["// Written by docs/make_explorer.py.",
                      f"const LINES = {json.dumps(lines, indent=0)};",
                      f"const DRAWINGS = {by_line(listed)};",
                      f"const COSTS = {by_line(costs)};", ""])


def by_line(table: dict[str, list]) -> str:
    """JSON with one entry per line, so that a change is a short diff."""
    rows = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
            for key, value in table.items())
    return "{\n" + ",\n".join(rows) + "\n}"


if __name__ == "__main__":
    main()
