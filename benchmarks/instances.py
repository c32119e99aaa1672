"""U-Net, UNet++, Mask R-CNN and Mask RCNN++ on real nuclei: the rows of the paper's Table V, small.

    python benchmarks/instances.py --data DIR     # DIR contains images/ and labels/ (instance maps)

The images of 256 x 256 of the 2018 Data Science Bowl, split 50 / 20 / 30 % at random, as in the
paper. All four have the same encoder, images in the same order, batch and number of steps. U-Net
and UNet++ separate nuclei from the background, and connected parts are the instances. The threshold
(of the probability, or of the score of an instance) is chosen on the validation images.

Rows that are in the results with the same settings are not computed again. On a CPU, two processes
with OMP_NUM_THREADS=1, each with two of the --rows, are faster than one with two threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from torch import Tensor, nn

import nestedseg
from nestedseg.data import Pair, find_pairs, read_image, read_label
from nestedseg.data.instance_maps import to_target
from nestedseg.data.preprocessing import preprocess
from nestedseg.instances.detectors import mask_rcnn
from nestedseg.instances.maps import from_mask, from_prediction
from nestedseg.instances.metrics import InstanceScores
from nestedseg.prediction.predict import predict_image
from nestedseg.training.losses import HybridLoss

SIDE = 256
SPLIT = {"training": 0.5, "validation": 0.2, "test": 0.3}
ROWS = ("U-Net", "UNet++", "Mask R-CNN", "Mask RCNN++")
TOPOLOGIES = dict(zip(ROWS, ("unet", "unetpp", "fpn", "fpnpp")))
LEARNING_RATES = {"unet": 1e-3, "unetpp": 1e-3, "fpn": 3e-4, "fpnpp": 3e-4}
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
CURVE = 20  # points of the loss that are kept, each the mean of its part of the steps
RESULTS = Path(__file__).parent / "results" / "instances.json"

Image = tuple[np.ndarray, np.ndarray]  # the image and its instance map


def main() -> None:
    args = parse_arguments()
    sets = read_split(args.data, args.seed, args.images)
    settings = {"encoder": args.encoder, "encoder_weights": args.encoder_weights,
                "steps": args.steps, "batch": args.batch, "seed": args.seed, "side": SIDE,
                "images": {name: len(images) for name, images in sets.items()}}
    for name in args.rows:
        results = read_results(args.out, settings)
        if name not in results["rows"]:
            row = run(name, sets, settings)
            results = read_results(args.out, settings)  # another process may have added its own
            results["rows"][name] = row
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(as_line(name, results["rows"][name]), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="contains images/ and labels/")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--encoder-weights", help="'pretrained' or a file (default: random)")
    parser.add_argument("--steps", type=int, default=400, help="of training (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images (default: %(default)s)")
    parser.add_argument("--images", type=int, help="use at most this many images")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_results(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The results in the file if they have these settings, else empty results."""
    if path.is_file():
        found = json.loads(path.read_text())
        if found["settings"] == settings:
            return found
    return {"benchmark": "instances", "data": "2018 Data Science Bowl, stage 1, 256 x 256",
            "settings": settings, "machine": describe_machine(), "rows": {}}


def read_split(data: Path, seed: int, most: int | None) -> dict[str, list[Image]]:
    """Reads training, validation and test images once."""
    images = [image for pair in find_pairs(data / "images", data / "labels")
              if (image := read(pair))[0].shape[:2] == (SIDE, SIDE)]
    order = np.random.default_rng(seed).permutation(len(images))[:most]
    bounds = np.round(np.cumsum([0, *SPLIT.values()]) * len(order)).astype(int)
    return {name: [images[index] for index in order[first:last]]
            for name, first, last in zip(SPLIT, bounds, bounds[1:])}


def read(pair: Pair) -> Image:
    image = read_image(pair.image)
    image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    return image, read_label(pair.label)


# -- one row --------------------------------------------------------------------------------------


