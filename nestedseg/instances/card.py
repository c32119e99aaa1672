"""The model card of a detector. Parts shared with other cards are in `nestedseg.hub.card`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import huggingface_hub
from torch import nn

from nestedseg.base.extras import install_command
from nestedseg.hub.card import (
    assemble,
    count_of,
    draw_topology,
    encoder_of,
    escape,
    front_matter,
    list_facts,
    numbers,
    result,
    slug,
    training_of,
)
from nestedseg.models.backbone import FeaturePyramid
from nestedseg.topology.graph import Graph

# Names of scores and detectors in the text, and the Hub's names of scores and tasks.
NAMES = {"score": "Data Science Bowl's score", "iou": "pixel-wise IoU", "dice": "pixel-wise Dice"}
TYPES = {"score": "dsb_score"}
KINDS = {"mask_rcnn": ("Mask R-CNN", "image-segmentation"),
         "faster_rcnn": ("Faster R-CNN", "object-detection"),
         "retinanet": ("RetinaNet", "object-detection")}


class DetectorLike(Protocol):
    """What the card needs to know about a detector; a `Detector` has all of it."""

    backbone: FeaturePyramid
    transform: Any

    @property
    def graph(self) -> Graph: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def make_detector_card(model: DetectorLike, repo_id: str, config: Mapping[str, Any],
                       license: str | None,
                       pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
    """Writes the card of a detector; for the arguments see `Saved._make_card`."""
    training = config["training"] or {}
    scores, dataset = training.get("metrics", {}), training.get("dataset")
    _, pipeline = KINDS[config["detector"]]
    results = [result(NAMES.get(name, name), TYPES.get(name, name), value, dataset)
               for name, value in scores.items()] if dataset else []
    tags = [config["detector"], slug(model.graph.name), config["pyramid"]["encoder"]["encoder"]]
    data = front_matter(repo_id, tags, pipeline, license, dataset, results)
    sections = [introduce_detector(model, config), detector_usage(repo_id, config),
                score_list(scores), draw_topology(model.graph),
                list_facts(detector_facts(model, config, license))]
    return assemble(repo_id, data, list(filter(None, sections)), pictures)


def introduce_detector(model: DetectorLike, config: Mapping[str, Any]) -> str:
    """A paragraph that says what the model is."""
    encoder, (kind, _) = config["pyramid"]["encoder"], KINDS[config["detector"]]
    return (f"A detector: torchvision's {kind} over a feature pyramid, the topology "
            f"`{slug(model.graph.name)}` over {encoder_of(encoder['encoder'])}, compiled by "
            f"nestedseg (`{install_command('detection')}` in a clone of its repository). It finds "
            "instances of "
            f"{count_of(config['classes'], 'class')} in images of "
            f"{count_of(encoder['in_channels'], 'channel')}.")


def detector_usage(repo_id: str, config: Mapping[str, Any]) -> str:
    """The section with code that loads and applies the model."""
    masks = config["detector"] == "mask_rcnn"
    imports = "\nfrom nestedseg.instances.prediction import predict_instances" if masks else ""
    further = "\ninstances = predict_instances(model, image)  # (H, W): 0 = background, 1, 2, ..." \
        if masks else ""
    shell = f"\n\nOn the command line: `nestedseg predict {repo_id} images --out found`." \
        if masks else ""
    return f"""## Use

```python
import numpy as np
from PIL import Image

import nestedseg{imports}

model = nestedseg.from_pretrained("{repo_id}")
image = np.asarray(Image.open("image.png"))
boxes = model([nestedseg.preprocess(image, model)[0]])[0]["boxes"]{further}
```{shell}"""


def score_list(scores: Mapping[str, float]) -> str:
    """The section with the scores, one per line; empty if there are none."""
    lines = [f"- {NAMES.get(name, escape(name))}: {value:.4f}" for name, value in scores.items()]
    return "## Scores\n\n" + "\n".join(lines) if lines else ""


def detector_facts(model: DetectorLike, config: Mapping[str, Any],
                   license: str | None) -> dict[str, Any]:
    """The facts that the card lists: encoder, pyramid, anchors, sizes, training and licence."""
    pyramid, transform = config["pyramid"], model.transform
    return {
        "Encoder": encoder_of(pyramid["encoder"]["encoder"]),
        "Pyramid": f"strides {', '.join(map(str, model.backbone.strides))}, "
                   f"{pyramid['out_channels']} channels",
        "Anchors": f"{config['anchor_scale']:g} times the stride of their level wide",
        "Preprocessing": "scaled to [0, 1] (`nestedseg.preprocess` does it); inside, minus "
                         f"{numbers(transform.image_mean)}, divided by "
                         f"{numbers(transform.image_std)}",
        "Sizes": resizing_text(model.transform) if config["resize"] else "any, not resized",
        "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        **training_of(config), "Licence": license or "not stated",
    }


def resizing_text(transform: Any) -> str:
    """A phrase that says to which size torchvision resizes images."""
    if transform.fixed_size:
        return "resized to {} x {} pixels".format(*transform.fixed_size)
    return (f"resized to {transform.min_size[-1]} pixels along the shorter side, or to "
            f"{transform.max_size} along the longer if that is less")
