"""Draw the images of README and documentation: python docs/make_images.py [--instances]"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

import nestedseg
from nestedseg.data import LabelledInstances, find_pairs, synthetic_nuclei
from nestedseg.evaluation.visualise_masks import paint_instances, to_rgb
from nestedseg.instances.detectors import mask_rcnn
from nestedseg.instances.prediction import predict_instances
from nestedseg.training.loop import MODEL, fit
from nestedseg.training.settings import Settings

IMAGES = Path(__file__).parent / "images"

# The example of docs/topologies.md.
OWN = {
    "nodes": {"x0_1": ["x0_0", "x1_0"],
              "x2_1": ["x2_0", "x3_0"],
              "x1_2": {"inputs": ["x0_1", "x1_0", "x2_1"], "fuse": "sum"},
              "x0_3": ["x0_0", "x0_1", "x1_2"]},
    "heads": ["x0_1", "x0_3"],
}

NUCLEI, VALIDATED, SIDE = 24, 2, 160  # training images, validation images, their side in pixels
ENLARGED, GAP, COLOURS = 2, 8, 256  # of the drawn image
STAGES = (Settings(epochs=2, steps=40, batch=2, patch=128, lr=5e-4),
          Settings(epochs=1, steps=40, batch=2, patch=128, lr=1e-4, seed=1))


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, svg in topologies().items():
        (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")
    if "--instances" in sys.argv[1:]:
        draw_instances()


def topologies() -> dict[str, str]:
    """The drawings as SVG, by the name of their file."""
    pictures = {name: nestedseg.topology(name, 4).to_svg()
                for name in ("unet", "unet_e", "unet_plus", "unetpp")}
    pictures["pruned"] = nestedseg.topology("unetpp", 4).to_svg(keep=2)
    pictures["own"] = nestedseg.Graph.from_dict(OWN).to_svg()
    return pictures


def draw_instances() -> None:
    """An image of nuclei, its true instances, and those that a Mask RCNN++ finds in it."""
    images, labels = synthetic_nuclei(NUCLEI + VALIDATED + 1, SIDE)
    with TemporaryDirectory() as name:
        model = train_detector(Path(name), images[:-1], labels[:-1])
    rgb = to_rgb(images[-1])
    panels = [rgb, paint_instances(rgb, labels[-1]),
              paint_instances(rgb, predict_instances(model, images[-1]))]
    white = np.full((ENLARGED * SIDE, GAP, 3), 255, np.uint8)
    enlarged = [panel.repeat(ENLARGED, 0).repeat(ENLARGED, 1) for panel in panels]
    row = np.hstack([enlarged[0], white, enlarged[1], white, enlarged[2]])
    Image.fromarray(row).quantize(COLOURS).save(IMAGES / "instances.png", optimize=True)


def train_detector(folder: Path, images: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    """A Mask RCNN++ that is trained here for a few minutes on one CPU core."""
    for kind, pictures in (("images", images), ("labels", labels)):
        (folder / kind).mkdir()
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / kind / f"{index:02d}.png")
    pairs = find_pairs(folder / "images", folder / "labels")
    train, validation = (LabelledInstances(part) for part in (pairs[:NUCLEI], pairs[NUCLEI:]))
    torch.manual_seed(0)
    model = mask_rcnn("fpnpp", "resnet10t", in_channels=1, out_channels=64, anchor_scale=4,
                      resize=False, image_mean=train.mean, image_std=train.std,
                      box_batch_size_per_image=32, rpn_post_nms_top_n_train=300,
                      rpn_post_nms_top_n_test=300)
    for number, settings in enumerate(STAGES):
        fit(model, train, validation, folder / str(number), settings)
        model = nestedseg.from_pretrained(folder / str(number) / MODEL)
    return model


if __name__ == "__main__":
    main()
