"""UNet++ with deep supervision on MRI of the hippocampus, in 3-D, small enough for a CPU.

    python benchmarks/hippocampus.py --data DIR        # DIR contains images/ and labels/, NIfTI
    python benchmarks/hippocampus.py --data DIR --encoder resnet18

Medical Segmentation Decathlon, Task 04: 260 volumes, 1 = anterior, 2 = posterior part. Split by
file order; epoch and depth are chosen on the validation volumes, nothing on the test volumes. Dice
is that of all test voxels together, mean of the two parts, unless a case is named. Patches are not
mirrored, because the labels distinguish front from back. An interrupted run is continued. Each
encoder has an entry in one results file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

import nestedseg
from nestedseg.data import LabelledImages, find_pairs, new_mask, open_volume
from nestedseg.evaluation.cases import TOLERANCE as SURFACE_TOLERANCE
from nestedseg.evaluation.cases import open_case, score_case, segment
from nestedseg.evaluation.depths import compare_depths, score_heads
from nestedseg.models.model import SegmentationModel
from nestedseg.training.history import Epoch, best_epoch
from nestedseg.training.loop import MODEL, fit
from nestedseg.training.report.semantic import write_report
from nestedseg.training.settings import Settings

SPLIT = {"training": 200, "validation": 20, "test": 40}
PARTS = ("anterior", "posterior")
WIDTHS = (16, 32, 64)
TOLERANCE = 0.005  # of validation Dice, that a shallower model may lose
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    args = parse_arguments()
    sets = read_split(args.data)
    settings = Settings(epochs=args.epochs, steps=args.steps, batch=2, patch=(32, 48, 32), lr=2e-3,
                        mirror=False, seed=args.seed, seconds=args.seconds)
    run = args.run / args.encoder
    model, history = train(args.encoder, sets, settings, run)
    write_report(run, model, sets["validation"], history, asdict(settings))
    results = {
        "settings": asdict(settings),
        "model": model.config,
        "curves": [asdict(epoch) for epoch in history],
        "best_epoch": best_epoch(history).epoch,
        "training_seconds": sum(epoch.seconds for epoch in history),
        "results": evaluate(model, sets["validation"], sets["test"], run / "masks"),
        "machine": describe_machine(),
        "note": args.note,
    }
    print(json.dumps(results["results"], indent=1))
    write(args.out, args.encoder, sets, results)
    print(f"written to {args.out}; pictures are in {run}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="contains images/ and labels/")
    parser.add_argument("--encoder", default="plain", help="plain, or a timm model to convert")
    parser.add_argument("--out", type=Path, default=RESULTS / "hippocampus.json")
    parser.add_argument("--run", type=Path, default=Path("runs/hippocampus"),
                        help="folder for checkpoints, masks and pictures")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=35, help="batches in an epoch")
    parser.add_argument("--seconds", type=float,
                        help="time limit of training (default: none)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="what a reader of the results should know")
    return parser.parse_args()


def read_split(data: Path) -> dict[str, LabelledImages]:
    pairs = iter(find_pairs(data / "images", data / "labels"))
    return {name: LabelledImages([next(pairs) for _ in range(count)], classes=len(PARTS) + 1)
            for name, count in SPLIT.items()}


def train(encoder: str, sets: dict[str, LabelledImages], settings: Settings,
          run: Path) -> tuple[SegmentationModel, list[Epoch]]:
    """The model with the best validation IoU, and the results of each epoch."""
    torch.manual_seed(settings.seed)
    # The volumes are small, and timm's first level halves them, so a stem at full size is added.
    options = {"encoder_channels": WIDTHS} if encoder == "plain" else \
        {"stem": WIDTHS[:1], "depth": len(WIDTHS), "decoder_channels": WIDTHS}
    model = nestedseg.create("unetpp", encoder, dims=3, classes=len(PARTS) + 1, norm="instance",
                             in_channels=sets["training"].in_channels, deep_supervision=True,
                             **options)
    model.set_preprocessing(**sets["training"].preprocessing())
    history = fit(model, sets["training"], sets["validation"], run, settings, resume=True)
    return nestedseg.from_pretrained(run / MODEL), history


def evaluate(model: SegmentationModel, validation: LabelledImages, test: LabelledImages,
             masks: Path) -> dict[str, Any]:
    """Test scores and costs of each depth; for the chosen one also case by case, from its files."""
    chosen_on = {depth: mean_dice(score) for depth, score in score_heads(model, validation).items()}
    chosen = nestedseg.choose_depth(chosen_on, TOLERANCE)
    scores = score_heads(model, test)
    first = LabelledImages(test.pairs[:1], test.classes)
    depths = [{"depth": row.depth, "validation_dice": chosen_on[row.depth],
               "dice": mean_dice(scores[row.depth]),
               **dict(zip(PARTS, scores[row.depth].compute()["dice"]["per_class"][1:])),
               "parameters": row.parameters, "macs": row.macs, "seconds_per_volume": row.seconds}
              for row in compare_depths(model, first)]
    return {"volume": list(first.shapes[0]), "test": depths, "tolerance": TOLERANCE,
            "chosen_depth": chosen, "cases": by_case(model.prune(chosen), test, masks)}


def mean_dice(scores: nestedseg.metrics.SegmentationScores) -> float:
    """The scores of the two parts, without the background."""
    return statistics.mean(scores.compute()["dice"]["per_class"][1:])


def by_case(model: SegmentationModel, test: LabelledImages, folder: Path) -> dict[str, Any]:
    """The scores of the masks, read back from their files.

    Raises:
        RuntimeError: a mask does not lie where its volume does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = []
    for index, pair in enumerate(test.pairs):
        volume, truth = open_case(test, index)
        path = folder / pair.image.name
        with new_mask(path, volume) as mask:
            mask[:] = segment(model, volume)
        written = open_volume(path)
        if not np.array_equal(written.affine, volume.affine):
            raise RuntimeError(f"{path} has another affine than {pair.image}")
        scores += score_case(pair.image.name, written.class_indices(), truth, volume.spacing,
                             test.classes)
    return {
        "volumes": len(test), "with_the_affine_of_their_source": len(test),
        "mean_dice": statistics.mean(score.dice for score in scores),
        "worst_dice": min(score.dice for score in scores),
        "mean_iou": statistics.mean(score.iou for score in scores),
        "median_hd95_mm": statistics.median(score.hd95 for score in scores),
        "mean_surface_dice": statistics.mean(score.surface_dice for score in scores),
        "surface_tolerance_mm": SURFACE_TOLERANCE,
    }


def write(path: Path, encoder: str, sets: dict[str, LabelledImages],
          results: dict[str, Any]) -> None:
    """Writes one entry of the results file; the entries of other encoders stay."""
    data = json.loads(path.read_text()) if path.exists() else {"encoders": {}}
    data |= {"benchmark": "hippocampus",
             "data": "Medical Segmentation Decathlon, Task 04, training set",
             "split": {name: [pair.image.name for pair in images.pairs]
                       for name, images in sets.items()}}
    data["encoders"][encoder] = results
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
