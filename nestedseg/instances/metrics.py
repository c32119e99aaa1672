"""Scores of instance maps, as in the paper's Table V."""

from __future__ import annotations

import numpy as np

from nestedseg.data.instance_maps import renumber

__all__ = ["InstanceScores", "bowl_score"]

THRESHOLDS = tuple(range(50, 100, 5))  # of IoU, in percent


class InstanceScores:
    """The Data Science Bowl's score, and pixel-wise IoU and Dice of all instances together.

    The Data Science Bowl 2018 counts an instance as found (TP) where its IoU with one of the truth
    is above a threshold; what is left of the prediction is FP, of the truth FN. An image's score is
    TP / (TP + FP + FN), averaged over the thresholds 0.50, 0.55 ... 0.95, and the score is the mean
    over the images. One that has no instance, neither in the truth nor in the prediction, has no
    score, and is left out. IoU and Dice are of the pixels that belong to any instance, counted over
    all images.

    ``totals``, five float64 numbers (the sum of the images' scores, how many have one; pixels in
    both, in the prediction, in the truth) is all the state: sum it over processes, assign it to
    restore.

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
        """Forget all images."""
        self.totals = np.zeros(5)

    def update(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Score one image.

        Args:
            predicted: instance map ``(H, W)``, of whole numbers; 0 is the background, the others
                may have gaps.
            truth: likewise.

        Raises:
            ValueError: the maps differ in size, or are no instance maps.
        """
        predicted, truth = renumber(predicted), renumber(truth)
        if predicted.shape != truth.shape:
            raise ValueError(f"the predicted map is {predicted.shape}, the true one {truth.shape}")
        score = bowl_score(predicted, truth)
        found, real = predicted > 0, truth > 0
        self.totals += np.array([np.nan_to_num(score), not np.isnan(score), (found & real).sum(),
                                 found.sum(), real.sum()], float)

    def compute(self) -> dict[str, float]:
        """``score``, ``iou`` and ``dice`` as fractions in [0, 1], or nan where undefined."""
        score, images, both, found, real = self.totals.tolist()
        return {"score": _ratio(score, images),
                "iou": _ratio(both, found + real - both),
                "dice": _ratio(2 * both, found + real)}


def bowl_score(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The Data Science Bowl's score of one image; nan without any instance. See `InstanceScores`.

    Above an IoU of 0.5 an instance has at most one partner, so that nothing need be assigned.

    Args:
        predicted: ``(H, W)`` with its instances numbered 1 ... n.
        truth: likewise.
    """
    found, real = int(predicted.max(initial=0)), int(truth.max(initial=0))
    shared, union = overlaps(predicted, truth)
    hits = [int((100 * shared > threshold * union).sum()) for threshold in THRESHOLDS]
    return float(np.mean([_ratio(hit, found + real - hit) for hit in hits]))


def overlaps(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both, and in either, of each pair of instances that meet: whole numbers.

    Of n by m pairs only those are listed: 10,000 instances in each map take a few MB.
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