def run(name: str, sets: dict[str, list[Image]], settings: dict[str, Any]) -> dict[str, Any]:
    """Trains a model, chooses its threshold, and scores it on the test images."""
    torch.manual_seed(settings["seed"])
    topology = TOPOLOGIES[name]
    make, loss_of, predict = (detector if name.startswith("Mask") else segmenter)(topology)
    model = make(settings).to("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    losses = train(model, loss_of, sets["training"], settings, LEARNING_RATES[topology])
    trained = time.perf_counter()
    model.eval()
    chosen = score(model, predict, sets["validation"])
    best = max(THRESHOLDS, key=lambda threshold: chosen[threshold]["score"])
    scored = time.perf_counter()
    test = score(model, predict, sets["test"], [best])[best]
    return {**test, "threshold": best,
            "validation": {str(key): value["score"] for key, value in chosen.items()},
            "loss": [float(part.mean()) for part in np.array_split(losses, CURVE) if part.size],
            "steps": settings["steps"], "seed": settings["seed"],
            "learning_rate": LEARNING_RATES[topology],
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_seconds": trained - start,
            "seconds_per_image": (time.perf_counter() - scored) / max(1, len(sets["test"]))}


def train(model: nn.Module, loss_of: Callable[..., Tensor], images: list[Image],
          settings: dict[str, Any], learning_rate: float) -> list[float]:
    """Trains with Adam and a learning rate that falls to 0 along a cosine; returns the losses."""
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings["steps"])
    losses = []
    model.train()
    for step in range(settings["steps"]):
        rng = np.random.default_rng([settings["seed"], step])
        batch = [flip(*images[index], rng)
                 for index in rng.integers(len(images), size=settings["batch"])]
        loss = loss_of(model, *zip(*batch))
        if not loss.isfinite():
            raise FloatingPointError(f"the loss of step {step} is {loss.item()}")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"  step {step}: loss {np.mean(losses[-20:]):.3f}", flush=True)
    return losses


def flip(image: np.ndarray, instances: np.ndarray, rng: np.random.Generator) -> Image:
    """Rotates by a random multiple of 90 degrees, and mirrors at random."""
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    image, instances = np.rot90(image, turns), np.rot90(instances, turns)
    return (image[:, ::-1], instances[:, ::-1]) if mirrored else (image, instances)


def score(model: nn.Module, predict: Callable[..., Callable[[float], np.ndarray]],
          images: list[Image], thresholds: tuple[float, ...] | list[float] = THRESHOLDS,
          ) -> dict[float, dict[str, float]]:
    """The scores for each threshold."""
    scores = {threshold: InstanceScores() for threshold in thresholds}
    for image, truth in images:
        at = predict(model, image)
        for threshold in thresholds:
            scores[threshold].update(at(threshold), truth)
    return {threshold: each.compute() for threshold, each in scores.items()}


def segmenter(topology: str) -> tuple[Callable[..., Any], ...]:
    """How a semantic model is made, trained, and asked for instances at a threshold."""
    loss = HybridLoss("binary")

    def make(settings: dict[str, Any]) -> nn.Module:
        return nestedseg.create(topology, settings["encoder"],
                                encoder_weights=settings["encoder_weights"])

    def loss_of(model: nn.Module, images: tuple[np.ndarray, ...],
                instances: tuple[np.ndarray, ...]) -> Tensor:
        device = device_of(model)
        x = torch.cat([preprocess(image, model) for image in images]).to(device)
        return loss(model(x), torch.from_numpy(np.stack(instances) > 0).float().to(device))

    def predict(model: nn.Module, image: np.ndarray) -> Callable[[float], np.ndarray]:
        probability = predict_image(model, image)[0].cpu().numpy()
        return lambda threshold: from_mask(probability > threshold)

    return make, loss_of, predict


def detector(topology: str) -> tuple[Callable[..., Any], ...]:
    """How a Mask R-CNN is made, trained and used. Its anchors begin at 16 pixels, as nuclei do."""

    def make(settings: dict[str, Any]) -> nn.Module:
        return mask_rcnn(topology, settings["encoder"], anchor_scale=4, resize=False,
                         encoder_weights=settings["encoder_weights"],
                         frozen_batch_norm=False, box_score_thresh=min(THRESHOLDS),
                         box_detections_per_img=400, box_batch_size_per_image=64,
                         rpn_post_nms_top_n_train=500, rpn_post_nms_top_n_test=600)

    def loss_of(model: nn.Module, images: tuple[np.ndarray, ...],
                instances: tuple[np.ndarray, ...]) -> Tensor:
        device = device_of(model)
        targets = [{key: value.to(device) for key, value in to_target(each).items()}
                   for each in instances]
        x = [preprocess(image, model)[0].to(device) for image in images]
        return sum(model(x, targets).values())

    @torch.no_grad()
    def predict(model: nn.Module, image: np.ndarray) -> Callable[[float], np.ndarray]:
        prediction = model([preprocess(image, model)[0].to(device_of(model))])[0]
        return lambda threshold: from_prediction(prediction, threshold)

    return make, loss_of, predict


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def as_line(name: str, row: dict[str, Any]) -> str:
    return (f"{name}: IoU {row['iou']:.4f}, Dice {row['dice']:.4f}, score {row['score']:.4f} "
            f"({row['steps']} steps in {row['training_seconds']:.0f} s, loss "
            f"{row['loss'][0]:.3f} -> {row['loss'][-1]:.3f})")


if __name__ == "__main__":
    main()
