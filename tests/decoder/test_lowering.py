"""The fast form of a node against the obvious one: outputs and every gradient, in float64."""

import pytest
import torch
from graphs import random_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import held_bytes
from torch import nn
from torch.nn import functional as F

import nestedseg
from nestedseg.decoder.edges import Edge
from nestedseg.decoder.layers import Level, Style
from nestedseg.decoder.lowering import (
    CONV,
    CONV_TRANSPOSE,
    border_map,
    compose_bias,
    compose_nearest,
    compose_transpose,
    composing_pays,
    convolve_all,
    split_weight,
)
from nestedseg.decoder.recomputation import remade
from nestedseg.decoder.stateless import Stateless, stateless

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


UPS = [(2, 2), (1, 2), (3, 2), (4, 4), (2, 2, 2), (1, 2, 2)]


@pytest.mark.parametrize("factor", UPS, ids=str)
def test_compose_transpose_is_a_convolution_after_a_transposed_one(factor):
    dims = len(factor)
    x, up, weight = randn(2, 3, *range(3, 3 + dims)), randn(3, 5, *factor), randn(4, 5, *[3] * dims)
    apart = CONV[dims](CONV_TRANSPOSE[dims](x, up, stride=factor), weight, padding=1)
    kernel = compose_transpose(weight, up)
    assert kernel.shape == (3, 4, *(f + 2 for f in factor))
    composed = CONV_TRANSPOSE[dims](x, kernel, stride=factor, padding=1)
    torch.testing.assert_close(composed, apart, **CLOSE)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 1)])
def test_compose_bias_is_less_at_the_border(size):
    weight, bias = randn(4, 5, 3, 3), randn(5)
    everywhere = bias.view(1, 5, 1, 1).expand(1, 5, *size)
    added = border_map(compose_bias(weight, bias), size)
    torch.testing.assert_close(added[None], F.conv2d(everywhere, weight, padding=1), **CLOSE)


def test_border_map_holds_for_volumes():
    taps = randn(4, 3, 3, 3)
    ones = torch.ones(1, 1, 1, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(border_map(taps, (1, 2, 5))[None],
                               F.conv3d(ones, taps[:, None], padding=1), **CLOSE)


def edge(wide, mid, upsample, dims=2):
    return Edge(Level(wide, (2,) * dims), Level(mid, (1,) * dims), Style(dims, upsample=upsample),
                project=False)


def test_composing_pays_where_it_saves_multiplications():
    weight = torch.empty(32, 32, 3, 3)
    assert composing_pays(edge(64, 32, "nearest"), weight, pixels=1)
    assert not composing_pays(edge(64, 32, "bilinear"), weight, pixels=10 ** 9)
    transposed = edge(64, 32, "transpose")
    # 4 (64 * 32 + 9 * 32 * 32) - 16 * 64 * 32 multiplications are saved a pixel of the input, and
    # the kernel takes 16 * 9 * 64 * 32 * 32.
    break_even = 16 * 9 * 64 * 32 * 32 / (4 * (64 * 32 + 9 * 32 * 32) - 16 * 64 * 32)
    assert not composing_pays(transposed, weight, pixels=break_even)
    assert composing_pays(transposed, weight, pixels=break_even + 1)
    # through a narrow map in between it is less work as it is
    assert not composing_pays(edge(64, 2, "transpose"), torch.empty(32, 2, 3, 3))


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

    y = convolve_all(maps, torch.cat(weights, 1), None)
    with Watch():  # it is made again when it is needed
        grads = torch.autograd.grad(y.square().sum(), [*maps, *weights])
    assert (1, 12, 16, 16) in sizes
    whole = F.conv2d(torch.cat(maps, 1), torch.cat(weights, 1), padding=1)
    expected = torch.autograd.grad(whole.square().sum(), [*maps, *weights])
    for grad, other in zip(grads, expected):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-3)


# -- values that are made again --------------------------------------------------------------------


def made_twice(activation, in_place, precision=torch.float64):
    """Gradients through batch norm and activation, and how often the norm counted."""
    torch.manual_seed(0)
    norm, conv = nn.BatchNorm2d(3).to(precision), nn.Conv2d(3, 4, 3).to(precision)
    act = activation(inplace=in_place)
    x = torch.randn(2, 3, 9, 9, dtype=precision, requires_grad=True)
    parameters = [x, *norm.parameters(), *conv.parameters()]

    def gradients(run):
        y = run(x * 2)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), parameters, retain_graph=True),
                *torch.autograd.grad(y.sum(), parameters)]

    plain = gradients(lambda z: conv(act(norm(z))))
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    norm.reset_running_stats()
    again = gradients(lambda z: remade(lambda v: act(norm(v)), conv, z,
                                        again=stateless(norm, act)))
    return plain, again, state, norm.state_dict()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU])
