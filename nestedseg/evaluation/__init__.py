"""Scores of predictions, and figures that show them."""

from nestedseg.evaluation.metrics import Score, SegmentationScores

__all__ = ["Score", "SegmentationScores"]
