"""Detectors through `fit`: numbers that come again, awkward labels, impossible ones by name."""

import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from processes import in_two_processes

import nestedseg
from nestedseg.data import (
    InstancePatches,
    LabelledImages,
    LabelledInstances,
    find_pairs,
    synthetic_nuclei,
)
from nestedseg.instances.detectors import faster_rcnn, mask_rcnn
from nestedseg.instances.metrics import InstanceScores
from nestedseg.instances.prediction import predict_instances
from nestedseg.training.loop import MODEL, fit
from nestedseg.training.settings import Settings

SIDE = 48
QUICK = Settings(epochs=1, steps=1, batch=2, patch=SIDE)
CHEAP = {"out_channels": 8, "rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 4,
         "box_batch_size_per_image": 8, "anchor_scale": 2, "resize": False}


def write(folder, **labels):
    """A folder of grey images, and of these labels; the collection of both."""
    for name, label in labels.items():
        image = np.where(label > 0, 200, 20).astype(np.uint8)
        for kind, pixels in (("images", image), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{name}.tif")
    return folder


def collect(folder):
    return LabelledInstances(find_pairs(folder / "images", folder / "labels"))


def tiny(**options):
    torch.manual_seed(0)
    return mask_rcnn("fpnpp", "test_resnet", **CHEAP | {"in_channels": 1} | options)


def blank(*points, side=SIDE):
    """A label with a pixel of its own number at each point."""
    label = np.zeros((side, side), np.uint16)
    for number, point in enumerate(points, 1):
        label[point] = number
    return label


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    labels = synthetic_nuclei(2, SIDE)[1]
    return collect(write(tmp_path_factory.mktemp("nuclei"), **dict(zip("ab", labels))))


# -- what fit does --------------------------------------------------------------------------------


def scores_of(model, images):
    scores = InstanceScores()
    for image, truth in map(images.__getitem__, range(len(images))):
        scores.update(predict_instances(model, image), truth)
    return scores.compute()


def test_resuming_gives_the_numbers_of_an_uninterrupted_run(tmp_path, nuclei):
    def run(name, epochs, **options):
        lines = []
        settings = Settings(epochs=epochs, steps=2, batch=2, patch=SIDE, lr=1e-3)
        history = fit(tiny(), nuclei, nuclei, tmp_path / name, settings, log=lines.append,
                      **options)
        return lines, [{**asdict(epoch), "seconds": 0} for epoch in history]

    lines, whole = run("whole", 2)
    run("parts", 1)
    assert run("parts", 2, resume=True)[1] == whole
    best = max(whole, key=lambda epoch: epoch["score"])
    kept = nestedseg.from_pretrained(tmp_path / "whole" / MODEL)
    assert scores_of(kept, nuclei) == best["scores"]
    assert "mask_rcnn with fpnpp over test_resnet: 2 batches" in lines[0]
    assert "val DSB score" in lines[1]
    assert all(np.isfinite(epoch["loss"]) and epoch["score"] == epoch["scores"]["score"]
               for epoch in whole)


def test_two_processes_train_one_model_and_share_the_images_that_score_it(tmp_path):
    images = collect(write(tmp_path, **dict(zip("abc", synthetic_nuclei(3, SIDE)[1]))))
    in_two_processes(train_as_one_of_two, tmp_path, output=tmp_path / "printed")
    one, other = (torch.load(tmp_path / f"{process}.pt") for process in range(2))
    assert one["history"] == other["history"] and "2 x cpu" in one["log"] and not other["log"]
    torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=0)
    kept = nestedseg.from_pretrained(tmp_path / "run" / MODEL)
    (epoch,) = one["history"]
    assert scores_of(kept, images) == pytest.approx(epoch["scores"])


def train_as_one_of_two(folder):
    """What each of the two processes does."""
    images, model, lines = collect(folder), tiny(), []
    history = fit(model, images, images, folder / "run", QUICK, log=lines.append)
    torch.save({"history": [{**asdict(epoch), "seconds": 0} for epoch in history],
                "weights": model.state_dict(), "log": "\n".join(lines)},
               folder / f"{os.environ['RANK']}.pt")


def test_patches_are_mirrored_with_their_instances(nuclei):
    patches = InstancePatches(nuclei, 32, lambda image, moments: torch.from_numpy(
        image.astype(np.float32))[None, None] / 255, batch=2, seed=1)
    assert patches.patches.std == pytest.approx(np.mean(nuclei.std))
    for patch, target in map(patches.__getitem__, range(6)):
        bright = patch[0] > patch.mean()  # images are made of their labels
        assert target["masks"].shape[1:] == patch.shape[1:] == (32, 32)
        assert ((target["masks"].sum(0) > 0) == bright).all()
        assert (target["boxes"][:, :2] < target["boxes"][:, 2:]).all()


def test_images_smaller_than_a_patch_are_not_reflected(tmp_path):
    images = collect(write(tmp_path, small=blank((0, 0), (9, 19), side=20)))
    patches = InstancePatches(images, 64, lambda image, moments: torch.zeros(1, 1, *image.shape), 1)
    patch, target = patches[0]
    assert patch.shape == (1, 20, 20) and len(target["boxes"]) == 2
    assert (target["boxes"][:, 2:] - target["boxes"][:, :2] == 1).all()


