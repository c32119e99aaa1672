import copy
import itertools
import json
import pickle
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from graphs import random_graphs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import nestedseg
from nestedseg.models.config import Config
from nestedseg.models.model import SegmentationModel
from nestedseg.training.losses import DeepSupervision, HybridLoss

TINY = {"encoder_channels": (4, 6, 8)}

# A user's own topology: six lines.
OWN = {
    "nodes": {"x0_1": ["x0_0", "x1_0"],
              "x1_1": ["x1_0", "x2_0"],
              "x0_2": ["x0_1", "x1_1"]},
    "heads": ["x0_1", "x0_2"],
}
# Inputs from above and from below, sums, a width of its own.
UNUSUAL = {
    "nodes": {
        "x1_1": {"inputs": ["x0_0", "x1_0", "x2_0"], "fuse": "sum"},
        "x0_1": ["x0_0", "x1_1"],
        "x2_1": {"inputs": ["x0_1", "x1_1", "x2_0"], "fuse": "sum", "channels": 5},
        "x0_2": {"inputs": ["x0_1", "x2_1"], "fuse": "sum"},
    },
    "heads": ["x0_1", "x0_2"],
}
# A decoder node on a row below every encoder feature that is read.
DEEP_ROW = {
    "nodes": {"x3_1": ["x0_0", "x1_0"], "x0_1": ["x0_0", "x3_1"], "x0_2": ["x0_1", "x1_0"]},
    "heads": ["x0_1", "x0_2"],
}


def tiny(topology="unetpp", **arguments):
    if arguments.get("encoder", "plain") == "plain":
        arguments = TINY | arguments
    elif "decoder_channels" not in arguments:
        arguments["decoder_channels"] = (4,) * 5
    if isinstance(topology, str) and topology != "unet":
        arguments = {"deep_supervision": True} | arguments
    return nestedseg.create(topology, **arguments)


def image(*size, n=2, dtype=torch.float32):
    return torch.randn(n, 3, *size, dtype=dtype)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


# -- what a call returns ---------------------------------------------------------------------------


def test_training_mode_returns_every_head_from_shallow_to_deep():
    model = tiny(norm=None).train()
    x = image(16, 12)
    given, expected = model(x), model.forward_heads(x)
    assert isinstance(given, tuple) and list(expected) == [1, 2]
    assert all(same(a, b) for a, b in zip(given, expected.values(), strict=True))
    assert not torch.allclose(*given)


def test_eval_mode_returns_the_deepest_head():
    model = tiny().eval()
    x = image(16, 12)
    assert same(model(x), model.forward_heads(x)[2])


def test_one_head_is_a_tensor_in_training_mode_too():
    model = tiny(deep_supervision=False, norm=None).train()
    x = image(16, 12)
    logits = model(x)
    assert isinstance(logits, torch.Tensor)
    assert same(logits, model.eval()(x))


@pytest.mark.parametrize("topology, depths", [("unet", (2,)), ("unet_e", (1, 2)),
                                              ("unet_plus", (1, 2)), ("unetpp", (1, 2))])
def test_depths_are_those_of_the_heads(topology, depths):
    model = tiny(topology).eval()
    assert model.depths == depths
    assert tuple(model.forward_heads(image(8, 8))) == depths


def test_classes_are_the_channels_of_the_logits():
    model = tiny(classes=3).eval()
    assert (model.task, model.classes) == ("multiclass", 3)
    assert model(image(8, 8)).shape == (2, 3, 8, 8)
    assert tiny().task == "binary"
    assert tiny(classes=3, task="multilabel").task == "multilabel"


def test_a_shallow_output_computes_no_deeper_node():
    model = tiny(output=1).eval()
    called = []
    for name in model.graph.nodes:
        module = model.decoder.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(image(8, 8))
    assert called == ["x0_1"]


