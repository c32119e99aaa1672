"""Feature pyramids: their graphs, the semantic models, and the backbones of detectors."""

import re

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

import nestedseg
from nestedseg import Graph, GraphError
from nestedseg.topology import rules
from nestedseg.topology.rules import list_topologies, pyramid_topology, topology

NAMES = ["fpn", "fpn_plus", "fpnpp"]
ENCODER = "test_resnet"  # strides 2, 4, 8, 16, 32


def lateral(i):
    return {"inputs": [f"x{i}_0"], "block": "conv1x1"}


def summed(*inputs, block="identity"):
    return {"inputs": list(inputs), "fuse": "sum", "block": block}


def level(name):
    return {"inputs": [name], "block": "conv3x3"}


# Three levels, written by hand.
FPN_2 = {"x0_1": lateral(0), "x1_1": lateral(1), "x2_1": lateral(2),
         "x1_2": summed("x1_1", "x2_1"), "x0_3": summed("x0_1", "x1_2"),
         "x0_4": level("x0_3"), "x1_3": level("x1_2"), "x2_2": level("x2_1")}
DENSE_2 = {**FPN_2, "x0_2": summed("x0_1", "x1_1", block="single_conv")}
BY_HAND = {
    "fpn": FPN_2,
    "fpn_plus": {**DENSE_2, "x0_3": summed("x0_2", "x1_2")},
    "fpnpp": {**DENSE_2, "x0_3": summed("x0_1", "x0_2", "x1_2")},
}
LEVELS_2 = ["x0_4", "x1_3", "x2_2"]


@pytest.mark.parametrize("name", NAMES)
def test_pyramids_of_three_levels_by_hand(name):
    graph = pyramid_topology(name, 2)
    assert graph == Graph(BY_HAND[name], LEVELS_2)
    assert graph.name == name and graph.depths == (1, 2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_the_merged_pyramid_by_hand(name):
    def step(node):
        return {"inputs": [node], "block": "single_conv"}

    merging = {"x0_5": step("x0_4"), "x1_4": step("x1_3"),
               "x2_3": step("x2_2"), "x1_5": step("x2_3"),
               "x0_6": summed("x0_5", "x1_4", "x1_5")}
    graph = topology(name, 2)
    shallower = [] if name == "fpn" else ["x0_2"]
    assert graph == Graph(BY_HAND[name] | merging, [*shallower, "x0_6"])
    assert graph.depths == ((2,) if name == "fpn" else (1, 2))


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_pyramids_of_every_depth(name, depth):
    graph = topology(name, depth)
    assert graph.depths == ((depth,) if name == "fpn" else tuple(range(1, depth + 1)))
    for d in graph.depths:
        assert graph.prune(d).depth == d and graph.prune(d).depths == (d,)
    assert set(graph.prune(depth).nodes) == set(graph.nodes)
    heads = pyramid_topology(name, depth).heads
    assert [head.split("_")[0] for head in heads] == [f"x{row}" for row in range(depth + 1)]
    assert graph.to_svg().count("<circle") == len(graph.nodes) + depth + 1


def test_they_are_listed_and_their_names_taken():
    assert set(NAMES) <= set(list_topologies())
    with pytest.raises(ValueError, match="registered already"):
        nestedseg.register_topology("fpn")(lambda i, j, depth: None)
    for unknown in ("fpm", "", None, ["fpn"]):
        with pytest.raises(ValueError, match="unknown topology"):
            pyramid_topology(unknown, 3)
    with pytest.raises(GraphError, match="from 1 to 31"):
        pyramid_topology("fpn", 0)


def test_a_rule_of_ones_own_is_a_pyramid_too():
    @nestedseg.register_topology("test_two_before")
    def two_before(i, j, depth):
        return {"inputs": [*(f"x{i}_{k}" for k in range(max(0, j - 2), j)), f"x{i + 1}_{j - 1}"]}

    try:
        graph = pyramid_topology("test_two_before", 3)
        assert graph.nodes["x0_4"].inputs == ("x0_2", "x0_3", "x1_3")
        model = nestedseg.pyramid("test_two_before", ENCODER, out_channels=4).eval()
        assert model(torch.rand(1, 3, 32, 32))["3"].shape == (1, 4, 1, 1)
    finally:
        rules._RULES.pop("test_two_before")
    assert pyramid_topology("unetpp", 3) == pyramid_topology("fpnpp", 3)


# -- the numbers ----------------------------------------------------------------------------------


def from_torchvision(state, levels):
    """torchvision's names of a FeaturePyramidNetwork's weights -> ours."""
    renamed = {}
    for key, value in state.items():
        kind, row, name = re.fullmatch(r"(inner|layer)_blocks\.(\d)\.0\.(\w+)", key).groups()
        column = 1 if kind == "inner" else levels - int(row) + 1
        renamed[f"x{row}_{column}.block.conv.{name}"] = value
    return renamed


@pytest.mark.parametrize("execution", ["fast", "reference"])
def test_fpn_is_torchvisions(execution):
    model = nestedseg.pyramid("fpn", ENCODER, out_channels=8, coarser="pool",
                              execution=execution).double().eval()
    widths = [level.channels for level in model.encoder.levels[1:]]
    theirs = FeaturePyramidNetwork(widths, 8, LastLevelMaxPool()).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    model.decoder.load_state_dict(from_torchvision(theirs.state_dict(), 4))
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    features = dict(zip("0123", model.encoder(x)[1:]))
    expected, ours = theirs(features), model(x)
    assert list(ours) == list(expected) == ["0", "1", "2", "3", "pool"]
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-12, atol=1e-12)


