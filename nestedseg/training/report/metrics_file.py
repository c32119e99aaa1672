"""``metrics.json``: the scores and settings of a run, from which the model's card is written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from nestedseg.data import LabelledImages
from nestedseg.training.history import Epoch, best_epoch
from nestedseg.training.report.figures import CURVES, OVERLAY

METRICS = "metrics.json"
RECORDED = ("batch", "patch", "lr", "seed")  # settings that go into the config of a pushed model


def write_metrics(run: Path, model: nn.Module, validation: LabelledImages,
                  history: Sequence[Epoch], settings: dict[str, Any], **measured: Any) -> None:
    """Writes ``metrics.json``: what was measured, and what is needed to measure it again."""
    metrics = {"best_epoch": best_epoch(list(history)).epoch, **measured,
               "history": list(map(asdict, history)), "settings": settings,
               "model": model.config,
               "validation": [pair.image.name for pair in validation.pairs]}
    (run / METRICS).write_text(json.dumps(_finite(metrics), indent=2) + "\n")


def read_report(run: str | Path) -> dict[str, Any]:
    """The facts about a run, as arguments for `HubModel.push_to_hub`.

    Raises:
        ValueError: ``metrics.json`` was not written by a training run.
    """
    run = Path(run)
    pictures = {"Validation images: truth and prediction": run / OVERLAY,
                "Training loss and validation scores": run / CURVES}
    facts = {"pictures": {text: path for text, path in pictures.items() if path.is_file()}}
    if not (run / METRICS).is_file():
        return facts  # a run that was stopped has only the model
    try:
        report = json.loads((run / METRICS).read_text(encoding="utf-8"))
        scores = _known(report["scores"]) if "scores" in report else {
            row["depth"]: _known({name: row[name] for name in ("iou", "dice")})
            for row in report["depths"]}
        training = {"scores": f"of {len(report['validation'])} validation images",
                    "epochs": len(report["history"]), "best_epoch": report["best_epoch"],
                    **{name: _text(report["settings"][name]) for name in RECORDED}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / METRICS} was not written by a training run: {error!r}") from error
    return facts | {"metrics": scores, "training": training}


def _known(scores: dict[str, float | None]) -> dict[str, float]:
    return {name: score for name, score in scores.items() if score is not None}


def _text(value: Any) -> Any:
    """A single value as it is, a list as in "64 x 64 x 64"."""
    return " x ".join(map(str, value)) if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    """The value with ``None`` in place of nan and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
