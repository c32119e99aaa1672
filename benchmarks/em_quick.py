"""UNet++ with deep supervision on the ISBI 2012 EM slices, small enough for a CPU.

    python benchmarks/em_quick.py --data DIR     # DIR contains images/ and labels/, 30 slices each

The paper's split (24 slices to train, 3 to validate, 3 to test; here by file order) and patch size
(96 x 96). Every choice (epoch, depth, the threshold's polarity and blur) is made on the validation
slices, none on the test slices.

The foreground is the cell, which is most of the pixels, so even "all cell" scores high; therefore
the IoU of the membrane is given too. An interrupted run is continued.
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tables
import torch
from machine import describe_machine

import nestedseg
from nestedseg.data import LabelledImages, find_pairs
from nestedseg.evaluation.depths import compare_depths, score_heads
from nestedseg.evaluation.metrics import SegmentationScores
from nestedseg.training.history import best_epoch
from nestedseg.training.loop import MODEL, fit
from nestedseg.training.settings import Settings

SPLIT = {"training": 24, "validation": 3, "test": 3}
WIDTHS = (16, 32, 64, 128, 256)
TOLERANCE = 0.005  # of validation IoU, that a shallower model may lose
BLURS = (0.0, 1.0, 2.0, 3.0, 4.0)  # standard deviations in pixels, before the threshold
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    args = parse_arguments()
    sets = read_split(args.data)
    settings = Settings(epochs=args.epochs, steps=args.steps, lr=1e-3, patience=6,
                        seed=args.seed, seconds=args.seconds)
    model, history = train(sets, settings, args.run)
    results = {
        "benchmark": "em_quick",
        "data": "ISBI 2012 EM challenge, training set; foreground = cell",
        "split": {name: [pair.image.name for pair in images.pairs]
                  for name, images in sets.items()},
        "settings": asdict(settings),
        "model": model.config,
        "curves": [asdict(epoch) for epoch in history],
        "best_epoch": best_epoch(history).epoch,
        "training_seconds": sum(epoch.seconds for epoch in history),
        "results": evaluate(model, sets["validation"], sets["test"]),
        "machine": describe_machine(),
        "note": args.note,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{tables.em_quick(results)}written to {args.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="contains images/ and labels/")
    parser.add_argument("--out", type=Path, default=RESULTS / "em_quick.json")
    parser.add_argument("--run", type=Path, default=Path("runs/em_quick"),
                        help="folder for checkpoint and model; a run in it is continued")
    parser.add_argument("--epochs", type=int, default=12, help="at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="time limit of training (default: none)")
    parser.add_argument("--steps", type=int, help="in an epoch (default: what tiles the slices)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="recorded with the results")
    return parser.parse_args()


def read_split(data: Path) -> dict[str, LabelledImages]:
    """The slices in file order, which is their order in the tissue."""
    pairs = find_pairs(data / "images", data / "labels")
    if len(pairs) != sum(SPLIT.values()):
        raise SystemExit(f"expected {sum(SPLIT.values())} slices in {data}, got {len(pairs)}")
    rest = iter(pairs)
    return {name: LabelledImages(list(itertools.islice(rest, count)), binary=True)
            for name, count in SPLIT.items()}


def train(sets, settings, run):
    torch.manual_seed(settings.seed)
    model = nestedseg.create("unetpp", encoder_channels=WIDTHS, in_channels=1,
                             deep_supervision=True)
    images = sets["training"]
    model.set_preprocessing(mean=images.mean, std=images.std)
    history = fit(model, images, sets["validation"], run, settings, resume=True)
    return nestedseg.from_pretrained(run / MODEL), history


def evaluate(model, validation, test) -> dict[str, Any]:
    """Test scores and costs of each depth, and of the baselines without a network."""
    chosen_on = {depth: score.compute()["iou"]["mean"]
                 for depth, score in score_heads(model, validation).items()}
    depth = nestedseg.choose_depth(chosen_on, TOLERANCE)
    scores = score_heads(model, test)
    costs = {row.depth: row for row in compare_depths(model, test)}
    depths = [{"depth": d, "validation_iou": chosen_on[d], **both_classes(scores[d]),
               "parameters": costs[d].parameters, "macs": costs[d].macs,
               "seconds_per_image": costs[d].seconds} for d in model.depths]
    baselines = {"all cell": score_masks(test, np.ones_like), **otsu(validation, test)}
    best_otsu = max(baselines["Otsu"]["iou"], baselines["blur + Otsu"]["iou"])
    return {
        "image": list(test.shapes[0]),
        "test": depths,
        "tolerance": TOLERANCE,
        "chosen_depth": depth,
        "baselines": baselines,
        "margin_over_otsu": next(d["iou"] for d in depths if d["depth"] == depth) - best_otsu,
    }


def both_classes(scores: SegmentationScores) -> dict[str, float]:
    """IoU and Dice of the cell, and IoU of the membrane, which is the background."""
    fp, fn, tn = scores.counts[0].tolist()[1:]
    computed = scores.compute()
    return {"iou": computed["iou"]["mean"], "dice": computed["dice"]["mean"],
            "membrane_iou": tn / (tn + fp + fn)}


# -- without a network ----------------------------------------------------------------------------


def otsu(validation: LabelledImages, test: LabelledImages) -> dict[str, dict[str, Any]]:
    """Otsu's threshold on each slice, plain and after a Gaussian blur.

    The side of the threshold that is cell, and the blur, are those that score best on validation.
    """
    chosen = {}
    for name, blurs in (("Otsu", BLURS[:1]), ("blur + Otsu", BLURS)):
        options = [{"blur": blur, "bright_is_cell": bright}
                   for blur in blurs for bright in (True, False)]
        best = max(options, key=lambda option: score_masks(validation, threshold, **option)["iou"])
        chosen[name] = score_masks(test, threshold, **best) | best
    return chosen


def threshold(image: np.ndarray, blur: float, bright_is_cell: bool) -> np.ndarray:
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    _, bright = cv2.threshold(image, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return bright if bright_is_cell else 1 - bright


def score_masks(images: LabelledImages, segment, **options) -> dict[str, float]:
    """Scores of a function from an image to a mask of 0 and 1."""
    scores = SegmentationScores()
    for image, target in images:
        logits = torch.from_numpy(segment(image, **options)).float() - 0.5
        scores.update(logits[None, None], torch.from_numpy(target)[None])
    return both_classes(scores)


if __name__ == "__main__":
    main()
