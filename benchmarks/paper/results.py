"""The JSON files of a profile, and the scores that follow from their pixel counts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paper.score import ENSEMBLE
from nestedseg.evaluation.metrics import SegmentationScores

PERCENT = 100.0


class Results:
    """The trials that are done, by row.

    Args:
        folder: of the JSON files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for path in sorted(folder.glob("*.json")):
            trial = json.loads(path.read_text(encoding="utf-8"))
            self.rows[trial["trial"]["row"]].append(trial)
        for trials in self.rows.values():
            trials.sort(key=lambda trial: trial["trial"]["number"])

    def __contains__(self, row: str) -> bool:
        return row in self.rows

    def of(self, row: str) -> list[dict[str, Any]]:
        """The trials of a row, by number; none if it has not been run."""
        return self.rows.get(row, [])

    def scores(self, row: str, score: str = "iou", head: str = ENSEMBLE) -> list[float]:
        """A score of each trial in per cent, over all pixels of the test images together.

        Args:
            row: of the plan.
            score: one of those of `nestedseg.metrics.SegmentationScores`.
            head: a depth, or the vote of all.
        """
        return [PERCENT * scores_of(trial["test"]["counts"][head])[score] for trial in self.of(row)]

    def bucket(self, row: str, index: int) -> list[float]:
        """The mean IoU in per cent of the objects of one size, of each trial."""
        found = (trial["test"]["objects"]["iou"][index] for trial in self.of(row))
        return [PERCENT * iou for iou in found if iou is not None]

    def distinct(self, value: Callable[[dict[str, Any]], Any]) -> set[Any]:
        """The different values that trials have."""
        return {value(trial) for trials in self.rows.values() for trial in trials}


def scores_of(counts: list[list[int]]) -> dict[str, float]:
    """The scores of images together, from the counts of each."""
    scores = SegmentationScores()
    scores.counts = torch.from_numpy(np.sum(counts, axis=0, dtype=np.int64)[None])
    return {name: score["mean"] for name, score in scores.compute().items()}
