"""The report of a detector's training: scores, curves and images of instances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nestedseg.data import LabelledInstances
from nestedseg.evaluation.visualise_masks import paint_instances, to_rgb
from nestedseg.instances.metrics import InstanceScores
from nestedseg.instances.prediction import predict_instances
from nestedseg.training.history import Epoch, best_epoch
from nestedseg.training.report.figures import (
    CURVES,
    OVERLAY,
    draw_curves,
    draw_panels,
    shown,
)
from nestedseg.training.report.metrics_file import write_metrics

if TYPE_CHECKING:
    from nestedseg.instances.detectors import Detector


def write_instance_report(run: str | Path, model: Detector, validation: LabelledInstances,
                          history: Sequence[Epoch], settings: dict[str, Any]) -> str:
    """Writes ``metrics.json``, ``curves.png`` and ``overlay.png``; see `write_report`.

    Returns:
        The scores of the best epoch, in one line.
    """
    run = Path(run)
    scores = best_epoch(list(history)).scores
    write_metrics(run, model, validation, history, settings, scores=scores)
    draw_curves(history, run / CURVES, "Validation scores")
    draw_panels([_panels(model, *validation[index], validation.pairs[index].image.name)
                 for index in shown(validation)], run / OVERLAY)
    return ", ".join(f"{name} {score:.4f}" for name, score in scores.items())


def _panels(model: Detector, image: np.ndarray, truth: np.ndarray,
            name: str) -> list[tuple[str, np.ndarray]]:
    """An image, its true instances, and the predicted ones, each with a title."""
    rgb, found, scores = to_rgb(image), predict_instances(model, image), InstanceScores()
    scores.update(found, truth)
    return [(name, rgb), (f"truth: {truth.max()}", paint_instances(rgb, truth)),
            (f"found: {found.max()}, score {scores.compute()['score']:.3f}",
             paint_instances(rgb, found))]
