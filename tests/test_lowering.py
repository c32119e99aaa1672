"""The fast form of a node against the obvious one: outputs and every gradient, in float64."""

import pytest
import torch
from graphs import random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import nestedseg
from nestedseg.lowering import compose_nearest, convolve_all, split_weight

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# -- the identities, each by its name --------------------------------------------------------------


def test_split_weight_is_the_convolution_of_a_concatenation():
    a, b, weight = randn(2, 3, 7, 5), randn(2, 4, 7, 5), randn(6, 7, 3, 3)
    for_a, for_b = split_weight(weight, [3, 4])
    whole = F.conv2d(torch.cat([a, b], 1), weight, padding=1)
    parts = F.conv2d(a, for_a, padding=1) + F.conv2d(b, for_b, padding=1)
    torch.testing.assert_close(parts, whole, **CLOSE)


@pytest.mark.parametrize("factor", [(2, 2), (1, 2), (2, 1), (4, 2), (3, 3), (1, 1)])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4)])
def test_compose_nearest_is_a_convolution_after_upsampling(factor, size):
    x, weight = randn(2, 3, *size), randn(4, 3, 3, 3)
    up = x
    for axis, f in enumerate(factor, start=2):
        up = up.repeat_interleave(f, dim=axis)
    kernel = compose_nearest(weight, factor)
    assert kernel.shape == (3, 4, factor[0] + 2, factor[1] + 2)
    composed = F.conv_transpose2d(x, kernel, stride=factor, padding=1)
    torch.testing.assert_close(composed, F.conv2d(up, weight, padding=1), **CLOSE)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2)])
def test_compose_nearest_holds_for_volumes(factor):
    x, weight = randn(1, 2, 3, 4, 2), randn(3, 2, 3, 3, 3)
    up = x
    for axis, f in enumerate(factor, start=2):
        up = up.repeat_interleave(f, dim=axis)
    composed = F.conv_transpose3d(x, compose_nearest(weight, factor), stride=factor, padding=1)
    torch.testing.assert_close(composed, F.conv3d(up, weight, padding=1), **CLOSE)


def test_compose_nearest_keeps_float32_under_autocast():
    weight = torch.randn(4, 3, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernel = compose_nearest(weight, (2, 2))
    assert kernel.dtype == torch.float32
    assert torch.equal(kernel, compose_nearest(weight, (2, 2)))


def test_convolve_all_keeps_no_concatenation_for_the_backward_pass():
    maps = [torch.randn(1, 4, 16, 16, requires_grad=True) for _ in range(3)]
    weights = [torch.randn(5, 4, 3, 3, requires_grad=True) for _ in range(3)]
    sizes = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.cat.default:
                sizes.add(tuple(function(*args, **kwargs or {}).shape))
            return function(*args, **kwargs or {})

    y = convolve_all(list(zip(maps, weights)), None)
    with Watch():  # it is made again when it is needed
        grads = torch.autograd.grad(y.square().sum(), [*maps, *weights])
    assert (1, 12, 16, 16) in sizes
    whole = F.conv2d(torch.cat(maps, 1), torch.cat(weights, 1), padding=1)
    expected = torch.autograd.grad(whole.square().sum(), [*maps, *weights])
    for grad, other in zip(grads, expected):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-3)


# -- whole models ----------------------------------------------------------------------------------


def outputs_and_gradients(model, x, name):
    """All logits, then the gradient of the input and of every parameter."""
    x = x.clone().requires_grad_()
    with nestedseg.execution(name):
        outputs = list(model.forward_heads(x).values())
        loss = sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
                   for y in outputs)
        return outputs + list(torch.autograd.grad(loss, [x, *model.parameters()]))


def assert_executions_agree(model, x):
    pairs = zip(outputs_and_gradients(model, x, "fast"),
                outputs_and_gradients(model, x, "reference"))
    for fast, reference in pairs:
        scale = reference.abs().max().clamp_min(1)
        torch.testing.assert_close(fast / scale, reference / scale, **CLOSE)


