import math
import pickle
import struct
import time

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch

import nestedseg

# timm's declared strides and widths of the levels, as the papers of these networks have them.
LEVELS = {
    "vgg19": [(1, 64), (2, 128), (4, 256), (8, 512), (16, 512), (32, 512)],
    "resnet152": [(2, 64), (4, 256), (8, 512), (16, 1024), (32, 2048)],
    "densenet201": [(2, 64), (4, 256), (8, 512), (16, 1792), (32, 1920)],
    "resnet18": [(2, 64), (4, 64), (8, 128), (16, 256), (32, 512)],
    "convnext_tiny": [(4, 96), (8, 192), (16, 384), (32, 768)],
    "efficientnet_b0": [(2, 16), (4, 24), (8, 40), (16, 112), (32, 320)],
    "test_resnet": [(2, 32), (4, 32), (8, 48), (16, 192), (32, 96)],
}
# The published counts of parameters, less those of the classifiers.
BACKBONE = {"vgg19": 20_024_384, "resnet152": 58_143_808, "densenet201": 18_092_928}


def make(encoder, topology="unetpp", **arguments):
    supervised = None if topology == "unet" else True
    return nestedseg.create(topology, encoder, deep_supervision=supervised,
                            **{"decoder_channels": (4, 4, 4, 4, 4)} | arguments)


def without_gradient(model, x):
    """Runs forward and backward; the parameters without a gradient."""
    model.train().zero_grad()
    logits = model(x)
    logits = logits if isinstance(logits, tuple) else (logits,)
    assert all(y.shape == (len(x), 1, *x.shape[2:]) for y in logits)
    sum(y.square().mean() for y in logits).backward()
    return [name for name, p in model.named_parameters()
            if p.grad is None or not p.grad.isfinite().all()]


def watch_features(model):
    """For each run of the encoder from now on, its features: as they were, and themselves."""
    seen = []
    model.encoder.register_forward_hook(
        lambda module, args, out: seen.append(([feature.clone() for feature in out], out)))
    return seen


def assert_unchanged(features):
    assert features
    for before, after in features:
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# -- the encoders --------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [
    pytest.param(name, marks=() if name == "vgg19" else pytest.mark.slow) for name in BACKBONE])
def test_the_papers_encoders_have_their_levels_and_parameters(encoder):
    with torch.device("meta"):
        model = nestedseg.create("unetpp", encoder=encoder, classes=1, deep_supervision=True)
    levels = [(level.stride[0], level.channels) for level in model.encoder.levels]
    assert levels == LEVELS[encoder]
    assert sum(p.numel() for p in model.encoder.parameters()) == BACKBONE[encoder]
    assert model.depths == tuple(range(1, len(levels)))


