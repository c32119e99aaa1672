"""Three orthogonal slices of a volume with the contours of masks, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from nestedseg.data import Volume
from nestedseg.extras import require
from nestedseg.pictures import INK, MISSED, WRONG, to_rgb

PANEL = 3.2  # inches
COLOURS = (MISSED, WRONG)  # of the masks, in their order


class Case(NamedTuple):
    """What a row of slices shows.

    Args:
        name: its title.
        volume: the picture underneath.
        masks: class indices ``(D, H, W)``, by name; the first one decides where the slices lie.
    """

    name: str
    volume: Volume
    masks: Mapping[str, np.ndarray]


def draw_slices(cases: Sequence[Case], path: Path) -> None:
    """A row for each volume, cut where its first mask has most foreground, as a PNG.

    Slices show their first axis upwards: a NIfTI volume's head, or front, is up, its right side
    right.
    """
    plt = pyplot()
    rows = [_slices(case) for case in cases]
    ratios = [[_height(panel) for panel in row] for row in rows]
    heights = [max(row) for row in ratios]
    figure, grid = plt.subplots(
        len(rows), 3, squeeze=False, layout="constrained", height_ratios=heights,
        figsize=(3 * PANEL, PANEL * sum(heights) + 0.35 * len(rows) + 0.4))
    for axes, panel in zip(grid.flat, (panel for row in rows for panel in row), strict=True):
        _draw_panel(axes, panel)
    names = list(cases[0].masks)
    line = require("matplotlib.lines").Line2D
    figure.legend(handles=[line([], [], color=_rgb(colour), lw=2.5, label=name)
                           for name, colour in zip(names, COLOURS)],
                  loc="outside lower center", ncols=len(names), frameon=False, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def pyplot() -> ModuleType:
    """Matplotlib that draws to files: no display is needed, nor taken."""
    require("matplotlib").use("Agg")
    return require("matplotlib.pyplot")


class _Panel(NamedTuple):
    title: str
    pixels: np.ndarray  # (rows, columns)
    masks: list[np.ndarray]
    aspect: float  # a row's height over a column's width, in mm


def _slices(case: Case) -> list[_Panel]:
    panels = []
    spacing = case.volume.spacing
    names = ("axial", "coronal", "sagittal") if case.volume.source else ("", "", "")
    where = _fullest(next(iter(case.masks.values())))
    for axis, index in enumerate(where):
        stored = case.volume.stored.take(index, axis)
        pixels = stored if stored.ndim == 2 else stored[..., 0]
        row, column = (spacing[other] for other in range(3) if other != axis)
        panels.append(_Panel(f"{case.name}\n{names[axis]} {'DHW'[axis]} = {index}",
                             pixels.astype(np.float32),
                             [mask.take(index, axis) for mask in case.masks.values()],
                             row / column))
    return panels


def _fullest(mask: np.ndarray) -> list[int]:
    """Along each axis, the slice with most foreground; the middle one where there is none."""
    areas = [np.zeros(length, int) for length in mask.shape]
    for index, plane in enumerate(mask):  # one by one: a mask may be larger than memory
        foreground = plane > 0
        areas[0][index] = foreground.sum()
        areas[1] += foreground.sum(1)
        areas[2] += foreground.sum(0)
    return [int(area.argmax()) if area.any() else len(area) // 2 for area in areas]


def _height(panel: _Panel) -> float:
    """Of a panel, where its width is 1."""
    rows, columns = panel.pixels.shape
    return rows * panel.aspect / columns


def _draw_panel(axes, panel: _Panel) -> None:
    axes.imshow(to_rgb(panel.pixels), origin="lower", aspect=panel.aspect, interpolation="nearest")
    for mask, colour in zip(panel.masks, COLOURS):
        for index in range(1, int(mask.max()) + 1):
            if (mask == index).any():
                # with a border of background, or a mask that reaches the edge stays open there
                outline = np.pad((mask == index).astype(float), 1)
                ys, xs = (np.arange(-1, length + 1) for length in mask.shape)
                axes.contour(xs, ys, outline, levels=[0.5], colors=[_rgb(colour)], linewidths=1.8)
    axes.set_title(panel.title, fontsize=9, color=INK)
    axes.axis("off")


def _rgb(colour: tuple[int, ...]) -> np.ndarray:
    return np.array(colour) / 255
