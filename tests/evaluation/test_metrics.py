import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestedseg.evaluation.metrics import SegmentationScores

TASKS = ["binary", "multiclass", "multilabel"]
KEYS = ["iou", "dice", "sensitivity", "specificity", "f1", "f2"]
CLASSES = {"binary": 1, "multiclass": 3, "multilabel": 3}


def sample(task, n=3, space=(6, 5), seed=0, used=3):
    """Logits (float64) and target; of the multiclass labels only the first `used` occur."""
    rng = torch.Generator().manual_seed(seed)
    shape = (n, CLASSES[task], *space)
    logits = 2 * torch.randn(shape, generator=rng, dtype=torch.float64)
    if task == "multiclass":
        return logits, torch.randint(used, (n, *space), generator=rng)
    return logits, torch.randint(2, shape, generator=rng)


def slow_counts(task, logits, target, threshold=0.5):
    """(classes, 4) by looking at one pixel after the other."""
    x, t = logits.numpy(), target.numpy()
    counts = np.zeros((x.shape[1], 4), dtype=int)
    t = t.reshape(len(t), -1 if task == "multiclass" else x.shape[1], *x.shape[2:])
    for i, c, *at in np.ndindex(x.shape):
        here = (i, slice(None), *at)
        if task == "multiclass":
            predicted, true = x[here].argmax() == c, t[here][0] == c
        else:
            predicted, true = 1 / (1 + math.exp(-x[here][c])) > threshold, t[here][c] == 1
        outcome = (0 if true else 1) if predicted else (2 if true else 3)
        counts[c, outcome] += 1
    return counts


def slow_scores(counts):
    """The textbook definitions, by precision and recall where they have them."""

    def ratio(a, b):
        return a / b if b else math.nan

    scores = {key: [] for key in KEYS}
    for tp, fp, fn, tn in counts.tolist():
        precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
        scores["iou"].append(ratio(tp, tp + fp + fn))
        scores["dice"].append(ratio(2 * tp, (tp + fp) + (tp + fn)))
        scores["sensitivity"].append(recall)
        scores["specificity"].append(ratio(tn, tn + fp))
        # With no true positive, precision or recall is 0 and so is their weighted harmonic mean.
        missed = 0 if fp + fn else math.nan
        scores["f1"].append(2 / (1 / precision + 1 / recall) if tp else missed)
        scores["f2"].append(5 / (1 / precision + 4 / recall) if tp else missed)
    return scores


def assert_scores(given, expected):
    assert list(given) == KEYS
    for key, per_class in expected.items():
        assert given[key]["per_class"] == pytest.approx(per_class, rel=1e-12, nan_ok=True)
        defined = [score for score in per_class if not math.isnan(score)]
        mean = sum(defined) / len(defined) if defined else math.nan
        assert given[key]["mean"] == pytest.approx(mean, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("space", [(6, 5), (3, 4, 2)])
@pytest.mark.parametrize("task", TASKS)
def test_equals_the_definition(task, space):
    logits, target = sample(task, space=space)
    scores = SegmentationScores(task, CLASSES[task])
    scores.update(logits, target)
    expected = slow_counts(task, logits, target)
    assert (expected > 0).all()
    assert scores.counts.dtype == torch.int64
    assert scores.counts.tolist() == expected.tolist()
    assert_scores(scores.compute(), slow_scores(expected))


def test_values_by_hand():
    scores = SegmentationScores()
    scores.counts = torch.tensor([[6, 2, 4, 88]])
    values = {key: score["mean"] for key, score in scores.compute().items()}
    assert values == pytest.approx(
        {
            "iou": 6 / 12,
            "dice": 12 / 18,
            "sensitivity": 6 / 10,
            "specificity": 88 / 90,
            "f1": 12 / 18,
            "f2": 30 / 48,
        }
    )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(TASKS),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 6), max_size=3),
)
def test_batching_does_not_matter(task, seed, cuts):
    """One update with all images, several with a few, or two accumulators merged: the same."""
    logits, target = sample(task, n=6, space=(2, 2), seed=seed)
    at_once = SegmentationScores(task, CLASSES[task])
    at_once.update(logits, target)
    merged = SegmentationScores(task, CLASSES[task])
    edges = sorted({0, 6, *cuts})
    for first, last in pairwise(edges):
        part = SegmentationScores(task, CLASSES[task])
        part.update(logits[first:last], target[first:last])
        merged.counts += part.counts
    assert torch.equal(merged.counts, at_once.counts)
    assert (at_once.counts.sum(dim=1) == 6 * 4).all()
    assert_scores(merged.compute(), slow_scores(at_once.counts))


def test_scores_come_from_summed_counts_not_from_averaged_batches():
    scores = SegmentationScores()
    scores.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 4))
    scores.update(torch.ones(1, 1, 1, 4), torch.tensor([[[1, 0, 0, 0]]]))
    assert scores.compute()["iou"]["mean"] == pytest.approx(5 / 8)


def test_reset_forgets():
    scores = SegmentationScores("multiclass", 3)
    logits, target = sample("multiclass")
    scores.update(logits, target)
    expected = scores.compute()
    scores.update(-logits, target)
    assert scores.compute() != expected
    scores.reset()
    assert scores.counts.tolist() == [[0] * 4] * 3
    scores.update(logits, target)
    assert scores.compute() == expected


