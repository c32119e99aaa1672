"""timm encoders made volumetric: by what identity, what is refused, and that all else holds."""

import copy
import pickle
from contextlib import nullcontext

import encoders_3d
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from endless import Endless
from timm import layers
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.selective_kernel import SelectiveKernelAttn
from timm.models import (
    _efficientnet_blocks,
    convnext,
    efficientvit_mit,
    fastvit,
    focalnet,
    hgnet,
    inception_next,
    metaformer,
    rdnet,
    senet,
)
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import nestedseg
from nestedseg.encoders.probe import probe
from nestedseg.encoders.timm_model import build_on, forward_taps
from nestedseg.encoders.to_3d.check import Refused, check, check_conversion, run_both
from nestedseg.encoders.to_3d.layers import SqueezeExcite3d
from nestedseg.encoders.to_3d.plan import check_depth, depth_stride, plan
from nestedseg.encoders.to_3d.rules import (
    CONVERSIONS,
    convert,
    convert_all,
    depth_kernel,
    inflate,
)

THICK = (1, 1, 2)  # slices that lie apart
WIDTHS = (4,) * 6


def make(encoder="test_resnet", seed=0, **arguments):
    torch.manual_seed(seed)
    return nestedseg.create("unetpp", encoder, **{
        "dims": 3, "deep_supervision": True, "decoder_channels": WIDTHS,
        "depth_strides": None if encoder == "plain" else THICK} | arguments)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def fill(model):
    """Weights as training leaves them, in a model that was built without."""
    model.to_empty(device="cpu").double()
    for name, value in model.named_parameters():
        nn.init.normal_(value, 0.0 if value.ndim > 1 else 1.0, value[0].numel() ** -0.5 / 2)
        if name.endswith("bias"):
            nn.init.normal_(value, 0, 0.1)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, timm.layers.BlurPool2d):
            module.init_non_persistent_buffers()
    return model


# -- the inflation identity ------------------------------------------------------------------------


ISSUE = ["resnet18", "vgg11_bn", "densenet121", "efficientnet_b0", "regnety_002", "convnext_atto",
         "mobilenetv3_small_100"]
# padding as in TensorFlow, standardised weights, anti-aliasing, up-sampling, layer scale, attention
# over paths and over voxels, padding that is a module
OTHERS = ["tf_mobilenetv3_small_minimal_100", "test_nfnet", "resnetv2_50x1_bit", "resnetblur18",
          "hrnet_w18_small", "fastvit_t8", "resnest14d", "skresnet18",
          "poolformer_s12", "convnextv2_atto", "hgnetv2_b0", "ecaresnet26t", "caformer_s18",
          "gcresnet33ts", "focalnet_tiny_srf", "rdnet_tiny"]

# Its response norm divides a Euclidean norm by the mean of such norms and 1e-6. Along a depth the
# norms become larger, the 1e-6 does not.
TOLERANCE = {"convnextv2_atto": 1e-6}


@torch.no_grad()
def assert_inflated(name, depth_strides):
    """On a volume that is the same in every slice, each feature is the 2-D model's, in each."""
    probed = probe(name)
    made = plan(name, probed, depth_strides)
    model = build_on("meta", name, 3, {})
    model.prune_intermediate_layers(list(range(len(probed.features))), prune_head=True)
    model = fill(model).eval()
    depth, height, width = made.smallest
    x = randn(1, 3, height, width + height)
    flat = forward_taps(model, x)
    made.apply(model, pretrained=True)
    with Endless():
        deep = forward_taps(model, x.unsqueeze(2).repeat(1, 1, depth, 1, 1))
    for feature, volume in zip(flat, deep, strict=True):
        scale = feature.abs().max()
        assert scale > 1e-3
        each = feature.unsqueeze(2).expand_as(volume)
        tolerance = TOLERANCE.get(name, 1e-9)
        torch.testing.assert_close(volume / scale, each / scale, rtol=1e-9, atol=tolerance)


# Always one of plain convolutions, one of squeeze-excitation, and one with channels last.
QUICK = ("test_resnet", "test_efficientnet", "test_convnext")


@pytest.mark.parametrize("name", [
    *QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ISSUE)])
def test_inflated_features_are_those_of_the_image(name):
    assert_inflated(name, (1, 1, 2, 1, 1))


