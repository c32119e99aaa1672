"""The model card of a repo on the Hub, written from what the library knows of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import huggingface_hub

from nestedseg.summary import Summary

if TYPE_CHECKING:
    from nestedseg.graph import Graph
    from nestedseg.model import SegmentationModel

MARK = "<!-- Written by nestedseg, and again by each push. Remove this line to keep your own. -->"
NAMES = {"iou": "mIoU", "dice": "Dice"}  # as people read them
TYPES = {"iou": "mean_iou"}  # as the Hub calls them

Scores = Mapping[int, Mapping[str, float]]


def model_card(model: SegmentationModel, repo_id: str, config: Mapping[str, Any],
               license: str | None = None,
               pictures: Mapping[str, str] | None = None) -> huggingface_hub.ModelCard:
    """The card: front matter that the Hub reads, and text that people read.

    Args:
        repo_id: where it will be, ``"user/name"``.
        config: the model's, with what is said of its training.
        license: as the Hub names it, say ``"mit"``.
        pictures: files in the repo, by what they show.
    """
    scores = scores_of(model.depths, config)
    data = card_data(repo_id, config, license, scores)
    sections = [introduction(config, len(model.depths)), usage(repo_id, config, model.depths),
                "## Depths", depth_table(model.summary(), scores), topology(model.graph),
                facts(facts_of(config, license))]
    return assemble(repo_id, data, sections, pictures or {})


def assemble(repo_id: str, data: huggingface_hub.ModelCardData, sections: Sequence[str],
             pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
    """A card of these sections, with the library's mark, and pictures at the end."""
    parts = [f"---\n{data.to_yaml()}\n---", MARK, f"# {repo_id.partition('/')[2]}", *sections,
             *(f"![{escape(text)}]({path})" for text, path in pictures.items())]
    return huggingface_hub.ModelCard("\n\n".join(parts) + "\n")


def is_ours(text: str) -> bool:
    """Whether a card may be written anew: nobody has made it their own."""
    return MARK in text


def scores_of(depths: Sequence[int], config: Mapping[str, Any]) -> Scores:
    """The scores of the depths that the model has."""
    metrics = (config["training"] or {}).get("metrics", {})
    return {depth: metrics[str(depth)] for depth in depths if str(depth) in metrics}


# -- front matter ----------------------------------------------------------------------------------


def card_data(repo_id: str, config: Mapping[str, Any], license: str | None,
              scores: Scores) -> huggingface_hub.ModelCardData:
    """Front matter. Results need the name of a data set; without one they are left out."""
    dataset = (config["training"] or {}).get("dataset")
    results = [result(f"{NAMES.get(metric, metric)} at depth {depth}", TYPES.get(metric, metric),
                      value, dataset, {"depth": depth}) for depth, found in scores.items()
               for metric, value in found.items()] if dataset else []
    tags = [slug(config["topology"]), config["encoder"]]
    return front_matter(repo_id, tags, "image-segmentation", license, dataset, results)


def front_matter(repo_id: str, tags: Sequence[str], pipeline: str, license: str | None,
                 dataset: str | None,
                 results: Sequence[huggingface_hub.EvalResult]) -> huggingface_hub.ModelCardData:
    """What the Hub reads of a model; what is not known is left out."""
    optional: dict[str, Any] = {"license": license, "eval_results": list(results) or None,
                "model_name": repo_id.partition("/")[2] if results else None,
                "datasets": [dataset] if dataset and is_dataset_id(dataset) else None,
                "metrics": sorted({r.metric_type for r in results}) or None}
    return huggingface_hub.ModelCardData(
        library_name="nestedseg", pipeline_tag=pipeline, tags=["nestedseg", *tags],
        **{key: value for key, value in optional.items() if value is not None})


def result(name: str, kind: str, value: float, dataset: str,
           arguments: dict[str, Any] | None = None) -> huggingface_hub.EvalResult:
    """One score: as people call it, and as the Hub does."""
    return huggingface_hub.EvalResult(
        task_type="image-segmentation", dataset_type=slug(dataset), dataset_name=dataset,
        metric_type=kind, metric_value=value, metric_name=name, metric_args=arguments)