styles = st.fixed_dictionaries({
    "upsample": st.sampled_from(["nearest", "bilinear", "transpose"]),
    "norm": st.sampled_from(["batch", "instance", "group", None]),
    "activation": st.sampled_from(["silu", "elu"]),  # smooth: a kink may turn on rounding
})


def check_random(graph, style, dims, size, seed):
    torch.manual_seed(seed)
    model = nestedseg.create(graph, encoder_channels=(2, 3, 4, 3, 4, 3), in_channels=2,
                             decoder_channels=(3, 2, 4, 3, 2, 3, 2, 3), dims=dims, **style)
    shape = size[:dims] if dims == 2 else [min(side, 9) for side in size]
    assert_executions_agree(model.double().train(), randn(2, 2, *shape))


sizes = st.tuples(*[st.integers(1, 33)] * 3)


@settings(max_examples=25)
@given(random_graphs(encoder_rows=(0,)), styles, st.sampled_from([2, 2, 3]), sizes,
       st.integers(0, 99))
def test_executions_agree_on_random_models(graph, style, dims, size, seed):
    check_random(graph, style, dims, size, seed)


@pytest.mark.slow
@settings(max_examples=500)
@given(random_graphs(encoder_rows=(0,)), styles, st.sampled_from([2, 2, 3]), sizes,
       st.integers(0, 99))
def test_executions_agree_on_many_random_models(graph, style, dims, size, seed):
    check_random(graph, style, dims, size, seed)


def test_the_fast_form_saves_less_for_the_backward_pass():
    model = nestedseg.create("unetpp", encoder_channels=(8, 16, 32, 64), norm="group").train()
    x, kept = torch.randn(1, 3, 64, 64), {}

    def saved(name):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        features = model.encoder(x)
        with nestedseg.execution(name), \
                torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept[name] = model.decoder(features, model.depths)
        return sum(storages.values())

    assert saved("fast") < 0.85 * saved("reference")


# -- the switch ------------------------------------------------------------------------------------


def test_executions_are_listed_with_the_reason_for_a_fall_back():
    graph = {"nodes": {"x0_1": ["x0_0", "x1_0"],
                       "x0_2": {"inputs": ["x0_1", "x1_0"], "fuse": "sum"}}, "heads": ["x0_2"]}
    decoder = nestedseg.create(graph, encoder_channels=(4, 8)).decoder
    assert decoder.executions == {"x0_1": "fast", "x0_2": "reference: sum fusion"}
    with nestedseg.execution("reference"):
        assert set(decoder.executions.values()) == {"reference"}
        with nestedseg.execution("fast"):
            assert decoder.executions["x0_1"] == "fast"
    assert decoder.executions["x0_1"] == "fast"


def test_the_argument_of_create_is_kept_in_the_config():
    model = nestedseg.create("unet", encoder_channels=(4, 8), execution="reference")
    assert model.config["execution"] == "reference"
    assert model.decoder.executions == {"x0_1": "reference"}


def test_an_unknown_execution_is_refused():
    with pytest.raises(ValueError, match="did you mean 'fast'"):
        nestedseg.create("unet", execution="fats")
    with pytest.raises(ValueError, match="'reference'"), nestedseg.execution("referense"):
        pass


def test_executions_share_their_weights(tmp_path):
    torch.manual_seed(1)
    model = nestedseg.create("unetpp", encoder_channels=(4, 8, 16), execution="fast").eval()
    twin = nestedseg.create("unetpp", encoder_channels=(4, 8, 16), execution="reference").eval()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_executions_agree_in_channels_last_and_bfloat16(memory_format):
    model = nestedseg.create("unetpp", encoder_channels=(4, 8, 16)).eval()
    model = model.to(memory_format=memory_format)
    x = torch.randn(1, 3, 32, 32).to(memory_format=memory_format)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(x)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    with torch.no_grad(), nestedseg.execution("reference"):
        torch.testing.assert_close(exact, model(x), rtol=1e-4, atol=1e-5)
