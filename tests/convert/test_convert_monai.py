"""MONAI's networks against what they are converted to, in float64."""

import pytest
import safetensors.torch
import torch
from monai.networks import nets
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import nestedseg
from nestedseg.convert import from_monai

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
FEATURES = (4, 4, 8, 12, 16, 6)
NARROW = (2, 3, 4, 5, 6, 3)
WIDE = (4, 8, 8, 12, 24, 6)  # up-sampled maps have other widths than the nodes that read them

CASES = [(network, options) for options in [
    {},
    {"spatial_dims": 3, "in_channels": 2, "out_channels": 3, "features": NARROW},
    {"norm": "batch", "act": "relu", "dropout": 0.2},
    {"norm": ("batch", {"eps": 1e-3, "affine": False}), "act": "prelu", "bias": False},
    {"norm": ("group", {"num_groups": 2}), "act": ("elu", {"alpha": 0.5})},
    {"norm": ("group", {"num_groups": 2}), "act": "swish", "bias": False, "features": WIDE,
     "upsample": "nontrainable"},
    {"norm": "instance", "act": "gelu", "upsample": "nontrainable", "spatial_dims": 3,
     "features": NARROW},
    {"norm": None, "act": "mish", "features": WIDE},
    {"norm": None, "act": ("LEAKYRELU", {"negative_slope": 0.3}), "bias": False,
     "features": NARROW, "spatial_dims": 3, "dropout": ("dropout", {"p": 0.1})},
] for network in ("BasicUNet", "BasicUNetPlusPlus")]
CASES.append(("BasicUNetPlusPlus", {"deep_supervision": True, "features": WIDE}))


def arguments_of(options):
    return {"spatial_dims": 2, "features": FEATURES} | options


def peer_of(network, options):
    """With every parameter and statistic as training leaves them, not 0 or 1."""
    model = getattr(nets, network)(**arguments_of(options))
    for parameter in model.parameters():
        if parameter.dim() < 2:
            nn.init.normal_(parameter, 0.3, 0.3)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


def images(options, side=32):
    dims = arguments_of(options)["spatial_dims"]
    return torch.randn(1, options.get("in_channels", 1), *[side] * dims, dtype=torch.double)


@torch.no_grad()
def assert_same(ours, peer, x):
    expected = peer(x)
    expected = expected if isinstance(expected, list) else [expected]
    found = ours.forward_heads(x).values()
    assert len(found) == len(expected)
    for own, theirs in zip(found, expected):
        torch.testing.assert_close(own / theirs.std(), theirs / theirs.std(), **CLOSE)


def name(case):
    return f"{case[0]} " + " ".join(f"{key}={value}" for key, value in case[1].items())


@pytest.mark.parametrize("case", CASES, ids=name)
def test_outputs_are_the_originals(case):
    network, options = case
    peer, x = peer_of(network, options), images(options)
    assert_same(from_monai(peer), peer, x)


@pytest.mark.parametrize("case", CASES[::2], ids=name)
def test_a_state_dict_and_arguments_say_as_much_as_a_live_model(case):
    network, options = case
    peer = peer_of(network, options)
    live = from_monai(peer)
    given = from_monai(peer.state_dict(), network=network, **arguments_of(options))
    assert given.config == live.config
    assert all(torch.equal(tensor, live.state_dict()[key])
               for key, tensor in given.state_dict().items())


