"""``nestedseg score``: compares masks with labels."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from nestedseg.base.errors import blamed
from nestedseg.base.extras import require
from nestedseg.cli.labels import add_label_options, label_options, names_of
from nestedseg.data import Pair, find_pairs, open_image, spatial_axes
from nestedseg.data.labelled import is_lossy, squeezed
from nestedseg.data.labels import VOID, LabelRules, make_rules, one_channel, whole_numbers
from nestedseg.data.source import Source, blocks, by
from nestedseg.data.volumes import open_volume_pair
from nestedseg.evaluation.metrics import SegmentationScores
from nestedseg.models.targets import choose_task

PIXELS = 2**20  # that are compared at once


def score(args: argparse.Namespace) -> None:
    """Compare masks, as `predict` writes them, with labels; print the scores of each class."""
    rules = make_rules(args.classes, args.binary, **label_options(args))
    task = choose_task(None, args.classes)
    names = args.class_names or names_of(rules) or _default_names(args.classes)
    if len(names) != args.classes:
        raise ValueError(f"--class-names needs {args.classes} names, got {len(names)}")
    pairs = find_pairs(args.masks, args.labels, label_suffix=args.label_suffix,
                       recursive=args.recursive)
    dims = spatial_axes((path for pair in pairs for path in pair.pictures), args.dims)
    scores = SegmentationScores(task, args.classes, ignore_index=VOID)
    for pair in require("tqdm").tqdm(pairs, unit="image", leave=False, disable=None):
        for mask, truth in _compared(pair, dims, rules):
            scores.update(_as_logits(mask, args.classes), torch.from_numpy(truth)[None])
    found = scores.compute()
    print(_table(found, names))
    if args.json:
        args.json.write_text(json.dumps({"images": len(pairs), "classes": names, **found},
                                        indent=1) + "\n", encoding="utf-8")


def _default_names(classes: int) -> list[str]:
    return ["foreground"] if classes == 1 else [f"class {index}" for index in range(classes)]


def _compared(pair: Pair, dims: int, rules: LabelRules) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The class indices of a mask and of its label, block by block."""
    mask, label = _open(pair, dims)
    with blamed(f"the label {pair.label_file}"):
        for window in blocks(label.shape):
            rules.indices(squeezed(label.read(window)), dims, is_lossy(pair))
    for window in blocks(mask.shape, PIXELS):
        with blamed(f"the mask {pair.image}"):
            found = whole_numbers(one_channel(mask.read(window), dims)).astype(np.int64)
        with blamed(f"the label {pair.label_file}"):
            truth = rules.indices(squeezed(label.read(window)), dims, checked=True).astype(np.int64)
        if mask.nodata is not None:  # of a GeoTIFF: pixels that were not measured
            truth[found == mask.nodata] = VOID
            found[found == mask.nodata] = 0
        with blamed(f"the mask {pair.image}"):
            _check_classes(found, rules)
        yield found, truth


def _open(pair: Pair, dims: int) -> tuple[Source, Source]:
    """A mask and its label.

    Raises:
        ValueError: they have another size, or as volumes another place.
    """
    if dims == 3:
        return open_volume_pair(pair)[:2]
    mask, label = (open_image(path, indexed=True) for path in (pair.image, pair.label_file))
    if mask.shape != label.shape:
        raise ValueError(f"the mask {pair.image} is {by(mask.shape)}, but the label "
                         f"{pair.label_file} is {by(label.shape)}")
    return mask, label


def _check_classes(found: np.ndarray, rules: LabelRules) -> None:
    """Checks that a mask has class indices.

    Raises:
        ValueError: it has others.
    """
    if found.min(initial=0) < 0 or found.max(initial=0) > rules.largest:
        raise ValueError(f"it has values from {found.min()} to {found.max()}; expected class "
                         f"indices from 0 to {rules.largest}, as nestedseg predict writes them")


def _as_logits(mask: np.ndarray, classes: int) -> torch.Tensor:
    """Logits ``(1, classes, *spatial)`` whose prediction is the mask."""
    indices = torch.from_numpy(mask)[None]
    if classes == 1:
        return (2 * indices - 1).unsqueeze(1).float()
    return F.one_hot(indices, classes).movedim(-1, 1).float()


def _table(found: Any, names: Sequence[str]) -> str:
    """IoU and Dice of each class, and their means, as a Markdown table."""
    rows = [(name, found["iou"]["per_class"][index], found["dice"]["per_class"][index])
            for index, name in enumerate(names)]
    if len(names) > 1:
        rows.append(("mean", found["iou"]["mean"], found["dice"]["mean"]))
    width = max(len(name) for name, *_ in rows)
    lines = [f"| {'class':{width}} |    IoU |   Dice |", f"| {'-' * width} | -----: | -----: |"]
    lines += [f"| {name:{width}} | {iou:6.4f} | {dice:6.4f} |" for name, iou, dice in rows]
    return "\n".join(lines)


def add_score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("masks", type=Path, metavar="MASKS",
                        help="folder of masks, as `nestedseg predict` writes them")
    parser.add_argument("labels", type=Path, metavar="LABELS",
                        help="folder of labels of the same names")
    parser.add_argument("--classes", type=int, default=1, metavar="C",
                        help="1: labels are 0 and 1; more: class indices 0 ... C-1 (default: 1)")
    parser.add_argument("--binary", action="store_true",
                        help="every label above 0 is the foreground")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="names of the classes")
    parser.add_argument("--label-suffix", default="", metavar="TEXT",
                        help="how the names of labels end, like _mask")
    parser.add_argument("--recursive", action="store_true", help="search subfolders too")
    parser.add_argument("--dims", type=int, choices=(2, 3),
                        help="3: TIFF stacks and Zarr arrays are volumes (default: images)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all scores to a file too")
    add_label_options(parser)
