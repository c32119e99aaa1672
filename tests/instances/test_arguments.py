"""Every number argument of torchvision's detectors: refused at once, or the detector works."""

import copy

import pytest
import torch

from nestedseg.instances.arguments import numbers_of
from nestedseg.instances.detectors import DETECTORS, faster_rcnn, mask_rcnn, retinanet

MAKERS = {"mask_rcnn": mask_rcnn, "faster_rcnn": faster_rcnn, "retinanet": retinanet}
SMALL = {"strides": (4, 8, 16), "out_channels": 8, "min_size": 32, "max_size": 64}
NUMBERS = [0, 1, 2, 7, 0.0, 1e-300, 1e-3, 0.3, 0.6, 1.0, 1.5, 100, 400, 512, 513, 4096, 65_536,
           10 ** 7, 2 ** 63, 10 ** 400, -1, -0.5, float("nan"), float("inf")]
VALUES = [*NUMBERS, None, True, "7", {}, [], [[]], ["1"], [32, 64], [64, 64], [1.5, 2], [0, 64],
          [4096, 4096], [1] * 99,
          *([value] * n for n in (1, 3, 4) for value in (0, 0.5, 1, 65_536))]
CASES = [(name, argument) for name, kind in DETECTORS.items() for argument in numbers_of(kind)]
# Beside what no argument may be: sizes beyond any memory, divisors of 0, lists of other lengths.
NEVER = {"size_divisible": [0, 4096, 65_536], "fixed_size": [7, [4096, 4096], [1] * 4, [0, 64]],
         "image_std": [[0, 0, 0], [1]], "image_mean": [0.5, [0.5]],
         "bbox_reg_weights": [1, [0, 0, 0, 0], [1, 1, 1]], "max_size": [0, [64, 64]],
         "min_size": [0, [0, 64], []]}


def make(name, argument, value):
    with torch.device("meta"):
        return MAKERS[name]("fpn", "test_resnet", **SMALL | {argument: copy.deepcopy(value)})


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_what_makes_no_sense_is_refused(name, argument):
    whole = type(numbers_of(DETECTORS[name])[argument]) is int and argument not in SMALL
    never = [None, True, "7", {}, [], [1] * 99, -1, float("nan"), 10 ** 400,
             *NEVER.get(argument, ()), *([0.5, 0, [7]] if whole else ()),
             *([1.5] if "thresh" in argument else ())]
    for value in never:
        with pytest.raises(ValueError, match=f"^{argument} must be "):
            make(name, argument, value)


@pytest.mark.parametrize("prefix", ["rpn_", "box_", ""])
def test_a_box_is_not_both(prefix):
    name = "faster_rcnn" if prefix else "retinanet"
    with pytest.raises(ValueError, match=f"{prefix}bg_iou_thresh must be at most "):
        make(name, f"{prefix}bg_iou_thresh", 0.9)
    with pytest.raises(ValueError, match=f"{prefix}bg_iou_thresh must be at most "):
        make(name, f"{prefix}fg_iou_thresh", 0.1)


def test_colours_are_as_many_as_the_images():
    with pytest.raises(ValueError, match="image_mean must be a list of 1 numbers"):
        retinanet("fpn", "test_resnet", **SMALL, in_channels=1, image_mean=[0.5] * 3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argument"), CASES)
def test_what_is_accepted_works(name, argument):
    """Also in training: losses are finite."""
    works = 0
    for value in VALUES:
        try:
            make(name, argument, value)
        except ValueError:
            continue
        works += 1
        model = MAKERS[name]("fpn", "test_resnet", **SMALL | {argument: value})
        images = [torch.rand(3, 24, 24) for _ in range(2)]
        target = {"boxes": torch.tensor([[2.0, 2, 20, 20]]), "labels": torch.ones(1).long(),
                  "masks": torch.ones(1, 24, 24, dtype=torch.uint8)}
        losses = model(images, [copy.deepcopy(target) for _ in images])
        assert all(loss.isfinite() for loss in losses.values()), value
        with torch.no_grad():
            found = model.eval()(images)
        assert len(found) == 2
    assert works
