"""Scores of instance maps, as in the paper's Table V."""

from __future__ import annotations

import numpy as np

from nestedseg.data.instance_maps import renumber

__all__ = ["InstanceScores", "bowl_score"]

THRESHOLDS = tuple(range(50, 100, 5))  # of IoU, in percent


class InstanceScores:
    """The Data Science Bowl's score, and pixel-wise IoU and Dice of all instances together.

    The Data Science Bowl 2018 counts a predicted instance as found (TP) if its IoU with a true
    instance is above a threshold; other predicted instances are FP, other true ones FN. The score
    of an image is TP / (TP + FP + FN), averaged over the thresholds 0.50, 0.55 ... 0.95; the score
    is the mean over the images. Images without any instance, true or predicted, have no score and
    are left out. IoU and Dice are those of the pixels that belong to any instance, counted over all
    images.

    The whole state is ``totals``, five float64 numbers: the sum of the images' scores, the number
    of images with a score; pixels in both, in the prediction, in the truth. Sum them over
    processes, or assign them to restore a state.

    Source: Caicedo et al., Nature Methods 2019, doi:10.1038/s41592-019-0612-7; Zhou et al., IEEE
    TMI 2020, Table V, doi:10.1109/TMI.2019.2959609.

    Examples:
        >>> import numpy as np
        >>> from nestedseg.instances import InstanceScores
        >>> scores = InstanceScores()
        >>> scores.update(predicted=np.array([[1, 1, 0, 3]]), truth=np.array([[1, 1, 0, 2]]))
        >>> scores.update(predicted=np.array([[1, 1, 0, 0]]), truth=np.array([[1, 1, 0, 2]]))
        >>> scores.compute()["score"]  # all found in the first image, half of them in the next
        0.75
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self.totals = np.zeros(5)

    def update(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Scores one image.

        Args:
            predicted: predicted instance map ``(H, W)``, of whole numbers; 0 is the background;
                gaps in the numbering do not matter.
            truth: true instance map, likewise.

        Raises:
            ValueError: the maps differ in size, or are not instance maps.
        """
        predicted, truth = renumber(predicted), renumber(truth)
        if predicted.shape != truth.shape:
            raise ValueError("predicted and true map must have the same size, got "
                             f"{predicted.shape} and {truth.shape}")
        score = bowl_score(predicted, truth)
        found, real = predicted > 0, truth > 0
        self.totals += np.array([np.nan_to_num(score), not np.isnan(score), (found & real).sum(),
                                 found.sum(), real.sum()], float)

    def compute(self) -> dict[str, float]:
        """Computes ``score``, ``iou`` and ``dice`` as fractions in [0, 1], or nan if undefined."""
        score, images, both, found, real = self.totals.tolist()
        return {"score": _ratio(score, images),
                "iou": _ratio(both, found + real - both),
                "dice": _ratio(2 * both, found + real)}


def bowl_score(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The Data Science Bowl's score of one image; nan without any instance. See `InstanceScores`.

    Instances need not be assigned to each other: above an IoU of 0.5 each has at most one partner.

    Args:
        predicted: predicted instance map ``(H, W)``, with instances numbered 1 ... n.
        truth: true instance map, likewise.
    """
    found, real = int(predicted.max(initial=0)), int(truth.max(initial=0))
    shared, union = overlaps(predicted, truth)
    hits = [int((100 * shared > threshold * union).sum()) for threshold in THRESHOLDS]
    return float(np.mean([_ratio(hit, found + real - hit) for hit in hits]))


def overlaps(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union in pixels of each pair of instances that overlap.

    Pairs that do not overlap are not listed, so that maps with many instances take little memory.
    """
    width = int(predicted.max(initial=0)) + 1
    pairs = truth.astype(np.int64).ravel() * width + predicted.ravel()
    pairs, shared = np.unique(pairs, return_counts=True)
    real, found = np.divmod(pairs, width)
    areas = np.bincount(truth.ravel()), np.bincount(predicted.ravel())
    meet = (real > 0) & (found > 0)
    real, found, shared = real[meet], found[meet], shared[meet]
    return shared, areas[0][real] + areas[1][found] - shared


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