# -- awkward labels that train --------------------------------------------------------------------

GAPS = blank((3, 3), (20, 30))
GAPS[5:15, 5:15], GAPS[30:40, 8:20] = 65_535, 700
CROWD = np.kron(np.arange(1, 10_405).reshape(102, 102), np.ones((8, 8), int)).astype(np.int32)
AWKWARD = {
    "without instances": {"none": blank(), "some": GAPS},
    "gaps in the numbers": {"gaps": GAPS},
    "one pixel": {"corner": blank((0, 0)), "far": blank((SIDE - 1, SIDE - 1), (7, 7))},
    "no background": {"full": np.full((SIDE, SIDE), 9, np.uint16)},
    "more than 10,000": {"crowd": CROWD},
    "sizes that differ": {"large": GAPS, "small": blank((1, 1), side=9)},
}


@pytest.mark.parametrize("labels", AWKWARD.values(), ids=AWKWARD)
def test_it_trains_on(tmp_path, labels):
    images = collect(write(tmp_path, **labels))
    (epoch,) = fit(tiny(), images, images, tmp_path / "run", QUICK, log=lambda line: None)
    assert np.isfinite(epoch.loss) and 0 <= epoch.score <= 1


# -- what is refused by name, before the first step ------------------------------------------------


@pytest.fixture
def no_step(monkeypatch):
    """No batch may be trained on."""
    def step(*args, **kwargs):
        raise AssertionError("training has begun")
    monkeypatch.setattr("nestedseg.training.loop._Trainer._step", step)


def test_no_instance_in_any_image(tmp_path, nuclei, no_step):
    empty = collect(write(tmp_path, a=blank(), b=blank()))
    with pytest.raises(ValueError, match="the validation labels contain no foreground"):
        fit(tiny(), nuclei, empty, tmp_path / "run", QUICK)


def test_more_instances_in_a_patch_than_memory_has_masks_for(tmp_path, no_step):
    label = np.kron(np.arange(1, 110 * 110 + 1).reshape(110, 110), np.ones((3, 3), int))
    label = label.astype(np.int32)
    crowd = collect(write(tmp_path, crowd=label))
    settings = Settings(epochs=1, batch=8, patch=330)
    with pytest.raises(ValueError, match=r"crowd.tif \(of .*crowd.tif\) has too many instances: up "
                                         r"to 12100 in a patch of 330 x 330 .* batch of 8, at most "
                                         r"616 are allowed; use a smaller patch"):
        fit(tiny(), crowd, crowd, tmp_path / "run", settings)


WRONG = {
    "negative numbers": (np.full((9, 9), -3, np.int32), "numbers from 1"),
    "fractions": (np.full((9, 9), 0.5, np.float32), "fractions in 81 places, such as 0.5"),
    "colours": (np.full((9, 9, 3), (9, 0, 0), np.uint8), r"colours, \[9, 0, 0\] \(81 pixels\)"),
}


@pytest.mark.parametrize(("label", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_instance_map_is_named(tmp_path, label, message):
    write(tmp_path, good=blank((1, 1)), bad=np.zeros((9, 9), np.uint8))
    Image.fromarray(label).save(tmp_path / "labels" / "bad.tif")
    with pytest.raises(ValueError, match=rf"bad\.tif.*{message}"):
        collect(tmp_path)


def test_sizes_that_do_not_match_and_volumes_are_named(tmp_path):
    write(tmp_path, a=blank((1, 1)), b=blank((1, 1)))
    Image.fromarray(blank(side=9)).save(tmp_path / "labels" / "b.tif")
    with pytest.raises(ValueError, match=r"b\.tif is 48 x 48 pixels, but its label .* is 9 x 9"):
        collect(tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / "volumes" / kind).mkdir(parents=True)
        np.save(tmp_path / "volumes" / kind / "scan.npy", np.ones((4, 5, 6), np.uint8))
    with pytest.raises(ValueError, match=r"scan\.npy.*an instance map must be \(H, W\)"):
        collect(tmp_path / "volumes")


def test_models_and_labels_that_do_not_belong_together(tmp_path, nuclei, no_step):
    classes = LabelledImages(nuclei.pairs, binary=True)
    semantic = nestedseg.create("unet", encoder_channels=(4, 8), in_channels=1)
    boxes = faster_rcnn("fpn", "test_resnet", out_channels=8)
    for model, images, message in (
            (tiny(), classes, "labels are classes, but the model takes instances"),
            (semantic, nuclei, "labels are instances, but the model takes classes"),
            (boxes, nuclei, "the model is a faster_rcnn")):
        with pytest.raises(ValueError, match=message):
            fit(model, images, images, tmp_path / "run", QUICK)
    colour = tmp_path / "images" / "c.png"
    write(tmp_path, c=blank((1, 1)))
    (tmp_path / "images" / "c.tif").unlink()
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(colour)
    with pytest.raises(ValueError, match="have 3 channels, but the model takes 1"):
        fit(tiny(), nuclei, collect(tmp_path), tmp_path / "run", QUICK)
