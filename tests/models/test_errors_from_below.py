"""What torch, timm or a block raises from within, or would not raise at all: named, with a cure."""

import copy

import pytest
import torch

import nestedseg
from nestedseg import GraphError
from nestedseg.decoder.blocks import BLOCKS, DoubleConv
from nestedseg.evaluation import SegmentationScores
from nestedseg.training import DeepSupervision, HybridLoss, PaperHybridLoss

TINY = {"encoder_channels": (4, 6, 8)}


def make(**arguments):
    return nestedseg.create("unetpp", **TINY | {"deep_supervision": True} | arguments)


# -- the heads of a model in the place of one ------------------------------------------------------

IMAGES, TARGET = torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16)
HEADS = {
    "tuple": lambda model: model.train()(IMAGES),
    "list": lambda model: [*model.train()(IMAGES)],
    "dict": lambda model: model.forward_heads(IMAGES),
    "ndarray": lambda model: model.eval()(IMAGES).detach().numpy(),
    "NoneType": lambda model: None,
}
TAKERS = {"hybrid": HybridLoss("binary"), "paper": PaperHybridLoss("binary"),
          "scores": SegmentationScores().update}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", HEADS)
def test_what_is_no_tensor_of_logits_is_named(taker, kind):
    with pytest.raises(TypeError, match=f"one tensor of logits, got .*{kind}") as error:
        TAKERS[taker](HEADS[kind](make()), TARGET)
    cures = {"tuple": r"model(x)[-1]", "list": "DeepSupervision", "dict": "loop over"}
    assert cures.get(kind, "") in str(error.value)


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("target", [TARGET.numpy(), TARGET.tolist(), None], ids=lambda t: type(t))
def test_what_is_no_tensor_of_a_target_is_named(taker, target):
    with pytest.raises(TypeError, match=f"a tensor as target, got {type(target).__name__}"):
        TAKERS[taker](make().eval()(IMAGES), target)


@pytest.mark.parametrize("kind", ["dict", "ndarray", "NoneType"])
def test_deep_supervision_takes_a_sequence(kind):
    with pytest.raises(TypeError, match=f"tuple or list of them, got {kind}"):
        DeepSupervision(HybridLoss("binary"))(HEADS[kind](make()), TARGET)


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("encoder", ["plain", "test_resnet"])
def test_a_model_of_any_dtype_has_the_same_summary(dtype, encoder):
    model = make(encoder=encoder)
    expected = str(model.summary(64))
    assert str(model.to(dtype).summary(64)) == expected


def test_a_block_that_cannot_be_made_names_topology_and_node(monkeypatch):
    class Fussy(DoubleConv):
        def __init__(self, in_channels, out_channels, style):
            super().__init__(in_channels, out_channels, style)
            raise ZeroDivisionError("no such width")

    monkeypatch.setitem(BLOCKS, "fussy", Fussy)
    graph = {"nodes": {"x1_1": ["x1_0", "x2_0"],
                       "x0_2": {"inputs": ["x0_0", "x1_1"], "block": "fussy"}}, "heads": ["x0_2"]}
    with pytest.raises(GraphError, match=r"topology .*node 'x0_2': its block 'fussy' cannot "
                                         r"be made: no such width") as error:
        nestedseg.create(graph, **TINY)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("taps, message", [
    ((1, 2, 2, 4), r"\[1, 2, 2, 4\] have the strides \[4, 8, 8, 32\]"),
    ((3, 3), r"\[3, 3\] have the strides"),
    (("layer1", "layer2", "layer2"), "encoder_taps has 'layer2' 2 times"),
])
def test_a_level_is_asked_for_once(taps, message):
    with pytest.raises(ValueError, match=message):
        nestedseg.create("unet", "test_resnet", encoder_taps=taps)


def test_levels_that_are_made_may_be_of_one_feature():
    model = nestedseg.create("unet", "test_vit", encoder_taps=(5, 5, 5, 5))
    assert [level.stride[0] for level in model.encoder.levels] == [4, 8, 16, 32]


# -- one value per channel -------------------------------------------------------------------------


def frozen(model):
    model.freeze_encoder()
    return model


def eval_of_the_deepest_stage(model):
    model.encoder.model.layer4.eval()
    return model


RUNS = {"a frozen encoder": lambda m: frozen(m.train()),
        "a deepest stage in eval mode": lambda m: eval_of_the_deepest_stage(m.train()),
        "eval mode": lambda m: m.eval()}


@pytest.mark.parametrize("how", RUNS)
def test_one_tiny_image_trains_where_no_norm_sees_one_value(how):
    model = RUNS[how](nestedseg.create("unet", "test_resnet", norm="batch"))
    x = torch.rand(1, 3, 32, 32)
    logits = model(x)
    logits.sum().backward()
    assert logits.shape == (1, 1, 32, 32) and torch.isfinite(logits).all()


class OfTheMean(torch.nn.Module):
    """A batch norm of what a map has in the mean, one value per channel."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return x + self.norm(x.mean((2, 3), keepdim=True))


def norm_a_mean_in_the_decoder(model):
    block = frozen(model).decoder.x3_1.block
    block.norm1 = OfTheMean(block.norm1)
    return model


@pytest.mark.parametrize("prepare", [lambda model: model, norm_a_mean_in_the_decoder],
                         ids=["encoder", "decoder"])
def test_where_one_does_it_is_refused_and_the_model_is_as_before(prepare):
    model = prepare(nestedseg.create("unet", "test_resnet").train())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\).*norm='group'") as error:
        model(torch.rand(1, 3, 32, 32))
    assert "more than 1 value per channel" in str(error.value.__cause__)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 1, 32, 32)