def is_dataset_id(name: str) -> bool:
    """Whether a data set's name may be its id on the Hub, which the Hub then links to."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def slug(name: str) -> str:
    """A name as an identifier: ``"ISBI 2012, EM"`` -> ``"isbi-2012-em"``."""
    return name if is_dataset_id(name) else re.sub(r"\W+", "-", name.lower()).strip("-") or "none"


# -- text ------------------------------------------------------------------------------------------


def introduction(config: Mapping[str, Any], depths: int) -> str:
    """What the model is, in a paragraph."""
    kind = "volumes" if config["dims"] == 3 else "images"
    nested = " It has a head at each of several depths: any of them can be loaded alone, without " \
             "the weights that only deeper ones need." if depths > 1 else ""
    return (f"The topology `{slug(config['topology'])}` over "
            f"{encoder_of(config['encoder'])}, compiled by nestedseg (`pip install nestedseg`): "
            f"{config['task']} segmentation of {kind} of "
            f"{count(config['in_channels'], 'channel')} into {count(config['classes'], 'class')}."
            f"{nested}")


def usage(repo_id: str, config: Mapping[str, Any], depths: Sequence[int]) -> str:
    """Lines to copy."""
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


def depth_table(summary: Summary, scores: Scores) -> str:
    """Depth | parameters | MACs | a column for each metric."""
    metrics = sorted({metric for found in scores.values() for metric in found})
    size = "x".join(map(str, summary.size))
    head = ["depth", "parameters", f"MACs at {size}", *(NAMES.get(m, escape(m)) for m in metrics)]
    rows = [head, ["---:"] * len(head)]
    for row in summary:
        found = scores.get(row.depth, {})
        rows.append([str(row.depth), f"{row.parameters:,}", f"{row.macs / 1e9:.3g} G",
                     *(f"{found[m]:.4f}" if m in found else "" for m in metrics)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def topology(graph: Graph) -> str:
    """The graph, drawn."""
    return "## Topology\n\nDotted arrows are skips; hexagons carry a head.\n\n" \
           f"```mermaid\n{graph.to_mermaid()}```"


def facts(lines: Mapping[str, Any]) -> str:
    """What is known of the model, one fact a line."""
    return "## Facts\n\n" + "\n".join(f"- {key}: {value}" for key, value in lines.items() if value)


def facts_of(config: Mapping[str, Any], license: str | None) -> dict[str, Any]:
    """Encoder, preprocessing, classes, training and licence."""
    return {
        "Encoder": encoder_of(config["encoder"]),
        "Preprocessing": preprocessing_of(config["preprocessing"]),
        "Sizes": f"{config['image_size']} pixels alone" if config["image_size"] else
                 f"any; padded inside to multiples of {config['pad_multiple'][0]} pixels",
        "Classes": ", ".join(map(escape, config["class_names"] or ())),
        **training_of(config), "Licence": license or "none is stated",
    }


def training_of(config: Mapping[str, Any]) -> dict[str, str]:
    """What is said of the training, but for the scores."""
    return {key.replace("_", " ").capitalize(): escape(str(value))
            for key, value in (config["training"] or {}).items() if not isinstance(value, Mapping)}


def preprocessing_of(values: Mapping[str, Any]) -> str:
    """What is done to an image before the model sees it."""
    low, high = values["input_range"]
    own = "each image minus its own mean, divided by its own standard deviation; then " \
        if values.get("standardise") else ""
    text = f"{own}scaled to [{low:g}, {high:g}], minus {numbers(values['mean'])}, divided by " \
           f"{numbers(values['std'])} (`nestedseg.preprocess` does it)"
    spacing = values.get("spacing")
    return text if spacing is None else \
        f"resampled to voxels of {numbers(spacing)} mm (`nestedseg predict` does it); {text}"


def encoder_of(name: str) -> str:
    """An encoder's name, and whose it is."""
    return "the UNet++ paper's own encoder" if name == "plain" else f"timm's `{name}`"


def count(number: int, what: str) -> str:
    """``"1 class"``, ``"3 classes"``."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def numbers(values: Sequence[float]) -> str:
    """At most four of them."""
    shown = ", ".join(f"{value:.4g}" for value in values[:4])
    return f"[{shown}{', …' if len(values) > 4 else ''}]"


def escape(text: str) -> str:
    """A stranger's words in Markdown: neither markup nor another column."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", text)
