"""Instance maps of whole images: windows give what the whole image gives; pictures of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import nestedseg
from nestedseg.evaluation.visualise_masks import CLASS_COLOURS, paint_instances
from nestedseg.instances.detectors import faster_rcnn, mask_rcnn
from nestedseg.instances.maps import from_mask, from_prediction
from nestedseg.instances.metrics import InstanceScores
from nestedseg.instances.prediction import predict_instances
from nestedseg.prediction.predict import predict_image, to_mask
from nestedseg.training.tasks import InstanceTask


class Oracle(nn.Module):
    """Finds the bright parts of what it sees, and scores the larger ones better, or the smaller:
    among these are the parts that a window cuts."""

    def __init__(self, reverse=False):
        super().__init__()
        self.config = {"detector": "mask_rcnn", "resize": False,
                       "pyramid": {"encoder": {"encoder": "none"}}}
        self.graph = SimpleNamespace(name="none")
        self.preprocessing = {"input_range": [0.0, 1.0], "mean": [0.0], "std": [1.0]}
        self.reverse, self.seen = reverse, []
        self.roi_heads = SimpleNamespace(score_thresh=0.05)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        self.seen.append(tuple(images[0].shape))
        parts = from_mask(images[0][0].numpy() > 0.5)
        masks = torch.from_numpy(parts == np.arange(1, parts.max() + 1).reshape(-1, 1, 1, 1))
        sizes = masks.sum((1, 2, 3)) / 1000
        return [{"masks": masks.float(), "scores": 1 - sizes if self.reverse else 0.6 + sizes / 9}]


def discs(size=(70, 90), step=14, radius=5):
    rows, columns = np.mgrid[:size[0], :size[1]]
    return (255 * ((rows % step - 7) ** 2 + (columns % step - 7) ** 2 <= radius ** 2)).astype(
        np.uint8)


@pytest.mark.parametrize("reverse", [False, True])
def test_windows_give_the_instances_of_the_whole(reverse):
    image, model = discs(), Oracle(reverse)
    whole = predict_instances(model, image, window=90)
    assert model.seen == [(1, 70, 90)] and whole.max() == from_mask(image).max() == 35
    found = predict_instances(model, image, window=(32, 40), overlap=0.5)
    assert set(model.seen[1:]) == {(1, 32, 40)} and found.max() == 35
    ours, theirs = ({*np.unique(each.ravel() * 100 + truth.ravel()).tolist()}
                    for each, truth in ((found, whole), (whole, whole)))
    assert len(ours) == len(theirs)  # one to one, and no pixel on the wrong side
    assert ((found > 0) == (whole > 0)).all()


def test_an_instance_that_no_window_has_whole_is_kept_in_parts():
    image = np.zeros((20, 64), np.uint8)
    image[8:12, 4:60] = 255
    found = predict_instances(Oracle(), image, window=24, overlap=0.25)
    assert found.max() >= 2 and ((found > 0) == (image > 0)).all()


def test_a_threshold_holds_before_masks_are_made_and_within_the_call_alone():
    model = mask_rcnn("fpn", "test_resnet", in_channels=1, out_channels=8, resize=False,
                      box_detections_per_img=8).eval()
    x = [nestedseg.preprocess(discs(), model)[0]]
    with torch.no_grad():
        everything = model(x)[0]
    middle = everything["scores"].sort().values[3:5].mean().item()
    made = []
    model.roi_heads.mask_head.register_forward_hook(lambda *call: made.append(len(call[-1])))
    found = predict_instances(model, discs(), score=middle)
    assert (found == from_prediction(everything, score=middle)).all()
    assert made == [(everything["scores"] > middle).sum().item()] and made[0] < 8
    assert model.roi_heads.score_thresh == 0.05


def test_scores_and_images_that_cannot_be():
    with pytest.raises(ValueError, match=r"score must be a probability in \[0, 1\], got 1.5"):
        predict_instances(Oracle(), discs(), score=1.5)
    with pytest.raises(ValueError, match=r"expected an image \(H, W\)"):
        predict_instances(Oracle(), np.zeros((5, 5, 3), np.uint8))
    assert predict_instances(Oracle(), discs(), score=1.0).max() == 0


# -- scores of a training --------------------------------------------------------------------------


def test_scores_add_up_over_processes():
    shifted = np.roll(from_mask(discs()), 2, axis=0)
    images = [(discs(), from_mask(discs())), (discs(), shifted),
              (np.zeros((9, 9), np.uint8), np.zeros((9, 9), int))]
    task, scores = InstanceTask(Oracle()), InstanceScores()
    for image, truth in images:
        scores.update(from_mask(image), truth)
    best, found = task.scores(task.totals(images, [0, 2]) + task.totals(images, [1]))
    assert found == scores.compute() and best == found["score"]
    assert 0.5 < best < 1 and best < found["iou"]


# -- models ---------------------------------------------------------------------------------------


def test_of_a_semantic_model_the_parts_of_its_mask():
    model = nestedseg.create("unet", encoder_channels=(4, 8), in_channels=1)
    found = predict_instances(model, discs())
    mask = to_mask(predict_image(model, discs()), "binary")
    assert (found == from_mask(mask)).all() and found.dtype == np.int32


def test_models_that_know_no_instances_are_refused():
    classes = nestedseg.create("unet", encoder_channels=(4, 8), in_channels=1, classes=3)
    boxes = faster_rcnn("fpn", "test_resnet", out_channels=8)
    with pytest.raises(ValueError, match="this model has task 'multiclass'"):
        predict_instances(classes, discs())
    with pytest.raises(ValueError, match="the model is a faster_rcnn"):
        predict_instances(boxes, discs())


@pytest.mark.parametrize("resize", [False, True])
def test_a_detector_resizes_images_or_takes_them_as_they_are(resize):
    small = {"out_channels": 8, "rpn_post_nms_top_n_test": 10, "box_score_thresh": 0.0}
    model = mask_rcnn("fpn", "test_resnet", in_channels=1, min_size=64, max_size=96, resize=resize,
                      **small).eval()
    x = nestedseg.preprocess(discs((40, 60)), model)
    assert x.shape == (1, 1, 40, 60) and (x.min(), x.max()) == (0, 1)
    sizes = model.transform([x[0]])[0].image_sizes
    assert sizes == ([(64, 96)] if resize else [(40, 60)])
    with torch.no_grad():
        expected = from_prediction(model([x[0]])[0], score=0.0)
    assert (predict_instances(model, discs((40, 60)), score=0.0) == expected).all()


# -- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [0, 2])
def test_neighbours_have_different_colours_and_the_background_none(gap):
    rows, columns = np.mgrid[:60, :60]
    label = (1 + rows // 10 * 6 + columns // 10).astype(np.int32)  # squares of 10 pixels
    label[(rows % 10 < gap) | (columns % 10 < gap)] = 0
    painted = paint_instances(np.full((60, 60, 3), 90, np.uint8), label)
    assert (painted[label == 0] == 90).all()
    centres = painted[5::10, 5::10]
    assert (centres[1:] != centres[:-1]).any(-1).all()
    assert (centres[:, 1:] != centres[:, :-1]).any(-1).all()
    outline = painted[9:50:10, 5::10].reshape(-1, 3)  # unmixed
    assert {*map(tuple, outline.tolist())} <= {*CLASS_COLOURS}


@pytest.mark.parametrize("label", [np.zeros((4, 5), np.int32), np.ones((1, 1), np.int32)])
def test_pictures_of_few_pixels(label):
    assert paint_instances(np.zeros((*label.shape, 3), np.uint8), label).shape == (*label.shape, 3)
