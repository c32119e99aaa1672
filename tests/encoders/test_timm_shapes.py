"""Shapes that are known before a timm model is tried are those of the encoder that is built."""

import pytest
import timm
import torch
from test_timm_families import DIFFERENT, FAMILIES, smallest_of

import nestedseg
from nestedseg.encoders import Options
from nestedseg.encoders.names import certain_shapes, timm_shapes
from nestedseg.encoders.timm_model import SkipInitialValues, build_on

VARIANTS = [{}, {"in_channels": 5}, {"image_size": 0.6}, {"in_channels": 1, "image_size": 0.2},
            {"image_size": 2.1}]


def check(name, variant, least):
    options = dict(variant)
    if "image_size" in options:  # a part of its own
        options["image_size"] = tuple(int(side * options["image_size"]) for side in own_size(name))
    try:
        with torch.device("meta"):
            built = nestedseg.create("unet", name, **options).encoder.state_dict()
    except ValueError:
        return  # in this variant there is no such encoder
    options = Options(name, **options)
    known = timm_shapes(options)
    certain = certain_shapes(options, known)
    common = certain.keys() & built.keys()
    assert {key: certain[key] for key in common} == {key: tuple(built[key].shape) for key in common}
    assert len(common) >= least * len(built)
    assert any(known.get(key) == tuple(tensor.shape) for key, tensor in built.items())


def own_size(name):
    return timm.get_pretrained_cfg(name).input_size[-2:]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_vit_relpos", "test_convnext"])
def test_certain_shapes_are_those_of_the_encoder(name, variant):
    check(name, variant, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("name", [*DIFFERENT, *FAMILIES])
def test_certain_shapes_are_those_of_any_encoder(name, variant):
    check(name if name in DIFFERENT else smallest_of(name), variant, 0)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_nfnet"])
def test_without_initial_values_a_model_is_the_same(name):
    with torch.device("meta"):
        whole = timm.create_model(name)
    quick = build_on("meta", name, 3, {})
    assert str(quick) == str(whole.eval())
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in quick.state_dict().items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in whole.state_dict().items()}


def test_where_there_is_memory_initial_values_are_given():
    torch.manual_seed(0)
    with SkipInitialValues():
        one = torch.nn.Conv2d(3, 4, 3)
    torch.manual_seed(0)
    assert torch.equal(one.weight, torch.nn.Conv2d(3, 4, 3).weight)
