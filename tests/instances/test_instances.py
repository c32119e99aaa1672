"""Instance maps, to targets and back, and their scores against a slow obvious implementation."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nestedseg import instances
from nestedseg.data.instance_maps import renumber, to_target
from nestedseg.instances.maps import from_mask, from_prediction
from nestedseg.instances.metrics import InstanceScores

MAPS = arrays.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)),
                     elements=st.sampled_from([0, 0, 1, 2, 7, 40_000]))


# -- maps -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(MAPS)
def test_renumbered_without_gaps_and_otherwise_the_same(given_map):
    numbered = renumber(given_map)
    assert numbered.dtype == np.int32 and ((numbered > 0) == (given_map > 0)).all()
    old = sorted({*given_map.ravel().tolist()} - {0})
    for number, before in enumerate(old, start=1):
        assert ((numbered == number) == (given_map == before)).all()


@pytest.mark.parametrize(("wrong", "message"), [
    (np.zeros((2, 2, 3), int), r"\(H, W\)"), (np.zeros((2, 2)), "whole numbers"),
    (np.array([[0, -1]]), "numbers from 1"), ("labels.png", "whole numbers")])
def test_what_is_no_instance_map_is_refused(wrong, message):
    for take in (renumber, to_target, lambda bad: InstanceScores().update(bad, bad)):
        with pytest.raises(ValueError, match=message):
            take(wrong)


@pytest.mark.parametrize("empty", [np.zeros((4, 5), np.uint16), np.zeros((0, 0), np.uint16)])
def test_maps_without_instances(empty):
    target = to_target(empty)
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == torch.float32
    assert target["masks"].shape == (0, *empty.shape) and target["labels"].shape == (0,)
    assert renumber(empty).max(initial=0) == 0
    assert math.isnan(InstanceScores().compute()["score"])


# -- targets --------------------------------------------------------------------------------------


def test_a_target_by_hand():
    target = to_target(np.array([[9, 9, 0, 3],
                                 [0, 9, 0, 0],
                                 [5, 5, 5, 0]], np.uint16))
    assert target["boxes"].tolist() == [[3, 0, 4, 1], [0, 2, 3, 3], [0, 0, 2, 2]]  # 3, 5, 9
    assert target["labels"].tolist() == [1, 1, 1] and target["labels"].dtype == torch.int64
    assert target["masks"].dtype == torch.uint8
    assert target["masks"][2].tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


@settings(max_examples=60)
@given(MAPS)
def test_boxes_hold_their_masks_tightly_and_are_never_empty(given_map):
    target = to_target(given_map)
    assert len(target["masks"]) == len({*given_map.ravel().tolist()} - {0})
    for box, mask in zip(target["boxes"].int().tolist(), target["masks"].bool()):
        left, top, right, bottom = box
        assert left < right and top < bottom and mask.any()
        assert mask[top:bottom, left:right].sum() == mask.sum()
        for side in (mask[top, :], mask[bottom - 1, :], mask[:, left], mask[:, right - 1]):
            assert side.any()


def test_classes_of_instances():
    given_map = np.array([[4, 0, 2]])
    assert to_target(given_map, {2: 7, 4: 1, 99: 3})["labels"].tolist() == [7, 1]
    with pytest.raises(ValueError, match="no entry for 1 instances, the first is 4"):
        to_target(given_map, {2: 1})


def test_more_instances_than_fit_are_refused_by_name():
    many = np.arange(1, 320 * 320 + 1).reshape(320, 320)
    with pytest.raises(ValueError, match=r"102400 instances .* 320 x 320 .* GiB.* patches"):
        to_target(many)
    assert len(to_target(many[:101, :101])["masks"]) == 10_201  # 100 MiB


# -- predictions ----------------------------------------------------------------------------------


def prediction(*parts, shape=(4, 6)):
    """Scores and masks from (score, rows, columns)."""
    masks = torch.zeros(len(parts), 1, *shape)
    for mask, (_, rows, columns) in zip(masks, parts):
        mask[0, rows, columns] = 0.9
    return {"scores": torch.tensor([part[0] for part in parts]), "masks": masks}


def test_the_better_of_two_that_overlap_has_the_pixels():
    found = from_prediction(prediction((0.6, slice(0, 2), slice(0, 4)),
                                       (0.9, slice(0, 2), slice(2, 6)),
                                       (0.4, slice(3, 4), slice(0, 6))))
    assert found.tolist() == [[2, 2, 1, 1, 1, 1]] * 2 + [[0] * 6] * 2


def test_hidden_instances_and_empty_masks_are_left_out():
    parts = ((0.9, slice(0, 4), slice(0, 4)), (0.8, slice(0, 4), slice(0, 6)),
             (0.7, slice(0, 0), slice(0, 0)), (0.6, slice(0, 1), slice(4, 6)))
    found = from_prediction(prediction(*parts))
    assert found.max() == 2 and found[0, 5] == 2 and found[3, 5] == 0  # 1/3 of it was left to see
    assert from_prediction(prediction(*parts), visible=0.3).max() == 2
    assert from_prediction(prediction(*parts), visible=0.3)[3, 5] == 2
    assert from_prediction(prediction()).shape == (4, 6) and not from_prediction(prediction()).any()
    assert not from_prediction(prediction(*parts), score=0.95).any()
    assert not from_prediction(prediction(*parts), mask=0.9).any()


def test_boxes_alone_make_no_map():
    with pytest.raises(ValueError, match="needs masks, which only mask_rcnn"):
        from_prediction({"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)})


def test_targets_and_predictions_are_inverse():
    given_map = np.array([[1, 1, 0, 2], [1, 1, 0, 2], [3, 3, 3, 3]])
    masks = to_target(given_map)["masks"][:, None].float()
    found = from_prediction({"scores": torch.tensor([0.9, 0.8, 0.7]), "masks": masks})
    assert (found == given_map).all()


def flood(mask):
    """Connected parts by the definition: grow from a pixel until nothing is new."""
    parts, left = np.zeros(mask.shape, int), {*zip(*np.nonzero(mask), strict=True)}
    while left:
        todo, number = [min(left)], parts.max() + 1
        while todo:
            row, column = todo.pop()
            if (row, column) in left:
                left.remove((row, column))
                parts[row, column] = number
                todo += [(row + 1, column), (row - 1, column), (row, column + 1),
                         (row, column - 1)]
    return parts


@settings(max_examples=60)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))), st.integers(1, 3))
def test_connected_parts(mask, smallest):
    expected = flood(mask)
    for number in range(1, expected.max() + 1):
        if (expected == number).sum() < smallest:
            expected[expected == number] = 0
    assert (from_mask(mask, smallest) == renumber(expected)).all()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(H, W\), got \(1, 2, 2\)"):
        from_mask(np.zeros((1, 2, 2)))


# -- scores ---------------------------------------------------------------------------------------


def slow_score(predicted, truth):
    """The Data Science Bowl's score by its definition, in fractions."""
    found = [predicted == n for n in np.unique(predicted) if n]
    real = [truth == n for n in np.unique(truth) if n]
    if not found and not real:
        return None
    total = Fraction(0)
    for percent in range(50, 100, 5):
        hits = sum(any(Fraction(int((a & b).sum()), int((a | b).sum())) > Fraction(percent, 100)
                       for b in found) for a in real)
        total += Fraction(hits, len(found) + len(real) - hits)
    return total / 10


