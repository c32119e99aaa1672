"""Freezing the encoder, parameter groups, and gradient checkpointing."""

import copy

import pytest
import torch
from memory import held_bytes
from torch.nn.modules.batchnorm import _BatchNorm

import nestedseg


def make(encoder="test_resnet", **arguments):
    widths = {"encoder_channels": (4, 6, 8)} if encoder == "plain" else {}
    return nestedseg.create("unetpp", encoder=encoder, decoder_channels=(4, 6, 8, 10, 12),
                            deep_supervision=True, **widths, **arguments)


def step(model, x):
    """The loss and the gradient of each parameter after one backward pass."""
    loss = sum(y.square().mean() for y in model(x))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()
                           if p.grad is not None}


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train_a_step(model):
    optimizer = torch.optim.SGD(model.parameter_groups(0.1), lr=0.1)
    step(model.train(), torch.randn(2, 3, 64, 64))
    optimizer.step()


def test_a_frozen_encoder_does_not_change_and_the_decoder_does():
    model = make()
    model.freeze_encoder()
    encoder, decoder = state(model.encoder), state(model.decoder)
    train_a_step(model)
    assert same(state(model.encoder), encoder)  # weights and running statistics
    assert not same(state(model.decoder), decoder)


def test_frozen_weights_alone_let_the_statistics_move():
    model = make()
    model.freeze_encoder(bn_too=False)
    before = state(model.encoder)
    train_a_step(model)
    changed = {name for name, value in model.encoder.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed and all("running" in name or "num_batches" in name for name in changed)


def test_unfreezing_trains_all_again():
    model = make()
    model.freeze_encoder()
    model.unfreeze_encoder()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(m.training for m in model.modules() if isinstance(m, _BatchNorm))


def test_freezing_survives_train_prune_and_copy():
    model = make()
    model.freeze_encoder()
    for other in (model, model.prune(2), copy.deepcopy(model)):
        other.eval().train()
        norms = [m for m in other.encoder.modules() if isinstance(m, _BatchNorm)]
        assert norms and not any(norm.training for norm in norms)
        assert other.decoder.training
        assert not any(p.requires_grad for p in other.encoder.parameters())


def test_parameter_groups_hold_each_trained_parameter_once():
    model = make()
    groups = model.parameter_groups(lr=1e-3, encoder_lr_scale=0.1, weight_decay=0.05)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(map(id, model.parameters()))
    encoder = set(map(id, model.encoder.parameters()))
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (1e-3 * 0.1 if id(parameter) in encoder else 1e-3)
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)


def test_parameter_groups_leave_out_what_is_frozen():
    model = make()
    model.freeze_encoder()
    listed = {id(p) for group in model.parameter_groups(1e-3) for p in group["params"]}
    assert listed == set(map(id, model.decoder.parameters()))


@pytest.mark.parametrize("numbers", [(0.0, 1.0, 0.0), (1e-3, -1.0, 0.0), (1e-3, 1.0, -0.1),
                                     (float("nan"), 1.0, 0.0)])
def test_impossible_rates_are_refused(numbers):
    with pytest.raises(ValueError, match="lr"):
        make().parameter_groups(*numbers)


@pytest.mark.parametrize("encoder, more", [("plain", {}), ("test_resnet", {"stem": 4}),
                                           ("test_vit", {"norm": "group"})])
def test_checkpointing_changes_memory_alone(encoder, more):
    model = make(encoder, **more).double().train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    (loss, grads), (twins_loss, twins_grads) = step(model, x), step(twin, x)
    assert torch.equal(loss, twins_loss)
    assert grads.keys() == twins_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, twins_grads[name], rtol=1e-9, atol=1e-12)
    assert same(state(model.decoder), state(twin.decoder))  # statistics were counted once


def saved_bytes(model, x):
    return held_bytes(lambda: model(x), [x, *model.parameters(), *model.buffers()])


def test_checkpointing_keeps_fewer_bytes_for_the_backward_pass():
    model = make("plain").train()
    x = torch.randn(2, 3, 64, 64)
    without = saved_bytes(model, x)
    model.set_grad_checkpointing()
    assert saved_bytes(model, x) < 0.5 * without
    model.set_grad_checkpointing(False)
    assert saved_bytes(model, x) == without


def test_an_encoder_without_checkpointing_is_named():
    model = make()

    def refuse(enable):
        raise AssertionError("not supported")

    model.encoder.model.set_grad_checkpointing = refuse
    with pytest.raises(ValueError, match=r"'test_resnet'.*encoder=False"):
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(encoder=False)
    step(model.train(), torch.randn(2, 3, 64, 64))
