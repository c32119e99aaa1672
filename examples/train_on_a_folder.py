"""Train on a folder of images, score every depth, keep the shallowest that is good enough.

    python examples/train_on_a_folder.py                            # on pictures that it makes
    python examples/train_on_a_folder.py --images DIR --labels DIR  # on yours, of the same names

Labels above 0 are the foreground. The models and a picture are left in runs/folder.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import torch

import nestedseg
from nestedseg.data import LabelledImages, find_pairs, split_pairs, synthetic_nuclei
from nestedseg.prediction import predict_image
from nestedseg.training import Settings, best_epoch, fit

parser = argparse.ArgumentParser()
parser.add_argument("--images", type=Path)
parser.add_argument("--labels", type=Path)
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()
out = Path("runs/folder")

if args.images is None:  # 20 pictures of cell nuclei, and where the nuclei are
    args.images, args.labels = out / "images", out / "labels"
    for folder, pictures in zip((args.images, args.labels), synthetic_nuclei(20, size=160)):
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            cv2.imwrite(str(folder / f"{number:02d}.png"), picture)

pairs = split_pairs(find_pairs(args.images, args.labels), fraction=0.25)
train, validation = (LabelledImages(side, binary=True) for side in pairs)

torch.manual_seed(0)
model = nestedseg.create("unetpp", encoder_channels=(16, 32, 64, 128),
                         in_channels=train.in_channels, deep_supervision=True)
model.set_preprocessing(**train.preprocessing())  # their mean and standard deviation
settings = Settings(epochs=args.epochs, patch=64, lr=2e-3)
history = fit(model, train, validation, out, settings, resume=True)

best = nestedseg.from_pretrained(out / "model")  # the weights of the best epoch
iou = {int(depth): score for depth, score in best_epoch(history).scores.items()}
for row in best.summary(size=train.shapes[0]):
    print(f"depth {row.depth}: validation IoU {iou[row.depth]:.3f}, {row.parameters:,} parameters")
small = best.prune(nestedseg.choose_depth(iou, tolerance=0.01))
small.save_pretrained(out / "small")

figure, panels = plt.subplots(1, 3, figsize=(12, 4.4), layout="constrained")
for panel, (image, label), pair in zip(panels, validation, validation.pairs):
    panel.imshow(image, cmap="gray")
    panel.contour(label, [0.5], colors="gold", linewidths=1)
    panel.contour(predict_image(small, image)[0], [0.5], colors="deepskyblue", linewidths=1)
    panel.set(title=pair.image.name, xticks=[], yticks=[])
figure.suptitle(f"truth in yellow, UNet++ of depth {small.depths[0]} in blue")
figure.savefig(out / "prediction.png", dpi=110)
