"""Options of nodes, blocks, norms, heads and taps against torch's own layers, in float64."""

import pytest
import timm
import torch
from test_fuse import assert_same, images, make
from torch.nn import functional as F

import nestedseg
from nestedseg.decoder.blocks import SCSE, SCSEBoth, SCSEOut
from nestedseg.decoder.layers import Style

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
UP = {"nodes": {"x1_1": {"inputs": ["x1_0", "x2_0"], "up_channels": 5},
                "x0_2": {"inputs": ["x0_0", "x1_1"], "up_channels": 3}},
      "heads": ["x0_2"]}
ATTENDED = {"nodes": {"x1_1": {"inputs": ["x1_0", "x2_0"], "block": "scse"},
                      "x0_2": {"inputs": ["x1_1", "x0_0"], "block": "scse_out"}},
            "heads": ["x0_2"]}
NORMED = {"nodes": {"x2_1": {"inputs": ["x2_0"], "block": "batch_norm"},
                    "x1_2": ["x1_0", "x2_1"], "x0_3": ["x0_0", "x1_2"]}, "heads": ["x0_3"]}

MODELS = {
    "narrow transposed": (UP, {"upsample": "transpose"}),
    "narrow transposed, 3-D": (UP, {"upsample": "transpose", "dims": 3}),
    "narrow nearest": (UP, {}),
    "corners": ("unetpp", {"upsample": "bilinear_corners"}),
    "corners, 3-D": ("unetpp", {"upsample": "bilinear_corners", "dims": 3}),
    "bicubic": ("unetpp", {"upsample": "bicubic"}),
    "attended": (ATTENDED, {}),
    "attended, 3-D": (ATTENDED, {"dims": 3, "norm": None}),
    "normed": (NORMED, {"norm": None}),
    "wide heads": ("unetpp", {"head_kernel": 5}),
    "eps and slope": ("unetpp", {"norm": {"name": "batch", "eps": 0.1, "momentum": 0.3},
                                 "activation": {"name": "leaky_relu", "negative_slope": 0.4}}),
    "groups and bias": ("unetpp", {"norm": {"name": "group", "groups": 2, "eps": 0.1},
                                   "bias": True, "activation": {"name": "elu", "alpha": 0.5}}),
    "batch norm and bias": ("unetpp", {"bias": True}),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_both_executions_fused_and_saved_agree(name, tmp_path):
    topology, options = MODELS[name]
    model = make(topology, deep_supervision=None, **options)
    x = images(model, *(12, 18, 10)[:model.config["dims"]])
    expected = model(x)
    with nestedseg.execution("reference"):
        torch.testing.assert_close(model(x), expected, **CLOSE)
    assert_same(model.fuse(), model, x)
    model.save_pretrained(tmp_path)
    again = nestedseg.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(x), expected)


@pytest.mark.parametrize(("upsample", "call"), [
    ("bicubic", {"mode": "bicubic", "align_corners": False}),
    ("bilinear_corners", {"mode": "bilinear", "align_corners": True})])
@torch.no_grad()
def test_up_sampling_is_torchs(upsample, call):
    model = make("unet", depth=1, norm=None, upsample=upsample)
    x = torch.randn(1, 3, 12, 20, dtype=torch.double)
    fine, coarse = model.encoder(x)
    up = F.interpolate(coarse, size=(12, 20), **call)
    block = model.decoder.x0_1.block
    expected = model.decoder.head_x0_1(block(torch.cat([fine, up], 1)))
    torch.testing.assert_close(model(x), expected, **CLOSE)


def test_up_channels_are_those_of_the_transposed_or_the_1x1_convolution():
    edge = make(UP, upsample="transpose", deep_supervision=None).decoder.x1_1.edges
    assert edge["x2_0"].up.weight.shape == (12, 5, 2, 2) and edge["x1_0"].out_channels == 8
    node = make(UP, deep_supervision=None).decoder.x1_1
    assert node.edges["x2_0"].project.weight.shape == (5, 12, 1, 1)
    assert node.block.conv1.weight.shape == (8, 8 + 5, 3, 3)
    assert nestedseg.Graph.from_dict(UP).to_dict() == UP
    for value in (0, "3", True, 10 ** 9):
        with pytest.raises(nestedseg.GraphError, match="'up_channels' must be a whole number"):
            nestedseg.Graph({"x0_1": {"inputs": ["x0_0", "x1_0"], "up_channels": value}}, ["x0_1"])
    with pytest.raises(nestedseg.GraphError, match="'up_channels' is for fuse 'concat'"):
        nestedseg.Graph({"x0_1": {"inputs": ["x0_0", "x1_0"], "up_channels": 2, "fuse": "sum"}},
                        ["x0_1"])


def test_options_reach_their_layers():
    block = make(**MODELS["eps and slope"][1]).decoder.x0_1.block
    assert (block.norm1.eps, block.norm2.momentum, block.act1.negative_slope) == (0.1, 0.3, 0.4)
    block = make(**MODELS["groups and bias"][1]).encoder.x0_0
    assert (block.norm1.num_groups, block.norm1.eps, block.act2.alpha) == (2, 0.1, 0.5)
    assert block.conv1.bias is not None and make().encoder.x0_0.conv1.bias is None
    assert make(head_kernel=3).decoder.head_x0_1.weight.shape == (1, 4, 3, 3)
    assert make(norm={"name": "batch"}).config["norm"] == "batch"


