
import numpy as np
import pytest
import torch
from places import REAL

import nestedseg
from nestedseg.data import read_image
from nestedseg.prediction.predict import output_key, predict_heads, predict_image, to_mask
from nestedseg.prediction.sliding_window import default_window, slide


def tiny(**options):
    torch.manual_seed(0)
    options = {"encoder_channels": (4, 8, 8), "in_channels": 1, "deep_supervision": True,
               "norm": None} | options
    return nestedseg.create("unetpp", **options).eval()


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (50, 9), (33, 65), (1, 1)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_windows_blend_to_what_a_pointwise_function_gives_at_once(size, overlap):
    x = torch.rand(2, 3, *size, dtype=torch.float64)

    def forward(x):
        return {1: x[:, :1] ** 2, 2: x + 1}

    windowed = slide(forward, x, window=16, overlap=overlap)
    assert list(windowed) == [1, 2]
    for depth, logits in forward(x).items():
        assert windowed[depth].shape == logits.shape
        torch.testing.assert_close(windowed[depth], logits)
    torch.testing.assert_close(slide(torch.sin, x, 16, overlap), x.sin())


def test_a_small_image_goes_through_at_once():
    sizes = []

    def forward(x):
        sizes.append(tuple(x.shape))
        return x

    slide(forward, torch.rand(1, 1, 20, 30), window=30)
    assert sizes == [(1, 1, 20, 30)]
    slide(forward, torch.rand(1, 1, 20, 40), window=30)
    assert set(sizes[1:]) == {(1, 1, 20, 30)}  # no wider than a window, no taller than the image


@pytest.mark.parametrize("window, overlap", [(0, 0.5), (8, 1.0), (8, -0.1)])
def test_impossible_windows_are_refused(window, overlap):
    with pytest.raises(ValueError, match=f"got window={window}, overlap={overlap}"):
        slide(torch.sin, torch.rand(1, 1, 4, 4), window, overlap)


def test_far_from_borders_windows_agree_with_the_whole_image():
    model = tiny()
    image = np.random.default_rng(0).random((96, 96), np.float32)
    whole = predict_image(model, image)
    windowed = predict_image(model, image, window=64, overlap=0.5)
    assert whole.shape == windowed.shape == (1, 96, 96)
    # one window alone covers this corner, and its border is farther off than the model sees
    torch.testing.assert_close(windowed[0, :12, :12], whole[0, :12, :12], atol=1e-5, rtol=0)
    assert (windowed - whole).abs().mean() < 3e-3


@pytest.mark.parametrize("norm, dims, size, window", [
    ("instance", 3, (9, 18, 200), (8, 18, 96)),  # 9 would become 12; 18 but 20, so it stays
    ("group", 3, (11, 16, 21), (11, 16, 20)),
    ("instance", 3, (7, 4, 12), (7, 4, 12)),  # what is smaller than a window has to be padded
    ("batch", 3, (9, 18, 200), (9, 18, 96)),
    ("instance", 2, (9, 700), (9, 512)),
])
def test_norms_over_the_volume_get_windows_without_padding(norm, dims, size, window):
    groups = {"name": "group", "groups": 2} if norm == "group" else norm
    model = tiny(dims=dims, norm=groups)
    assert default_window(model, size) == window


def test_a_volume_goes_through_in_its_default_windows():
    model = tiny(dims=3, norm="instance")
    image = np.random.default_rng(0).random((9, 18, 10), np.float32)
    x = nestedseg.preprocess(image, model)
    expected = slide(model.forward_heads, x, window=(8, 18, 8))
    assert torch.equal(predict_image(model, image), expected[2].sigmoid()[0])
    heads = predict_heads(model, image)
    assert all(torch.equal(heads[depth], expected[depth]) for depth in expected)
    assert not torch.allclose(heads[2], model.forward_heads(x)[2])  # the volume at once is padded


def test_predictions_are_those_of_the_model():
    model = tiny(classes=3).train()
    image = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.uint8)
    x = nestedseg.preprocess(image, model)
    probabilities = predict_image(model, image)
    torch.testing.assert_close(probabilities, model.predict(x)[0])
    torch.testing.assert_close(probabilities.sum(0), torch.ones(20, 30))
    with torch.no_grad():
        expected = model.eval().forward_heads(x)
    heads = predict_heads(model, image)
    assert list(heads) == [1, 2]
    assert all(torch.equal(heads[depth], expected[depth]) for depth in heads)


@pytest.mark.parametrize("output, key", [("deepest", 2), (1, 1), ("ensemble", "ensemble")])
def test_the_output_of_the_model_is_among_its_heads(output, key):
    model = tiny(output=output)
    image = np.random.default_rng(0).random((16, 16), np.float32)
    with torch.no_grad():
        expected = model(nestedseg.preprocess(image, model))
    assert output_key(model) == key
    torch.testing.assert_close(predict_heads(model, image)[key], expected)


def test_masks_hold_class_indices():
    scores = torch.tensor([[[0.2, 0.5], [0.6, 0.9]]])
    assert to_mask(scores, "binary").tolist() == [[0, 0], [1, 1]]
    assert to_mask(scores, "binary").dtype == np.uint8
    scores = torch.tensor([[[0.7, 0.1]], [[0.2, 0.3]], [[0.1, 0.6]]])
    assert to_mask(scores, "multiclass").tolist() == [[0, 2]]
    with pytest.raises(ValueError, match="'multilabel' with 3 classes"):
        to_mask(scores, "multilabel")


def test_an_image_with_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 8, 3\)"):
        predict_image(tiny(), np.zeros((8, 8, 3), np.uint8))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real images in {REAL}")
def test_a_real_slice_gives_probabilities_of_its_size():
    image = read_image(REAL / "em/images/00.png")
    probabilities = predict_image(tiny(), image, window=200)
    assert probabilities.shape == (1, 512, 512)
    assert probabilities.min() >= 0 and probabilities.max() <= 1


# -- other types of number -------------------------------------------------------------------------


def test_a_float64_image_is_the_same_image():
    image = np.random.default_rng(0).random((20, 31))
    x = nestedseg.preprocess(image, tiny())
    assert x.dtype == torch.float32
    assert torch.equal(x, nestedseg.preprocess(image.astype(np.float32), tiny()))
    assert torch.equal(predict_image(tiny(), image),
                       predict_image(tiny(), image.astype(np.float32)))


@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-6), (torch.bfloat16, 0.02)])
def test_a_model_of_other_numbers_predicts_from_an_image_as_it_was_read(dtype, close):
    image = np.random.default_rng(0).random((20, 31))
    exact, model = predict_image(tiny(), image), tiny().to(dtype)
    found = predict_image(model, image)
    assert found.dtype == dtype and exact.std() > 1e-3
    assert (found - exact).abs().max() < close
    assert {logits.dtype for logits in predict_heads(model, image).values()} == {dtype}