def test_channels_last_changes_the_layout_alone():
    model = tiny().eval()
    x = image(13, 9)
    expected = model(x)
    given = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(given, expected, atol=1e-5)


def test_lower_precision_by_autocast():
    model = tiny().eval()
    x = image(13, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - model(x)).abs().max() < 0.05 * model(x).abs().max() + 0.05


def test_images_of_a_batch_do_not_mix_in_eval_mode():
    model = tiny(encoder="test_resnet").eval()
    x = image(40, 33, n=3)
    assert torch.allclose(model(x)[1:2], model(x[1:2]), atol=1e-5)


# -- any size --------------------------------------------------------------------------------------

MODELS = {
    "plain": lambda: tiny(),
    "plain depth 4": lambda: tiny(encoder_channels=(2, 2, 2, 2, 2)),
    "instance norm": lambda: tiny(norm="instance"),
    "group norm": lambda: tiny(norm="group", encoder_channels=(2, 4, 8)),
    "timm": lambda: tiny(encoder="test_resnet"),
    "timm stride 4": lambda: tiny(encoder="test_convnext"),
    "row below the encoder": lambda: tiny(DEEP_ROW),
    "row below the levels": lambda: tiny(DEEP_ROW, encoder_channels=(4, 6),
                                         decoder_channels=(4, 4, 4, 4)),
    "rows above the encoder": lambda: tiny(
        {"nodes": {"x2_1": ["x2_0", "x3_0"], "x1_1": ["x2_1"], "x0_1": ["x1_1"]},
         "heads": ["x2_1", "x0_1"], "encoder_row": 1}, encoder="test_resnet"),
}
_made = {}


def made(name):
    if name not in _made:
        torch.manual_seed(0)
        _made[name] = MODELS[name]()
    return _made[name]


@torch.no_grad()
@settings(max_examples=12)
@given(st.integers(1, 70), st.integers(1, 70))
@example(1, 1)
@example(64, 1)
@example(70, 33)
@pytest.mark.parametrize("name", MODELS)
def test_any_size(name, height, width):
    model = made(name)
    trained = model.train()(image(height, width))
    assert len(trained) == len(model.depths) > 1
    assert all(logits.shape == (2, 1, height, width) for logits in trained)
    x = image(height, width, n=1)
    evaluated = model.eval().forward_heads(x)
    assert all(logits.shape == (1, 1, height, width) for logits in evaluated.values())
    assert all(logits.isfinite().all() for logits in (*trained, *evaluated.values()))
    assert same(model(x), evaluated[model.depths[-1]])


@torch.no_grad()
@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_any_size_of_a_volume(depth, height, width):
    if "3-D" not in _made:
        _made["3-D"] = tiny(dims=3, encoder_channels=(2, 2, 2)).eval()
    logits = _made["3-D"](image(depth, height, width))
    assert logits.shape == (2, 1, depth, height, width)
    assert logits.isfinite().all()


# -- predict, output, ensemble ---------------------------------------------------------------------


