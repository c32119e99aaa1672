"""The paper's Figures 4 to 9 from our results, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.claims import BASE, ISOLATED, OURS, name
from benchmarks.paper.data import DATA
from benchmarks.paper.plan import BACKBONES, FIGURE_4, FIGURE_8
from benchmarks.paper.results import PERCENT, Results
from benchmarks.paper.score import BUCKETS
from benchmarks.paper.stats import compare, summarise
from nestedseg.base.extras import require
from nestedseg.evaluation.visualise_volumes import pyplot

# Okabe and Ito's colours, told apart by colour-blind eyes; markers and lines differ as well.
STYLES = {"unet": ("#000000", "o", "-"), "wide-unet": ("#cc79a7", "v", ":"),
          "unet-e": ("#56b4e9", "P", "-."), "unetp": ("#e69f00", "s", ":"),
          "unetp-ds": ("#d55e00", "D", "--"), "unetpp": ("#009e73", "^", ":"),
          "unetpp-ds": ("#0072b2", "*", "-")}
HEIGHT, WIDTH = 3.2, 8.0  # inches: of a row of panels
DPI = 110
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
Draw = Callable[[Any, Results, str], None]


def draw_all(results: Results, folder: Path, profile: str) -> Iterator[tuple[Path, str]]:
    """Each figure that there are results for: its file, and what it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (draw, rows, title) in FIGURES.items():
        there = [data for data in DATA if all(f"{data}/{row}" in results for row in rows)
                 and (draw is not sizes or DATA[data].objects)]
        path = folder / f"{profile}-fig{number}.png"
        path.unlink(missing_ok=True)
        if there:
            _panels(results, there, draw, path)
            yield path, f"Fig. {number}: {title}"
    path = folder / f"{profile}-fig8.png"
    if feature_maps(results, path):
        yield path, ("Fig. 8: the mean over the channels of the maps along the top row; each from "
                     "its darkest to its brightest pixel")


def _panels(results: Results, data: list[str], draw: Draw, path: Path) -> None:
    """A panel for each data set."""
    figure, panels = pyplot().subplots(1, len(data), figsize=(WIDTH, HEIGHT), squeeze=False,
                                       layout="constrained")
    legend: dict[str, Any] = {}
    for axes, each in zip(panels[0], data):
        draw(axes, results, each)
        axes.set_title(DATA[each].title)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles))
    if legend:
        figure.legend(legend.values(), legend, loc="outside lower center",
                      ncols=min(4, len(legend)), frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI, metadata={"Software": None})  # the same bytes every time
    pyplot().close(figure)


def _point(axes: Any, x: float, values: list[float], architecture: str, label: str | None) -> None:
    """Mean and 95 % interval over the trials."""
    colour, marker, _ = STYLES[architecture]
    summary = summarise(values)
    error = None if np.isnan(summary.sd) else summary.high - summary.mean
    axes.errorbar(x, summary.mean, error, color=colour, marker=marker, capsize=3, label=label,
                  linestyle="none")


# -- figures 4 to 9 --------------------------------------------------------------------------------


def backbones(axes: Any, results: Results, data: str) -> None:
    names = {}
    for place, backbone in enumerate(BACKBONES):
        rows = {each: f"{data}/{each}/{backbone}" for each in FIGURE_4}
        names[place] = results.of(rows[BASE])[0]["trial"]["model"]["encoder"]
        for shift, (architecture, row) in zip((-0.2, 0, 0.2), rows.items()):
            _point(axes, place + shift, results.scores(row), architecture,
                   None if place else name(data, architecture))
        p = compare(results.scores(rows[OURS]), results.scores(rows[BASE])).p
        axes.annotate(next((stars for level, stars in STARS if p < level), "n.s."), (place, 1.0),
                      xycoords=("data", "axes fraction"), ha="center", va="top")
    axes.set(xticks=list(names), xticklabels=names.values(), xlabel="encoder", ylabel="IoU in %")
    axes.margins(y=0.2)


def complexity(axes: Any, results: Results, data: str) -> None:
    trials = results.of(f"{data}/{OURS}")
    colour, *_ = STYLES[OURS]
    for cost in trials[0]["costs"]:
        depth = str(cost["depth"])
        ms = 1e3 * np.median([trial["times"]["patch"][depth] for trial in trials])
        iou = summarise(results.scores(f"{data}/{OURS}", head=depth)).mean
        area = 20 + 600 * cost["parameters"] / trials[0]["costs"][-1]["parameters"]
        axes.scatter(ms, iou, area, color=colour, alpha=0.5)
        axes.annotate(f"L{depth}\n{cost['parameters'] / 1e3:,.0f} k", (ms, iou), ha="center",
                      xytext=(0, 16), textcoords="offset points", fontsize="small", va="bottom")
    axes.set(xlabel="time for one patch in ms", ylabel="IoU in %")
    axes.margins(0.25, 0.35)


