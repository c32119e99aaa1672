"""The inference-only form against the model it was made from, in float64."""

import copy

import pytest
import torch
from graphs import EXAMPLES, random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import nestedseg
from nestedseg.decoder.fuse import fold_batch_norms

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
STYLES = [{}, {"upsample": "transpose"}, {"upsample": "transpose", "norm": None},
          {"upsample": "bilinear"}, {"norm": "group"}, {"norm": "instance"},
          {"dims": 3}, {"dims": 3, "upsample": "transpose", "norm": None}]
# Encoders whose convolutions and norms are wired differently.
ENCODERS = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_nfnet",
            "test_byobnet", "dla46_c", "hrnet_w18_small", "levit_128s", "efficientvim_m1"]


def with_statistics(model):
    """Batch norms as training leaves them, not with the mean 0 and variance 1 that hide faults."""
    for norm in norms(model):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.1)
    return model


def norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def make(topology="unetpp", seed=0, **arguments):
    torch.manual_seed(seed)
    model = nestedseg.create(topology, **{"encoder_channels": (4, 8, 12), "deep_supervision": True}
                             | arguments)
    return with_statistics(model).double().eval()


def images(model, *size):
    """Two of some size, or of that which the encoder takes."""
    config = model.config
    size = size or config["image_size"] or (33, 46, 20)[:config["dims"]]
    return torch.randn(2, config["in_channels"], *size, dtype=next(model.parameters()).dtype)


@torch.no_grad()
def assert_same(fused, model, x):
    for depth, logits in model.forward_heads(x).items():
        scale = logits.abs().max().clamp_min(1e-3)  # dead activations leave zeros
        torch.testing.assert_close(fused.forward_heads(x)[depth] / scale, logits / scale, **CLOSE)
    torch.testing.assert_close(fused(x), model(x), **CLOSE)


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_every_style_keeps_its_outputs(style):
    model = make(**style)
    fused = model.fuse()
    assert_same(fused, model, images(model))
    assert set(fused.decoder.executions.values()) == {"fused"}
    assert not norms(fused)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_kind_of_encoder_keeps_its_outputs(name):
    model = make(encoder=name, decoder_channels=(4,) * 6)
    fused = model.fuse()
    assert_same(fused, model, images(model))
    assert not norms(fused.decoder)


@pytest.mark.parametrize("name, left", [("test_resnet", 0), ("dla46_c", 0), ("test_byobnet", 0)])
def test_norms_of_an_encoder_are_folded(name, left):
    model = make(encoder=name, decoder_channels=(4,) * 6)
    assert len(norms(model.encoder)) > 8
    assert len(norms(model.fuse().encoder)) == left


@pytest.mark.parametrize("name", EXAMPLES)
def test_nodes_without_a_fused_form_keep_the_other_one(name):
    model = make(EXAMPLES[name], encoder_channels=(4, 8, 12, 16), decoder_channels=(4,) * 4,
                 deep_supervision=None) if name != "finer" else \
        make(EXAMPLES[name], encoder="test_resnet", decoder_channels=(4,) * 4,
             deep_supervision=None)
    fused = model.fuse()
    for node, execution in fused.decoder.executions.items():
        summed = model.graph.nodes[node].fuse == "sum"
        assert execution == ("reference: sum fusion" if summed else "fused")
    assert not norms(fused.decoder)
    assert_same(fused, model, images(model))


@settings(max_examples=20)
@given(random_graphs(encoder_rows=(0,)), st.sampled_from(["nearest", "bilinear", "transpose"]),
       st.sampled_from(["batch", None]), st.sampled_from([2, 3]), st.integers(0, 99))
def test_random_models_keep_their_outputs(graph, upsample, norm, dims, seed):
    model = make(graph, seed, encoder_channels=(2, 3, 4, 3, 4), decoder_channels=(3, 2, 4, 3) * 2,
                 deep_supervision=None, upsample=upsample, norm=norm, dims=dims)
    assert_same(model.fuse(), model, images(model, *(17, 9, 11)[:dims]))


@pytest.mark.parametrize("upsample", ["nearest", "transpose"])
def test_float32_stays_within_a_hundred_thousandth(upsample):
    model = make(encoder="resnet18", upsample=upsample, decoder_channels=(8, 16, 32, 64, 64))
    exact, fused = model(images(model, 64, 96).float().double()), model.float().fuse()
    torch.manual_seed(0)
    x = images(model, 64, 96)
    with torch.no_grad():
        error = (fused(x) - model(x)).abs().max() / model(x).abs().max()
    assert error < 1e-5 and exact.isfinite().all()