@pytest.mark.parametrize("name", [*QUICK, "test_nfnet"])
def test_with_full_strides_too(name):
    assert_inflated(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ISSUE + OTHERS)
@pytest.mark.parametrize("depth_strides", [None, (1,), (1, 1, 1, 1, 1), (2, 1, 2, 1)], ids=str)
def test_inflated_features_of_every_kind(name, depth_strides):
    assert_inflated(name, depth_strides)


def test_without_the_trick_the_interior_is_the_images():
    """As the paper has it: zeros beyond the ends reach as far as the field of view."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(),
                           nn.Conv2d(3, 4, 3, padding=1)).double().eval()
    x = randn(1, 2, 7, 9)
    with torch.no_grad():
        flat = layers(x)
        for module in layers:
            convert(module)
        deep = layers(x.unsqueeze(2).repeat(1, 1, 8, 1, 1))
    assert deep.shape == (1, 4, 8, 7, 9)
    for slice_ in deep.unbind(2)[2:-2]:
        torch.testing.assert_close(slice_, flat, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(deep[:, :, 0], flat)


def test_pretrained_weights_are_inflated(tmp_path):
    flat = timm.create_model("test_resnet")
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(flat.state_dict(), path)
    model = make(encoder_weights=path).encoder.model
    for name, weight in model.state_dict().items():
        before = flat.state_dict()[name]
        if weight.ndim == 5:
            assert torch.equal(weight, inflate(before, weight.shape[2]))
            weight = weight.sum(2)
        torch.testing.assert_close(weight, before)


def test_random_weights_differ_from_slice_to_slice_and_keep_the_signal():
    weight = make().encoder.model.layer4[0].conv2.weight.detach()
    assert weight.shape[2] == 3
    first, second = weight[:, :, 0], weight[:, :, 1]
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.05
    flat = timm.create_model("test_resnet").layer4[0].conv2.weight
    assert weight.std() * 3 ** 0.5 == pytest.approx(flat.std().item(), rel=0.05)


@pytest.mark.parametrize("kernel, padding, dilation, stride", [
    (3, 1, 1, 2), (7, 3, 1, 2), (4, 0, 1, 4), (2, 0, 1, 2), (7, 2, 1, 4), (5, 2, 1, 2),
    (3, 2, 2, 2), (1, 0, 1, 2)])
def test_a_kernel_with_a_smaller_stride_loses_no_slice(kernel, padding, dilation, stride):
    for step in (1, 2, stride):
        k = depth_kernel(kernel, padding, dilation, stride, step)
        conv = nn.Conv3d(1, 1, (k, 1, 1), (step, 1, 1), (padding, 0, 0), (dilation, 1, 1))
        assert 1 <= k <= kernel
        assert conv(torch.zeros(1, 1, 8 * stride, 1, 1)).shape[2] == 8 * stride // step


# -- every rule ------------------------------------------------------------------------------------


TINY = 1e-15  # added to sums and means of norms, which are larger over more voxels
# For each class that has a rule, layers of it.
LAYERS = {
    nn.Conv2d: [lambda: nn.Conv2d(8, 6, 3, 2, 1), lambda: nn.Conv2d(8, 8, (1, 7), 1, (0, 3)),
                lambda: nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=8)],
    layers.Conv2dSame: [lambda: layers.Conv2dSame(8, 6, 3, 2)],
    layers.StdConv2d: [lambda: layers.StdConv2d(8, 6, 3, padding=1)],
    layers.StdConv2dSame: [lambda: layers.StdConv2dSame(8, 6, 3, 2)],
    layers.ScaledStdConv2d: [lambda: layers.ScaledStdConv2d(8, 6, 3, padding=1)],
    layers.ScaledStdConv2dSame: [lambda: layers.ScaledStdConv2dSame(8, 6, 3, 2)],
    nn.MaxPool2d: [lambda: nn.MaxPool2d(3, 2, 1)],
    nn.AvgPool2d: [lambda: nn.AvgPool2d(2), lambda: nn.AvgPool2d(3, 1, 1)],
    MaxPool2dSame: [lambda: MaxPool2dSame(3, 2)],
    layers.AvgPool2dSame: [lambda: layers.AvgPool2dSame(2, 2)],
    layers.BlurPool2d: [lambda: layers.BlurPool2d(8)],
    nn.Upsample: [lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
                  lambda: nn.Upsample(scale_factor=2)],
    nn.ConstantPad2d: [lambda: nn.ConstantPad2d(1, 0.0)],
    nn.ZeroPad2d: [lambda: nn.ZeroPad2d((1, 1, 0, 0))],
    nn.BatchNorm2d: [lambda: nn.BatchNorm2d(8)],
    nn.InstanceNorm2d: [lambda: nn.InstanceNorm2d(8, affine=True)],
    nn.Dropout2d: [lambda: nn.Dropout2d()],
    layers.BatchNormAct2d: [lambda: layers.BatchNormAct2d(8)],
    layers.LayerNorm2d: [lambda: layers.LayerNorm2d(8), lambda: metaformer.LayerNorm2dNoBias(8)],
    layers.RmsNorm2d: [lambda: layers.RmsNorm2d(8)],
    layers.SimpleNorm2d: [lambda: layers.SimpleNorm2d(8)],
    GlobalResponseNorm: [lambda: GlobalResponseNorm(8, eps=TINY, channels_last=False),
                         lambda: Permuted(GlobalResponseNorm(8, eps=TINY))],
    layers.LayerScale2d: [lambda: layers.LayerScale2d(8)],
    fastvit.LayerScale2d: [lambda: fastvit.LayerScale2d(8)],
    metaformer.Scale: [lambda: metaformer.Scale(8),
                       lambda: Permuted(metaformer.Scale(8, use_nchw=False))],
    layers.EcaModule: [lambda: layers.EcaModule(8), lambda: layers.EcaModule(8, use_mlp=True)],
    fastvit.Attention: [lambda: fastvit.Attention(8, head_dim=4)],
    layers.SEModule: [lambda: layers.SEModule(8), lambda: layers.SEModule(
        8, add_maxpool=True, norm_layer=nn.BatchNorm2d)],
    layers.EffectiveSEModule: [lambda: layers.EffectiveSEModule(8)],
    _efficientnet_blocks.SqueezeExcite: [lambda: _efficientnet_blocks.SqueezeExcite(8)],
    senet.SEModule: [lambda: senet.SEModule(8, 2)],
    hgnet.EseModule: [lambda: hgnet.EseModule(8)],
    layers.GlobalContext: [lambda: layers.GlobalContext(8, rd_channels=4, fuse_add=True),
                           lambda: layers.GlobalContext(8, rd_channels=4, use_attn=False)],
    SelectiveKernelAttn: [lambda: SelectiveKernelAttn(4, 2, 3)],
    layers.SplitAttn: [lambda: layers.SplitAttn(8, radix=2, norm_layer=nn.BatchNorm2d),
                       lambda: layers.SplitAttn(8, radix=1)],
    focalnet.FocalModulation: [lambda: focalnet.FocalModulation(8, 3, 2),
                               lambda: focalnet.FocalModulation(8, 3, 1, normalize_modulator=True)],
    convnext.ConvNeXtBlock: [lambda: convnext.ConvNeXtBlock(8, 16, stride=2),
                             lambda: convnext.ConvNeXtBlock(8, conv_mlp=True),
                             lambda: convnext.ConvNeXtBlock(8, ls_init_value=None)],
    inception_next.MetaNeXtBlock: [lambda: inception_next.MetaNeXtBlock(8)],
    rdnet.DenseBlock: [lambda: rdnet.DenseBlock(8, 4, norm_layer=layers.LayerNorm2d)],
    metaformer.MetaFormerStage: [
        lambda: metaformer.MetaFormerStage(8, 8, 1, token_mixer=metaformer.Attention, head_dim=4,
                                           norm_layer=metaformer.LayerNormNoBias),
        lambda: metaformer.MetaFormerStage(8, 16, 1, token_mixer=metaformer.Pooling)],
    efficientvit_mit.LiteMLA: [lambda: efficientvit_mit.LiteMLA(8, 8, dim=4, eps=TINY)],
    hgnet.StemV2: [lambda: hgnet.StemV2(8, 4, 6)],
}
CASES = [pytest.param(cls, make, id=f"{cls.__module__.split('.')[-1]}.{cls.__name__}-{i}")
         for cls, makers in LAYERS.items() for i, make in enumerate(makers)]


class Permuted(nn.Module):
    """A layer that takes channels last, among others."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)


