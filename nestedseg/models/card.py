"""The model card of a semantic model, written from the model and its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub

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
from nestedseg.models.network import Network
from nestedseg.models.summary import Summary, summarise

NAMES = {"iou": "mIoU", "dice": "Dice"}  # names of scores in the text
TYPES = {"iou": "mean_iou"}  # names of scores on the Hub

Scores = Mapping[int, Mapping[str, float]]


def make_model_card(model: Network, repo_id: str, config: Mapping[str, Any], license: str | None,
                    pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
    """The model card: front matter that the Hub reads, and text that people read.

    Args:
        model: the model.
        repo_id: the repo that it is for, ``"user/name"``.
        config: the model's, including the facts about its training.
        license: the Hub's name for it, for example ``"mit"``.
        pictures: paths of files in the repo, by what they show.
    """
    scores = scores_of(model.depths, config)
    data = card_data(repo_id, config, license, scores)
    sections = [introduce_model(config, len(model.depths)),
                model_usage(repo_id, config, model.depths),
                "## Depths", depth_section(summarise(model, None), scores),
                draw_topology(model.graph), list_facts(model_facts(config, license))]
    return assemble(repo_id, data, sections, pictures)


def scores_of(depths: Sequence[int], config: Mapping[str, Any]) -> Scores:
    """The scores in the config, of only those depths that the model still has."""
    metrics = (config["training"] or {}).get("metrics", {})
    return {depth: metrics[str(depth)] for depth in depths if str(depth) in metrics}


def card_data(repo_id: str, config: Mapping[str, Any], license: str | None,
              scores: Scores) -> huggingface_hub.ModelCardData:
    """The front matter. The Hub's results need the name of a data set; without one there are none.
    """
    dataset = (config["training"] or {}).get("dataset")
    results = [result(f"{NAMES.get(metric, metric)} at depth {depth}", TYPES.get(metric, metric),
                      value, dataset, {"depth": depth}) for depth, found in scores.items()
               for metric, value in found.items()] if dataset else []
    tags = [slug(config["topology"]), config["encoder"]]
    return front_matter(repo_id, tags, "image-segmentation", license, dataset, results)


def introduce_model(config: Mapping[str, Any], depths: int) -> str:
    """A paragraph that says what the model is."""
    kind = "volumes" if config["dims"] == 3 else "images"
    nested = " It has a head at each of several depths. One depth can be loaded without the " \
             "weights that only deeper ones need." if depths > 1 else ""
    return (f"The topology `{slug(config['topology'])}` over {encoder_of(config['encoder'])}, "
            f"compiled by nestedseg (`{install_command()}` in a clone of its repository): "
            f"{config['task']} segmentation of {kind} of "
            f"{count_of(config['in_channels'], 'channel')} into "
            f"{count_of(config['classes'], 'class')}.{nested}")


def model_usage(repo_id: str, config: Mapping[str, Any], depths: Sequence[int]) -> str:
    """The section with code that loads and applies the model."""
    shallow = f'\nsmall = nestedseg.from_pretrained("{repo_id}", depth={depths[0]})' \
        if len(depths) > 1 else ""
    volume = config["dims"] == 3
    imports = "" if volume else "\nfrom PIL import Image"
    image = 'np.load("volume.npy")' if volume else 'np.asarray(Image.open("image.png"))'
    return f"""## Use

```python
import numpy as np{imports}

import nestedseg

model = nestedseg.from_pretrained("{repo_id}"){shallow}
image = {image}
probabilities = model.predict(nestedseg.preprocess(image, model))
```

On the command line: `nestedseg predict {repo_id} images --out masks`."""


def depth_section(summary: Summary, scores: Scores) -> str:
    """The table of depths, with the columns depth, parameters, MACs and one for each metric."""
    metrics = sorted({metric for found in scores.values() for metric in found})
    size = "x".join(map(str, summary.size))
    head = ["depth", "parameters", f"MACs at {size}", *(NAMES.get(m, escape(m)) for m in metrics)]
    rows = [head, ["---:"] * len(head)]
    for row in summary:
        found = scores.get(row.depth, {})
        rows.append([str(row.depth), f"{row.parameters:,}", f"{row.macs / 1e9:.3g} G",
                     *(f"{found[m]:.4f}" if m in found else "" for m in metrics)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def model_facts(config: Mapping[str, Any], license: str | None) -> dict[str, Any]:
    """The facts that the card lists: encoder, preprocessing, classes, training and licence."""
    return {
        "Encoder": encoder_of(config["encoder"]),
        "Preprocessing": preprocessing_text(config["preprocessing"]),
        "Sizes": f"only {config['image_size']} pixels" if config["image_size"] else
                 f"any; padded inside to multiples of {config['pad_multiple'][0]} pixels",
        "Classes": ", ".join(map(escape, config["class_names"] or ())),
        "Left out": ignored_text(config["ignore_index"]),
        **training_of(config), "Licence": license or "not stated",
    }


def ignored_text(values: Sequence[int]) -> str:
    """A sentence that says which pixels counted neither in training nor in scores."""
    return f"pixels with the label {' or '.join(map(str, values))}, in training and in scores" \
        if values else ""


def preprocessing_text(values: Mapping[str, Any]) -> str:
    """A sentence that says how an image is scaled before the model sees it."""
    low, high = values["input_range"]
    own = "each image minus its own mean and divided by its own standard deviation, then " \
        if values.get("standardise") else ""
    text = f"{own}scaled to [{low:g}, {high:g}], minus {numbers(values['mean'])}, divided by " \
           f"{numbers(values['std'])} (`nestedseg.preprocess` does it)"
    spacing = values.get("spacing")
    return text if spacing is None else \
        f"resampled to voxels of {numbers(spacing)} mm (`nestedseg predict` does it); {text}"
