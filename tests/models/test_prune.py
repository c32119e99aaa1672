import copy
from functools import cache
from itertools import pairwise

import pytest
import torch

import nestedseg
from nestedseg import GraphError

TOPOLOGIES = ["unet", "unet_e", "unet_plus", "unetpp"]
# Strides from 1, 2 and 4; residual, ConvNeXt and inverted residual blocks.
ENCODERS = ["plain", "test_resnet", "test_convnext", "test_efficientnet"]


def make(topology="unetpp", encoder="plain", **arguments):
    if encoder == "plain":
        arguments = {"encoder_channels": (4, 5, 6, 7)} | arguments
    supervised = None if topology == "unet" else True
    model = nestedseg.create(topology, encoder, deep_supervision=supervised,
                             **{"decoder_channels": (4, 6, 8, 10)} | arguments)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.3)  # a bias taken from another node would be seen
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return model.eval()


made = cache(make)  # for tests that change nothing


@cache
def pruned(topology, encoder):
    """Each depth of `made` alone."""
    model = made(topology, encoder)
    return {depth: model.prune(depth) for depth in model.depths}


def storages(model):
    return {t.untyped_storage().data_ptr() for t in model.state_dict(keep_vars=True).values()}


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (51, 67), (1, 1), (33, 96)], ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_pruned_model_gives_the_same_bits(topology, encoder, size):
    model = made(topology, encoder)
    x = torch.randn(1, 3, *size)
    heads = model.forward_heads(x)
    assert set(heads) == set(model.depths)
    assert len(heads) == (1 if topology == "unet" else len(model.encoder.levels) - 1)
    outputs = [pruned(topology, encoder)[depth](x) for depth in heads]
    assert all(torch.equal(a, b) for a, b in zip(outputs, heads.values()))
    assert all(not torch.equal(a, b) for a, b in pairwise(outputs))


@torch.no_grad()
@pytest.mark.parametrize("style", [
    {"norm": None, "upsample": "transpose"}, {"norm": "instance"}, {"norm": "group"},
    {"upsample": "bilinear", "classes": 3}, {"dims": 3}, {"dropout": 0.5},
], ids=str)
def test_the_same_bits_in_every_style(style):
    model = make("unetpp", **style)
    for size in [(8, 8, 8), (5, 7, 3), (1, 1, 1)]:
        x = torch.randn(1, 3, *size[:style.get("dims", 2)])
        for depth, logits in model.forward_heads(x).items():
            assert torch.equal(model.prune(depth)(x), logits)


@torch.no_grad()
def test_a_pruned_model_keeps_the_same_bits_when_it_is_pruned_and_saved_again(tmp_path):
    model = make("unetpp", "test_resnet")
    x = torch.randn(1, 3, 41, 29)
    pruned = model.prune(2).prune(2)
    pruned.save_pretrained(tmp_path)
    loaded = nestedseg.from_pretrained(tmp_path)
    assert torch.equal(loaded(x), model.forward_heads(x)[2])
    assert loaded.config == pruned.config


@pytest.mark.parametrize("encoder", ["plain", "test_resnet"])
def test_the_original_is_untouched_and_shares_nothing(encoder):
    model = make("unetpp", encoder)
    before, config = copy.deepcopy(model.state_dict()), model.config
    x = torch.randn(2, 3, 32, 32)
    for depth in model.depths:
        pruned = model.prune(depth)
        assert not storages(pruned) & storages(model)
        optimiser = torch.optim.SGD(pruned.parameters(), lr=1.0)
        pruned.train()(x).square().mean().backward()
        optimiser.step()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config == config and not model.training
    assert len(model.encoder(x)) == len(model.encoder.levels) == len(model.depths) + 1


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_parameter_that_is_left_gets_a_gradient(topology, encoder):
    x = torch.randn(2, 3, 64, 64)
    for depth, model in pruned(topology, encoder).items():
        model = copy.deepcopy(model).train()
        model(x).square().mean().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        assert len(model.encoder.levels) == len(model.encoder(x)) == depth + 1


