"""The public API as one who uses it types it: mypy checks this file (`make types`), pytest runs it.

`assert_type` is what mypy proves: a name that it took for Any would fail there. At run time it
does nothing, and the asserts beside it say that the annotations are true.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import assert_type

import nestedseg
from nestedseg import FeaturePyramid, Graph, SegmentationModel
from nestedseg.base.moved import SHORT
from nestedseg.instances import detectors

if TYPE_CHECKING:
    from nestedseg.training.history import Epoch


def small() -> SegmentationModel:
    return nestedseg.create("unetpp", encoder_channels=(2, 4, 8), deep_supervision=True, depth=2)


def test_models_made_from_models_are_models() -> None:
    model = small().eval()
    for other in (assert_type(model.prune(1), SegmentationModel),
                  assert_type(model.fuse(torch.float32), SegmentationModel),
                  assert_type(model.eval(), SegmentationModel)):
        assert isinstance(other, SegmentationModel)


def test_sequences_may_be_lists() -> None:
    model = nestedseg.create("unet", encoder_channels=[2, 4, 8], decoder_channels=[2, 4],
                             classes=2, class_names=["a", "b"], strides=[[2, 2], [2, 2]])
    assert assert_type(model.depths, tuple[int, ...]) == (2,)
    assert assert_type(model.graph, Graph).depth == 2
    assert assert_type(model.config, dict[str, Any])["class_names"] == ["a", "b"]


def test_what_a_model_gives() -> None:
    model, x = small(), torch.zeros(1, 3, 8, 8)
    assert assert_type(model.forward_heads(x), dict[int, Tensor]).keys() == {1, 2}
    assert isinstance(assert_type(model.predict(x), Tensor), Tensor)
    assert [row.depth for row in model.summary(8)] == [1, 2]
    assert model.encoder.levels[0].channels == 2
    assert model.decoder.strides["x0_1"] == (1, 1)


def test_a_graph_is_made_of_lists_and_has_nodes() -> None:
    graph = Graph(nodes={"x0_1": ["x0_0", "x1_0"]}, heads=["x0_1"])
    assert assert_type(graph.heads, tuple[str, ...]) == ("x0_1",)
    assert graph.nodes["x0_1"].inputs == ("x0_0", "x1_0")
    mixed = Graph({"x0_1": {"inputs": ["x0_0", "x1_0"], "channels": 4}}, ["x0_1"], name="mixed")
    assert mixed.nodes["x0_1"].channels == 4


def test_saved_and_loaded(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    model = nestedseg.from_pretrained(tmp_path, depth=1)
    assert_type(model, SegmentationModel | Any)  # a folder may hold a detector
    assert isinstance(model, SegmentationModel)
    x = nestedseg.preprocess(np.zeros((8, 8, 3), np.uint8), model)
    assert tuple(assert_type(x, Tensor).shape) == (1, 3, 8, 8)


def test_a_loss_takes_the_task_of_a_model() -> None:
    model = small()
    loss = nestedseg.losses.DeepSupervision(nestedseg.losses.HybridLoss(model.task))
    value = loss(model(torch.zeros(1, 3, 8, 8)), torch.zeros(1, 8, 8))
    assert torch.isfinite(value)
    scores = nestedseg.metrics.SegmentationScores(model.task, model.classes)
    assert assert_type(scores.counts, Tensor).shape == (1, 4)


def test_feature_pyramids_and_detectors() -> None:
    backbone = nestedseg.pyramid("fpn", "plain", strides=[1, 2], encoder_channels=[2, 4],
                                 out_channels=8)
    assert_type(backbone, FeaturePyramid)
    assert assert_type(backbone.strides, tuple[int, ...]) == (1, 2)
    model = detectors.mask_rcnn("fpn", "test_resnet", out_channels=8, strides=(4, 8, 16))
    assert_type(model, detectors.MaskRCNN)
    assert nestedseg.preprocess(np.zeros((8, 8, 3), np.uint8), model).shape == (1, 3, 8, 8)
    assert assert_type(model.config, dict[str, Any])["detector"] == "mask_rcnn"


def test_a_checker_knows_every_module_that_is_loaded_late() -> None:
    source = Path(nestedseg.__file__).read_text(encoding="utf-8")
    late = re.findall(r"\n    from nestedseg\S* import (\w+) as \1\b", source)
    assert {*late} == {*nestedseg._NAMES, *nestedseg._ROOMS, *SHORT}


if TYPE_CHECKING:  # trainings are run elsewhere
    def train(model: SegmentationModel, detector: detectors.MaskRCNN,
              images: nestedseg.data.LabelledImages) -> None:
        for trained in (model, detector):
            history = nestedseg.training.fit(trained, images, images, "run",
                                             nestedseg.training.Settings(epochs=1))
            assert_type(history, list[Epoch])
