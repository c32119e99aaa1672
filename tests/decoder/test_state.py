"""State that changes between a forward pass and its backward pass, and state that threads share.

What is computed again is compared with a model that keeps all its maps, and with finite
differences.
"""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import nestedseg
from nestedseg.decoder import recomputation


def make(**arguments):
    torch.manual_seed(0)
    return nestedseg.create("unetpp", encoder_channels=(4, 6, 8), deep_supervision=True,
                            **arguments).double()


def image(seed=1, n=2):
    return torch.rand(n, 3, 8, 12, dtype=torch.float64,
                      generator=torch.Generator().manual_seed(seed))


def loss_of(model, x):
    logits = model(x)
    heads = logits if isinstance(logits, tuple) else [logits]
    return sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().square()
               for y in heads)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def keeping_all(monkeypatch):
    """Runs a function where nothing is computed again."""
    def run(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(recomputation, "_may_hook", lambda: False)
            return function(*args)
    return run


# -- what happens in between -----------------------------------------------------------------------


def eval_then_train(model):
    model.eval()
    loss = loss_of(model, image())
    model.train()
    loss.backward()


def train_then_eval(model):
    model.train()
    loss = loss_of(model, image())
    model.eval()
    loss.backward()


def two_modes_then_backward(model):
    model.eval()
    loss = loss_of(model, image())
    model.train()
    (loss + loss_of(model, image(2))).backward()


def another_batch_then_backward(model):
    model.train()
    loss = loss_of(model, image())
    with torch.no_grad():
        model(image(3))
    loss.backward()


def hooks_in_between(model):
    model.train()
    loss = loss_of(model, image())
    for module in model.modules():
        module.register_forward_hook(lambda m, args, y: y * 0 if isinstance(y, torch.Tensor) else y)
    loss.backward()


BETWEEN = (eval_then_train, train_then_eval, two_modes_then_backward, another_batch_then_backward,
           hooks_in_between)


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("style", [{}, {"norm": "instance", "activation": "gelu"},
                                   {"norm": None, "activation": "prelu"}], ids=str)
def test_gradients_are_of_what_was_computed(between, style, keeping_all):
    model = make(**style)
    truth = copy.deepcopy(model)
    between(model)
    keeping_all(between, truth)
    expected = gradients(truth)
    assert expected
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)
    for name, value in truth.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name


def test_a_gradient_after_a_change_of_mode_is_the_finite_difference():
    model = make()
    eval_then_train(model)
    weight = model.decoder.x0_1.block.conv2.weight
    model.eval()
    step = 1e-5
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[0, 0, 0, 0] += sign * step
            values.append(loss_of(model, image()))
            weight[0, 0, 0, 0] -= sign * step
    slope = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(weight.grad[0, 0, 0, 0], slope, rtol=1e-5, atol=1e-8)


def test_dropout_in_the_place_of_an_activation_is_drawn_once(keeping_all):
    model = make()
    model.decoder.x0_1.block.act1 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    truth = copy.deepcopy(model)
    results = []
    for each, run in ((model, lambda f, *a: f(*a)), (truth, keeping_all)):
        torch.manual_seed(5)
        run(lambda each=each: loss_of(each, image()).backward())
        results.append(gradients(each))
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", ["norm1.weight", "conv2.weight"])
def test_a_weight_that_is_changed_in_between_is_torchs_own_error(name):
    model = make()
    loss = loss_of(model, image())
    with torch.no_grad():
        model.decoder.x0_1.block.get_parameter(name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_hook_on_a_norm_runs_once_a_step():
    model, calls = make(), []
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.ReLU)):
            module.register_forward_hook(lambda m, args, y: calls.append(m))
    loss_of(model, image()).backward()
    assert len(calls) == len({*calls}) == 4 * len(model.graph.nodes) + 4 * 3


# -- gradient checkpointing ------------------------------------------------------------------------

TIMM = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_nfnet"]


@pytest.mark.parametrize("encoder", ["plain", *TIMM])
def test_checkpointing_counts_each_batch_once(encoder):
    torch.manual_seed(0)
    depth = {} if encoder == "test_vit" else {"depth": 2}
    model = nestedseg.create("unetpp", encoder, deep_supervision=True, encoder_channels=(4, 6, 8),
                             **depth).double().train()
    truth = copy.deepcopy(model)
    model.set_grad_checkpointing()
    for each in (model, truth):
        for step in range(2):
            torch.manual_seed(step)
            x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
            sum(y.square().mean() for y in each(x)).backward()
    expected = gradients(truth)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10, msg=name)
    for name, value in truth.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, msg=name)
    model.set_grad_checkpointing(False)
    assert not any(module._forward_hooks for module in model.encoder.modules())


@pytest.mark.parametrize("between", BETWEEN[:4])
def test_checkpointed_nodes_are_computed_in_the_mode_that_they_had(between, keeping_all):
    model = make()
    truth = copy.deepcopy(model)
    model.set_grad_checkpointing()
    between(model)
    keeping_all(between, truth)
    expected = gradients(truth)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)
    for name, value in truth.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, msg=name)


def test_a_mode_that_changes_under_timms_checkpointing_is_an_error():
    model = nestedseg.create("unet", "test_resnet", depth=2).train()
    model.set_grad_checkpointing()
    loss = model(torch.rand(2, 3, 64, 64)).sum()
    model.eval()
    with pytest.raises(RuntimeError, match=r"call backward\(\) before train\(\) or eval\(\)"):
        loss.backward()


def test_a_fused_copy_of_a_checkpointed_model_is_folded():
    model = nestedseg.create("unet", "test_resnet", depth=2).eval()
    plain = model.fuse()
    model.set_grad_checkpointing()
    assert model.fuse().state_dict().keys() == plain.state_dict().keys()


# -- threads ---------------------------------------------------------------------------------------


def test_an_execution_concerns_its_own_thread():
    model, names, inside, done = make(), [], threading.Event(), threading.Event()

    def other():
        inside.wait()
        names.append({*model.decoder.executions.values()})
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with nestedseg.execution("reference"):
        inside.set()
        done.wait()
        names.append({*model.decoder.executions.values()})
    thread.join()
    assert names == [{"fast"}, {"reference"}]


def test_predict_in_threads_gives_what_it_gives_alone_and_leaves_the_mode():
    model = make().train()
    model.encoder.x0_0.norm1.eval()
    images = [image(seed, n=1) for seed in range(24)]
    state = copy.deepcopy(model.state_dict())
    expected = [model.predict(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.predict, images * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 4, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not model.encoder.x0_0.norm1.training and model.decoder.x0_1.block.norm1.training


def test_backward_in_another_thread_gives_the_same_gradients():
    model = make()
    truth = copy.deepcopy(model)
    model.set_grad_checkpointing()
    with nestedseg.execution("reference"):
        loss = loss_of(model, image())
        loss_of(truth, image()).backward()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    for name, gradient in gradients(truth).items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-9)
