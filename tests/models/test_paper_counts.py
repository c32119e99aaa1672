"""Every parameter count that the UNet++ paper fixes (Tables I and III), to the digit."""

import pytest
import torch

import nestedseg

WIDTHS = (32, 64, 128, 256, 512)
WIDE = (35, 70, 140, 280, 560)


def paper_model(topology, **arguments):
    """The paper's plain network; on the meta device, for only its shapes count here."""
    with torch.device("meta"):
        return nestedseg.create(topology, encoder="plain", classes=1, in_channels=1, norm=None,
                                upsample="transpose", **arguments)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


ONE_HEAD = [
    ("unet", {"depth": 1}, 100_961),
    ("unet", {"depth": 2}, 465_953),
    ("unet", {"depth": 3}, 1_925_025),
    ("unet", {"depth": 4}, 7_759_521),
    ("unet", {}, 7_759_521),
    ("unet", {"encoder_channels": WIDE}, 9_282_246),
    ("unet_plus", {}, 8_728_257),
    ("unetpp", {}, 9_041_601),
    ("unet", {"dims": 3}, 22_575_329),
    ("unet", {"dims": 3, "encoder_channels": WIDE}, 27_006_176),
    ("unet_plus", {"dims": 3}, 25_258_241),
    ("unetpp", {"dims": 3}, 26_198_273),
]
EVERY_HEAD = [("unet_e", 8_728_356), ("unet_plus", 8_728_356), ("unetpp", 9_041_700)]
PRUNED = {4: 9_041_601, 3: 2_204_961, 2: 511_105, 1: 100_961}


@pytest.mark.parametrize("topology, arguments, expected", ONE_HEAD)
def test_one_head(topology, arguments, expected):
    model = paper_model(topology, **arguments)
    assert len(model.depths) == 1
    assert count(model) == expected


@pytest.mark.parametrize("topology, expected", EVERY_HEAD)
def test_a_head_on_every_node_of_row_0(topology, expected):
    model = paper_model(topology, deep_supervision=True)
    assert model.depths == (1, 2, 3, 4)
    assert count(model) == expected


def test_unet_e_has_every_head_by_default():
    assert count(paper_model("unet_e")) == 8_728_356


@pytest.mark.parametrize("depth", PRUNED)
def test_unetpp_pruned(depth):
    assert count(paper_model("unetpp", deep_supervision=True).prune(depth)) == PRUNED[depth]


@pytest.mark.parametrize("depth", PRUNED)
def test_unetpp_built_shallow_is_as_large_as_unetpp_pruned(depth):
    assert count(paper_model("unetpp", depth=depth)) == PRUNED[depth]


def test_unetpp_pruned_to_3_is_75_6_percent_smaller_as_figure_5_says():
    assert round(100 * (1 - PRUNED[3] / PRUNED[4]), 1) == 75.6


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_unet_over_fewer_widths_is_unet_of_that_depth(depth):
    model = paper_model("unet", encoder_channels=WIDTHS[:depth + 1])
    assert count(model) == count(paper_model("unet", depth=depth))


@pytest.mark.parametrize("alias, name", [("unet^e", "unet_e"), ("unet+", "unet_plus"),
                                         ("dla", "unet_plus"), ("unet++", "unetpp")])
def test_an_alias_names_the_same_network(alias, name):
    assert paper_model(alias).graph == paper_model(name).graph


def test_a_model_with_storage_has_as_many_parameters_as_on_the_meta_device():
    model = nestedseg.create("unetpp", in_channels=1, norm=None, upsample="transpose", depth=2)
    assert count(model) == PRUNED[2]
