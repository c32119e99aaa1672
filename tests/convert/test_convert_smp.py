"""Models of segmentation_models.pytorch against what they are converted to, in float64."""

import json
import logging

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from hub_server import HubServer, use_server
from processes import start
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import nestedseg
from nestedseg.convert import from_smp
from nestedseg.convert.smp import from_files, recognises

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SMALL = (24, 20, 16, 12, 8)  # widths of a decoder
SCSE = {"decoder_attention_type": "scse", "decoder_channels": (64, 48, 32, 24, 16)}
INSTANCE = {"type": "instancenorm", "affine": True, "eps": 1e-3}

CASES = [(architecture, encoder, options) for encoder, options in [
    ("tu-test_resnet", {}),
    ("tu-test_convnext", {}),  # from stride 4: no feature at stride 2
    ("tu-test_convnext", SCSE),
    ("tu-test_resnet", SCSE),
    ("tu-test_efficientnet", {"decoder_interpolation": "bilinear", "in_channels": 1}),
    ("tu-test_resnet", {"decoder_interpolation": "bicubic", "classes": 3}),
    ("tu-test_convnext", {"decoder_use_norm": False, "encoder_depth": 4}),
    ("tu-test_resnet", {"decoder_use_norm": INSTANCE, "encoder_depth": 3}),
    ("tu-test_resnet", {"decoder_use_norm": {"type": "batchnorm", "eps": 0.1, "momentum": 0.3},
                        "in_channels": 5}),
    ("tu-test_efficientnet", {"decoder_interpolation": "area", "encoder_depth": 2}),
    ("resnet18", {"encoder_depth": 4, "decoder_interpolation": "nearest-exact"}),
] for architecture in ("Unet", "UnetPlusPlus")]
PAIRED = len(CASES)  # the cases of an option lie side by side
CASES += [
    ("Unet", "vgg11", {}),  # a centre block, and features from stride 1
    ("Unet", "efficientnet-b0", {}),  # features of the stem, and of the middle of a stage
    ("UnetPlusPlus", "mobilenet_v2", {}),  # the head's convolution is the deepest feature
]
SLOW = [(architecture, encoder, {}) for encoder in (
    "resnet50", "resnext50_32x4d", "vgg11", "vgg16_bn", "vgg19", "densenet121", "densenet161",
    "efficientnet-b0", "mobilenet_v2", "mobileone_s0", "mobileone_s4", "se_resnet50",
    "se_resnext50_32x4d", "senet154", "timm-efficientnet-b0", "timm-efficientnet-b4",
    "timm-tf_efficientnet_lite0", "timm-regnetx_002", "timm-res2net50_26w_4s", "timm-resnest14d",
    "timm-mobilenetv3_large_100", "timm-gernet_s", "tu-resnet152", "tu-vgg19", "tu-densenet201",
    "tu-convnext_tiny", "tu-swin_tiny_patch4_window7_224", "tu-mobilenetv3_small_100",
    "tu-maxvit_tiny_tf_224", "tu-hrnet_w18_small", "tu-dla34", "tu-regnety_002",
    "tu-mambaout_femto",
) for architecture in ("Unet", "UnetPlusPlus")]
SLOW += [("Unet", encoder, {"encoder_depth": depth}) for depth in (3, 4)
         for encoder in ("vgg11", "densenet121", "efficientnet-b0", "mobilenet_v2")]


