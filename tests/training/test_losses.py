import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nestedseg.training.losses import DeepSupervision, HybridLoss, PaperHybridLoss

TASKS = ["binary", "multiclass", "multilabel"]
LOSSES = [HybridLoss, PaperHybridLoss]
SPACES = [(5, 4), (3, 4, 2)]


def sample(task, n=3, space=(5, 4), scale=2.0, seed=0):
    """Logits (float64) and a hard target of a task, with 3 classes unless binary."""
    rng = torch.Generator().manual_seed(seed)
    channels = 1 if task == "binary" else 3
    logits = scale * torch.randn(n, channels, *space, generator=rng, dtype=torch.float64)
    shape = (n, channels, *space) if task == "multilabel" else (n, *space)
    high = 3 if task == "multiclass" else 2
    return logits, torch.randint(high, shape, generator=rng)


def planes(task, logits, target):
    """p, y as (N, classes, pixels) numpy float64, written out the slow way."""
    x, t = logits.numpy(), target.numpy()
    x = x.reshape(*x.shape[:2], -1)
    if task != "multiclass":
        return 1 / (1 + np.exp(-x)), t.reshape(x.shape).astype(float)
    t = t.reshape(len(x), -1)
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    y = np.stack([t == c for c in range(x.shape[1])], axis=1)
    return p, y.astype(float)


def slow_hybrid(task, logits, target):
    p, y = planes(task, logits, target)
    n, classes, pixels = p.shape
    entropy = []
    for i, k in np.ndindex(n, pixels):
        if task == "multiclass":
            entropy.append(-sum(y[i, c, k] * math.log(p[i, c, k]) for c in range(classes)))
            continue
        for c in range(classes):
            entropy.append(-math.log(p[i, c, k] if y[i, c, k] else 1 - p[i, c, k]))
    dice = [
        1 - (2 * sum(p[i, c] * y[i, c]) + 1) / (sum(p[i, c]) + sum(y[i, c]) + 1)
        for i, c in np.ndindex(n, classes)
    ]
    return np.mean(entropy) + np.mean(dice)


def slow_paper(task, logits, target):
    p, y = planes(task, logits, target)
    if task != "multiclass":
        p, y = np.concatenate([1 - p, p], 1), np.concatenate([1 - y, y], 1)
    total = sum(
        y[n] * math.log(p[n]) + 2 * y[n] * p[n] / (y[n] ** 2 + p[n] ** 2)
        for n in np.ndindex(p.shape)
    )
    return -total / (p.shape[0] * p.shape[2])


SLOW = {HybridLoss: slow_hybrid, PaperHybridLoss: slow_paper}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_definition(loss, task, space):
    logits, target = sample(task, space=space)
    expected = SLOW[loss](task, logits, target)
    assert loss(task)(logits, target).item() == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LOSSES), st.sampled_from(TASKS), st.integers(0, 10**6), st.floats(0.01, 4))
def test_equals_the_definition_for_any_logits(loss, task, seed, scale):
    logits, target = sample(task, n=2, space=(2, 3), scale=scale, seed=seed)
    expected = SLOW[loss](task, logits, target)
    assert loss(task)(logits, target).item() == pytest.approx(expected, rel=1e-7)