def training(axes: Any, results: Results, data: str) -> None:
    whole = f"{data}/{OURS}"
    for depth, alone in ISOLATED.items():
        for row, style, label, shift in ((whole, OURS, "embedded", -0.06),
                                         (f"{data}/{alone}", BASE, "isolated", 0.06)):
            if row in results:
                _point(axes, depth + shift, results.scores(row, head=str(depth)), style,
                       label if depth == 1 else None)
    _point(axes, 4, results.scores(whole, head="4"), OURS, None)
    axes.set(xticks=range(1, 5), xlabel="depth", ylabel="IoU in %")
    axes.set_xticklabels([f"L{depth}" for depth in range(1, 5)])


def sizes(axes: Any, results: Results, data: str) -> None:
    edges = results.of(f"{data}/{OURS}")[0]["test"]["objects"]["edges"]
    for index in range(BUCKETS):
        for architecture, shift in ((BASE, -0.12), (OURS, 0.12)):
            values = results.bucket(f"{data}/{architecture}", index)
            if values:
                _point(axes, index + shift, values, architecture,
                       None if index else name(data, architecture))
    unit = "pixels" if DATA[data].dims == 2 else "voxels"
    axes.set(xticks=range(BUCKETS), ylabel="mean IoU of objects in %",
             xlabel=f"size of the {DATA[data].objects} in {unit}")
    axes.set_xticklabels([f"{low:.0f} to\n{high:.0f}" for low, high in pairwise(edges)],
                         fontsize="x-small")


def curves(axes: Any, results: Results, data: str) -> None:
    for architecture in (BASE, "wide-unet", "unetp-ds", OURS):
        trials = results.of(f"{data}/{architecture}")
        if not trials:
            continue
        length = min(len(trial["curves"]) for trial in trials)
        ious = PERCENT * np.array([[epoch["score"] for epoch in trial["curves"][:length]]
                                   for trial in trials])
        colour, marker, line = STYLES[architecture]
        epochs, mean, sd = np.arange(1, length + 1), ious.mean(0), ious.std(0)
        axes.plot(epochs, mean, color=colour, marker=marker, linestyle=line, markersize=4,
                  label=name(data, architecture))
        axes.fill_between(epochs, mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", ylabel="validation IoU in %")
    axes.xaxis.get_major_locator().set_params(integer=True)


def feature_maps(results: Results, path: Path) -> bool:
    """Fig. 8, of the first data set that has them; whether there is one."""
    path.unlink(missing_ok=True)
    found = {(data, row): trials[0]["maps"] for data in DATA for row in FIGURE_8
             if (trials := results.of(f"{data}/{row}")) and "maps" in trials[0]}
    if not found:
        return False
    data = next(iter(found))[0]
    rows = [row for each, row in found if each == data]
    figure, panels = pyplot().subplots(len(rows), 5, figsize=(WIDTH, 1.6 * len(rows)),
                                       squeeze=False, layout="constrained")
    for line, row in zip(panels, rows):
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.set_frame_on(False)
        line[0].set_ylabel(name(data, row))
        nodes = [node.split("_")[1] for node in found[data, row]]
        strip = require("matplotlib.image").imread(results.folder / f"{data}.{row}.0.png")
        for column, part in zip(nodes, np.hsplit(strip, len(nodes))):
            line[int(column)].imshow(part, cmap="gray")
            line[int(column)].set_title(f"$X^{{0,{column}}}$", fontsize="small")
    figure.suptitle(DATA[data].title)
    _save(figure, path)
    return True


FIGURES: dict[int, tuple[Draw, tuple[str, ...], str]] = {
    4: (backbones, tuple(f"{each}/{backbone}" for each in FIGURE_4 for backbone in BACKBONES),
        "IoU over other encoders, with 95 % intervals; stars: UNet++ against U-Net, p < 0.05, "
        "0.01, 0.001; n.s. = not significant"),
    5: (complexity, (OURS,), "UNet++ DS cut to each depth: time, IoU, and parameters (area, and "
        "number)"),
    6: (training, (OURS, ISOLATED[1]),
        "each depth cut out of UNet++ DS (embedded) and trained alone (isolated), with 95 % "
        "intervals"),
    7: (sizes, (OURS, BASE), "IoU by size of the objects, a seventh of them in each group, with "
        "95 % intervals"),
    9: (curves, (OURS, BASE), "validation IoU, mean over the trials; bands: one standard "
        "deviation"),
}
