"""Files that the version before the package's division into rooms wrote are read as before.

They were written by that version, at commit 69a6fe4; ``expected.safetensors`` holds an input and
what that version's model gave for it, in eval mode.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import nestedseg
from nestedseg.data import LabelledImages, find_pairs
from nestedseg.training import Settings, best_epoch, fit

EARLIER = Path(__file__).parent / "earlier"
MODELS = ("single", "shards", "own_topology", "fused", "timm", "volume")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_loaded_and_gives_what_it_gave(name):
    expected = load_file(EARLIER / name / "expected.safetensors")
    model = nestedseg.from_pretrained(EARLIER / name)
    with torch.no_grad():
        assert_close(model(expected["input"]), expected["output"], rtol=1e-4, atol=1e-5)


def test_one_depth_is_loaded_from_shards():
    whole = nestedseg.from_pretrained(EARLIER / "shards")
    x = load_file(EARLIER / "shards" / "expected.safetensors")["input"]
    with torch.no_grad():
        logits = nestedseg.from_pretrained(EARLIER / "shards", depth=1)(x)
        assert torch.equal(logits, whole.forward_heads(x)[1])


def test_a_detector_is_loaded_with_its_pyramid():
    expected = load_file(EARLIER / "detector" / "expected.safetensors")
    model = nestedseg.from_pretrained(EARLIER / "detector")
    with torch.no_grad():
        levels = model.backbone(expected.pop("input")[None])
    assert expected.keys() == {f"level_{name}" for name in levels}
    for name, level in levels.items():
        assert_close(level, expected[f"level_{name}"], rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_to_the_loss_that_it_would_have_reached(tmp_path):
    run = shutil.copytree(EARLIER / "run", tmp_path / "run")
    pairs = find_pairs(run / "images", run / "labels")
    train, validation = (LabelledImages(part, binary=True) for part in (pairs[:3], pairs[3:]))
    model = nestedseg.create("unetpp", encoder_channels=(4, 6), in_channels=1,
                             deep_supervision=True)
    model.set_preprocessing(mean=train.mean, std=train.std)
    settings = Settings(epochs=3, steps=2, batch=2, patch=16, lr=3e-4)
    history = fit(model, train, validation, run, settings, resume=True, log=lambda line: None)
    assert [epoch.loss for epoch in history] == pytest.approx([1.92270517, 1.53389442, 1.65982938],
                                                              rel=1e-4)
    assert best_epoch(history).epoch == 1
    assert nestedseg.from_pretrained(run / "model").depths == (1,)
