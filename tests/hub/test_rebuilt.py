"""A model is saved only if loading it gives the same function: whatever was done to it before."""

import json
import shutil

import pytest
import torch
from alterations import CASES, ONCE, PLACES, altered, image, make
from torch import nn

import nestedseg
from nestedseg.decoder.blocks import BLOCKS, DoubleConv, check_same_width

LOST = ("hook on", "pre-hook on", "backward hook on")  # nobody expects hooks in a file
FEW = ONCE | {f"replaced on {place}" for place in ("edge.up", "act1", "encoder norm")}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A saved model that nobody has altered."""
    make().save_pretrained(folder := tmp_path_factory.mktemp("good"))
    return folder


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=() if case in FEW else pytest.mark.slow) for case in CASES])
@torch.no_grad()
def test_an_altered_model_is_refused_or_loads_as_the_same_function(case, good, tmp_path):
    model = altered(case).eval()
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if case.startswith(LOST):
        with pytest.warns(UserWarning, match="hooks are not saved") \
                if "backward" not in case else pytest.MonkeyPatch.context():
            model.save_pretrained(tmp_path)
        nestedseg.from_pretrained(tmp_path)
        return
    with pytest.raises(ValueError, match="cannot save the model: ") as caught:
        model.save_pretrained(tmp_path)
    _, parent, name = PLACES[CASES[case][0]]
    assert f"{parent}.{name}" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def other_head(model):
    model.decoder.head_x0_2 = nn.Conv2d(4, 3, 1).double()


def tied(model):
    model.decoder.x0_1.block.conv2.weight = model.decoder.x0_2.block.conv2.weight


def diverged(model):
    model.decoder.x0_1.block.conv1.weight.data[0, 0, 0, 0] = float("nan")


def infinite_statistics(model):
    model.decoder.x0_1.block.norm1.running_var[0] = float("inf")


def mixed(model):
    model.encoder.float()


def another_eps(model):
    model.decoder.x0_1.block.norm1.eps = 0.1


def reflected(model):
    model.encoder.x0_0.conv1.padding_mode = "reflect"


def added(model):
    model.decoder.x0_1.block.add_module("extra", nn.Dropout(0.5))


REFUSED = {other_head: "'decoder.head_x0_2.weight' has shape (3, 4, 1, 1), its config says",
           tied: "shares its tensor with another one", diverged: "not finite",
           infinite_statistics: "not finite", mixed: "expected one dtype",
           another_eps: "BatchNorm2d(eps=0.1, affine=True), its config says BatchNorm2d(eps=1e-05",
           reflected: "padding_mode=reflect", added: "the module 'decoder.x0_1.block.extra'"}


@pytest.mark.parametrize("alter", REFUSED)
def test_what_cannot_be_loaded_is_not_saved(alter, tmp_path):
    model = make()
    alter(model)
    with pytest.raises(ValueError, match="cannot save the model") as caught:
        model.save_pretrained(tmp_path / "model")
    assert REFUSED[alter] in str(caught.value)
    assert not (tmp_path / "model" / "config.json").exists()


def another_momentum(model):
    model.decoder.x0_1.block.norm1.momentum = 0.5


def frozen(model):
    model.freeze_encoder()


def checkpointed(model):
    model.set_grad_checkpointing()


def another_output(model):
    model.output = "ensemble"


@pytest.mark.parametrize("alter", [another_momentum, frozen, checkpointed, another_output])
@torch.no_grad()
@pytest.mark.filterwarnings("error")
def test_what_changes_no_output_is_saved(alter, tmp_path):
    model = make().eval()
    alter(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(nestedseg.from_pretrained(tmp_path)(image()), model(image()))


def test_a_checkpointed_timm_encoder_is_saved_without_a_word(tmp_path, recwarn):
    model = nestedseg.create("unet", "test_resnet", depth=2).train()
    model.set_grad_checkpointing()
    model.save_pretrained(tmp_path)
    assert not [w for w in recwarn if "hooks" in str(w.message)]


class Twice(nn.Module):
    """A block of a user's that has no weights."""

    def __init__(self, in_channels, out_channels, style):
        super().__init__()
        check_same_width("twice", in_channels, out_channels)

    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("block", [Twice, DoubleConv])
def test_a_block_of_a_users_is_loaded_with_or_without_weights(block, tmp_path, monkeypatch):
    monkeypatch.setitem(BLOCKS, "theirs", block)
    graph = {"nodes": {"x0_1": {"inputs": ["x0_0", "x1_0"], "block": "theirs", "channels": 14},
                       "x0_2": {"inputs": ["x0_1"], "channels": 4}}, "heads": ["x0_2"]}
    model = nestedseg.create(graph, encoder_channels=(6, 8)).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        x = image().float()
        assert torch.equal(nestedseg.from_pretrained(tmp_path)(x), model(x))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["graph"]["nodes"]["x0_1"]["block"] == "theirs"
