"""Encoder weights from a file: whatever its classifier is, and nothing else may differ."""

import pytest
import safetensors.torch
import timm
import torch

import nestedseg

NAMES = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]


def random_state(name, **arguments):
    torch.manual_seed(3)
    model = timm.create_model(name, **arguments)
    return {key: torch.rand_like(t) if t.is_floating_point() else t
            for key, t in model.state_dict().items()}


def save(state, path):
    safetensors.torch.save_file(state, path)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_a_file_with_any_classifier_is_loaded(name, classes, tmp_path):
    state = random_state(name, num_classes=classes)
    model = nestedseg.create("unet", name, encoder_weights=save(state, tmp_path / "w.safetensors"))
    loaded = model.encoder.model.state_dict()
    assert len(loaded) > 10
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_trained_encoder_comes_back_through_encoder_weights(name, channels, tmp_path):
    model = nestedseg.create("unet", name, in_channels=channels)
    backbone = nestedseg.convert.timm_encoder(model, fill=True)
    path = save(backbone.state_dict(), tmp_path / "own.safetensors")
    again = nestedseg.create("unet", name, in_channels=channels, encoder_weights=path)
    expected = model.encoder.model.state_dict()
    assert all(torch.equal(tensor, expected[key])
               for key, tensor in again.encoder.model.state_dict().items())


def test_weights_with_a_class_for_the_background_lose_their_classifier_alone(tmp_path):
    state = random_state("inception_v3", num_classes=1001)  # timm cuts the first class off
    path = save(state, tmp_path / "w.safetensors")
    from nestedseg.encoders.timm_encoder import load_model
    loaded = load_model("inception_v3.tf_in1k", path, {}).state_dict()
    assert torch.equal(loaded["Mixed_7c.branch1x1.conv.weight"],
                       state["Mixed_7c.branch1x1.conv.weight"])


@pytest.mark.parametrize("classes", [0, 7, 1000])
@pytest.mark.parametrize("change", ["missing", "shape", "surplus"])
def test_any_other_difference_is_refused_by_name(classes, change, tmp_path):
    state = random_state("test_resnet", num_classes=classes)
    name = "layer9.conv.weight" if change == "surplus" else "layer2.0.conv1.weight"
    if change == "missing":
        del state[name]
    else:
        state[name] = torch.zeros(3, 3)
    path = save(state, tmp_path / "w.safetensors")
    with pytest.raises(OSError, match=name.replace(".", r"\.")) as error:
        nestedseg.create("unet", "test_resnet", encoder_weights=path)
    assert str(path) in str(error.value) and error.value.__cause__ is not None
