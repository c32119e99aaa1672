"""The parts that all model cards share: front matter for the Hub, and sections for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub

from nestedseg.topology.graph import Graph

MARK = "<!-- Written by nestedseg, and again by each push. Remove this line to keep your own. -->"


def assemble(repo_id: str, data: huggingface_hub.ModelCardData, sections: Sequence[str],
             pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
    """Puts a card together: front matter, the library's mark, the sections, then the pictures."""
    parts = [f"---\n{data.to_yaml()}\n---", MARK, f"# {repo_id.partition('/')[2]}", *sections,
             *(f"![{escape(text)}]({path})" for text, path in pictures.items())]
    return huggingface_hub.ModelCard("\n\n".join(parts) + "\n")


def is_ours(text: str) -> bool:
    """Whether the library may replace this card: it still has the mark of cards that it wrote."""
    return MARK in text


# -- front matter ----------------------------------------------------------------------------------


def front_matter(repo_id: str, tags: Sequence[str], pipeline: str, license: str | None,
                 dataset: str | None,
                 results: Sequence[huggingface_hub.EvalResult]) -> huggingface_hub.ModelCardData:
    """The front matter, which the Hub reads; unknown values are left out."""
    optional: dict[str, Any] = {
        "license": license, "eval_results": list(results) or None,
        "model_name": repo_id.partition("/")[2] if results else None,
        "datasets": [dataset] if dataset and is_dataset_id(dataset) else None,
        "metrics": sorted({r.metric_type for r in results}) or None}
    return huggingface_hub.ModelCardData(
        library_name="nestedseg", pipeline_tag=pipeline, tags=["nestedseg", *tags],
        **{key: value for key, value in optional.items() if value is not None})


def result(name: str, kind: str, value: float, dataset: str,
           arguments: dict[str, Any] | None = None) -> huggingface_hub.EvalResult:
    """One score for the Hub: ``name`` is shown to people, ``kind`` is the Hub's metric type."""
    return huggingface_hub.EvalResult(
        task_type="image-segmentation", dataset_type=slug(dataset), dataset_name=dataset,
        metric_type=kind, metric_value=value, metric_name=name, metric_args=arguments)


def is_dataset_id(name: str) -> bool:
    """Whether the name of a data set has the form of an id on the Hub, which the Hub links to."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def slug(name: str) -> str:
    """A name as an identifier: ``"ISBI 2012, EM"`` -> ``"isbi-2012-em"``."""
    return name if is_dataset_id(name) else re.sub(r"\W+", "-", name.lower()).strip("-") or "none"


# -- text ------------------------------------------------------------------------------------------


def draw_topology(graph: Graph) -> str:
    """The section with a Mermaid drawing of the graph."""
    return "## Topology\n\nDotted arrows are skips; hexagons carry a head.\n\n" \
           f"```mermaid\n{graph.to_mermaid()}```"


def list_facts(lines: Mapping[str, Any]) -> str:
    """The section that lists facts about the model, one per line."""
    return "## Facts\n\n" + "\n".join(f"- {key}: {value}" for key, value in lines.items() if value)


def training_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The facts about the training in a config, except the scores."""
    return {key.replace("_", " ").capitalize(): escape(str(value))
            for key, value in (config["training"] or {}).items() if not isinstance(value, Mapping)}


def encoder_of(name: str) -> str:
    """An encoder's name, with the library or paper that it comes from."""
    return "the UNet++ paper's own encoder" if name == "plain" else f"timm's `{name}`"


def count_of(number: int, what: str) -> str:
    """A number with its noun in singular or plural: ``"1 class"``, ``"3 classes"``."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def numbers(values: Sequence[float]) -> str:
    """A list of numbers as text, cut off after four."""
    shown = ", ".join(f"{value:.4g}" for value in values[:4])
    return f"[{shown}{', …' if len(values) > 4 else ''}]"


def escape(text: str) -> str:
    """Escapes text for Markdown, so that a stranger's words are neither markup nor a new column."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", text)
