"""Draw the speed benchmark's ratios: python benchmarks/plot.py"""

from __future__ import annotations

import json

import matplotlib
from tables import ROOT, ratios

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "speed", "svg.fonttype": "none"})  # same every time

INK, FASTER, SLOWER = "#444444", "#0072b2", "#d55e00"


def main() -> None:
    from matplotlib import pyplot as plt

    data = json.loads((ROOT / "benchmarks/results/speed.json").read_text())
    found = ratios(data["rows"])
    names, values = list(found)[::-1], list(found.values())[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.27 * len(names)), layout="constrained")
    bars = axes.barh(names, values, color=[FASTER if v >= 1 else SLOWER for v in values])
    axes.bar_label(bars, [f"{v:.2f}" for v in values], padding=3, color=INK)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set(xlabel="the peer's time / ours, the fastest setting of each",
             xlim=(0, 1.1 * max(values)))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(ROOT / "docs/images/speed.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