def test_p6_and_p7_are_torchvisions():
    model = nestedseg.pyramid("fpnpp", ENCODER, out_channels=6, strides=(8, 16, 32),
                              coarser="p6p7").double().eval()
    theirs = LastLevelP6P7(6, 6).double()
    theirs.load_state_dict({key: value for key, value in model.state_dict().items()
                            if key.startswith("p")})
    ours = model(torch.randn(1, 3, 128, 64, dtype=torch.float64))
    expected, names = theirs([ours["2"]], [ours["2"]], ["2"])
    assert list(ours) == ["0", "1", *names] and model.strides == (8, 16, 32, 64, 128)
    for name, y in zip(names, expected):
        torch.testing.assert_close(ours[name], y, rtol=0, atol=0)


def test_fpnpp_without_what_its_intermediate_nodes_add_is_fpn():
    dense = nestedseg.pyramid("fpnpp", ENCODER, out_channels=8, norm=None).double().eval()
    plain = nestedseg.pyramid("fpn", ENCODER, out_channels=8).double().eval()
    state, given = plain.state_dict(), dense.state_dict()
    assert {key for key in given if key not in state} == {
        f"decoder.x{i}_{j}.block.conv.{part}"
        for i, j in [(0, 2), (1, 2), (0, 3)] for part in ("weight", "bias")}
    plain.load_state_dict({key: given[key] for key in state})
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert not torch.allclose(dense(x)["0"], plain(x)["0"])
    with torch.no_grad():
        for key in given.keys() - state.keys():
            given[key].zero_()
    # x1_3 = x1_1 + x1_2 + up(x2_2), where x1_2 = relu(0) = 0, and so on
    for ours, theirs in zip(dense(x).values(), plain(x).values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_fpnpp_node_by_node():
    model = nestedseg.pyramid("fpnpp", ENCODER, out_channels=5, strides=(4, 8, 16)).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    c = model.encoder(x)[1:]
    d = model.decoder
    conv = {name: d.get_submodule(name).block.first for name in d.graph.nodes}

    def up(y):
        return F.interpolate(y, scale_factor=2, mode="nearest")

    x0_1, x1_1, x2_1 = (conv[f"x{i}_1"](c[i]) for i in range(3))
    x0_2 = F.group_norm(conv["x0_2"](x0_1 + up(x1_1)), 1).relu()  # gcd(8, 5 channels) groups
    x1_2 = x1_1 + up(x2_1)
    x0_3 = x0_1 + x0_2 + up(x1_2)
    expected = conv["x0_4"](x0_3), conv["x1_3"](x1_2), conv["x2_2"](x2_1)
    for ours, theirs in zip(model(x).values(), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_semantic_model_node_by_node():
    model = nestedseg.create("fpn", encoder_channels=(3, 4, 5), decoder_channels=(6, 6, 6),
                             classes=2).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    c, d = model.encoder(x), model.decoder
    conv = {name: d.get_submodule(name).block.first for name in d.graph.nodes}

    def up(y):
        return F.interpolate(y, scale_factor=2, mode="nearest")

    def step(name, y):
        return d.get_submodule(name).block.norm(conv[name](y)).relu()

    p2 = conv["x2_1"](c[2])
    p1 = conv["x1_1"](c[1]) + up(p2)
    p0 = conv["x0_1"](c[0]) + up(p1)
    s0 = step("x0_5", conv["x0_4"](p0))
    s1 = step("x1_4", conv["x1_3"](p1))
    s2 = step("x1_5", up(step("x2_3", conv["x2_2"](p2))))
    expected = d.head_x0_6(s0 + up(s1) + up(s2))
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


# -- as semantic models ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_created_pruned_fused_and_saved(name, tmp_path):
    model = nestedseg.create(name, ENCODER, classes=2, decoder_channels=(8,) * 5,
                             deep_supervision=None if name == "fpn" else True).eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
            torch.nn.init.normal_(norm.running_mean)
    model.double()
    x = torch.randn(1, 3, 50, 70, dtype=torch.float64)
    with torch.no_grad():
        y = model(x)
        assert y.shape == (1, 2, 50, 70)
        torch.testing.assert_close(model.fuse()(x), y, rtol=1e-9, atol=1e-9)
        with nestedseg.execution("reference"):
            torch.testing.assert_close(model(x), y, rtol=1e-9, atol=1e-9)
        for depth, logits in model.forward_heads(x).items():
            small = model.prune(depth)
            assert torch.equal(small(x), logits)
            assert len(small.encoder.levels) == depth + 1
        model.save_pretrained(tmp_path)
        assert torch.equal(nestedseg.from_pretrained(tmp_path)(x), y)


def test_without_deep_supervision_it_has_one_head_and_one_width():
    model = nestedseg.create("fpnpp", ENCODER)
    assert model.depths == (4,)
    widths = {model.decoder.get_submodule(name).block(torch.rand(1, 128, 2, 2)).shape[1]
              for name in model.graph.nodes if not name.endswith("_1")}
    assert widths == {128} and model.config["decoder_channels"] == [128] * 5


def test_it_trains():
    model = nestedseg.create("fpnpp", ENCODER, decoder_channels=(4,) * 5, deep_supervision=True)
    loss = sum(y.square().mean() for y in model.train()(torch.randn(2, 3, 64, 64)))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_how_nodes_are_computed_is_visible():
    model = nestedseg.create("fpn", ENCODER, decoder_channels=(4,) * 5)
    executions = model.decoder.executions
    assert executions["x0_1"] == "reference: its first layer is not a plain 3x3 convolution"
    assert executions["x0_5"] == "reference: sum fusion" and executions["x0_6"] == "fast"


def test_the_identity_block_cannot_change_widths():
    graph = {"nodes": {"x0_1": {"inputs": ["x0_0", "x1_0"], "block": "identity"}},
             "heads": ["x0_1"]}
    with pytest.raises(ValueError, match=r"'identity' cannot change .* got 6 input"):
        nestedseg.create(graph, encoder_channels=(2, 4))
    model = nestedseg.create(graph, encoder_channels=(2, 4), decoder_channels=(6,))
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 1, 8, 8)
    assert model.decoder.executions["x0_1"].startswith("reference: its first layer")


# -- as backbones ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoder", "strides"), [
    ("test_resnet", (4, 8, 16, 32)), ("test_resnet", (2, 4)), ("test_efficientnet", (8, 16)),
    ("test_vit", (4, 8, 16, 32)), ("test_convnext", (4, 8, 16, 32)), ("plain", (1, 2, 4, 8))])