def test_float32_stays_within_a_hundred_thousandth():
    peer = peer_of("BasicUNetPlusPlus", {}).float()
    x = images({}).float()
    with torch.no_grad():
        expected, found = peer(x)[0], from_monai(peer)(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("case", CASES[1::5], ids=name)
def test_training_goes_the_same_way(case):
    network, options = case
    peer = peer_of(network, options).train()
    ours, x = from_monai(peer).train(), images(options)
    for module in [*peer.modules(), *ours.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expected, found = peer(x), ours(x)
    found = found[-1] if isinstance(found, tuple) else found
    expected = expected[-1] if isinstance(expected, list) else expected
    torch.testing.assert_close(found, expected, **CLOSE)
    for logits in (expected, found):
        logits.square().mean().backward()
    head = "final_conv" if network == "BasicUNet" else "final_conv_0_4"
    torch.testing.assert_close(ours.decoder.head_x0_4.weight.grad,
                               peer.get_submodule(head).weight.grad)
    block = "upcat_4" if network == "BasicUNet" else "upcat_3_1"
    torch.testing.assert_close(ours.decoder.x3_1.block.conv1.weight.grad,
                               peer.get_submodule(f"{block}.convs.conv_0.conv").weight.grad)


@torch.no_grad()
def test_it_saves_loads_prunes_and_fuses(tmp_path):
    options = {"deep_supervision": True, "features": WIDE, "norm": "batch"}
    peer, x = peer_of("BasicUNetPlusPlus", options), images(options)
    ours = from_monai(peer)
    ours.save_pretrained(tmp_path)
    assert_same(nestedseg.from_pretrained(tmp_path), peer, x)
    assert_same(ours.fuse(), peer, x)
    with nestedseg.execution("reference"):
        assert_same(ours, peer, x)
    assert ours.depths == (1, 2, 3, 4)
    torch.testing.assert_close(ours.prune(2)(x), peer(x)[1], **CLOSE)


def test_files_are_read(tmp_path):
    peer = peer_of("BasicUNet", {})
    safetensors.torch.save_file(peer.state_dict(), tmp_path / "w.safetensors")
    torch.save(peer.state_dict(), tmp_path / "w.pth")
    for path in (tmp_path / "w.safetensors", str(tmp_path / "w.pth")):
        assert_same(from_monai(path, network="BasicUNet", **arguments_of({})), peer, images({}))
    with pytest.raises(TypeError, match=r"also give network='BasicUNet' or"):
        from_monai(tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        from_monai(tmp_path / "no.pth", network="BasicUNet")
    with pytest.raises(ValueError, match=r"encoder\.x0_0\.conv1\.weight.*shape \(4, 1, 3, 3\)"):
        from_monai(tmp_path / "w.pth", network="BasicUNet", spatial_dims=2, features=WIDE[::-1])
    with pytest.raises(TypeError, match="only for a state dict"):
        from_monai(peer, bias=False)


def test_the_task_may_be_chosen():
    peer = peer_of("BasicUNet", {"out_channels": 3})
    assert from_monai(peer).task == "multiclass"
    assert from_monai(peer, task="multilabel").task == "multilabel"


@pytest.mark.parametrize(("options", "message"), [
    ({"upsample": "pixelshuffle"}, r"the layer 'upcat_4\.upsample'.*pixelshuffle"),
    ({"act": "tanh"}, r"the layer 'conv_0\.conv_0\.adn\.A': Tanh"),
    ({"act": ("gelu", {"approximate": "tanh"})}, r"the layer '.*\.adn\.A'"),
    ({"act": ("prelu", {"num_parameters": 4}), "features": (4,) * 6}, r"the layer '.*\.adn\.A'"),
    ({"norm": ("instance", {"track_running_stats": True})}, r"the layer '.*\.adn\.N'.*track"),
    ({"norm": ("localresponse", {"size": 2})}, r"the layer 'conv_0\.conv_0\.adn\.N'"),
    ({"dropout": ("alphadropout", {"p": 0.1})}, r"the layer 'conv_0\.conv_0\.adn\.D'"),
    ({"spatial_dims": 1}, r"the layer 'conv_0\.conv_0\.adn\.N': InstanceNorm1d"),
], ids=str)
def test_layers_without_a_counterpart_are_named(options, message):
    network = nets.BasicUNet(**arguments_of(options))
    with pytest.raises(ValueError, match=message):
        from_monai(network)
    with pytest.raises(ValueError, match=r"the layer|spatial_dims"):
        from_monai(network.state_dict(), network="BasicUNet", **arguments_of(options))


@pytest.mark.parametrize(("options", "arguments", "layer"), [
    ({"norm": "batch"}, {"norm": None}, r"conv_0\.conv_0\.adn\.N"),
    ({"norm": ("group", {"num_groups": 2})}, {"bias": False}, r"conv_0\.conv_0\.conv"),
    ({"upsample": "nontrainable"}, {}, r"upcat_1\.upsample\.preconv|upcat_2\.upsample\.preconv"),
    ({"act": "prelu"}, {"act": "relu"}, r"conv_0\.conv_0\.adn\.A"),
], ids=str)
def test_tensors_that_the_arguments_leave_no_place_for_are_named(options, arguments, layer):
    state = nets.BasicUNet(**arguments_of(options)).state_dict()
    with pytest.raises(ValueError, match=f"the layer '({layer})'"):
        from_monai(state, network="BasicUNet", **arguments_of(options | arguments
                   if arguments else {}))


def test_what_a_state_dict_lacks_is_named_not_made_up():
    state = nets.BasicUNet(**arguments_of({"norm": None})).state_dict()
    for name in ("conv_0.conv_0.conv.bias", "conv_0.conv_0.conv.weight"):
        less = {key: tensor for key, tensor in state.items() if key != name}
        with pytest.raises(ValueError, match=r"no tensor for 'encoder\.x0_0\.conv1"):
            from_monai(less, network="BasicUNet", **arguments_of({"norm": None}))
    less = {key: tensor for key, tensor in nets.BasicUNet(**arguments_of({})).state_dict().items()
            if key != "down_1.convs.conv_0.adn.N.weight"}
    with pytest.raises(ValueError, match=r"no tensor for 'encoder\.x1_0\.norm1\.weight'"):
        from_monai(less, network="BasicUNet", **arguments_of({}))


def test_changed_layers_and_other_networks_are_named():
    peer = peer_of("BasicUNet", {})
    peer.upcat_2.convs.conv_1.adn.A = nn.LeakyReLU(0.7)
    with pytest.raises(ValueError, match=r"the layer 'upcat_2\.convs\.conv_1\.adn\.A'"):
        from_monai(peer)
    peer = peer_of("BasicUNet", {})
    peer.down_1.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the layer 'down_1\.extra'"):
        from_monai(peer)
    with pytest.raises(ValueError, match="the layer 'UNet'"):
        from_monai(nets.UNet(2, 1, 2, (4, 8), (2,)))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"network": "UNETR"}, "unknown network 'UNETR'"),
    ({"network": "BasicUNet", "deep_supervision": True}, "unknown argument 'deep_supervision'"),
    ({"network": "BasicUNet", "feature": 3}, "unknown argument 'feature'.*did you mean 'features'"),
    ({"network": "BasicUNet", "features": (1, 2)}, "features needs 6 numbers"),
    ({"network": "BasicUNet", "features": (10 ** 9,) * 6}, "features must be from"),
    ({"network": "BasicUNet", "bias": "yes"}, "bias must be true or false"),
    ({"network": "BasicUNet", "act": ("leakyrelu", {"slope": 1})}, "'leakyrelu' with slope=1"),
    ({"network": "BasicUNet", "act": ("leakyrelu", {"negative_slope": 7})}, "must be a number"),
    ({"network": "BasicUNet", "norm": "group"}, "'groups' must be a"),
    ({"network": "BasicUNet", "dropout": 1.5}, "dropout must be"),
], ids=str)
def test_arguments_are_checked(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        from_monai({"x": torch.zeros(1)}, **arguments)
