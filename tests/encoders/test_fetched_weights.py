"""Weights of timm's encoders that a Hub has: here one of this machine."""

import pytest
import safetensors.torch
import timm
import torch
from hub_server import HubServer, use_server

import nestedseg

REPO = "timm/test_resnet.r160_in1k"  # of the default tag


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(7)
    return {name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor
            for name, tensor in timm.create_model("test_resnet").state_dict().items()}


@pytest.fixture
def server(weights, monkeypatch, tmp_path):
    with HubServer() as server, use_server(monkeypatch, server, tmp_path):
        server.put(REPO, {"model.safetensors": safetensors.torch.save(weights)})
        yield server


def make(encoder="test_resnet", **arguments):
    model = nestedseg.create("unet", encoder, decoder_channels=(4,) * 4, **arguments)
    return model.encoder.model.state_dict()


@pytest.mark.parametrize("given", [True, "imagenet"])
@pytest.mark.parametrize("encoder", ["test_resnet", "test_resnet.r160_in1k"])
def test_true_and_imagenet_are_the_weights_of_timm(server, weights, encoder, given):
    loaded = make(encoder, encoder_weights=given)
    assert len(loaded) > 50 and all(torch.equal(loaded[name], weights[name]) for name in loaded)
    assert server.downloads() == ["model.safetensors"]


@pytest.mark.parametrize("given", [False, None])
def test_false_and_none_are_random_weights(server, weights, given):
    assert not torch.equal(make(encoder_weights=given)["conv1.0.weight"],
                           weights["conv1.0.weight"])
    assert server.log == []


def test_true_is_refused_where_there_is_nothing_to_fetch():
    with pytest.raises(ValueError, match=r"plain encoder has no pretrained weights.*got True"):
        nestedseg.create("unet", "plain", encoder_weights=True)