def for_layer(cls, x):
    """A feature as it comes to a layer of this class, the axes of space last."""
    if cls is SelectiveKernelAttn:
        return x.unflatten(1, (2, 4))
    return list(x.chunk(2, 1)) if cls is rdnet.DenseBlock else x


def test_every_rule_has_a_layer_here():
    assert set(LAYERS) == set(CONVERSIONS)


@pytest.mark.parametrize("cls, make", CASES)
def test_a_rule_keeps_what_a_layer_computes_and_its_gradients(cls, make, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # some compute in float32
    torch.manual_seed(0)
    layer, x = fill(make()).eval(), randn(2, 8, 12, 14).requires_grad_()
    names = [(name, p.ndim) for name, p in layer.named_parameters()]
    with torch.no_grad():
        flat = layer(for_layer(cls, x))
    convert_all(layer)
    assert [name for name, _ in names] == [name for name, _ in layer.named_parameters()]
    with Endless():
        deep = layer(for_layer(cls, x.unsqueeze(2).repeat(1, 1, 10, 1, 1)))
    each = flat.unsqueeze(-3).expand_as(deep)
    interior = slice(2, -2) if deep.shape[-3] > 4 else slice(None)
    torch.testing.assert_close(deep[..., interior, :, :], each[..., interior, :, :], rtol=1e-9,
                               atol=1e-10 * flat.abs().max().item())
    deep.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    assert [name for name, p in layer.named_parameters()
            if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []


# -- what no rule is needed for, and what is refused -----------------------------------------------


class Toy(nn.Module):
    """A model as timm has them, of one feature."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(3, 4, 3, 2, 1), Layer(function)

    def forward_intermediates(self, x, **kwargs):
        return [self.layer(self.conv(x))]


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.act = function, nn.ReLU()

    def forward(self, x):
        return self.act(self.function(x))


def check_toy(function):
    model = Toy(function).to("meta")
    check_conversion(model, convert_all(copy.deepcopy(model)), 3, (8, 12, 4))


def attention(x):
    tokens = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).view(x.shape)


@pytest.mark.parametrize("function", [
    torch.relu, lambda x: x * x.flatten(2).mean(2).view(*x.shape[:2], *[1] * (x.dim() - 2)),
    lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), lambda x: x.add_(1), attention,
    lambda x: F.group_norm(x, 2)])
def test_code_that_treats_all_axes_alike_is_kept(function):
    check_toy(function)


def unpacked(n, c, h, w):
    return torch.zeros(n, c, h, w)


WRONG = {
    "pooled over two axes": lambda x: x * x.mean((2, 3), keepdim=True),
    "pooled slice by slice": lambda x: x * x.mean((-2, -1), keepdim=True),
    "maximum of width": lambda x: x - x.amax(-1, keepdim=True),
    "a sum": lambda x: x * x.flatten(2).sum(2).view(*x.shape[:2], *[1] * (x.dim() - 2)),
    "divided by pixels": lambda x: x.flatten(2).sum(2) / (x.shape[-1] * x.shape[-2]),
    "flipped depth": lambda x: x.flip(2), "flipped width": lambda x: x.flip(3),
    "rolled": lambda x: x.roll(1, 2), "cumulative": lambda x: x.cumsum(2),
    "transposed": lambda x: x.transpose(2, 3), "sorted": lambda x: x.sort(3).values,
    "slices normalised": lambda x: F.layer_norm(x, x.shape[-2:]),
    "every other row": lambda x: x[..., ::2, ::2], "unpacked": lambda x: unpacked(*x.shape),
    "a position": lambda x: x + torch.arange(x.shape[3], dtype=x.dtype, device=x.device),
    "flattened": lambda x: x.flatten(1, 2), "pooled in 2-D": lambda x: F.avg_pool2d(x, 2),
}


@pytest.mark.parametrize("name", WRONG)
def test_code_that_does_not_is_refused_and_named(name):
    with pytest.raises(Refused, match=r"^layer \(Layer\): "):
        check_toy(WRONG[name])


@pytest.mark.parametrize("function, right", [(torch.relu, True), (lambda x: x.flip(2), False)])
def test_a_forward_that_was_chosen_when_the_model_was_built_is_checked(function, right):
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.forward = self.forward_scaled

        def forward_scaled(self, x):
            return function(x * self.scale)

    model = Toy(torch.relu)
    model.layer.act = Chosen()
    model.to("meta")
    with nullcontext() if right else pytest.raises(Refused, match=r"^layer.act \(Chosen\): "):
        check_conversion(model, convert_all(copy.deepcopy(model)), 3, (8, 12, 4))


def test_a_layer_that_a_volume_does_not_pass_is_named():
    class Skips(Layer):
        def forward(self, x):
            return super().forward(x) if x.dim() == 4 else x

    model = Toy(torch.relu)
    model.layer = Skips(torch.relu)
    model.to("meta")
    with pytest.raises(Refused, match=r"^layer.act \(ReLU\): it is called for an image, not"):
        check_conversion(model, convert_all(copy.deepcopy(model)), 3, (8, 12, 4))


def test_numbers_are_those_of_the_cpu_whatever_the_default_device_is():
    check.cache_clear()
    with torch.device("meta"):
        check("test_efficientnet", probe("test_efficientnet"))


def test_a_module_that_forgets_the_depth_is_named():
    model = Toy(torch.relu).to("meta")
    converted = copy.deepcopy(model)
    convert_all(converted, {"conv": 1})
    calls, _ = run_both(model, converted, 3, (10, 14, 18))
    with pytest.raises(Refused, match=r"^conv \(Conv2d\): it gives a depth of 10 where 5 is due"):
        for image, volume in calls:
            check_depth(image, volume, (10, 14, 18), None)


@pytest.mark.parametrize("name, module", [
    ("test_vit", "VisionTransformer"), ("test_coatnet", r"attn \(Attention2d\)"),
    ("resnetv2_50d_evos", r"stem.norm1 \(EvoNorm2dS0\)"), ("test_mambaout", r"stem \(Stem\)"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("swin_tiny_patch4_window7_224", r"patch_embed \(PatchEmbed\)"),
        ("tresnet_m", r"body.s2d \(SpaceToDepth\)"), ("mobilevit_xxs", r"\(MobileVitBlock\)"),
        ("convmixer_768_32", r"blocks.0.0.fn.0 \(Conv2d\)"),
        ("swiftformer_xs", r"attn \(EfficientAdditiveAttention\)")))])
def test_a_model_for_images_alone_names_the_module(name, module):
    with pytest.raises(ValueError, match=f"encoder '{name}' cannot be made volumetric: .*{module}"):
        nestedseg.create("unetpp", name, dims=3)
    with pytest.raises(ValueError, match=module):
        nestedseg.encoder_info(name, dims=3)


def test_encoder_info_in_3d():
    info = nestedseg.encoder_info("test_resnet", dims=3)
    assert info == nestedseg.encoder_info("test_resnet")
    with pytest.raises(ValueError, match="dims"):
        nestedseg.encoder_info("test_resnet", dims=4)


@pytest.mark.parametrize("arguments, message", [
    ({"depth_strides": (1, 3)}, "depth_strides must be from 1 to 2"),
    ({"depth_strides": (0,)}, "depth_strides"),
    ({"depth_strides": ()}, "depth_strides"),
    ({"depth_strides": 1}, "depth_strides"),
    ({"depth_strides": (1,) * 6}, "depth_strides.* 5 "),
    ({"dims": 2}, "depth_strides is only for volumes"),
    ({"strides": [(1, 2, 2)]}, "strides is only for the plain encoder"),
    ({"encoder": "plain", "depth_strides": (1,)}, "depth_strides are only for timm"),
    ({"encoder": "plain", "depth_strides": None, "strides": [(1, 2, 2)]}, "need 4 strides"),
    ({"encoder": "plain", "depth_strides": None, "strides": [(1, 2)] * 4}, "needs 3 numbers"),
    ({"encoder": "plain", "depth_strides": None, "strides": [(1, 2, 5)] * 4}, "from 1 to 4"),
    ({"encoder": "plain", "depth_strides": None, "strides": [(1, 2, 0)] * 4}, "from 1 to 4"),
    ({"encoder": "plain", "depth_strides": None, "strides": 2}, "strides must be a sequence"),
    ({"encoder": "plain", "depth_strides": None, "strides": "2222"}, "strides must be a sequence"),
    ({"encoder": "plain", "depth_strides": None, "strides": [2] * 4}, "strides must be a sequence"),
])
def test_impossible_strides_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(**arguments)


# -- strides along depth ---------------------------------------------------------------------------


def test_depth_strides_are_those_of_each_halving():
    assert [depth_stride(s, (1, 1, 2)) for s in (1, 2, 4, 8, 16, 32)] == [1, 1, 1, 2, 4, 8]
    assert [depth_stride(s, None) for s in (1, 2, 32)] == [1, 2, 32]


@pytest.mark.parametrize("encoder, stem", [("test_resnet", False), ("test_convnext", False),
                                           ("test_convnext", True)])
def test_levels_and_decoder_follow_the_depth_strides(encoder, stem):
    model = make(encoder, stem=stem).eval()
    for level in model.encoder.levels:
        assert level.stride == (depth_stride(level.stride[1], THICK), *[level.stride[1]] * 2)
    x = torch.randn(1, 3, 16, 64, 96)
    for feature, level in zip(model.encoder(x), model.encoder.levels, strict=True):
        assert feature.shape[1:] == (level.channels, *(n // s for n, s in
                                                       zip((16, 64, 96), level.stride)))
    first = model.decoder.x0_1.edges["x1_0"]
    assert first.up_by == tuple(b // a for a, b in zip(*(model.encoder.levels[i].stride
                                                         for i in (0, 1))))


def test_a_few_thick_slices_are_not_padded_to_the_size_of_an_image():
    assert make().config["pad_multiple"] == make().config["pad_smallest"] == [8, 32, 32]


def test_strides_of_the_plain_encoder():
    model = make("plain", encoder_channels=(4, 6, 8), strides=((1, 2, 2), (2, 3, 2))).eval()
    assert [level.stride for level in model.encoder.levels] == [(1, 1, 1), (1, 2, 2), (2, 6, 4)]
    x = torch.randn(2, 3, 4, 12, 8)
    a, b, c = model.encoder(x)
    assert (a.shape[2:], b.shape[2:], c.shape[2:]) == ((4, 12, 8), (4, 6, 4), (2, 2, 2))
    assert torch.equal(b, model.encoder.x1_0(F.max_pool3d(a, (1, 2, 2))))
    assert model(x).shape == (2, 1, 4, 12, 8)
    flat = make("plain", dims=2, encoder_channels=(4, 6), strides=((1, 2),)).eval()
    assert flat.encoder(x[:, :, 0])[1].shape == (2, 6, 12, 4)


def test_a_row_finer_than_thick_slices_keeps_their_depth():
    graph = {"nodes": {"x1_1": ["x1_0", "x2_0"], "x0_2": ["x1_1"]}, "heads": ["x0_2"],
             "encoder_row": 1}
    model = nestedseg.create(graph, "test_resnet", dims=3, depth_strides=THICK,
                             decoder_channels=(4, 4)).eval()
    assert model.decoder.strides == {"x1_1": (1, 2, 2), "x0_2": (1, 1, 1)}
    assert model(torch.randn(1, 3, 8, 32, 32)).shape == (1, 1, 8, 32, 32)


# -- everything else holds -------------------------------------------------------------------------


KINDS = {
    "test_resnet": {}, "test_convnext": {"stem": 4}, "test_efficientnet": {"depth_strides": None},
    "test_byobnet": {"in_channels": 1, "depth": 2},
    "plain": {"encoder_channels": (4, 6, 8), "strides": ((1, 2, 2), (2, 2, 2))},
}


def volume(model, *size):
    return torch.randn(2, model.config["in_channels"], *size, dtype=next(model.parameters()).dtype)


@pytest.mark.parametrize("encoder", [
    *KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in ("skresnet18", *ISSUE))])
def test_it_trains_prunes_fuses_and_is_saved(encoder, tmp_path):
    model = make(encoder, **KINDS.get(encoder, {}))
    x = volume(model, 5, 20, 30)
    sum(y.square().mean() for y in model(x)).backward()
    assert [name for name, p in model.named_parameters()
            if p.grad is None or not p.grad.isfinite().all()] == []
    rows = list(model.eval().summary(size=(8, 32, 32)))
    assert [row.depth for row in rows] == list(model.depths)
    assert sorted(row.macs for row in rows) == [row.macs for row in rows]
    model.save_pretrained(tmp_path)
    loaded = nestedseg.from_pretrained(tmp_path)
    assert loaded.config == model.config
    with torch.no_grad():
        heads = model.forward_heads(x)
        for depth in (model.depths[0], model.depths[-1]):
            assert heads[depth].shape == (2, 1, 5, 20, 30)
            assert torch.equal(model.prune(depth)(x), heads[depth])
        assert torch.equal(loaded(x), model(x))
        model.double()
        fused = model.fuse()
        exact = model(x.double())
        torch.testing.assert_close(fused(x.double()), exact, rtol=1e-9,
                                   atol=1e-9 * exact.abs().max().item())


@pytest.mark.parametrize("encoder, left", [("test_resnet", 0), ("test_efficientnet", 0)])
def test_norms_of_a_volumetric_encoder_are_folded(encoder, left):
    fused = make(encoder).eval().fuse()
    assert sum(isinstance(module, _BatchNorm) for module in fused.encoder.modules()) == left


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])
def test_a_copy_is_the_same_and_independent(copied):
    model = make("test_efficientnet").eval()
    twin, x = copied(model), volume(model, 8, 32, 32)
    assert {type(m) for m in model.modules()} == {type(m) for m in twin.modules()}
    assert any(isinstance(m, SqueezeExcite3d) for m in twin.modules())
    with torch.no_grad():
        before = model(x)
        assert torch.equal(twin(x), before)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("encoder", [
    "test_convnext", "test_efficientnet",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("poolformer_s12", "caformer_s18"))])
def test_checkpointing_gives_the_same_gradients(encoder):
    model = make(encoder, norm="group", depth=1).double()
    for module in model.modules():  # which would draw other paths
        if isinstance(module, _BatchNorm):
            module.eval()
    x = volume(model, 8, 32, 32)

    def gradients():
        loss = sum(y.square().mean() for y in model(x))
        return torch.autograd.grad(loss, list(model.parameters()))

    torch.manual_seed(0)
    plain = gradients()
    model.set_grad_checkpointing()
    torch.manual_seed(0)
    for again, before in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(again, before, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("encoder", [
    "test_efficientnet", pytest.param("skresnet18", marks=pytest.mark.slow)])
def test_it_compiles_and_exports_in_one_piece(encoder):
    model = make(encoder, deep_supervision=False, depth=1).eval()
    x = volume(model, 8, 32, 32)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected)


def test_freezing_and_parameter_groups():
    model = make()
    model.freeze_encoder()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert len(model.parameter_groups(lr=0.1)) == 2
    model.unfreeze_encoder()
    groups = model.parameter_groups(lr=0.1, encoder_lr_scale=0.1, weight_decay=0.01)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(
        p.numel() for p in model.parameters())


def test_a_volume_is_preprocessed_slice_by_slice():
    model, flat = make(), make(dims=2, depth_strides=None)
    image = np.random.default_rng(0).random((5, 6, 7), np.float32)
    x = nestedseg.preprocess(image, model)
    assert x.shape == (1, 3, 5, 6, 7)
    for slice_, given in zip(x.unbind(2), image):
        assert torch.equal(slice_, nestedseg.preprocess(given, flat))
    with pytest.raises(ValueError, match=r"an image \(D, H, W\) or \(D, H, W, 3\), got \(6, 7\)"):
        nestedseg.preprocess(image[0], model)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 70, 9), (17, 33, 64)])
def test_any_size_of_a_volume(size):
    model = make().eval()
    with torch.no_grad():
        assert model(volume(model, *size)).shape == (2, 1, *size)


def test_channels_last_is_the_layout_alone():
    model = make("test_efficientnet").double().eval()
    x = volume(model, 8, 32, 32)
    with torch.no_grad():
        expected = model(x)
        model.to(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(model(x.to(memory_format=torch.channels_last_3d)), expected)


# -- the sweep's report ----------------------------------------------------------------------------


def test_a_family_is_reported_with_what_stops_it():
    models = {"a": encoders_3d.compact("one", {"own": "ok", "prune": "ok", "seconds": 1}),
              "b": encoders_3d.compact("one", {"own": "ok", "prune": "ValueError: no"}),
              "c": encoders_3d.compact("two", {"refused": "body.s2d (SpaceToDepth): it is flat"})}
    assert encoders_3d.summarise(models) == {"models": 3, "converted": 2, "own": 2, "prune": 1}
    assert "| one | 2 | 2 | 2 | 1 |  |\n| two | 1 |  |  |  | `SpaceToDepth` |" in \
        encoders_3d.table(models)
