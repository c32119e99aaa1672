"""Prediction a few rows at a time gives what prediction at once gives."""

import itertools

import numpy as np
import pytest
import torch

import nestedseg
from nestedseg.data import open_image, open_volume, preprocess
from nestedseg.models.outputs import probabilities
from nestedseg.prediction import predict_image, predict_source, slide
from nestedseg.prediction.sliding_window import stream

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
SIZES = [((40, 50), 16), ((40, 50), (16, 7)), ((5, 90), 16), ((33, 12), (40, 5)), ((9, 9), 20),
         ((12, 20, 18), 8), ((7, 16, 21), (3, 16, 8))]


@pytest.mark.parametrize("size, window", SIZES, ids=str)
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.8])
def test_streaming_is_sliding(size, window, overlap):
    torch.manual_seed(0)
    x = torch.rand(1, 2, *size, dtype=torch.float64)
    kernel = torch.rand(3, 2, *[3] * len(size), dtype=torch.float64)
    convolve = torch.nn.functional.conv2d if len(size) == 2 else torch.nn.functional.conv3d

    def forward(part):
        return convolve(part, kernel, padding=1)

    at_once = slide(forward, x, window, overlap)
    rows, parts = zip(*stream(forward, lambda place: x[(slice(None), slice(None), *place)], size,
                              window, overlap))
    assert [row.start for row in rows] == [0, *(row.stop for row in rows[:-1])]
    assert rows[-1].stop == size[0]
    torch.testing.assert_close(torch.cat(parts, 2), at_once, rtol=1e-12, atol=1e-12)


def model(**options):
    torch.manual_seed(options.pop("seed", 0))
    options = {"encoder_channels": (4, 6), "norm": None, "in_channels": 3} | options
    made = nestedseg.create("unet", **options).eval()
    return made


@pytest.mark.parametrize("classes", [1, 3])
def test_a_picture_from_a_file_is_predicted_as_one_in_memory(classes, tmp_path):
    image = RNG.integers(0, 4000, (70, 90, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(16, 16))
    net = model(classes=classes)
    parts = list(predict_source([net], open_image(tmp_path / "a.tif"), window=32))
    assert len(parts) > 2
    streamed = torch.cat([scores for _, scores in parts], 1)
    torch.testing.assert_close(streamed, predict_image(net, image, 32), rtol=1e-4, atol=1e-5)


def test_moments_and_nodata_are_those_of_the_whole_picture(tmp_path):
    image = RNG.integers(1, 4000, (70, 90, 3)).astype(np.uint16)
    image[:, :20] = 0
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb",
                     extratags=[(42113, "s", 0, "0", True)])
    net = model()
    net.set_preprocessing(standardise=True, mean=[0.0] * 3, std=[1.0] * 3)
    scores = torch.cat([part for _, part in predict_source(
        [net], open_image(tmp_path / "a.tif"), 32)], 1)
    x = preprocess(image, net, nodata=0)
    expected = probabilities(slide(net, x, 32), "binary")[0]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_mirrors_average_all_reflections(dims, tmp_path):
    shape = (12, 16, 20)[:dims]
    net = model(dims=dims, in_channels=1)
    image = RNG.random(shape).astype(np.float32)
    if dims == 2:
        tifffile.imwrite(tmp_path / "a.tif", image)
        source = open_image(tmp_path / "a.tif")
    else:
        np.save(tmp_path / "a.npy", image)
        source = open_volume(tmp_path / "a.npy")
    scores = torch.cat([part for _, part in predict_source([net], source, mirror=True)], 1)
    flips = [flip for count in range(dims + 1)
             for flip in itertools.combinations(range(dims), count)]
    expected = np.mean([np.flip(predict_image(net, np.flip(image, flip).copy())[0].numpy(), flip)
                        for flip in flips], 0)
    assert len(flips) == 2 ** dims
    np.testing.assert_allclose(scores[0], expected, atol=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_probabilities_of_several_models_are_averaged(classes, tmp_path):
    image = RNG.integers(0, 255, (40, 40, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    nets = [model(seed=seed, classes=classes) for seed in range(3)]
    nets[1].set_preprocessing(mean=[0.1] * 3, std=[0.5] * 3)  # each has its own
    scores = torch.cat([part for _, part in predict_source(nets, open_image(tmp_path / "a.tif"))],
                       1)
    expected = torch.stack([predict_image(net, image) for net in nets]).mean(0)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_models_that_differ_in_what_they_give_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 20, 3), np.uint8), photometric="rgb")
    with pytest.raises(ValueError, match="cannot be averaged: their classes are 1 and 3"):
        list(predict_source([model(), model(classes=3)], open_image(tmp_path / "a.tif")))
