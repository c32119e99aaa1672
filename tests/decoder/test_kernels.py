"""The layers that choose among torch's CPU kernels: torch's own numbers, by another way."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nestedseg.decoder.kernels import SMALL, Conv3d, GroupNorm, conv3x3, conv_halves, is_small

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 3, 5), (3, 1, 1), (6, 4, 2), (7, 2, 3)])
@pytest.mark.parametrize("biased", [True, False])
def test_two_halves_are_one_convolution(size, biased):
    x, weight = torch.randn(1, 3, *size).double(), torch.randn(4, 3, 3, 3, 3).double()
    bias = torch.randn(4).double() if biased else None
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    halves, whole = conv_halves(x, weight, bias), F.conv3d(x, weight, bias, padding=1)
    torch.testing.assert_close(halves, whole, **CLOSE)
    upstream = torch.randn_like(whole)
    for a, b in zip(torch.autograd.grad(halves, leaves, upstream),
                    torch.autograd.grad(whole, leaves, upstream)):
        torch.testing.assert_close(a, b, **CLOSE)


def kernel_of(run):
    """Which of torch's convolutions ran."""
    with torch.profiler.profile() as profile, torch.no_grad():
        run()
    names = {event.name for event in profile.events()}
    return names & {"aten::slow_conv3d_forward", "aten::mkldnn_convolution"}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs a torch with oneDNN")
def test_torch_draws_the_line_where_we_think():
    weight = torch.randn(2, 5, 3, 3, 3)
    small, large = torch.randn(1, 5, 16, 256, 2), torch.randn(1, 5, 16, 257, 2)
    assert is_small(small) and small[0, ..., 0].numel() == SMALL and not is_small(large)
    assert kernel_of(lambda: F.conv3d(small, weight, padding=1)) == {"aten::slow_conv3d_forward"}
    assert kernel_of(lambda: F.conv3d(large, weight, padding=1)) == {"aten::mkldnn_convolution"}
    assert kernel_of(lambda: conv3x3(small, weight)) == {"aten::mkldnn_convolution"}


@pytest.mark.parametrize("options", [
    {"padding": 1}, {"padding": 1, "bias": False}, {"padding": 1, "stride": 2}, {"padding": 0},
    {"padding": 1, "groups": 2}, {"padding": 1, "padding_mode": "replicate"},
    {"padding": 2, "dilation": 2}])
def test_our_convolution_is_torchs(options):
    ours, theirs = Conv3d(4, 6, 3, **options), nn.Conv3d(4, 6, 3, **options)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 5, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape, layout", [
    ((2, 4, 9, 8), torch.channels_last), ((2, 4, 5, 6, 7), torch.channels_last_3d)])
def test_group_norm_keeps_layout_and_digits(shape, layout):
    norm = GroupNorm(2, 4)
    x = torch.randn(shape).contiguous(memory_format=layout)
    y = norm(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, F.group_norm(x.contiguous(), 2, norm.weight, norm.bias))


def test_group_norm_is_exact_over_large_maps():
    x = (3 + torch.randn(1, 2, 512, 512)).contiguous(memory_format=torch.channels_last)
    exact = F.group_norm(x.double(), 2)
    assert (GroupNorm(2, 2)(x) - exact).abs().max() < 1e-5


def test_a_group_for_each_channel_is_instance_normalisation():
    x = torch.randn(2, 3, 4, 5, 6).double()
    norm = GroupNorm(3, 3).double()
    torch.testing.assert_close(norm(x), F.instance_norm(x), **CLOSE)