def test_the_ensemble_and_its_heads_stay():
    model = make(encoder="test_resnet", output="ensemble", decoder_channels=(4,) * 6, classes=3)
    assert_same(model.fuse(), model, images(model))


def test_a_fused_model_is_saved_loaded_and_pruned(tmp_path):
    model = make(encoder="test_resnet", upsample="transpose", decoder_channels=(4,) * 6)
    fused, x = model.fuse(), images(model)
    fused.save_pretrained(tmp_path)
    loaded = nestedseg.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(x), fused(x))
        assert torch.equal(loaded.prune(2)(x), fused.forward_heads(x)[2])
    assert loaded.config["fused"] and loaded.state_dict().keys() == fused.state_dict().keys()
    assert len(fused.state_dict()) < len(model.state_dict())
    torch.testing.assert_close(model.prune(2).fuse()(x), fused.prune(2)(x), **CLOSE)


def test_it_cannot_be_trained():
    fused = make().fuse()
    assert not fused.training and not any(p.requires_grad for p in fused.parameters())
    assert fused.eval() is fused
    with pytest.raises(RuntimeError, match="only for inference"):
        fused.train()


def test_the_model_itself_is_left_as_it_was():
    model = make().train()
    before = copy.deepcopy(model.state_dict())
    model.fuse()
    assert model.training and model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_composed_before_it_is_rounded_to_bfloat16():
    model = make().float()
    fused = model.fuse(dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert {p.dtype for p in fused.parameters()} == {torch.bfloat16}
    kernel = fused.decoder.x0_1.kernels["x1_0"]
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kernel, model.fuse().decoder.x0_1.kernels["x1_0"].bfloat16())
    x = images(model)
    with torch.no_grad():
        error = (fused(x.bfloat16()) - model(x)).abs().max() / model(x).abs().max()
    assert error < 0.05
    assert {p.dtype for p in model.bfloat16().fuse().parameters()} == {torch.bfloat16}


def test_fused_twice_is_fused_once():
    model = make()
    assert_same(model.fuse().fuse(), model, images(model))


# -- what is safe to fold --------------------------------------------------------------------------


class Pair(nn.Module):
    """A convolution, a batch norm, and something that may stand in the way."""

    def __init__(self, between=None, conv=None):
        super().__init__()
        self.conv = conv or nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.between = between

    def forward(self, x):
        y = self.conv(x)
        if self.between == "read twice":
            return self.norm(y) + y
        if self.between == "an output":
            return self.norm(y), y
        if self.between == "activation":
            return self.norm(y.relu())
        if self.between == "called twice":
            return self.norm(self.conv(y))
        return self.norm(y)


class TwoOwners(Pair):
    """The norm has another name too, by which it is called."""

    def __init__(self):
        super().__init__()
        self.same = self.norm

    def forward(self, x):
        return self.same(self.conv(x))


class Standardised(nn.Conv2d):
    """Its forward undoes any scale of the weight."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


def fold(pair):
    def run(ghost):
        outputs = ghost(torch.empty(1, 2, 8, 8, device="meta", dtype=torch.float64))
        return outputs if isinstance(outputs, tuple) else [outputs]

    pair = with_statistics(pair).double().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    before = run_on(pair, x)
    fold_batch_norms(pair, run)
    torch.testing.assert_close(run_on(pair, x), before, **CLOSE)
    return not norms(pair)


@torch.no_grad()
def run_on(module, x):
    outputs = module(x)
    return outputs[0] if isinstance(outputs, tuple) else outputs


def test_a_norm_right_after_its_convolution_is_folded():
    assert fold(Pair())
    assert fold(Pair(conv=nn.Conv2d(2, 2, 3, padding=1, bias=False)))


@pytest.mark.parametrize("between", ["read twice", "an output", "activation", "called twice"])
def test_a_norm_is_not_folded_where_something_stands_in_the_way(between):
    assert not fold(Pair(between))


def test_a_convolution_that_changes_its_weight_is_not_folded():
    assert not fold(Pair(conv=Standardised(2, 2, 3, padding=1)))
    weight_norm = nn.utils.parametrizations.weight_norm
    assert not fold(Pair(conv=weight_norm(nn.Conv2d(2, 2, 3, padding=1))))


def test_a_norm_of_two_owners_is_not_folded():
    assert not fold(TwoOwners())


def test_a_norm_without_statistics_is_not_folded():
    pair = Pair().double().eval()
    pair.norm = nn.BatchNorm2d(2, track_running_stats=False).double()
    fold_batch_norms(pair, lambda ghost: [
        ghost(torch.empty(1, 2, 8, 8, device="meta", dtype=torch.float64))])
    assert norms(pair)
