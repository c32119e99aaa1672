"""Figures of a training run: curves, and rows of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.data import LabelledImages
from nestedseg.evaluation.visualise_masks import INK
from nestedseg.evaluation.visualise_volumes import pyplot
from nestedseg.training.history import Epoch, best_epoch

CURVES, OVERLAY = "curves.png", "overlay.png"
SHOWN = 3  # images in overlay.png
PANEL = 2.9  # inches


def draw_curves(history: Sequence[Epoch], path: Path, title: str) -> None:
    """Draws training loss and validation scores over the epochs, as a PNG."""
    plt = pyplot()
    epochs = [epoch.epoch for epoch in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(epochs, [epoch.loss for epoch in history], color=INK, marker=".")
    left.set(title="Training loss", ylim=(0, None))
    scores = list(history[0].scores)
    colours = plt.get_cmap("viridis")(np.linspace(0.85, 0.1, len(scores)))
    for name, colour in zip(scores, colours, strict=True):
        right.plot(epochs, [epoch.scores[name] for epoch in history], color=colour, marker=".",
                   label=f"depth {name}" if name.isdigit() else name)
    best = best_epoch(list(history))
    right.plot(best.epoch, best.score, "o", color=INK, mfc="none", ms=9,
               label=f"best: {best.score:.3f}, epoch {best.epoch}")
    right.set(title=title)
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_panels(rows: Sequence[Sequence[tuple[str, np.ndarray]]], path: Path,
                legend: Sequence[Any] = ()) -> None:
    """Draws rows of images with titles, as a PNG; ``legend`` is a list of Matplotlib's handles."""
    plt = pyplot()
    heights = [picture.shape[0] / picture.shape[1] for (_, picture), *_ in rows]
    figure, grid = plt.subplots(
        len(rows), len(rows[0]), squeeze=False, layout="constrained", height_ratios=heights,
        figsize=(PANEL * len(rows[0]), PANEL * sum(heights) + 0.3 * len(rows) + 0.5))
    panels = (panel for row in rows for panel in row)
    for axes, (title, picture) in zip(grid.flat, panels, strict=True):
        axes.imshow(picture, interpolation="nearest" if picture.shape[1] < 400 else "antialiased")
        axes.set_title(title, fontsize=10, color=INK)
        axes.axis("off")
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=8, frameon=False,
                      fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def shown(images: LabelledImages) -> list[int]:
    """The indices of a few images, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, len(images) - 1, SHOWN).round().astype(int)).tolist()
