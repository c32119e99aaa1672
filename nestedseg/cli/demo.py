"""``nestedseg demo``: from images to a pruned model that is saved, reloaded and checked."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path

import torch

import nestedseg
from nestedseg.base.extras import require
from nestedseg.data import LabelledImages, Pair, find_pairs, split_pairs, synthetic_nuclei
from nestedseg.evaluation.depths import DepthReport
from nestedseg.models.model import SegmentationModel
from nestedseg.training.loop import MODEL, fit
from nestedseg.training.report.semantic import depth_table, write_report
from nestedseg.training.settings import Settings

PICTURES = 40
MOST = 200, 12  # training and validation images that are used, for the sake of time
TOLERANCE = 0.01  # IoU that a shallower model may lose
SETTINGS = Settings(epochs=30, steps=30, lr=1e-3, patience=10, seconds=120)


def run_demo(out: str | Path, images: str | Path | None = None,
             labels: str | Path | None = None) -> None:
    """Trains UNet++ with deep supervision for two minutes on a CPU, prunes it, checks the result.

    Args:
        out: folder for the model, the pruned model, images and report.md. A demonstration that was
            interrupted there is continued.
        images: folder of real images; default: synthetic nuclei are made.
        labels: folder of their labels, above 0 = foreground.

    Raises:
        ValueError: only one of the two folders is given, or images cannot be used.
        RuntimeError: the pruned and reloaded model gives other outputs than the whole one.
    """
    if (images is None) != (labels is None):
        raise ValueError("give --images and --labels together, or neither")
    out = Path(out)
    if images is None or labels is None:
        images, labels = _write_nuclei(out)
    sides = split_pairs(find_pairs(images, labels), 0.25)
    train, validation = (LabelledImages(_spread(pairs, most), binary=True)
                         for pairs, most in zip(sides, MOST, strict=True))
    best, depths = _train(train, validation, out)
    print(depth_table(depths))
    depth = nestedseg.choose_depth({row.depth: row.iou for row in depths}, TOLERANCE)
    print(f"the shallowest depth within {TOLERANCE} of the best IoU: {depth}")
    _prune_and_check(best, depth, validation, out / "pruned")
    print("pruned, saved, reloaded: outputs equal to those of the whole model's head")
    (out / "report.md").write_text(_report(depths, depth, len(train), len(validation)))
    print(f"see {out / 'report.md'}, {out / 'overlay.png'} and {out / 'curves.png'}")


def _write_nuclei(out: Path) -> tuple[Path, Path]:
    """Writes synthetic images to files, so that they are used in the same way as real ones."""
    cv2 = require("cv2")
    folders = out / "images", out / "labels"
    for folder, pictures in zip(folders, synthetic_nuclei(PICTURES), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures):
            cv2.imwrite(str(folder / f"{index:02d}.png"), picture)
    print(f"made {PICTURES} images of nuclei in {folders[0]}")
    return folders


def _spread(pairs: list[Pair], most: int) -> list[Pair]:
    """At most this many of the pairs, evenly spaced from first to last."""
    return pairs[::math.ceil(len(pairs) / most)]


def _train(train: LabelledImages, validation: LabelledImages,
           out: Path) -> tuple[SegmentationModel, list[DepthReport]]:
    torch.manual_seed(SETTINGS.seed)
    # Instance normalisation, because images in one folder may differ greatly in brightness.
    model = nestedseg.create("unetpp", encoder_channels=(16, 32, 64, 128), norm="instance",
                             in_channels=train.in_channels, deep_supervision=True)
    model.set_preprocessing(mean=train.mean, std=train.std)
    history = fit(model, train, validation, out, SETTINGS, resume=True)
    best = nestedseg.from_pretrained(out / MODEL)
    return best, write_report(out, best, validation, history, asdict(SETTINGS))


def _prune_and_check(model: SegmentationModel, depth: int, images: LabelledImages,
                     folder: Path) -> None:
    model.prune(depth).save_pretrained(folder)
    pruned = nestedseg.from_pretrained(folder)
    x = nestedseg.preprocess(images[0][0], model)
    with torch.no_grad():
        if not torch.equal(pruned(x), model.forward_heads(x)[depth]):
            raise RuntimeError(f"the pruned model in {folder} gives other outputs than the whole "
                               "model")


def _report(depths: list[DepthReport], chosen: int, trained: int, validated: int) -> str:
    deepest = depths[-1]
    row = next(row for row in depths if row.depth == chosen)
    return f"""# UNet++ with deep supervision

Trained on {trained} images, validated on {validated}. One training run yields a model for every
depth:

{depth_table(depths)}
Depth {chosen} is the shallowest within {TOLERANCE} IoU of the best. Pruned to it, the model has
{row.parameters / deepest.parameters:.0%} of the parameters and takes \
{row.seconds / deepest.seconds:.0%} of the time of depth {deepest.depth}.
It was saved in `pruned/` and reloaded, and gives the same outputs as that head of the whole model.

![validation images, truth, and the prediction of each depth](overlay.png)

![training loss and validation IoU](curves.png)
"""


def demo(args: argparse.Namespace) -> None:
    """Train, compare depths, prune, save and reload, on synthetic images or your own."""
    run_demo(args.out, args.images, args.labels)


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR",
                        help="default: %(default)s")
    parser.add_argument("--images", type=Path, metavar="DIR",
                        help="images to use instead of synthetic ones")
    parser.add_argument("--labels", type=Path, metavar="DIR",
                        help="labels of --images; values above 0 are the foreground")