@pytest.mark.parametrize("in_place", [True, False])
def test_remade_gives_the_same_gradients_and_statistics(activation, in_place):
    plain, again, state, counted = made_twice(activation, in_place)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert all(torch.equal(counted[name], value) for name, value in state.items())


def test_remade_keeps_what_is_changed_in_place():
    conv = nn.Conv2d(2, 2, 3).double()
    x = randn(1, 2, 5, 5).requires_grad_()
    for act in (nn.ReLU(inplace=True), nn.ELU(inplace=True)):
        plain = torch.autograd.grad(conv(act(x * 1)).square().sum(), x)
        y = remade(act, conv, x * 1, again=Stateless(act))
        again = torch.autograd.grad(y.square().sum(), x)
        assert torch.equal(plain[0], again[0])


def test_remade_under_autocast_has_the_dtypes_of_the_first_time():
    norm, conv = nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = conv(norm(conv_in(x)).relu()).float().square().sum()
        again = remade(lambda v: norm(v).relu(), conv, conv_in(x), again=Stateless(
            lambda v: norm(v).relu())).float().square().sum()
    for a, b in zip(torch.autograd.grad(plain, x), torch.autograd.grad(again, x)):
        assert torch.equal(a, b)


def conv_in(x):
    return F.conv2d(x, torch.ones(3, 3, 1, 1))


def test_remade_frees_the_value_in_between():
    norm, conv = nn.BatchNorm2d(8), nn.Conv2d(8, 1, 3)
    x = torch.randn(1, 8, 64, 64, requires_grad=True)
    known = [x, *norm.parameters(), *norm.buffers(), *conv.parameters()]
    again = stateless(norm, nn.ReLU())
    kept = held_bytes(lambda: remade(lambda v: norm(v).relu_(), conv, x, again=again), known)
    assert kept < x.nbytes / 4 < held_bytes(lambda: conv(norm(x).relu_()), known)


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


def check_random(graph, style, dims, size, steps, seed):
    torch.manual_seed(seed)
    model = nestedseg.create(graph, encoder_channels=(2, 3, 4, 3, 4, 3), in_channels=2,
                             decoder_channels=(3, 2, 4, 3, 2, 3, 2, 3), dims=dims,
                             strides=[step[-dims:] for step in steps], **style)
    shape = size[:dims] if dims == 2 else [min(side, 9) for side in size]
    assert_executions_agree(model.double().train(), randn(2, 2, *shape))


sizes = st.tuples(*[st.integers(1, 33)] * 3)
strides = st.just([(2, 2, 2)] * 5) | st.lists(
    st.sampled_from([(2, 2, 2), (1, 2, 2), (2, 1, 2), (1, 1, 3)]), min_size=5, max_size=5)


@settings(max_examples=25)
@given(random_graphs(encoder_rows=(0,)), styles, st.sampled_from([2, 2, 3]), sizes,
       strides, st.integers(0, 99))
def test_executions_agree_on_random_models(graph, style, dims, size, steps, seed):
    check_random(graph, style, dims, size, steps, seed)


@pytest.mark.slow
@settings(max_examples=500)
@given(random_graphs(encoder_rows=(0,)), styles, st.sampled_from([2, 2, 3]), sizes,
       strides, st.integers(0, 99))
def test_executions_agree_on_many_random_models(graph, style, dims, size, steps, seed):
    check_random(graph, style, dims, size, steps, seed)


def test_the_fast_form_saves_less_for_the_backward_pass():
    model = nestedseg.create("unetpp", encoder_channels=(8, 16, 32, 64)).train()
    x = torch.randn(1, 3, 64, 64)
    features = [feature.detach() for feature in model.encoder(x)]
    known = [*features, *model.parameters(), *model.buffers()]

    def saved(name):
        with nestedseg.execution(name):
            return held_bytes(lambda: model.decoder(features, model.depths), known)

    assert saved("fast") < 0.75 * saved("reference")


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
