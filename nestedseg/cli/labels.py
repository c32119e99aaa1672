"""The options of `nestedseg train` that say what the numbers or colours in label files mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nestedseg.data.labels import LabelRules


def add_label_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("labels (besides --classes and --binary)")
    group.add_argument("--threshold", type=float, metavar="T",
                       help="labels from T on are the foreground, others the background: for grey "
                            "edges and JPEG, 128; for probabilities, 0.5")
    group.add_argument("--ignore", type=int, action="append", metavar="N",
                       help="pixels with the label N have no class, and count neither in the loss "
                            "nor in scores, for example 255; may be given again")
    group.add_argument("--label-colours", type=Path, metavar="JSON",
                       help="file with the name and colour of each class, in the order of their "
                            'indices, like {"background": [0, 0, 0], "cell": [255, 0, 0]}')


def label_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options as arguments of `LabelledImages`."""
    return {"threshold": args.threshold, "ignore_index": args.ignore,
            "label_colours": args.label_colours}


def names_of(rules: LabelRules) -> list[str] | None:
    """The class names among the label colours, if there is one for each channel of the logits."""
    names = rules.names[1:] if rules.classes == 1 else rules.names
    return names if len(names) == rules.classes else None