@pytest.mark.parametrize("encoder", ENCODERS)
def test_nothing_is_left_but_what_the_head_needs(encoder):
    """Pruning gives what one gets who builds the shallow network at once."""
    def shapes(model):
        return {name: tensor.shape for name, tensor in model.state_dict().items()}

    counts = []
    for depth, model in pruned("unetpp", encoder).items():
        built = nestedseg.create("unetpp", encoder, depth=depth, decoder_channels=(4, 6, 8, 10),
                                 encoder_channels=(4, 5, 6, 7))
        assert shapes(model) == shapes(built)
        assert [name for name in shapes(model) if name.startswith("decoder.head")] == \
            [f"decoder.head_x0_{depth}.weight", f"decoder.head_x0_{depth}.bias"]
        counts.append(sum(p.numel() for p in model.parameters()))
    assert counts == sorted(set(counts))
    whole = sum(p.numel() for p in made("unetpp", encoder).parameters())
    assert counts[-1] < whole  # which has the other heads


def test_the_stages_that_go_and_stay_by_name():
    plain = make().prune(1)
    assert {name.split(".")[1] for name in plain.state_dict()} == \
        {"x0_0", "x1_0", "x0_1", "head_x0_1"}
    resnet = make("unetpp", "test_resnet").prune(2)
    names = [name.removeprefix("encoder.model.") for name in resnet.state_dict()]
    stages = {name.split(".")[0] for name in names if not name.startswith("decoder.")}
    assert {"conv1", "layer1", "layer2"} <= stages
    assert not {"layer3", "layer4", "fc"} & stages


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_frozen_parameters_are_kept(training):
    model = make().train(training)
    model.encoder.requires_grad_(False)
    pruned = model.prune(2)
    assert pruned.training is training
    assert not any(p.requires_grad for p in pruned.encoder.parameters())
    assert all(p.requires_grad for p in pruned.decoder.parameters())


def test_the_output_of_a_pruned_model_is_its_one_head():
    model = make()
    for output in ("ensemble", 1, "deepest"):
        model.output = output
        assert model.prune(2).output == "deepest"
        assert model.prune(2).depths == (2,)


@pytest.mark.parametrize("topology", ["unetpp", "unet_plus"])
def test_a_depth_without_a_trained_head_cannot_be_taken(topology):
    model = nestedseg.create(topology, encoder_channels=(4, 5, 6))
    assert model.depths == (2,)
    with pytest.raises(GraphError, match="deep_supervision=True") as error:
        model.prune(1)
    assert "1" in str(error.value) and "[2]" in str(error.value)
    assert list(model.prune(2).state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("depth", [0, -1, 4, 1.5, "2", None, True, 1.0, [1]], ids=repr)
def test_a_depth_is_one_of_the_whole_numbers_that_have_a_head(depth):
    with pytest.raises((GraphError, TypeError), match="depth"):
        make().prune(depth)


# -- the choice of a depth -------------------------------------------------------------------------


@pytest.mark.parametrize("scores, tolerance, expected", [
    ({1: 0.81, 2: 0.88, 3: 0.90, 4: 0.89}, 0, 3),
    ({1: 0.81, 2: 0.88, 3: 0.90, 4: 0.89}, 0.015, 3),
    ({1: 0.81, 2: 0.88, 3: 0.90, 4: 0.89}, 0.025, 2),
    ({1: 0.81, 2: 0.88, 3: 0.90, 4: 0.89}, 1, 1),
    ({4: 0.5, 2: 0.5, 3: 0.5}, 0, 2),  # the shallowest of equals, in whatever order
    ({1: -3.0, 2: -1.0}, 0.5, 2),  # scores need not be fractions
    ({2: 1}, 0, 2),
])
def test_choose_depth_takes_the_shallowest_within_tolerance(scores, tolerance, expected):
    assert nestedseg.choose_depth(scores, tolerance) == expected


def test_choose_depth_tolerates_nothing_by_default():
    assert nestedseg.choose_depth({1: 0.8999999, 2: 0.9}) == 2


@pytest.mark.parametrize("scores, tolerance", [
    ({}, 0), ({1: float("nan")}, 0), ({1: 0.5, 2: float("inf")}, 0), ({1: 0.5}, -0.1),
    ({1: 0.5}, float("nan")),
])
def test_choose_depth_refuses_what_cannot_be_compared(scores, tolerance):
    with pytest.raises(ValueError):
        nestedseg.choose_depth(scores, tolerance)
