"""A topology of one's own: a rule, its drawing, its JSON form, and a comparison with UNet++.

    python examples/own_topology.py                            # on pictures that it makes
    python examples/own_topology.py --images DIR --labels DIR  # on yours, of the same names

Labels above 0 are the foreground. Drawing, JSON and models are left in runs/topology. Each
model has one short training: a difference of a hundredth means nothing.
"""

import argparse
from pathlib import Path

import cv2
import torch

import nestedseg
from nestedseg.data import LabelledImages, find_pairs, split_pairs, synthetic_nuclei
from nestedseg.training import Settings, best_epoch, fit

parser = argparse.ArgumentParser()
parser.add_argument("--images", type=Path)
parser.add_argument("--labels", type=Path)
parser.add_argument("--epochs", type=int, default=6)
args = parser.parse_args()
out = Path("runs/topology")
out.mkdir(parents=True, exist_ok=True)


@nestedseg.register_topology("three_neighbours")
def three_neighbours(i, j, depth):
    """The inputs of node X^{i,j}: the node before it, the one below, and the one above."""
    above = [f"x{i - 1}_{j}"] if i > 0 else []
    return [f"x{i}_{j - 1}", f"x{i + 1}_{j - 1}", *above]


graph = nestedseg.topology("three_neighbours", depth=3)
(out / "graph.svg").write_text(graph.to_svg(), encoding="utf-8")
(out / "graph.json").write_text(graph.to_json(), encoding="utf-8")

if args.images is None:  # 20 pictures of cell nuclei, and where the nuclei are
    args.images, args.labels = out / "images", out / "labels"
    for folder, pictures in zip((args.images, args.labels), synthetic_nuclei(20, size=160)):
        folder.mkdir(exist_ok=True)
        for number, picture in enumerate(pictures):
            cv2.imwrite(str(folder / f"{number:02d}.png"), picture)
pairs = split_pairs(find_pairs(args.images, args.labels), fraction=0.25)
train, validation = (LabelledImages(side, binary=True) for side in pairs)

for topology in ("unetpp", "three_neighbours"):  # or out / "graph.json"
    torch.manual_seed(0)
    model = nestedseg.create(topology, encoder_channels=(16, 32, 64, 128), deep_supervision=True,
                             in_channels=train.in_channels)
    model.set_preprocessing(**train.preprocessing())
    settings = Settings(epochs=args.epochs, patch=64, lr=2e-3)
    history = fit(model, train, validation, out / topology, settings, resume=True)
    for row in model.summary(size=train.shapes[0]):
        print(f"{topology}, depth {row.depth}: {row.parameters:,} parameters, validation IoU "
              f"{best_epoch(history).scores[str(row.depth)]:.3f}")