def test_the_contract_of_a_backbone(encoder, strides):
    model = nestedseg.pyramid("fpnpp", encoder, out_channels=6, strides=strides, in_channels=2,
                              encoder_channels=(2, 3, 4, 5))
    assert model.out_channels == 6 and model.strides == strides
    assert model.channels == (6,) * len(strides)
    for size in ((64, 96), (61, 75)):
        maps = model(torch.rand(2, 2, *size))
        assert list(maps) == list(model.output_shape()) == [str(i) for i in range(len(strides))]
        for y, stride, spec in zip(maps.values(), strides, model.output_shape().values()):
            assert y.shape == (2, 6, *(-(-n // stride) for n in size))
            assert (spec.channels, spec.stride, spec.height, spec.width) == (6, stride, None, None)
    assert model.size_divisibility % strides[-1] == 0


def test_an_encoder_keeps_no_level_that_the_pyramid_does_not_need():
    model = nestedseg.pyramid("fpn", ENCODER, out_channels=4, strides=(4, 8))
    assert [level.stride[0] for level in model.encoder.levels] == [2, 4, 8]


def test_an_encoder_of_one_size_says_so():
    model = nestedseg.pyramid("fpn", "test_vit_relpos", out_channels=4, image_size=(64, 96))
    assert model.fixed_size == (64, 96)
    with pytest.raises(ValueError, match=r"image_size=\(64, 64\)"):
        model(torch.rand(1, 3, 64, 64))
    assert model(torch.rand(1, 3, 64, 96))["0"].shape == (1, 4, 16, 24)


def test_a_graph_of_ones_own():
    graph = {"nodes": {"x1_1": ["x1_0"], "x0_1": {"inputs": ["x0_0", "x1_1"], "fuse": "sum"}},
             "heads": ["x0_1", "x1_1"]}
    model = nestedseg.pyramid(graph, ENCODER, out_channels=4, strides=(4, 8), norm="batch")
    assert [y.shape[1:] for y in model(torch.rand(2, 3, 32, 32)).values()] == [
        (4, 8, 8), (4, 4, 4)]


def test_frozen_batch_norms_stay_as_they_are():
    model = nestedseg.pyramid("fpn", ENCODER, out_channels=4, frozen_batch_norm=True).train()
    norms = [m for m in model.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [tensor.clone() for norm in norms for tensor in norm.state_dict().values()]
    assert norms and not any(norm.training for norm in norms) and model.encoder.training
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(y.mean() for y in model(torch.rand(2, 3, 64, 64)).values()).backward()
    optimiser.step()
    after = [tensor for norm in norms for tensor in norm.state_dict().values()]
    assert all(map(torch.equal, before, after))
    thawed = nestedseg.pyramid("fpn", ENCODER, out_channels=4).train()
    assert all(m.training for m in thawed.modules())


MISTAKES = {
    "strides": ({"strides": (4, 16)}, ["(2, 4, 8, 16, 32)", "(4, 16)", "consecutive"]),
    "one stride": ({"strides": (4,)}, ["depth", "from 1 to 31"]),
    "no strides": ({"strides": ()}, ["strides", "1 to 32"]),
    "topology": ({"topology": "fpnp"}, ["unknown topology", "fpn"]),
    "heads": ({"topology": {"nodes": {"x0_1": ["x0_0", "x1_0"]}, "heads": ["x0_1"]}},
              ["needs one head in each of its first 4 rows", "[0]"]),
    "a level's width": ({"topology": {
        "nodes": {"x1_1": {"inputs": ["x1_0"], "channels": 8}, "x0_1": ["x0_0", "x1_1"]},
        "heads": ["x0_1", "x1_1"]}, "strides": (4, 8)}, ["node 'x1_1'", "out_channels=256"]),
    "coarser": ({"coarser": "p8"}, ["unknown coarser levels", "p6p7"]),
    "norm": ({"norm": "bach"}, ["unknown norm", "batch"]),
    "channels": ({"out_channels": 0}, ["out_channels", "from 1"]),
    "encoder": ({"encoder": "resnet999"}, ["unknown encoder"]),
}


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(arguments, parts):
    with pytest.raises(ValueError) as caught:
        nestedseg.pyramid(**{"topology": "fpn", "encoder": ENCODER} | arguments)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("x", [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8),
                               torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_an_input_that_does_not_fit_is_named(x):
    with pytest.raises(ValueError, match=r"expected a float tensor \(N, 3, H, W\)"):
        nestedseg.pyramid("fpn", ENCODER, out_channels=4)(x)