@pytest.mark.parametrize("task, classes", [("binary", 1), ("multilabel", 3), ("multiclass", 3)])
def test_predict_gives_probabilities_of_eval_mode_without_gradient(task, classes):
    model = tiny(task=task, classes=classes, dropout=0.5).train()
    before = copy.deepcopy(model.state_dict())
    x = image(9, 14)
    given = model.predict(x)
    assert model.training and not given.requires_grad
    # neither dropout nor the batch's own statistics took part
    assert all(same(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():  # with gradients a convolution may be another one
        logits = model.eval()(x)
    expected = logits.softmax(1) if task == "multiclass" else logits.sigmoid()
    assert same(given, expected)
    model.predict(x)
    assert not model.training


def test_predict_leaves_frozen_parts_frozen():
    model = tiny().train()
    model.encoder.eval()
    model.decoder.x0_1.block.norm1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    model.predict(image(8, 8))
    assert {name: module.training for name, module in model.named_modules()} == before


def test_predict_restores_the_mode_after_an_error():
    model = tiny().train()
    with pytest.raises(ValueError, match="shape"):
        model.predict(torch.zeros(1))
    assert model.training


def test_output_chooses_what_eval_mode_returns():
    model = tiny().eval()
    x = image(8, 8)
    heads = model.forward_heads(x)
    for depth in (1, 2):
        model.output = depth
        assert model.output == depth and model.config["output"] == depth
        assert same(model(x), heads[depth])
        assert same(model.predict(x), heads[depth].sigmoid().detach())
    model.output = "deepest"
    assert same(model(x), heads[2])


def test_an_output_that_does_not_exist_is_refused_and_changes_nothing():
    model = tiny(output=1)
    for wrong in (3, 0, "deep", None, 1.5):
        with pytest.raises(ValueError):
            model.output = wrong
        assert model.output == 1
    with pytest.raises(ValueError, match="did you mean 'ensemble'"):
        model.output = "ensembel"


def mean_probabilities(heads, task):
    """p and 1 - p, the mean over the heads."""
    if task == "multiclass":
        p = torch.stack([y.softmax(1) for y in heads]).mean(0)
        return p, 1 - p
    return (torch.stack([(sign * y).sigmoid() for y in heads]).mean(0) for sign in (1, -1))


@torch.no_grad()
@pytest.mark.parametrize("biases", [(0, 0, 0), (50, 50, 50), (-50, -50, -50), (50, -50, 0),
                                    (-50, -49, -45), (0, 50, 50)])
@pytest.mark.parametrize("task, classes", [("binary", 1), ("multilabel", 2), ("multiclass", 4)])
def test_ensemble_is_exactly_the_mean_of_the_probabilities(task, classes, biases):
    model = tiny(task=task, classes=classes, encoder_channels=(4, 4, 4, 4)).double().eval()
    for depth, bias in enumerate(biases, start=1):
        head = model.decoder.get_submodule(f"head_x0_{depth}")
        head.bias[0] = bias  # of one class: a softmax ignores what all have in common
    x = image(9, 7, dtype=torch.float64)
    heads = list(model.forward_heads(x).values())
    assert len(heads) == 3 and all(y[:, 0].abs().max() >= abs(b) for y, b in zip(heads, biases))
    model.output = "ensemble"
    logits = model(x)
    p, q = mean_probabilities(heads, task)
    if task == "multiclass":
        assert torch.allclose(logits.softmax(1), p, rtol=1e-12, atol=0)
    else:  # the smaller of p and 1 - p is as exact as the larger
        assert torch.allclose(logits.sigmoid(), p, rtol=1e-12, atol=0)
        assert torch.allclose((-logits).sigmoid(), q, rtol=1e-12, atol=0)
    assert torch.allclose(model.predict(x), p, rtol=1e-12, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("task, classes", [("binary", 1), ("multiclass", 2)])
def test_an_ensemble_of_certain_heads_is_finite_in_single_precision(task, classes):
    model = tiny(task=task, classes=classes, output="ensemble").eval()
    for biases in itertools.product((-1e4, 1e4), repeat=2):
        for depth, bias in enumerate(biases, start=1):
            model.decoder.get_submodule(f"head_x0_{depth}").bias[0] = bias
        x = image(4, 4)
        assert model(x).isfinite().all()
        expected = (biases[0] + biases[1]) / 4e4 + 0.5  # 0, 1/2 or 1
        assert torch.allclose(model.predict(x)[:, 0], torch.tensor(expected))


def test_an_ensemble_of_one_head_is_that_head():
    model = tiny("unet", output="ensemble").eval()
    x = image(8, 8)
    assert torch.allclose(model(x), model.forward_heads(x)[2], atol=1e-6)


# -- what a model says of itself -------------------------------------------------------------------


@pytest.mark.parametrize("make", [
    lambda: tiny(classes=3, task="multilabel", dropout=0.25, norm="group", output="ensemble"),
    lambda: tiny(encoder="test_resnet", in_channels=5, output=2),
    lambda: tiny(encoder="test_resnet").prune(2),
    lambda: tiny("unet_e", dims=3, upsample="transpose", activation="prelu", norm=None),
    lambda: tiny(UNUSUAL),
])
def test_config_is_json_and_rebuilds_the_model(make):
    model = make()
    text = json.dumps(model.config, allow_nan=False)
    assert json.loads(text) == model.config
    rebuilt = SegmentationModel.from_config(Config.from_dict(json.loads(text)))
    assert rebuilt.config == model.config
    assert rebuilt.graph == model.graph and rebuilt.output == model.output
    given, expected = rebuilt.state_dict(), model.state_dict()
    assert list(given) == list(expected)
    assert all(given[k].shape == v.shape and given[k].dtype == v.dtype
               for k, v in expected.items())
    rebuilt.load_state_dict(model.state_dict())
    x = torch.randn(2, model.config["in_channels"], *(9, 8, 7)[:model.config["dims"]])
    assert same(rebuilt.eval()(x), model.eval()(x))


def test_config_is_a_copy_and_no_model_shares_its_lists():
    model = tiny(encoder="test_resnet")
    expected = copy.deepcopy(model.config)
    model.config["preprocessing"]["mean"][0] = 99
    model.config["graph"]["heads"].append("x9_9")
    model.config["decoder_channels"].append(7)
    assert model.config == expected
    model.preprocessing["mean"][0] = 99
    assert tiny(encoder="test_resnet").config == expected


def test_preprocessing_can_be_recorded():
    model = tiny()
    model.set_preprocessing(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])
    assert model.config["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert model.preprocessing["std"] == [1.0, 2.0, 3.0]
    assert model.preprocessing["input_range"] == [0.0, 1.0]


def test_the_code_of_unetpp_reads_as_equation_1():
    model = nestedseg.create("unetpp", encoder_channels=(2,) * 5, deep_supervision=True)
    lines = str(model.decoder.code).strip().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) < 120
    text = "\n".join(lines)
    calls = re.findall(r"(x\d_\d) = self\.(x\d_\d)\((.*?)\)", text)
    expected = [(i, d - i) for d in range(1, 5) for i in range(d - 1, -1, -1)]
    assert [name for name, _, _ in calls] == [f"x{i}_{j}" for i, j in expected]
    for (i, j), (name, module, inputs) in zip(expected, calls):
        assert name == module
        skips = [f"x{i}_{k}" for k in range(j)]
        assert inputs.split(", ") == [*skips, f"x{i + 1}_{j - 1}"]
    assert all(sum(f" {name} = self." in line for line in lines) == 1 for name, _, _ in calls)
    heads = re.findall(r"head_(x\d_\d) = self\.head_x\d_\d\((x\d_\d)\)", text)
    assert heads == [(f"x0_{j}", f"x0_{j}") for j in range(1, 5)]


def test_the_code_of_a_pruned_model_is_what_is_left():
    code = tiny(encoder_channels=(2,) * 5).prune(1).decoder.code
    assert re.findall(r"self\.(\w+)\(", code) == ["x0_1", "head_x0_1"]


def test_summary_counts_what_a_hand_counts():
    model = nestedseg.create("unet", encoder_channels=(2, 3), in_channels=1, norm=None,
                             upsample="transpose")
    fine, coarse = 4 * 6, 2 * 3  # pixels
    macs = sum([
        fine * 9 * (1 * 2 + 2 * 2),  # x0_0
        coarse * 9 * (2 * 3 + 3 * 3),  # x1_0
        coarse * 4 * 3 * 2,  # each coarse pixel makes 2 x 2
        fine * 9 * (4 * 2 + 2 * 2),  # x0_1
        fine * 2 * 1,  # its head
    ])
    (row,) = model.summary((4, 6))
    assert (row.depth, row.macs, row.output_stride) == (1, macs, (1, 1))
    assert row.parameters == sum(p.numel() for p in model.parameters())
    assert [row.macs for row in model.summary((3, 5))] == [macs]  # padded to 4 x 6
    assert [row.macs for row in model.summary((8, 12))] == [4 * macs]
    assert [row.macs for row in model.summary(8)] == [row.macs for row in model.summary((8, 8))]


@pytest.mark.parametrize("encoder, stride", [("plain", 1), ("test_resnet", 2)])
def test_summary_has_a_row_for_each_depth(encoder, stride):
    model = tiny(encoder=encoder).train()
    rows = list(model.summary(64))
    assert tuple(row.depth for row in rows) == model.depths
    for row in rows:
        pruned = model.prune(row.depth)
        assert row.parameters == sum(p.numel() for p in pruned.parameters())
        assert row.output_stride == (stride, stride)
    macs = [row.macs for row in rows]
    assert macs == sorted(macs) and len(set(macs)) == len(macs)
    table = str(model.summary(64)).splitlines()
    assert len(table) == 2 + len(rows)
    assert f"{rows[-1].parameters:,}" in table[-1] and "64x64" in table[0]
    assert model.training and next(model.parameters()).device.type == "cpu"


# -- a model is an ordinary module -----------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("encoder", ["plain", "test_resnet"])
def test_a_copy_is_the_same_and_independent(encoder, copied):
    model = tiny(encoder=encoder, output="ensemble").eval()
    x = image(20, 17)
    expected = model(x)
    other = copied(model)
    assert same(other(x), expected) and other.config == model.config
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert other(x).abs().max() == 0  # its forward pass runs on its own weights
    assert same(model(x), expected)


def test_another_head_put_in_by_the_user_is_the_one_that_runs():
    model = tiny().eval()
    x = image(8, 8)
    model(x)
    model.decoder.head_x0_2 = nn.Conv2d(4, 3, 1)
    assert model(x).shape == (2, 3, 8, 8)


def test_the_state_dict_has_each_parameter_once():
    model = tiny(encoder="test_resnet")
    pointers = [p.data_ptr() for p in model.state_dict(keep_vars=True).values() if p.numel()]
    assert len(set(pointers)) == len(pointers)
    assert all(name.startswith(("encoder.", "decoder.")) for name in model.state_dict())


STYLES = [
    *({"activation": name} for name in
      ("relu", "leaky_relu", "elu", "silu", "mish", "gelu", "prelu")),
    *({"norm": name} for name in ("batch", "instance", "group", None)),
    *({"upsample": name} for name in ("nearest", "bilinear", "transpose")),
    {"dropout": 0.5}, {"dims": 3}, {"dims": 3, "upsample": "bilinear", "norm": "instance"},
]


@pytest.mark.parametrize("style", STYLES, ids=str)
@pytest.mark.parametrize("topology", ["unetpp", UNUSUAL], ids=["unetpp", "unusual"])
def test_every_parameter_gets_a_gradient_in_every_style(topology, style):
    model = tiny(topology, **style).train()
    x = image(*(8, 12, 8)[:style.get("dims", 2)])
    sum(logits.square().mean() for logits in model(x)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if name.endswith("weight"):
            assert parameter.grad.abs().max() > 0, name


def test_dropout_acts_in_training_mode_alone():
    model = tiny("unet", dropout=0.5, norm=None)
    x = image(8, 8)
    assert not torch.allclose(model.train()(x), model(x))
    assert same(model.eval()(x), model(x))


# -- topologies of a user's own --------------------------------------------------------------------


def check_each_depth_alone(model, x):
    """Pruning at each depth: bit-equal, and nothing is left that gets no gradient."""
    model.eval()
    heads = model.forward_heads(x)
    for depth in model.depths:
        pruned = model.prune(depth)
        assert same(pruned(x), heads[depth])
        assert len(pruned.depths) == 1
        pruned.train()(torch.cat([x, x])).square().sum().backward()
        assert all(p.grad is not None for p in pruned.parameters())


def check_drawing(graph):
    svg = ElementTree.fromstring(graph.to_svg())
    texts = ["".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    names = {name[1:].replace("_", ",") for name in graph.nodes}
    assert {f"X{name}" for name in names} <= set(texts)
    assert {f"head {depth}" for depth in graph.depths} <= set(texts)
    mermaid = graph.to_mermaid()
    for name, node in graph.nodes.items():
        for source in node.inputs:
            assert re.search(rf"^  {source} -\.?->? {name}$", mermaid, re.M)


@pytest.mark.parametrize("encoder", ["plain", "test_resnet"])
@pytest.mark.parametrize("topology", [OWN, UNUSUAL, DEEP_ROW], ids=["own", "unusual", "deep row"])
def test_a_users_topology_trains_prunes_saves_and_draws(topology, encoder, tmp_path):
    model = tiny(topology, encoder=encoder, norm="group", decoder_channels=(8, 8, 8, 8)).train()
    assert model.depths == (1, 2)
    x = image(24, 20, n=2)
    target = (x.mean(1, keepdim=True) > 0).float()
    loss, losses = DeepSupervision(HybridLoss("binary")), []
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        optimiser.zero_grad()
        losses.append(loss(model(x), target))
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(b.isfinite() for b in losses)

    model.eval()
    check_each_depth_alone(model, image(21, 13, n=1))
    model.save_pretrained(tmp_path)
    loaded = nestedseg.from_pretrained(tmp_path)
    assert loaded.graph == model.graph == nestedseg.Graph.from_dict(topology)
    for depth, logits in model.forward_heads(x).items():
        assert same(loaded.forward_heads(x)[depth], logits)
        assert same(nestedseg.from_pretrained(tmp_path, depth=depth)(x), logits)
    check_drawing(model.graph)


def test_a_topology_may_come_from_a_file(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(OWN))
    assert tiny(str(path)).graph == tiny(path).graph == tiny(OWN).graph
    assert tiny(nestedseg.Graph(**OWN)).graph == tiny(OWN).graph
    assert tiny(path).config["topology"] == "own"


def test_a_graph_with_depth_is_that_graph_pruned():
    whole, shallow = tiny(OWN), tiny(OWN, depth=1)
    assert shallow.graph == whole.graph.prune(1)
    assert list(shallow.state_dict()) == list(whole.prune(1).state_dict())


@settings(max_examples=30)
@given(random_graphs(max_depth=3, max_nodes=7, encoder_rows=(0,), beyond=1), st.integers(1, 20),
       st.integers(1, 20), st.sampled_from(["nearest", "bilinear", "transpose"]))
def test_any_graph_builds_runs_learns_and_prunes(graph, height, width, upsample):
    torch.manual_seed(0)
    model = nestedseg.create(graph, encoder_channels=(2, 3, 4, 5), upsample=upsample, norm="group",
                             decoder_channels=(2, 3, 4, 5, 6), activation="gelu")
    x = image(height, width, n=1)
    logits = model.train()(x)
    logits = logits if isinstance(logits, tuple) else (logits,)
    assert len(logits) == len(graph.heads)
    assert all(y.shape == (1, 1, height, width) for y in logits)
    sum(y.sum() for y in logits).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    check_each_depth_alone(model, x)


@settings(max_examples=5)
@given(random_graphs(max_depth=3, max_nodes=6, encoder_rows=(0, 1), beyond=1))
def test_any_graph_over_a_timm_encoder(graph):
    model = nestedseg.create(graph, "test_resnet", norm=None, decoder_channels=(3, 3, 3, 3, 3))
    check_each_depth_alone(model, image(37, 50, n=1))
