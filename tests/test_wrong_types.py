"""Every public function with every wrong type: it is taken, or refused by the library itself.

What comes from below (an array without a truth value, an attribute that is not there) says nothing
to a user. So each error must be one that a line of the library raises on purpose.
"""

import inspect
import traceback
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import nestedseg
from nestedseg import convert, data, evaluation, prediction, training
from nestedseg.training import Settings

WRONG = {"texts": np.array(["a", "b"]), "numbers": np.array([1.5, 2.5]), "object": object(),
         "bytes": b"x", "dict": {"a": 1}, "list": ["a", None], "text": "nonsense",
         "nan": float("nan"), "tensor": torch.zeros(2), "None": None, "-1": -1, "class": int,
         "set": {1, 2}, "True": True}
PACKAGE = Path(nestedseg.__file__).parent
TINY = {"encoder_channels": (4, 6, 8)}
MODEL = nestedseg.create("unetpp", deep_supervision=True, **TINY).eval()
IMAGE, BATCH = np.zeros((16, 16, 3), np.uint8), torch.zeros(1, 3, 8, 8)
LOGITS, TARGET = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4)
DEFAULTS = {name: parameter.default
            for name, parameter in inspect.signature(nestedseg.create).parameters.items()}


def within(name):
    with nestedseg.execution(name):
        pass


def hybrid(logits, target):
    return training.HybridLoss("binary")(logits, target)


def deep(outputs, target):
    return training.DeepSupervision(hybrid)(outputs, target)


def count(logits, target):
    evaluation.SegmentationScores().update(logits, target)


CALLS = {  # each with arguments that are right
    nestedseg.create: DEFAULTS | TINY | {"topology": "unetpp"},
    nestedseg.topology: {"name": "unet", "depth": 2},
    within: {"name": "fast"},
    nestedseg.encoder_info: {"name": "test_resnet"},
    nestedseg.list_encoders: {"pattern": "test_*", "pretrained": False},
    nestedseg.preprocess: {"image": IMAGE, "model": MODEL},
    nestedseg.from_pretrained: {"repo_or_dir": "none", "depth": 1},
    data.read_image: {"path": "none.png"},
    data.read_label: {"path": "none.png"},
    data.open_volume: {"path": "none.npy"},
    data.list_images: {"folder": "none"},
    training.HybridLoss: {"task": "binary"},
    training.PaperHybridLoss: {"task": "binary"},
    training.DeepSupervision: {"loss": hybrid, "weights": [1.0]},
    hybrid: {"logits": LOGITS, "target": TARGET},
    deep: {"outputs": LOGITS, "target": TARGET},
    training.Settings: {field.name: getattr(Settings(), field.name) for field in fields(Settings)},
    evaluation.SegmentationScores: {"task": "binary", "classes": 1, "threshold": 0.5},
    count: {"logits": LOGITS, "target": TARGET},
    prediction.predict_image: {"model": MODEL, "image": IMAGE, "window": 8, "overlap": 0.5},
    convert.from_smp: {"source": {"a": LOGITS}, "task": None,
                       "config": {"_model_class": "Unet", "encoder_name": "resnet18"}},
    MODEL.forward: {"x": BATCH},
    MODEL.forward_heads: {"x": BATCH},
    MODEL.predict: {"x": BATCH},
    MODEL.prune: {"depth": 1},
    MODEL.summary: {"size": 16},
    MODEL.save_pretrained: {"directory": "saved"},
    MODEL.set_preprocessing: {"mean": [0.0] * 3, "std": [1.0] * 3, "input_range": [0, 1],
                              "size": [4, 4], "interpolation": "x", "standardise": True},
}
CASES = [pytest.param(function, name, id=f"{function.__name__}-{name}")
         for function, right in CALLS.items() for name in right]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(MODEL.preprocessing)
    yield
    MODEL.set_preprocessing(**before)


@pytest.mark.parametrize("function, name", CASES)
def test_a_wrong_type_is_refused_by_the_library_itself(function, name):
    for kind, value in WRONG.items():
        try:
            function(**CALLS[function] | {name: value})
        except (ValueError, TypeError, OSError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            assert PACKAGE in Path(last.filename).parents, (kind, last, error)
            assert "raise " in last.line, (kind, last, error)
