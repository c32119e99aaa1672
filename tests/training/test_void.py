"""Void pixels count nowhere: each number is that of the pixels that remain, computed in float64.

The truth is an image from which the void pixels were cut out, which losses and scores take as a
picture of one row, because none of them looks at where a pixel is.
"""

from itertools import product

import numpy as np
import pytest
import torch

from nestedseg.evaluation.cases import score_case
from nestedseg.evaluation.metrics import SegmentationScores
from nestedseg.training.losses import DeepSupervision, HybridLoss, PaperHybridLoss

TASKS = ["binary", "multiclass", "multilabel"]
LOSSES = [HybridLoss, PaperHybridLoss]
SPACES = [(6, 5), (3, 4, 5)]
IGNORED = [255, -1, 3]
MATRIX = [*product(LOSSES, TASKS, SPACES)]


def sample(task, space, void=255, seed=0, images=3):
    """Logits and a target of which about a third is void, with another share in each image."""
    rng = torch.Generator().manual_seed(seed)
    classes = 1 if task == "binary" else 3
    logits = 2 * torch.randn(images, classes, *space, generator=rng, dtype=torch.float64)
    shape = (images, classes, *space) if task == "multilabel" else (images, *space)
    target = torch.randint(3 if task == "multiclass" else 2, shape, generator=rng)
    share = torch.linspace(0.1, 0.6, images).view(-1, *[1] * (len(shape) - 1))
    where = torch.rand(shape, generator=rng) < share
    if task == "multilabel":  # cut out of all planes here; of single planes in a test of its own
        where = where[:, :1].expand(shape)
    return logits, target.masked_fill(where, void), where


def cut(logits, target, void):
    """Each image without its void pixels, as a batch of one with the pixels in one row."""
    for x, t in zip(logits, target, strict=True):
        several = t.ndim == x.ndim
        keep = ((t if not several else t[0]) != void).flatten()
        rest = x.flatten(1)[:, keep][None, :, None]
        yield rest, (t.flatten(1)[:, keep][None, :, None] if several
                     else t.flatten()[keep][None, None])


@pytest.mark.parametrize("void", IGNORED)
@pytest.mark.parametrize("loss, task, space", MATRIX)
def test_the_loss_is_that_of_the_pixels_that_remain(loss, task, space, void):
    logits, target, _ = sample(task, space, void)
    parts = [loss(task)(*part) for part in cut(logits, target, void)]
    found = loss(task, ignore_index=void)(logits, target)
    assert found.item() == pytest.approx(sum(parts).item() / len(parts), rel=1e-12)


@pytest.mark.parametrize("task, space", product(TASKS, SPACES))
def test_dice_and_cross_entropy_by_sums(task, space):
    """The same by hand in numpy, without a loss of the library."""
    logits, target, _ = sample(task, space)
    entropies, dices = [], []
    for x, t in cut(logits, target, 255):
        x, t = x[0, :, 0].numpy(), t.reshape(-1, x.shape[-1]).numpy()
        if task == "multiclass":
            p = np.exp(x) / np.exp(x).sum(0)
            y = np.stack([t[0] == c for c in range(3)]).astype(float)
            entropies.append(-(y * np.log(p)).sum(0).mean())
        else:
            p, y = 1 / (1 + np.exp(-x)), t.astype(float)
            entropies.append(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())
        dices.append((1 - (2 * (p * y).sum(1) + 1) / ((p + y).sum(1) + 1)).mean())
    expected = np.mean(entropies) + np.mean(dices)
    found = HybridLoss(task, ignore_index=255)(logits, target).item()
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss, task, space", MATRIX)
def test_void_pixels_have_no_gradient_on_any_head(loss, task, space):
    logits, target, where = sample(task, space)
    heads = [scale * logits for scale in (1, -1, 50)]
    heads = [head.clone().requires_grad_() for head in heads]
    DeepSupervision(loss(task, ignore_index=255), [1, 2, 0.5])(heads, target).backward()
    where = where if task == "multilabel" else where[:, None].expand(logits.shape)
    for head in heads:
        assert (head.grad[where] == 0).all()
        assert head.grad[~where].abs().max() > 0
    for part, gradient in zip(cut(logits, target, 255), heads[0].grad, strict=True):
        alone = part[0].requires_grad_()
        loss(task)(alone, part[1]).backward()
        keep = gradient.flatten(1).abs().sum(0) > 0
        torch.testing.assert_close(gradient.flatten(1)[:, keep] * len(logits), alone.grad[0, :, 0])


@pytest.mark.parametrize("loss, task, space", MATRIX)
def test_what_the_logits_of_void_pixels_are_does_not_matter(loss, task, space):
    logits, target, where = sample(task, space)
    where = where if task == "multilabel" else where[:, None].expand(logits.shape)
    counted = loss(task, ignore_index=255)
    expected = counted(logits, target)
    for value in (0.0, 1e30, torch.inf, torch.nan):
        other = logits.masked_fill(where, value).requires_grad_()
        found = counted(other, target)
        assert found.item() == expected.item()
        (gradient,) = torch.autograd.grad(found, other)
        assert gradient.isfinite().all() and (gradient[where] == 0).all()