def trained(model):
    """Every parameter and statistic as training leaves them: none is 0 or 1, which hide faults."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            nn.init.normal_(parameter, 0.1, 0.2)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def peer_of(architecture, encoder, **options):
    depth = options.get("encoder_depth", 5)
    options = {"encoder_weights": None, "decoder_channels": SMALL[:depth]} | options
    if encoder.startswith(("vgg", "tu-vgg")):  # half a gigabyte of classifier is made, then dropped
        with torch.device("meta"):
            model = getattr(smp, architecture)(encoder, **options)
        model.to_empty(device="cpu")
    else:
        model = getattr(smp, architecture)(encoder, **options)
    return trained(model).double()


def images(peer, size=64):
    return torch.randn(1, peer.config["in_channels"], size, size, dtype=torch.double)


@torch.no_grad()
def assert_same(ours, peer, x):
    expected = peer(x)
    assert expected.std() > 1e-6
    torch.testing.assert_close(ours(x) / expected.std(), expected / expected.std(), **CLOSE)


def name(case):
    architecture, encoder, options = case
    return f"{architecture} {encoder} " + " ".join(f"{k}={v}" for k, v in options.items())


# By default each set of options has one architecture, and each architecture every other set.
@pytest.mark.parametrize("case", [
    pytest.param(case, id=name(case),
                 marks=pytest.mark.slow if number < PAIRED and number % 4 in (1, 2) else ())
    for number, case in enumerate(CASES)])
def test_outputs_are_the_originals(case):
    architecture, encoder, options = case
    peer = peer_of(architecture, encoder, **options)
    assert_same(from_smp(peer), peer, images(peer))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SLOW, ids=name)
def test_outputs_are_the_originals_of_more_encoders(case):
    architecture, encoder, options = case
    peer = peer_of(architecture, encoder, **options)
    assert_same(from_smp(peer), peer, images(peer, 224 if "224" in encoder else 64))


def test_there_are_as_many_cases_as_the_issue_asks_for():
    assert len(CASES) >= 25


@pytest.mark.parametrize("architecture", ["Unet", "UnetPlusPlus"])
def test_float32_stays_within_a_hundred_thousandth(architecture):
    peer = peer_of(architecture, "tu-test_resnet", decoder_channels=(256, 128, 64, 32, 16)).float()
    x = images(peer).float()
    with torch.no_grad():
        expected, found = peer(x), from_smp(peer)(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# -- an ordinary model --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, SCSE, {"decoder_interpolation": "bicubic"}], ids=str)
def test_it_saves_loads_draws_fuses_and_learns(options, tmp_path):
    peer = peer_of("UnetPlusPlus", "tu-test_convnext", **options)
    ours = from_smp(peer)
    ours.save_pretrained(tmp_path)
    again = nestedseg.from_pretrained(tmp_path)
    assert again.config == ours.config
    x = images(peer)
    with torch.no_grad():
        assert torch.equal(again(x), ours(x))
        assert_same(ours.fuse(), peer, x)
        assert_same(ours.prune(ours.depths[-1]), peer, x)
        with nestedseg.execution("reference"):
            assert_same(ours, peer, x)
    assert ours.graph.encoder_row == 2 and "x0_5" in ours.graph.to_svg() + ours.graph.to_mermaid()
    ours.train()(x.repeat(2, 1, 1, 1)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_gradients_are_the_originals_too():
    peer = peer_of("Unet", "tu-test_resnet").train()
    ours = from_smp(peer).train()
    x = images(peer).repeat(2, 1, 1, 1)
    for model in (peer, ours):
        model(x).square().mean().backward()
    for theirs, own in (("segmentation_head.0", "decoder.head_x0_5"),
                        ("decoder.blocks.1.conv2.0", "decoder.x3_2.block.conv2"),
                        ("encoder.model.conv1.0", "encoder.model.conv1.0")):
        torch.testing.assert_close(ours.get_submodule(own).weight.grad,
                                   peer.get_submodule(theirs).weight.grad)


@pytest.mark.parametrize(("options", "task", "apply"), [
    ({"activation": "sigmoid"}, "binary", False),
    ({"activation": "sigmoid", "classes": 3}, "multilabel", False),
    ({"activation": "softmax", "classes": 3}, "multiclass", False),
    ({"activation": "softmax2d", "classes": 3}, "multiclass", False),
    ({"classes": 1}, "binary", True), ({"classes": 2}, "multiclass", True)], ids=str)
@pytest.mark.filterwarnings("ignore:Implicit dimension")
def test_a_final_activation_is_what_predict_applies(options, task, apply):
    peer = peer_of("Unet", "tu-test_resnet", encoder_depth=3, **options)
    ours, x = from_smp(peer), images(peer)
    assert ours.task == task
    with torch.no_grad():
        expected = peer(x)
    if apply:
        expected = expected.softmax(1) if task == "multiclass" else expected.sigmoid()
    torch.testing.assert_close(ours.predict(x), expected, **CLOSE)


def test_an_activation_given_as_a_class_is_seen():
    peer = peer_of("Unet", "tu-test_resnet", encoder_depth=3, activation=nn.Sigmoid)
    x = images(peer)
    torch.testing.assert_close(from_smp(peer).predict(x), peer(x).detach(), **CLOSE)


def test_a_task_may_be_chosen_where_the_model_leaves_it_open():
    peer = peer_of("Unet", "tu-test_resnet", encoder_depth=3, classes=3)
    assert from_smp(peer, task="multilabel").task == "multilabel"
    peer = peer_of("Unet", "tu-test_resnet", encoder_depth=3, classes=3, activation="softmax2d")
    with pytest.raises(ValueError, match=r"softmax2d.*allowed: multiclass"):
        from_smp(peer, task="multilabel")


def test_the_model_keeps_its_dtype_and_owns_its_weights():
    peer = peer_of("Unet", "tu-test_resnet", encoder_depth=3).bfloat16()
    ours = from_smp(peer)
    assert next(ours.parameters()).dtype == torch.bfloat16 and not ours.training
    theirs = {parameter.data_ptr() for parameter in peer.parameters()}
    assert theirs.isdisjoint(parameter.data_ptr() for parameter in ours.parameters())


# -- from files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("smp")
    peer = peer_of("UnetPlusPlus", "tu-test_resnet", encoder_depth=3,
                   **SCSE | {"decoder_channels": (64, 48, 32)})
    peer.save_pretrained(folder)
    torch.save(peer.state_dict(), folder / "weights.pth")
    return folder, peer


def test_a_saved_folder_is_read(saved):
    folder, peer = saved
    config = json.loads((folder / "config.json").read_text())
    assert recognises(config)
    for ours in (from_smp(folder), from_smp(str(folder)),
                 from_files(config, folder / "model.safetensors"),
                 from_smp(folder / "model.safetensors", config=config),
                 from_smp(folder / "weights.pth", config=config),
                 from_smp(peer.state_dict(), config=config)):
        assert_same(ours, peer, images(peer))


def test_a_repository_is_read(saved, monkeypatch, tmp_path):
    folder, peer = saved
    names = ("config.json", "model.safetensors")
    with HubServer() as server, use_server(monkeypatch, server, tmp_path):
        sha = server.put("someone/nuclei", {name: (folder / name).read_bytes() for name in names})
        assert_same(from_smp("someone/nuclei", revision=sha), peer, images(peer))
        assert_same(nestedseg.from_pretrained("someone/nuclei"), peer, images(peer))
        assert server.downloads() == [*names]


def test_neither_library_is_imported(saved, tmp_path):
    code = (f"import sys, nestedseg; nestedseg.convert.from_smp({str(saved[0])!r}); "
            "assert not {'segmentation_models_pytorch', 'monai'} & {*sys.modules}")
    process = start(exec, code, output=tmp_path / "printed")
    process.join(timeout=120)
    assert process.exitcode == 0


def test_a_pickle_that_would_run_code_is_refused(saved, tmp_path):
    config = json.loads((saved[0] / "config.json").read_text())

    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").write_text, ("",)

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not unpickled"):
        from_smp(tmp_path / "evil.pth", config=config)
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": saved[1].state_dict()}, tmp_path / "wrapped.pth")
    with pytest.raises(ValueError, match="not a state dict: 'state_dict' is a"):
        from_smp(tmp_path / "wrapped.pth", config=config)
    with pytest.raises(TypeError, match="also give config="):
        from_smp(saved[0] / "weights.pth")


@pytest.mark.parametrize("source", ["nowhere", "no/such/folder", "a/b/c"])
def test_what_is_no_model_says_so(source):
    with pytest.raises(FileNotFoundError, match="neither a folder nor the id of a repo"):
        from_smp(source)


def test_a_folder_of_ours_or_of_pickles_is_refused(saved, tmp_path):
    nestedseg.create("unet", encoder_channels=(2, 3)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="not written by segmentation_models"):
        from_smp(tmp_path / "ours")
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        from_smp(tmp_path)


# -- refusals -------------------------------------------------------------------------------------


BASE = {"_model_class": "Unet", "encoder_name": "tu-test_resnet"}


@pytest.mark.parametrize(("config", "message"), [
    ({"_model_class": "FPN"}, "'FPN'.*no counterpart.*Unet, UnetPlusPlus"),
    ({"aux_params": {"classes": 4}}, "the layer 'classification_head'"),
    ({"activation": "tanh"}, r"the layer 'segmentation_head\.2'.*'tanh'"),
    ({"activation": ["sigmoid"]}, r"the layer 'segmentation_head\.2'"),
    ({"decoder_use_norm": "layernorm"}, r"the layer 'decoder\.blocks.*LayerNorm"),
    ({"decoder_use_norm": "inplace"}, r"the layer 'decoder\.blocks.*'inplace'"),
    ({"decoder_use_norm": {"type": "batchnorm", "track_running_stats": False}}, "layer .*track_"),
    ({"decoder_use_norm": {"type": "batchnorm", "epsilon": 1}}, "'epsilon'.*did you mean 'eps'"),
    ({"decoder_use_norm": {"type": "batchnorm", "eps": "1"}}, "'eps' must be a number"),
    ({"decoder_use_norm": 3}, "decoder_use_norm must be"),
    ({"decoder_attention_type": "se"}, "unknown decoder_attention_type 'se'"),
    ({"decoder_interpolation": "linear"}, "unknown decoder_interpolation 'linear'"),
    ({"encoder_name": "inceptionv4"}, "the layer 'encoder': 'inceptionv4'"),
    ({"encoder_name": "mit_b0"}, "the layer 'encoder': 'mit_b0'"),
    ({"encoder_name": "efficientnet-b3"}, "efficientnet-b3'.*it pads by the size"),
    ({"encoder_name": "tu-test_vit"}, "the layer 'encoder'.*isotropic"),
    ({"encoder_name": "tu-inception_v4"}, "the layer 'encoder'.*irregular"),
    ({"encoder_name": "tu-resnet1000"}, "unknown encoder 'resnet1000'"),
    ({"encoder_name": "tu-../resnet"}, "unknown encoder"),
    ({"encoder_name": 3}, "encoder_name must be a name"),
    ({"encoder_name": "tu-plain"}, "unknown encoder 'plain'"),
    ({"encoder_name": "tu-test_convnext", "encoder_depth": 1, "decoder_channels": [8]},
     "no feature at stride 2"),
    ({"encoder_depth": 6}, "encoder_depth must be from 1 to 5"),
    ({"encoder_depth": 3}, "decoder_channels needs 3 values, .* got 5"),
    ({"decoder_channels": [10 ** 9] * 5}, "decoder_channels must be from 1 to 65536"),
    ({"classes": 10 ** 9}, "classes must be from"), ({"classes": "2"}, "classes must be a whole"),
    ({"in_channels": 0}, "in_channels must be from"),
    ({"output_stride": 16}, "unknown argument 'output_stride'"),
    ({"pretrained_cfg": {"file": "x"}}, "unknown argument 'pretrained_cfg'"),
], ids=str)
def test_what_has_no_counterpart_is_refused_before_anything_is_built(config, message, monkeypatch):
    monkeypatch.setattr("nestedseg.convert.smp.load_weights", None)
    with pytest.raises((ValueError, TypeError), match=message):
        from_smp({"x": torch.zeros(1)}, config=BASE | config)


def test_a_huge_model_is_refused_before_it_is_built(saved, monkeypatch):
    monkeypatch.setattr("nestedseg.convert.smp.load_weights", None)
    config = json.loads((saved[0] / "config.json").read_text())
    with pytest.raises(ValueError, match=r"has shape \(64, .*its configuration says \(65536, "):
        from_smp(saved[0], config=config | {"decoder_channels": [65536] * 3})


def test_changed_layers_of_a_live_model_are_named():
    for path, layer, message in (
            ("decoder.blocks.2.conv1.2", nn.GELU(),
             r"'decoder\.blocks\.2\.conv1\.2': it is a GELU"),
            ("segmentation_head.2.activation", nn.Tanh(),
             r"'segmentation_head\.2\.activation': it is a"),
            ("segmentation_head.2.activation", nn.Softmax(-1), r"it is (a )?Softmax\(dim=-1\)"),
            ("segmentation_head.1", nn.Upsample(scale_factor=2), r"'segmentation_head\.1'"),
            ("encoder.model.extra", nn.Linear(2, 2), r"the layer 'encoder\.model\.extra'"),
            ("decoder.blocks.1.extra", nn.Conv2d(2, 2, 1), r"layer 'decoder\.blocks\.1\.extra'"),
            ("segmentation_head.0", nn.Conv2d(8, 1, 1), r"segmentation_head\.0.* \(1, 8, 1, 1\)")):
        peer = peer_of("Unet", "tu-test_resnet")
        parent, _, last = path.rpartition(".")
        peer.get_submodule(parent).add_module(last, layer.double())
        with pytest.raises(ValueError, match=message):
            from_smp(peer)
    for model, message in (
            (smp.FPN("resnet18", encoder_weights=None), "'FPN' .* has no counterpart"),
            (peer_of("Unet", "tu-test_resnet", aux_params={"classes": 2}),
             "the layer 'classification_head'")):
        with pytest.raises(ValueError, match=message):
            from_smp(model)


def test_weights_that_do_not_fit_are_named(saved, tmp_path):
    folder, peer = saved
    config = json.loads((folder / "config.json").read_text())
    state = peer.state_dict()
    for change, message in (
            ({"encoder.model.layer1.0.conv1.weight": None}, r"no tensor for .*layer1\.0\.conv1"),
            ({"decoder.blocks.x_0_1.conv1.0.weight": torch.zeros(3, 3, 3, 3).double()},
             r"shape \(3, 3, 3, 3\)"),
            ({"encoder.model.conv1.0.weight": state["encoder.model.conv1.0.weight"].float()},
             "mixes"),
            ({"encoder.model.conv1.0.weight": state["encoder.model.conv1.0.weight"].int()},
             r"unsupported dtype torch\.int32"),
            ({"decoder.center.0.0.weight": torch.zeros(2)}, r"the layer 'decoder\.center\.0\.0'"),
            ({"encoder.model.extra.weight": torch.zeros(2)}, r"layer 'encoder\.model\.extra'")):
        wrong = {key: tensor.clone() for key, tensor in (state | change).items()
                 if tensor is not None}
        path = tmp_path / "wrong.safetensors"
        safetensors.torch.save_file(wrong, path)
        for source in (path, wrong):
            with pytest.raises(ValueError, match=message):
                from_smp(source, config=config)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged"):
        from_files(config, path)


def test_attention_that_the_configuration_does_not_mention_is_not_dropped(saved):
    config = json.loads((saved[0] / "config.json").read_text()) | {"decoder_attention_type": None}
    with pytest.raises(ValueError, match=r"the layer 'decoder\.blocks\.x_0_0\.attention1"):
        from_smp(saved[0], config=config)


def test_other_configurations_are_not_recognised():
    ours = nestedseg.create("unet", encoder_channels=(2, 3)).config
    for config in (ours, {}, [], None, {"_model_class": "Unet"}, {"encoder_name": "resnet18"},
                   {"_model_class": 3, "encoder_name": "resnet18"}):
        assert not recognises(config)


# -- back to timm ---------------------------------------------------------------------------------


@torch.no_grad()
def test_a_trained_encoder_goes_back_to_timm():
    peer = peer_of("UnetPlusPlus", "tu-test_resnet")
    backbone = nestedseg.convert.timm_encoder(from_smp(peer))
    x = images(peer)
    for ours, theirs in zip(backbone.forward_intermediates(x, intermediates_only=True),
                            peer.encoder(x)[1:]):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert backbone(x).shape == (1, backbone.num_features)


def test_what_an_encoder_lacks_is_refused_or_filled_and_named(caplog):
    model = nestedseg.create("unetpp", "test_resnet", depth=2)
    with pytest.raises(ValueError, match=r"tensors of 'test_resnet' and lacks .*layer3.*fill=True"):
        nestedseg.convert.timm_encoder(model)
    with caplog.at_level(logging.WARNING):
        backbone = nestedseg.convert.timm_encoder(model, fill=True)
    assert "layer3" in caplog.text and "layer1" not in caplog.text
    assert torch.equal(backbone.conv1[0].weight, model.encoder.model.conv1[0].weight)


def test_only_a_timm_encoder_goes_back():
    with pytest.raises(ValueError, match="plain"):
        nestedseg.convert.timm_encoder(nestedseg.create("unet", encoder_channels=(2, 3)))
    with pytest.raises(ValueError, match="fused"):
        nestedseg.convert.timm_encoder(nestedseg.create("unet", "test_resnet").fuse())
    with pytest.raises(ValueError, match="volumetric"):
        nestedseg.convert.timm_encoder(nestedseg.create("unet", "test_resnet", dims=3))
    stemmed = nestedseg.create("unet", "test_resnet", stem=True)
    assert nestedseg.convert.timm_encoder(stemmed).conv1[0].weight.shape
