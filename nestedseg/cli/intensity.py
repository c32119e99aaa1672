"""Options of ``nestedseg train`` about the values of pixels, and about keeping decoded files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.data import LabelledImages

CACHE = "cache"  # the folder beside the run
MANY = 100  # files, for which starting processes to examine them pays


def add_intensity_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("values of pixels")
    group.add_argument("--input-range", type=float, nargs="+", metavar="V",
                       help="values LOW HIGH that become 0 and 1, one pair, or one for each band "
                            "(default: for pretrained weights and other files than 8-bit ones, the "
                            "range of nearly all pixels of the training images; otherwise the mean "
                            "and standard deviation of the images are used)")
    group.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"),
                       help="as --input-range, and values outside are clipped to it: the window of "
                            "a CT, in Hounsfield units, like --window -160 240")
    group.add_argument("--nodata", type=float, metavar="V",
                       help="the value of pixels that were not measured (default: what each file "
                            "says; NaN always counts as not measured)")
    group.add_argument("--cache", type=Path, metavar="DIR",
                       help="folder for decoded images, shared by runs (default: cache, beside "
                            "--out)")


def reading(args: argparse.Namespace, files: int) -> dict[str, Any]:
    """How so many files are read, as arguments of `LabelledImages`."""
    return {"dims": args.dims, "nodata": args.nodata,
            "cache": args.cache or args.out.resolve().parent / CACHE,
            "workers": (os.cpu_count() or 1) if files > MANY else 0}


def choose_range(args: argparse.Namespace, images: LabelledImages, known: bool) -> dict[str, Any]:
    """The ``value_range`` of a model, as arguments of `LabelledImages.preprocessing`; printed.

    Args:
        args: of the command.
        images: to train on.
        known: whether the encoder's weights expect values from 0 to 1.

    Raises:
        ValueError: the numbers are no pairs, or --window and --input-range are both given.
    """
    if args.window and args.input_range:
        raise ValueError("--window clips to a range, and --input-range does not; give one of them")
    given = args.window or args.input_range
    if given is None and not (known and images.largest_type() != np.uint8):
        return {}
    if given is None:
        pairs = images.value_range()
    else:
        pairs = [given[start:start + 2] for start in range(0, len(given), 2)]
        if any(len(pair) < 2 or not pair[0] < pair[1] for pair in pairs):
            raise ValueError(f"--input-range needs pairs LOW HIGH, the lower first, got {given}")
    print("values " + ", ".join(f"{low:g} to {high:g}" for low, high in pairs)
          + " of the pixels become 0 to 1" + (", others are clipped" if args.window else ""))
    return {"value_range": pairs, "clip": bool(args.window)}
