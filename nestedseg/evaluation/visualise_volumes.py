"""Draws three orthogonal slices of a volume with the contours of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from nestedseg.base.extras import require
from nestedseg.data import Volume
from nestedseg.evaluation.visualise_masks import (
    CLASS_COLOURS,
    INK,
    WRONG,
    hatch,
    to_rgb,
    void_of,
)

WIDTH = 9  # inches
FINE = 300  # pixels, along the shorter side of a slice with hatching
COLOURS = (CLASS_COLOURS[0], WRONG)  # of the first and the second mask


class Case(NamedTuple):
    """The content of one row of slices.

    Args:
        name: title of the row.
        volume: the volume that is shown.
        masks: class indices ``(D, H, W)``, or planes ``(D, H, W, classes)``, by name; the first
            decides where the slices are. What is below 0, no class, is hatched.
    """

    name: str
    volume: Volume
    masks: Mapping[str, np.ndarray]


def draw_slices(cases: Sequence[Case], path: Path) -> None:
    """Draws a row of slices for each volume, where its first mask has most foreground, as a PNG.

    All slices have the same scale. Their first axis points upwards: in a NIfTI volume the head, or
    the front, is up, and the right side is right.
    """
    plt = pyplot()
    rows = [_slices(case) for case in cases]
    widths = [max(panel.size[1] for panel in column) for column in zip(*rows)]
    heights = [max(panel.size[0] for panel in row) for row in rows]
    scale = WIDTH / sum(widths)
    figure, grid = plt.subplots(
        len(rows), 3, squeeze=False, layout="constrained", height_ratios=heights,
        width_ratios=widths, figsize=(WIDTH, scale * sum(heights) + 0.5 * len(rows) + 0.4))
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
    """Matplotlib's pyplot, set to draw to files, without a display."""
    require("matplotlib").use("Agg")
    return require("matplotlib.pyplot")


class _Panel(NamedTuple):
    title: str
    pixels: np.ndarray  # (rows, columns)
    masks: list[np.ndarray]
    spacing: tuple[float, float]  # of rows and columns, in mm

    @property
    def size(self) -> tuple[float, float]:
        """Height and width in mm."""
        rows, columns = self.pixels.shape
        return rows * self.spacing[0], columns * self.spacing[1]


def _slices(case: Case) -> list[_Panel]:
    names = ("axial, ", "coronal, ", "sagittal, ") if case.volume.source else ("", "", "")
    titles = [f"{case.name}\n{names[0]}", f"\n{names[1]}", f"\n{names[2]}"]
    panels = []
    for axis, index in enumerate(fullest(next(iter(case.masks.values())))):
        window = [slice(0, length) for length in case.volume.shape]
        window[axis] = slice(index, index + 1)
        pixels = case.volume.read(window)[..., 0].squeeze(axis)
        masks = [_slice(mask, axis, index) for mask in case.masks.values()]
        row, column = (case.volume.spacing[other] for other in range(3) if other != axis)
        panels.append(_Panel(f"{titles[axis]}{'DHW'[axis]} = {index}", pixels.astype(np.float32),
                             masks, (row, column)))
    return panels


def _slice(voxels: np.ndarray, axis: int, index: int) -> np.ndarray:
    return np.moveaxis(voxels, axis, 0)[index]  # a view: `take` may copy a whole memory-mapped file


def fullest(mask: np.ndarray) -> list[int]:
    """The index of the slice with most foreground along each axis; the middle one without any."""
    areas = [np.zeros(length, int) for length in mask.shape[:3]]
    for index, plane in enumerate(mask):  # by planes, because a mask may be larger than memory
        foreground = plane > 0 if mask.ndim == 3 else (plane > 0).any(-1)
        areas[0][index] = foreground.sum()
        areas[1] += foreground.sum(1)
        areas[2] += foreground.sum(0)
    return [int(area.argmax()) if area.any() else len(area) // 2 for area in areas]


def _draw_panel(axes: Any, panel: _Panel) -> None:
    height, width = panel.size
    axes.imshow(_hatched(panel), origin="lower", extent=(0, width, 0, height),
                interpolation="nearest")
    # padded with background, because a contour would otherwise stay open at the edge
    ys, xs = ((np.arange(length + 2) - 0.5) * step
              for length, step in zip(panel.pixels.shape, panel.spacing))
    for mask, colour in zip(panel.masks, COLOURS):
        for inside in _areas(mask):
            axes.contour(xs, ys, np.pad(inside, 1).astype(float), levels=[0.5],
                         colors=[_rgb(colour)], linewidths=1.8)
    axes.set_title(panel.title, fontsize=9, color=INK, loc="left")
    axes.axis("off")


def _hatched(panel: _Panel) -> np.ndarray:
    """The pixels as RGB, hatched where a mask has no class, in lines finer than large pixels."""
    picture, void = to_rgb(panel.pixels), np.any([void_of(mask) for mask in panel.masks], axis=0)
    if not void.any():
        return picture
    times = max(1, FINE // min(void.shape))
    picture, void = (each.repeat(times, 0).repeat(times, 1) for each in (picture, void))
    return hatch(picture, void)


def _areas(mask: np.ndarray) -> list[np.ndarray]:
    """Where each class is, in a slice of class indices or of planes."""
    if mask.ndim == 2:
        return [mask == index for index in np.unique(mask[mask > 0])]
    planes = np.moveaxis(mask, -1, 0) > 0
    return [plane for plane in planes if plane.any()]


def _rgb(colour: tuple[int, ...]) -> np.ndarray:
    return np.array(colour) / 255