@settings(max_examples=150)
@given(st.data())
def test_scores_are_those_of_the_definition(data):
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    maps = arrays.arrays(np.int64, shape, elements=st.sampled_from([0, 1, 2, 7, 40_000]))
    scores, expected, pairs = InstanceScores(), [], []
    for _ in range(data.draw(st.integers(1, 3))):
        truth = data.draw(maps)
        guess = data.draw(maps) if data.draw(st.booleans()) else truth.copy()
        guess.flat[0] = 3  # not always the same, not always another
        scores.update(guess, truth)
        expected.append(slow_score(guess, truth))
        pairs.append((guess > 0, truth > 0))
    computed = scores.compute()
    assert computed["score"] == pytest.approx(float(sum(expected) / len(expected)), abs=1e-12)
    both = sum(int((a & b).sum()) for a, b in pairs)
    either = sum(int((a | b).sum()) for a, b in pairs)
    assert computed["iou"] == both / either
    assert computed["dice"] == pytest.approx(2 * both / (both + either), abs=1e-12)


def test_scores_by_hand():
    truth = np.array([[1, 1, 1, 1, 0, 2, 2]])
    scores = InstanceScores()
    scores.update(np.array([[5, 5, 5, 0, 0, 9, 0]]), truth)
    # IoU 3/4 and 1/2: the first is found above 0.50 ... 0.70, the second never (not above 0.50)
    assert scores.compute()["score"] == pytest.approx((5 * 1 / 3) / 10)
    assert scores.compute()["iou"] == 4 / 6 and scores.compute()["dice"] == 8 / 10
    scores.update(truth, truth)
    assert scores.compute()["score"] == pytest.approx((1 / 6 + 1) / 2)
    scores.reset()
    assert not scores.totals.any() and math.isnan(scores.compute()["iou"])


def test_images_without_any_instance_have_no_score():
    empty, full = np.zeros((2, 2), int), np.ones((2, 2), int)
    scores = InstanceScores()
    scores.update(empty, empty)
    assert math.isnan(scores.compute()["score"])
    scores.update(full, full)
    assert scores.compute() == {"score": 1, "iou": 1, "dice": 1}
    scores.update(full, empty)
    assert scores.compute()["score"] == 0.5
    scores.update(empty, full)
    assert scores.compute()["score"] == pytest.approx(1 / 3)


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        InstanceScores().update(np.zeros((2, 2), int), np.zeros((2, 3), int))


def test_ten_thousand_instances_take_a_moment():
    truth = np.kron(np.arange(1, 12_101).reshape(110, 110), np.ones((6, 6), int))
    guess = np.roll(truth, 1, axis=1)
    scores, start = InstanceScores(), time.process_time()
    scores.update(guess, truth)
    assert time.process_time() - start < 5
    # IoU 30/42 = 0.71: found above 0.50 ... 0.70; where the map came round, a column is apart
    assert scores.compute()["score"] == pytest.approx(0.5, abs=0.01)


def test_the_module_is_loaded_by_name():
    import nestedseg
    assert nestedseg.instances is instances