def test_values_by_hand():
    # One foreground pixel of 4, p = 1/2 everywhere: ln 2 + 1 - (2·½ + 1) / (2 + 1 + 1).
    logits, target = torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 0], [0, 0]]])
    assert HybridLoss("binary")(logits, target).item() == pytest.approx(math.log(2) + 0.5)
    # Each pixel has one plane with y = 1: -(ln ½ + 2·½ / (1 + ¼)) = ln 2 - 0.8.
    assert PaperHybridLoss("binary")(logits, target).item() == pytest.approx(math.log(2) - 0.8)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(loss, task):
    logits, target = sample(task, n=2, space=(2, 3))
    assert torch.autograd.gradcheck(lambda x: loss(task)(x, target), logits.requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_targets(loss):
    logits, _ = sample("binary", n=2, space=(2, 3))
    soft = torch.rand(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    p, y = planes("binary", logits, soft)
    if loss is HybridLoss:
        entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
        dice = 1 - (2 * (p * y).sum(2) + 1) / (p.sum(2) + y.sum(2) + 1)
        expected = entropy + dice.mean()
    else:
        terms = [y * np.log(p) + 2 * y * p / (y**2 + p**2) for y, p in [(y, p), (1 - y, 1 - p)]]
        expected = -(terms[0] + terms[1]).mean()
    assert loss("binary")(logits, soft).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_logits_have_finite_loss_and_gradient(loss, task, size):
    logits, target = sample(task)
    logits = (size * logits.sign()).float().requires_grad_()
    value = loss(task)(logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and gradient.isfinite().all()
    assert value > size / 10, "confidently wrong pixels cost in proportion to their logits"
    assert gradient.abs().max() > 0.1 / gradient.numel(), "and are still corrected"


def perfect_logits(task, logits, target):
    if task == "multiclass":
        return 1e4 * nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    return 1e4 * (2.0 * target.reshape(logits.shape) - 1)


@pytest.mark.parametrize(
    "loss, task, least",
    [
        (HybridLoss, "binary", 0),
        (HybridLoss, "multiclass", 0),
        (HybridLoss, "multilabel", 0),
        (PaperHybridLoss, "binary", -1),
        (PaperHybridLoss, "multiclass", -1),
        (PaperHybridLoss, "multilabel", -3),
    ],
)
def test_a_perfect_prediction_costs_least(loss, task, least):
    logits, target = sample(task)
    perfect = perfect_logits(task, logits, target).requires_grad_()
    value = loss(task)(perfect, target)
    assert value.item() == pytest.approx(least, abs=1e-12)
    assert torch.autograd.grad(value, perfect)[0].abs().max() < 1e-12


@pytest.mark.parametrize("y", [0.0, 1e-30, 1e-19, 1.0])
def test_paper_loss_where_target_and_probability_vanish(y):
    logits = torch.tensor([-1e4, -200, -104, -69, -46, -40]).view(1, 1, 2, 3).requires_grad_()
    value = PaperHybridLoss("binary")(logits, torch.full((1, 2, 3), y))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    if y == 0:
        assert value.item() == -1


def test_paper_loss_of_a_small_probability_that_is_right():
    logits = torch.full((1, 1, 1, 1), -23, dtype=torch.float64)
    y = logits.sigmoid()
    entropy = -(y * y.log() + (1 - y) * (1 - y).log()).item()
    assert PaperHybridLoss("binary")(logits, y).item() == pytest.approx(entropy - 2, abs=1e-12)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_paper_loss_is_not_minimised_by_all_foreground(task):
    logits, _ = sample(task)
    empty = torch.zeros_like(logits)
    loss = PaperHybridLoss(task)
    assert loss(torch.full_like(logits, 10), empty) > loss(torch.full_like(logits, -10), empty) + 1


@pytest.mark.parametrize("task", TASKS)
def test_hybrid_loss_is_a_mean_over_samples(task):
    """So data-parallel training equals one process with the larger batch."""
    logits, target = sample(task, n=4)
    if task != "multiclass":
        target[:2] = 0  # where Dice sums over the batch would differ most
    loss = HybridLoss(task)
    halves = [loss(logits[i : i + 2], target[i : i + 2]) for i in (0, 2)]
    assert halves[0].item() != pytest.approx(halves[1].item(), rel=1e-2)
    assert loss(logits, target).item() == pytest.approx(sum(halves).item() / 2, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss, task, dtype):
    # 3 × 9216 pixels: bf16 sums would stop at 256, fp16 sums of the values overflow.
    logits, target = sample(task, space=(96, 96), scale=30)
    logits = logits.to(dtype)
    expected = loss(task)(logits.double(), target).item()
    with torch.autocast("cpu", dtype=dtype):
        value = loss(task)(logits, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_device_does_not_matter(loss, task):
    logits, target = sample(task, scale=30)
    logits = logits.bfloat16()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        value = loss(task)(logits.cuda(), target.cuda())
    assert value.item() == pytest.approx(loss(task)(logits, target).item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_float64_stays_float64(loss):
    logits, target = sample("binary")
    assert loss("binary")(logits, target.float()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_binary_target_shapes_and_dtypes_agree(loss, dtype):
    logits, target = sample("binary")
    expected = loss("binary")(logits, target)
    assert loss("binary")(logits, target.to(dtype)) == expected
    assert loss("binary")(logits, target.to(dtype).unsqueeze(1)) == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
@pytest.mark.parametrize("loss", LOSSES)
def test_any_integer_is_a_class_index(loss, dtype):
    logits, target = sample("multiclass")
    assert loss("multiclass")(logits, target.to(dtype)) == loss("multiclass")(logits, target)


@pytest.mark.parametrize(
    "task, channels, target, message",
    [
        ("binary", 1, torch.zeros(2, 4, 5), r"\(2, 4, 4\) or \(2, 1, 4, 4\), got \(2, 4, 5\)"),
        ("binary", 1, torch.zeros(2, 16), r"got \(2, 16\)"),
        ("binary", 2, torch.zeros(2, 4, 4), "exactly 1 class .*got 2"),
        ("binary", 1, torch.full((2, 4, 4), 255), "values from 0 to 1 .*got from 255 to 255"),
        ("binary", 1, torch.full((2, 4, 4), math.nan), "got from nan to nan"),
        ("multiclass", 1, torch.zeros(2, 4, 4, dtype=int), "2 or more classes .*got 1"),
        ("multiclass", 3, torch.zeros(2, 1, 4, 4, dtype=int), r"\(2, 4, 4\), got \(2, 1, 4, 4\)"),
        ("multiclass", 3, torch.zeros(2, 4, 4), "integer class indices .*got torch.float32"),
        ("multiclass", 3, torch.zeros(2, 4, 4, dtype=bool), "got torch.bool"),
        ("multiclass", 3, torch.full((2, 4, 4), 3), "from 0 to 2 .*got from 3 to 3"),
        ("multiclass", 3, torch.full((2, 4, 4), -1), "from 0 to 2 .*got from -1 to -1"),
        ("multilabel", 3, torch.zeros(2, 4, 4), r"\(2, 3, 4, 4\), got \(2, 4, 4\)"),
        ("multilabel", 3, torch.full((2, 3, 4, 4), -0.5), "got from -0.5 to -0.5"),
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_target_is_refused(loss, task, channels, target, message):
    with pytest.raises(ValueError, match=message):
        loss(task)(torch.zeros(2, channels, 4, 4), target)


@pytest.mark.parametrize("loss", LOSSES)
def test_unbatched_logits_are_refused(loss):
    with pytest.raises(ValueError, match=r"\(N, classes, H, W\) or .*got \(1, 4, 4\)"):
        loss("binary")(torch.zeros(1, 4, 4), torch.zeros(1, 4))


@pytest.mark.parametrize("loss", LOSSES)
def test_an_unknown_task_names_the_nearest(loss):
    with pytest.raises(ValueError, match=r"'multi_class'; did you mean 'multiclass'\? .*binary"):
        loss("multi_class")


def distance(logits, target):
    return (logits - target).abs().mean()


HEADS = [torch.full((1, 1, 2, 2), float(value)) for value in (1, 2, 4)]


@pytest.mark.parametrize(
    "outputs, weights, expected",
    [
        (HEADS, None, 7),
        (tuple(HEADS), [1, 0.5, 0], 2),
        (HEADS, (0.0, 0.0, 3.0), 12),  # shallow -> deep: the last weight is the last head's
        (HEADS[2], None, 4),
        (HEADS[2], [0.5], 2),
    ],
)
def test_deep_supervision_is_the_weighted_sum(outputs, weights, expected):
    loss = DeepSupervision(distance, weights)
    assert loss(outputs, torch.zeros(1, 1, 2, 2)).item() == expected


def test_deep_supervision_reaches_every_head():
    logits, target = sample("binary")
    heads = [logits.clone().requires_grad_() for _ in range(3)]
    DeepSupervision(HybridLoss("binary"), [1, 2, 0])(heads, target).backward()
    torch.testing.assert_close(heads[1].grad, 2 * heads[0].grad)
    assert heads[0].grad.abs().max() > 0
    assert (heads[2].grad == 0).all(), "a zero, not None: DDP waits for every head's gradient"


def test_deep_supervision_owns_its_loss():
    loss = DeepSupervision(nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)))
    assert copy.deepcopy(loss).double().loss.pos_weight.dtype == torch.float64


@pytest.mark.parametrize("outputs", [HEADS, HEADS[0]])
def test_deep_supervision_wants_one_weight_for_each_head(outputs):
    heads = len(outputs)
    with pytest.raises(ValueError, match=f"each head, {heads} in all, got 2"):
        DeepSupervision(distance, [1, 1])(outputs, torch.zeros(1, 1, 2, 2))


def test_deep_supervision_wants_a_head():
    with pytest.raises(ValueError, match="at least 1 head"):
        DeepSupervision(distance)([], torch.zeros(1))


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_deep_supervision_refuses_bad_weights(bad):
    with pytest.raises(ValueError, match=rf">= 0, got \[{bad}\] in \[1.0, {bad}\]"):
        DeepSupervision(distance, [1, bad])


@pytest.mark.parametrize("task", TASKS)
def test_deep_supervision_takes_smp_losses(task):
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, target = sample(task)
    loss = smp.losses.DiceLoss(task, smooth=1.0)
    heads = (logits, -logits)
    expected = 2 * loss(logits, target) + loss(-logits, target)
    torch.testing.assert_close(DeepSupervision(loss, [2, 1])(heads, target), expected)


def test_hybrid_loss_equals_monai_dice_ce():
    """MONAI's smoothing of 2·overlap + nr over sizes + dr is ours at nr = dr = 1."""
    monai = pytest.importorskip("monai.losses")
    logits, target = sample("multiclass")
    theirs = monai.DiceCELoss(softmax=True, to_onehot_y=True, smooth_nr=1, smooth_dr=1)
    heads = [logits, 3 * logits]
    torch.testing.assert_close(
        DeepSupervision(theirs)(heads, target.unsqueeze(1)),
        DeepSupervision(HybridLoss("multiclass"))(heads, target),
    )


def test_soft_dice_equals_smp_on_one_image():
    """On one image, where a sum over the batch and one per image are the same."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    logits, target = sample("binary", n=1)
    # SMP divides overlap + smooth by size / 2 + smooth: half of our smoothing.
    theirs = smp.losses.DiceLoss("binary", smooth=0.5)(logits, target)
    entropy = nn.BCEWithLogitsLoss()(logits[:, 0], target.double())
    torch.testing.assert_close(HybridLoss("binary")(logits, target), entropy + theirs)
