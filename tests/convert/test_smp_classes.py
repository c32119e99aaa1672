"""A class of segmentation_models.pytorch without a counterpart is named, not its arguments."""

import json

import pytest
import torch

from nestedseg.convert import from_smp

smp = pytest.importorskip("segmentation_models_pytorch")

OTHERS = ["UPerNet", "FPN", "Linknet", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "MAnet",
          "Segformer"]


def config(name):
    return {"_model_class": name, "encoder_name": "resnet18", f"{name.lower()}_channels": 3}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("source", ["state dict", "folder", "model"])
def test_the_class_is_named(name, source, tmp_path):
    given, options = {"weight": torch.zeros(1)}, {"config": config(name)}
    if source == "folder":
        (tmp_path / "config.json").write_text(json.dumps(config(name)))
        (tmp_path / "model.safetensors").write_bytes(b"")
        given, options = tmp_path, {}
    elif source == "model":
        given, options = type(name, (smp.Unet,), {})("resnet18", encoder_weights=None), {}
    with pytest.raises(ValueError, match=f"'{name}' .*has no counterpart.*Unet, UnetPlusPlus"):
        from_smp(given, **options)