@pytest.mark.parametrize(("options", "message"), [
    ({"norm": {"name": "bach"}}, "unknown norm 'bach'; did you mean 'batch'"),
    ({"norm": {"eps": 0.1}}, "unknown norm None"),
    ({"norm": {"name": "batch", "groups": 2}}, "unknown option of norm 'batch' 'groups'"),
    ({"norm": {"name": "batch", "eps": -1}}, "'eps' must be a number from 0 to 1"),
    ({"norm": {"name": "batch", "eps": float("nan")}}, "'eps' must be a number"),
    ({"norm": {"name": "group", "groups": 2.5}}, "'groups' must be a whole number"),
    ({"activation": {"name": "relu", "slope": 1}}, "unknown option of activation 'relu' 'slope'"),
    ({"activation": {"name": "elu", "alpha": "1"}}, "'alpha' must be a number"),
    ({"bias": 1}, "bias must be true or false"),
    ({"head_kernel": 2}, "head_kernel must be odd"), ({"head_kernel": 99}, "head_kernel must be"),
    ({"upsample": "bicubic", "dims": 3}, "'bicubic' is only for images"),
], ids=str)
def test_bad_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(**options)


def test_scse_weights_channels_and_pixels():
    layer = SCSE(32, dims=2).double()
    x = torch.randn(2, 32, 5, 7, dtype=torch.double)
    channels = layer.excite(layer.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
    expected = x * channels + x * layer.spatial(x).sigmoid()
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    assert layer.squeeze.out_channels == 2 and SCSE(3, dims=3).squeeze.out_channels == 1
    for kind, entry in ((SCSEBoth, True), (SCSEOut, False)):
        block = kind(32, 4, Style()).double().eval()
        inner = block.conv1(block.entry(x) if entry else x)
        inner = block.act2(block.norm2(block.conv2(block.act1(block.norm1(inner)))))
        torch.testing.assert_close(block(x), block.attention(inner), **CLOSE)


def test_attention_to_inputs_shows_in_how_a_node_is_computed():
    assert make(ATTENDED, deep_supervision=None).decoder.executions == {
        "x1_1": "reference: its first layer is not a plain 3x3 convolution", "x0_2": "fast"}
    with pytest.raises(ValueError, match=r"'batch_norm' cannot change.*got 4 input and 8 output"):
        make({"nodes": {"x0_1": {"inputs": ["x0_0"], "block": "batch_norm", "channels": 8}},
              "heads": ["x0_1"]}, deep_supervision=None)


# -- features that are not timm's own -------------------------------------------------------------

TAPS = ("conv1.2", "layer1.0", "layer2.0.conv1")  # at strides 2, 4 and 8


@torch.no_grad()
def test_modules_of_a_timm_model_may_be_the_levels(tmp_path):
    model = make("unet", encoder="test_resnet", encoder_taps=TAPS, decoder_channels=(4, 4, 4),
                 deep_supervision=None)
    plain = timm.create_model("test_resnet", num_classes=0).double().eval()
    plain.load_state_dict(model.encoder.model.state_dict(), strict=False)
    given, x = {}, torch.randn(1, 3, 64, 64, dtype=torch.double)
    for name in TAPS:
        plain.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: given.__setitem__(name, output.clone()))
    plain.forward_features(x)
    for feature, name in zip(model.encoder(x), TAPS):
        torch.testing.assert_close(feature, given[name], **CLOSE)
    assert [*plain.layer3.parameters()] and not [*model.encoder.model.layer3.parameters()]
    model.save_pretrained(tmp_path)
    assert torch.equal(nestedseg.from_pretrained(tmp_path)(x), model(x))


@torch.no_grad()
def test_levels_that_are_modules_are_pruned():
    model = make("unetpp", encoder="test_resnet", encoder_taps=TAPS, decoder_channels=(4, 4, 4))
    x = torch.randn(1, 3, 64, 64, dtype=torch.double)
    small = model.prune(1)
    torch.testing.assert_close(small(x), model.forward_heads(x)[1], **CLOSE)
    assert not [*small.encoder.model.layer2.parameters()]


def test_levels_that_are_modules_compile_in_one_graph():
    model = make("unetpp", encoder="test_resnet", encoder_taps=TAPS, decoder_channels=(4, 4, 4))
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), **CLOSE)
    with pytest.raises(ValueError, match="use encoder=False"):
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(encoder=False)


@pytest.mark.parametrize(("taps", "message"), [
    (("layer9",), "no module 'layer9'"), (("layer1", "layer1.0"), "have the strides"),
    (("layer1", 2), "encoder_taps must be a whole number"), (("x" * 300,), "encoder_taps must be"),
    (("fc",), "give no feature maps"), (("layer1.0.bn2",), "changes what 'layer1.0.bn2' gives in")],
    ids=str)
def test_modules_that_are_no_levels_are_refused(taps, message):
    with pytest.raises((ValueError, TypeError), match=message):
        nestedseg.create("unet", "test_resnet", encoder_taps=taps)