@pytest.mark.parametrize("encoder", [  # by default a small one of the same kind
    "test_resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in BACKBONE)])
def test_the_papers_encoders_train_save_load_and_prune(encoder, tmp_path):
    model = nestedseg.create("unetpp", encoder=encoder, classes=1, deep_supervision=True)
    features = watch_features(model)
    assert without_gradient(model, torch.randn(2, 3, 32, 64)) == []
    assert_unchanged(features)

    model.eval()
    model.save_pretrained(tmp_path)
    loaded = nestedseg.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 50, 31)
    with torch.no_grad():
        for depth, logits in model.forward_heads(x).items():
            assert logits.shape == (1, 1, 50, 31)
            assert torch.equal(loaded.prune(depth)(x), logits)
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("encoder", ["resnet18", "convnext_tiny", "efficientnet_b0", "test_resnet"])
def test_levels_are_found_and_every_parameter_gets_a_gradient(encoder):
    model = make(encoder)
    assert [(level.stride[0], level.channels) for level in model.encoder.levels] == LEVELS[encoder]
    for feature, (stride, channels) in zip(model.encoder(torch.randn(2, 3, 64, 96)),
                                           LEVELS[encoder], strict=True):
        assert feature.shape == (2, channels, 64 // stride, 96 // stride)
    assert without_gradient(model, torch.randn(2, 3, 64, 64)) == []


@pytest.mark.parametrize("topology", ["unet", "unet_e", "unet_plus"])
@pytest.mark.parametrize("encoder", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_every_topology_over_every_kind(topology, encoder):
    assert without_gradient(make(encoder, topology), torch.randn(2, 3, 64, 64)) == []


def test_building_does_not_wait():
    make("resnet18")  # what is found out about an encoder is kept
    start = time.process_time()
    make("resnet18")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_depth_cuts_the_encoder_too(depth):
    model = nestedseg.create("unetpp", "test_resnet", depth=depth)
    assert model.graph.depth == depth
    assert len(model.encoder.levels) == len(model.encoder(torch.randn(1, 3, 64, 64))) == depth + 1


def test_features_are_those_of_timm():
    model = make("test_resnet").double().eval()
    timm_model = timm.create_model("test_resnet", features_only=True).double().eval()
    timm_model.load_state_dict(model.encoder.model.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = timm_model(x)
        for a, b in zip(model.encoder(x), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("encoder", ["plain", "resnet18", "test_convnext", "test_efficientnet"])
def test_features_are_not_changed_by_what_follows(encoder):
    """Neither by deeper stages nor by the decoder, which may compute in place on its own alone."""
    widths = {"encoder_channels": (4, 4, 4)} if encoder == "plain" else {}
    model = make(encoder, activation="silu", **widths).eval()
    features = watch_features(model)
    x = torch.randn(1, 3, 64, 64)
    sum(y.mean() for y in model.forward_heads(x).values()).backward()
    assert_unchanged(features)
    for depth in model.depths:  # a deeper stage that wrote into a feature would leave its traces
        shallow = model.prune(depth).encoder(x)
        assert all(torch.equal(a, b) for a, b in zip(shallow, features[0][1]))


# -- channels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["plain", "test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels_than_three(encoder, channels):
    model = make(encoder, in_channels=channels, **({"encoder_channels": (4, 4, 4)}
                                                   if encoder == "plain" else {}))
    x = torch.randn(2, channels, 64, 64)
    assert without_gradient(model, x) == []
    model.eval()
    for channel in range(channels):  # each one matters
        other = x.clone()
        other[:, channel] += 1
        assert not torch.allclose(model(x), model(other))
    assert len(model.preprocessing["mean"]) == len(model.preprocessing["std"]) == channels


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A .safetensors file as timm would publish it, and its tensors."""
    torch.manual_seed(7)
    tensors = timm.create_model("test_resnet").state_dict()
    tensors = {name: torch.randn_like(t) if t.is_floating_point() else t
               for name, t in tensors.items()}
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path, tensors


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["str", "Path"])
def test_weights_from_a_file_are_really_loaded(weights, as_path):
    path, tensors = weights
    model = make("test_resnet", encoder_weights=as_path(path))
    loaded = model.encoder.model.state_dict()
    assert len(loaded) > 30
    for name, tensor in loaded.items():
        assert torch.equal(tensor, tensors[name]), name
    assert {name.split(".")[0] for name in tensors.keys() - loaded.keys()} <= {"fc"}


def test_weights_of_a_file_reach_a_model_that_is_built_shallow(weights):
    path, tensors = weights
    loaded = make("test_resnet", encoder_weights=path, depth=2).encoder.model.state_dict()
    assert not any(name.startswith("layer4") for name in loaded)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_filters_for_other_channels_are_adapted_as_timm_does(weights, channels):
    """One channel: the sum of the three. More: the three in turn, scaled to keep the sum."""
    path, tensors = weights
    model = make("test_resnet", encoder_weights=path, in_channels=channels)
    rgb = tensors["conv1.0.weight"]
    turns = torch.cat([rgb] * math.ceil(channels / 3), dim=1)[:, :channels] * 3 / channels
    expected = rgb.sum(1, keepdim=True) if channels == 1 else turns
    loaded = model.encoder.model.state_dict()
    assert torch.allclose(loaded.pop("conv1.0.weight"), expected, atol=1e-6)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.items())


def test_random_weights_are_random_and_seeded():
    torch.manual_seed(1)
    a = make("test_resnet").state_dict()
    torch.manual_seed(1)
    b = make("test_resnet").state_dict()
    c = make("test_resnet").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["encoder.model.conv1.0.weight"], c["encoder.model.conv1.0.weight"])


# -- weights that cannot be had --------------------------------------------------------------------


def test_weights_of_another_model_are_refused(weights):
    path, _ = weights
    with pytest.raises(OSError, match="could not be loaded") as error:
        make("test_convnext", encoder_weights=path)
    assert str(path) in str(error.value) and "test_convnext" in str(error.value)


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fit_are_refused(weights, tmp_path, change):
    tensors = dict(weights[1])
    if change == "missing":
        del tensors["layer2.0.conv1.weight"]
    else:
        tensors["layer2.0.conv1.weight"] = torch.zeros(3, 3)
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises((OSError, ValueError), match=r"layer2\.0\.conv1\.weight"):
        make("test_resnet", encoder_weights=path)


@pytest.mark.parametrize("content", [
    b"", b"short", b"\x00" * 100, struct.pack("<Q", 10 ** 12) + b"{}", pickle.dumps({"a": 1}),
], ids=["empty", "short", "zeros", "long header", "pickle"])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="safetensors") as error:
        make("test_resnet", encoder_weights=path)
    assert str(path) in str(error.value)


def test_a_truncated_file_is_refused(weights, tmp_path):
    path = tmp_path / "half.safetensors"
    path.write_bytes(weights[0].read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"half\.safetensors"):
        make("test_resnet", encoder_weights=path)


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "nowhere.safetensors"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        make("test_resnet", encoder_weights=path)
    with pytest.raises(FileNotFoundError, match=r"folder\.safetensors"):
        (tmp_path / "folder.safetensors").mkdir()
        make("test_resnet", encoder_weights=tmp_path / "folder.safetensors")


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights", "imagenett"])
def test_a_pickle_is_never_opened(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"'pretrained' .* or the path of a \.safetensors file"):
        make("test_resnet", encoder_weights=path)
    assert not (tmp_path / "exploded").exists()


def test_without_a_network_imagenet_weights_say_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(OSError, match="test_resnet") as error:
        make("test_resnet", encoder_weights="imagenet")
    assert time.perf_counter() - start < 5
    assert "encoder_weights=None" in str(error.value) and ".safetensors" in str(error.value)


def test_the_plain_encoder_has_no_weights_to_fetch():
    with pytest.raises(ValueError, match="plain encoder has no pretrained weights"):
        make("plain", encoder_weights="imagenet")


# -- what there is ---------------------------------------------------------------------------------


def test_encoders_are_listed_by_pattern():
    everything = nestedseg.list_encoders()
    assert "plain" in everything and {*LEVELS} <= {*everything}
    assert nestedseg.list_encoders("plai*") == ["plain"]
    assert nestedseg.list_encoders("resnet1?") == timm.list_models("resnet1?") != []
    tagged = nestedseg.list_encoders("resnet18*", pretrained=True)
    assert "resnet18.a1_in1k" in tagged and "plain" not in tagged


def test_a_tag_chooses_the_preprocessing():
    assert make("test_resnet").preprocessing["mean"] == [0.5, 0.5, 0.5]
    assert make("resnet18").preprocessing["mean"] == [0.485, 0.456, 0.406]
    tagged = make("efficientnet_b0.ra4_e3600_r224_in1k")  # the default tag's is ImageNet's
    assert tagged.preprocessing["mean"] == [0.5, 0.5, 0.5]
    assert tagged.config["encoder"] == "efficientnet_b0.ra4_e3600_r224_in1k"
