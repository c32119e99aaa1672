"""Scores, and pictures of results."""

from nestedseg.evaluation.metrics import Score, SegmentationScores

__all__ = ["Score", "SegmentationScores"]