def test_a_class_absent_from_truth_and_prediction_has_no_score():
    logits, target = sample("multiclass", used=2)
    logits[:, 2] = -100
    scores = SegmentationScores("multiclass", 3)
    scores.update(logits, target)
    values = scores.compute()
    for key in set(KEYS) - {"specificity"}:
        first, second, absent = values[key]["per_class"]
        assert math.isnan(absent)
        assert values[key]["mean"] == pytest.approx((first + second) / 2)
    assert values["specificity"]["per_class"][2] == 1


def test_a_class_only_predicted_scores_0_but_has_no_sensitivity():
    scores = SegmentationScores()
    scores.update(torch.tensor([1.0, -1.0]).view(1, 1, 1, 2), torch.zeros(1, 1, 2))
    values = {key: score["mean"] for key, score in scores.compute().items()}
    assert math.isnan(values.pop("sensitivity"))
    assert values == {"iou": 0, "dice": 0, "specificity": 0.5, "f1": 0, "f2": 0}


def test_specificity_of_a_class_that_is_everywhere_is_undefined():
    scores = SegmentationScores()
    scores.update(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2))
    values = {key: score["mean"] for key, score in scores.compute().items()}
    assert math.isnan(values.pop("specificity"))
    assert values == {"iou": 1, "dice": 1, "sensitivity": 1, "f1": 1, "f2": 1}


def test_before_any_update_every_mean_is_nan():
    assert all(math.isnan(score["mean"]) for score in SegmentationScores().compute().values())


@pytest.mark.parametrize("task", ["binary", "multilabel"])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_threshold_is_a_probability(task, threshold):
    logits, target = sample(task)
    scores = SegmentationScores(task, CLASSES[task], threshold)
    scores.update(logits, target)
    assert scores.counts.tolist() == slow_counts(task, logits, target, threshold).tolist()


def test_a_probability_at_the_threshold_is_background():
    scores = SegmentationScores()
    # sigmoid(0.001) is 0.5 in bfloat16 and above it in truth.
    logits = torch.tensor([0.0, 0.001], dtype=torch.bfloat16).view(1, 1, 1, 2)
    scores.update(logits, torch.ones(1, 1, 2))
    assert scores.counts.tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("task", TASKS)
def test_any_dtype_with_gradients_and_autocast(task, dtype):
    logits, target = sample(task)
    logits = logits.to(dtype)
    expected = slow_counts(task, logits.double(), target)
    scores = SegmentationScores(task, CLASSES[task])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores.update(logits.requires_grad_(), target)
    assert scores.counts.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_binary_target_shapes_and_dtypes_agree(dtype):
    logits, target = sample("binary")
    expected = slow_counts("binary", logits, target)
    for one in (target.to(dtype), target.to(dtype)[:, 0]):
        scores = SegmentationScores()
        scores.update(logits, one)
        assert scores.counts.tolist() == expected.tolist()


def test_survives_inference_mode():
    """An accumulator made outside can be added to inside and reduced outside again."""
    scores = SegmentationScores()
    with torch.inference_mode():
        scores.update(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2))
    scores.counts += scores.counts.clone()
    assert scores.counts.tolist() == [[8, 0, 0, 0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", TASKS)
def test_device_does_not_matter(task):
    logits, target = sample(task)
    scores = SegmentationScores(task, CLASSES[task])
    scores.update(logits.cuda(), target.cuda())
    assert scores.counts.tolist() == slow_counts(task, logits, target).tolist()


@pytest.mark.parametrize(
    "task, classes, logits, target, message",
    [
        ("binary", 1, (2, 1, 4, 4), torch.zeros(2, 4, 5), r"got \(2, 4, 5\)"),
        ("binary", 1, (2, 1, 4, 4), torch.full((2, 4, 4), 0.5), "only 0 and 1, got values between"),
        ("binary", 1, (2, 1, 4, 4), torch.full((2, 4, 4), 255), "got from 255 to 255"),
        ("binary", 1, (1, 4, 4), torch.zeros(1, 4), r"\(N, classes, H, W\)"),
        ("multiclass", 3, (2, 4, 4, 4), torch.zeros(2, 4, 4, dtype=int), "for 3 classes, got .* 4"),
        ("multiclass", 3, (2, 3, 4, 4), torch.full((2, 4, 4), 3), "from 0 to 2"),
        ("multilabel", 3, (2, 3, 4, 4), torch.zeros(2, 4, 4), r"\(2, 3, 4, 4\), got \(2, 4, 4\)"),
    ],
)
def test_a_wrong_batch_is_refused_and_not_counted(task, classes, logits, target, message):
    scores = SegmentationScores(task, classes)
    with pytest.raises(ValueError, match=message):
        scores.update(torch.zeros(logits), target)
    assert scores.counts.sum() == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "binery"}, "'binery'.*did you mean 'binary'"),
        ({"task": "binary", "classes": 2}, "exactly 1 class .*got 2"),
        ({"task": "multiclass"}, "2 or more classes .*got 1"),
        ({"task": "multilabel", "classes": 0}, "1 or more classes .*got 0"),
        ({"threshold": 0}, "between 0 and 1, got 0"),
        ({"threshold": 1.5}, "between 0 and 1, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SegmentationScores(**arguments)
