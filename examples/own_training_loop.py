"""A training loop of one's own in plain PyTorch: any dataset, optimiser and schedule will do.

    python examples/own_training_loop.py                            # on pictures that it makes
    python examples/own_training_loop.py --images DIR --labels DIR  # on yours, of the same names

Labels above 0 are the foreground. The model is left in runs/loop.
"""

import argparse

import numpy as np
import torch

import nestedseg
from nestedseg.data import find_pairs, read_image, read_label, synthetic_nuclei
from nestedseg.losses import DeepSupervision, HybridLoss
from nestedseg.metrics import SegmentationScores

parser = argparse.ArgumentParser()
parser.add_argument("--images")
parser.add_argument("--labels")
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()

pairs = find_pairs(args.images, args.labels) if args.images else []
pictures = [(read_image(image), read_label(label)) for image, label in pairs]
pictures = pictures or list(zip(*synthetic_nuclei(20, size=192)))
training, validation = pictures[len(pictures) // 4:], pictures[:len(pictures) // 4]
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
model = nestedseg.create("unetpp", encoder_channels=(16, 32, 64, 128), deep_supervision=True,
                         in_channels=1 if pictures[0][0].ndim == 2 else 3).to(device)

dataset = []  # pairs of a float image (C, 64, 64) and its class indices (64, 64)
for image, label in training:
    for top, left in np.ndindex(label.shape[0] // 64, label.shape[1] // 64):
        tile = np.s_[64 * top:64 * (top + 1), 64 * left:64 * (left + 1)]
        dataset.append((nestedseg.preprocess(image[tile], model)[0], np.int64(label[tile] > 0)))
loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)

loss = DeepSupervision(HybridLoss(model.task))
optimizer = torch.optim.AdamW(model.parameter_groups(lr=2e-3, weight_decay=1e-2))
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
for epoch in range(args.epochs):
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss(model(images.to(device)), labels.to(device)).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    scores = {depth: SegmentationScores(model.task) for depth in model.depths}
    with torch.inference_mode():
        for image, label in validation:
            heads = model.forward_heads(nestedseg.preprocess(image, model).to(device))
            for depth, logits in heads.items():
                scores[depth].update(logits.cpu(), torch.from_numpy(np.int64(label > 0))[None])
    iou = {depth: round(each.compute()["iou"]["mean"], 3) for depth, each in scores.items()}
    print(f"epoch {epoch + 1}: IoU by depth {iou}")
model.save_pretrained("runs/loop")
