"""The report of encoders.py --dims 3: which timm models can be made volumetric, and why others not.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

Record = dict[str, Any]
STEPS = ("converted", "own", "prune")
# len(timm_3d.list_models()) of version 1.0.1, https://github.com/ZFTurbo/timm_3d; it re-implements
# the models.
TIMM_3D = 274


def compact(family: str, record: Record) -> Record:
    """The reportable part of a record: why a model was rejected, or the steps that failed."""
    if "refused" in record:
        return {"family": family, "refused": record["refused"]}
    failed = {step: record.get(step, "not reached") for step in STEPS[1:]
              if record.get(step) != "ok"}
    return {"family": family, "strides": record.get("strides"),
            "parameters": record.get("parameters"), "failed": failed}


def summarise(models: dict[str, Record]) -> dict[str, Any]:
    """Counts over models."""
    made = [record["failed"] for record in models.values() if "failed" in record]
    return {"models": len(models), "converted": len(made)} | {
        step: sum(step not in failed for failed in made) for step in STEPS[1:]}


def headline(results: dict[str, Any]) -> str:
    """The counts, as sentences."""
    summary, models = results["summary"], results["models"].values()
    named = sum("(" in record["refused"] for record in models if "refused" in record)
    return (f"Of {summary['models']:,} models tried {summary['converted']:,} are made volumetric, "
            f"{summary['own']:,} run on a volume of {'x'.join(map(str, results['volume']))} voxels "
            f"and {summary['prune']:,} pruned to depth 1. {named:,} of the "
            f"{summary['models'] - summary['converted']:,} refusals name the module that stands in "
            f"the way. The package timm_3d 1.0.1 lists {TIMM_3D}; whether they run was not tried.")


def table(models: dict[str, Record]) -> str:
    """A Markdown table with one row for each family of models, which is a module of timm."""
    families: dict[str, dict[str, Record]] = {}
    for name, record in models.items():
        families.setdefault(record["family"], {})[name] = record
    lines = [("family", "models", "converted", "run", "pruned", "stopped by"),
             (":--", "--:", "--:", "--:", "--:", ":--")]
    lines += [row(family, members) for family, members in sorted(families.items())]
    lines += [(*row("**all**", models)[:-1], "")]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(family: str, models: dict[str, Record]) -> tuple[str, ...]:
    counts = [str(count or "") for count in summarise(models).values()]
    stops = Counter(stopped_by(record["refused"]) for record in models.values()
                    if "refused" in record)
    return family, *counts, ", ".join(f"`{name}`" for name, _ in stops.most_common())


def stopped_by(refusal: str) -> str:
    """The class of the module that an error message names."""
    found = re.match(r".*?\((\w+)\):", refusal)
    return found[1] if found else "one stride" if "one stride" in refusal else "one size"