@pytest.mark.parametrize("loss, task, space", MATRIX)
def test_an_image_of_nothing_but_void_adds_nothing(loss, task, space):
    logits, target, _ = sample(task, space)
    counted, rest = loss(task, ignore_index=255), slice(1, None)
    target[0] = 255
    all_void = logits.requires_grad_()
    found = counted(all_void, target)
    expected = counted(logits[rest], target[rest]) * 2 / 3
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, all_void)
    assert gradient.isfinite().all() and (gradient[0] == 0).all()
    assert counted(logits[:1], target[:1]).item() == 0


@pytest.mark.parametrize("loss, task, space", MATRIX)
def test_without_void_pixels_nothing_changes(loss, task, space):
    logits, target, where = sample(task, space)
    target = target.masked_fill(where, 1)
    expected = loss(task)(logits, target).item()
    assert loss(task, ignore_index=255)(logits, target).item() == pytest.approx(expected, rel=1e-14)
    # torch takes an unsigned 255 for equal to -1
    wrong = loss(task, ignore_index=-1)
    with pytest.raises(ValueError, match="got from 0 to 255; if one of them marks pixels without"):
        wrong(logits, target.masked_fill(where, 255).to(torch.uint8))
    with pytest.raises(ValueError, match="give it as ignore_index"):
        loss(task)(logits, target.masked_fill(where, 255))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_class_may_be_void_alone(loss):
    """Partial annotation: each plane counts the pixels of its own that have a label."""
    logits, target, _ = sample("multilabel", (6, 5))
    target = torch.randint(2, target.shape, generator=torch.Generator().manual_seed(3))
    where = torch.rand(target.shape, generator=torch.Generator().manual_seed(4)) < 0.4
    target = target.masked_fill(where, 255)
    parts = [[loss("multilabel")(x[c:c + 1].flatten(1)[:, keep][None, :, None],
                                 t[c:c + 1].flatten(1)[:, keep][None, :, None]).item()
              for c in range(3) if (keep := (t[c] != 255).flatten()).any()]
             for x, t in zip(logits, target, strict=True)]
    gather = np.mean if loss is HybridLoss else np.sum
    expected = np.mean([gather(part) for part in parts])
    found = loss("multilabel", ignore_index=255)(logits, target)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss, task", product(LOSSES, TASKS))
def test_gradients_are_those_of_the_loss(loss, task):
    logits, target, _ = sample(task, (2, 3), images=2)
    counted = loss(task, ignore_index=255)
    assert torch.autograd.gradcheck(lambda x: counted(x, target), logits.requires_grad_())


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task, space, void", product(TASKS, SPACES, IGNORED))
def test_scores_are_those_of_the_pixels_that_remain(task, space, void):
    logits, target, where = sample(task, space, void)
    scores = SegmentationScores(task, logits.shape[1], ignore_index=void)
    scores.update(logits, target)
    expected = SegmentationScores(task, logits.shape[1])
    for part in cut(logits, target, void):
        expected.update(*part)
    assert torch.equal(scores.counts, expected.counts)
    assert scores.counts.sum(1).eq((~where).sum() // (3 if task == "multilabel" else 1)).all()


@pytest.mark.parametrize("task, space", product(TASKS, SPACES))
def test_no_prediction_for_void_pixels_changes_a_score(task, space):
    logits, target, where = sample(task, space)
    counts = []
    for value in (-9.0, 9.0):
        other = torch.where(where if task == "multilabel" else where[:, None], logits + value
                            * torch.randn_like(logits), logits)
        scores = SegmentationScores(task, logits.shape[1], ignore_index=255)
        scores.update(other, target)
        counts.append(scores.counts)
    assert torch.equal(*counts)


@pytest.mark.parametrize("value", [1.5, "255", True, 10**12])
def test_what_is_no_value_of_a_label_is_refused(value):
    for made in (lambda: HybridLoss("binary", ignore_index=value),
                 lambda: SegmentationScores(ignore_index=value)):
        with pytest.raises((TypeError, ValueError), match="ignore_index must be"):
            made()


@pytest.mark.parametrize("several", [False, True])
def test_scores_of_cases_leave_void_voxels_out(several):
    pytest.importorskip("monai")
    rng = np.random.default_rng(0)
    shape = (8, 9, 10, 2) if several else (8, 9, 10)
    truth = rng.integers(0, 2 if several else 3, shape)
    mask = rng.integers(0, 2 if several else 3, shape)
    void = rng.random(shape) < 0.3
    scores = score_case("a", mask, np.where(void, -1, truth), (1, 1, 1), 2 if several else 3)
    assert [score.label for score in scores] == ([0, 1] if several else [1, 2])
    for score in scores:
        a, b = ((each[..., score.label] == 1 if several else each == score.label)
                for each in (mask, truth))
        keep = ~(void[..., score.label] if several else void)
        a, b = a[keep], b[keep]
        assert score.iou == pytest.approx((a & b).sum() / (a | b).sum())
        assert score.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    other = score_case("a", np.where(void, rng.integers(0, 2, shape), mask),
                       np.where(void, -1, truth), (1, 1, 1), 2 if several else 3)
    assert other == scores
