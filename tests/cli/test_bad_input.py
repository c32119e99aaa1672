"""Wrong arguments and inputs: one clear error, before anything is built."""

import re

import pytest
import torch
from torch import nn

import nestedseg
from nestedseg import GraphError

TINY = {"encoder_channels": (4, 6, 8)}
GRAPH = {"nodes": {"x0_1": ["x0_0", "x1_0"], "x1_1": ["x1_0", "x2_0"],
                   "x0_2": ["x0_0", "x0_1", "x1_1"]}, "heads": ["x0_1", "x0_2"]}


def create(topology="unetpp", encoder="plain", **arguments):
    return nestedseg.create(topology, encoder, **TINY | arguments)


@pytest.fixture
def built(monkeypatch):
    """The convolutions that are built."""
    made = []
    for kind in (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        def init(self, *args, original=kind.__init__, **kwargs):
            made.append(type(self).__name__)
            original(self, *args, **kwargs)
        monkeypatch.setattr(kind, "__init__", init)
    return made


def refused(*kinds, match=None):
    """One of the library's own errors: not a KeyError or what torch says from within."""
    return pytest.raises(kinds or (ValueError, TypeError), match=match)


def test_what_is_built_is_counted(built):
    create()
    assert len(built) == 2 * 3 + 2 * 3 + 1  # or the tests below could not fail


# -- names -----------------------------------------------------------------------------------------

NAMES = [
    ("topology", "unetppp", "'unetpp'", ["unet", "unet_e", "unet_plus", "unetpp"]),
    ("topology", "UNet", "'unet'", ["unet_plus"]),
    ("encoder", "resnet1522", "'resnet152'", ["resnet152"]),
    ("encoder", "plane", "'plain'", []),
    ("encoder", "test_resnett", "'test_resnet'", []),
    ("norm", "bach", "'batch'", ["batch", "instance", "group"]),
    ("task", "multi_class", "'multiclass'", ["binary", "multiclass", "multilabel"]),
    ("activation", "reluu", "'relu'", ["relu", "leaky_relu", "elu", "silu", "mish", "gelu"]),
    ("upsample", "nearst", "'nearest'", ["nearest", "bilinear", "transpose"]),
    ("output", "deppest", "'deepest'", ["deepest", "ensemble"]),
]


@pytest.mark.parametrize("argument, wrong, near, allowed", NAMES)
def test_an_unknown_name_lists_what_is_allowed_and_the_nearest(argument, wrong, near, allowed,
                                                               built):
    with refused(ValueError, match=f"unknown {argument} '{wrong}'") as error:
        create(**{argument: wrong})
    message = str(error.value)
    assert f"did you mean {near}?" in message
    assert all(name in message for name in allowed)
    assert len(message) < 1000  # of timm's 1,400 models, only the nearest
    assert not built


@pytest.mark.parametrize("value", [5, 1.5, True, ["unet"], {}, "", "no_such_thing", b"unet"],
                         ids=repr)
@pytest.mark.parametrize("argument", sorted({name for name, *_ in NAMES}))
def test_what_is_no_name_at_all_is_refused_too(argument, value, built):
    with refused(match="output|depth" if argument == "output" else argument):
        create(**{argument: value})
    assert not built


def test_an_unknown_tag_of_an_encoder_lists_its_tags():
    with refused(ValueError, match="resnet18") as error:
        create(encoder="resnet18.a1_in1kk")
    assert "did you mean 'a1_in1k'?" in str(error.value)


def test_an_encoder_is_a_name_never_a_path_or_an_address():
    for name in ("../resnet18", "hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "resnet18/x"):
        with refused(ValueError, match="unknown encoder"):
            create(encoder=name)


def test_a_topology_file_that_is_missing_or_broken_is_named(tmp_path, built):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        create(tmp_path / "nowhere.json")
    broken = tmp_path / "broken.json"
    for content in (b"{", b"[1]", b"\xff\xfe", b""):
        broken.write_bytes(content)
        with refused(GraphError, match="broken"):
            create(str(broken))
    assert not built


# -- numbers ---------------------------------------------------------------------------------------


def numbers(error):
    return re.findall(r"\d+", str(error.value))


def test_a_depth_beyond_the_encoder_says_both_numbers(built):
    with refused(ValueError) as error:
        create(depth=7)
    assert {"7", "3"} <= {*re.findall(r"\d+", str(error.value).replace("_", " ").replace("x", " "))}
    assert not built
    with refused(ValueError, match="depth=9 is deeper.*5 levels"):
        create(encoder="test_resnet", depth=9)


def test_a_graph_that_reads_a_level_that_the_encoder_lacks_names_it(built):
    graph = {"nodes": {"x0_1": ["x0_0", "x5_0"]}, "heads": ["x0_1"]}
    with refused(GraphError, match="'x5_0'.*3 levels"):
        create(graph)
    assert not built


def test_decoder_channels_too_short_say_how_many_and_which_row(built):
    with refused(ValueError, match="decoder_channels") as error:
        create(decoder_channels=(4,))
    assert "1" in numbers(error) and "row 1" in str(error.value)
    assert not built


@pytest.mark.parametrize("depth", [0, -1, True, False, 1.5, 1.0, "3", [1], 10 ** 9, 32, 1000],
                         ids=repr)
@pytest.mark.parametrize("topology", ["unetpp", GRAPH], ids=["name", "graph"])
def test_a_depth_is_a_whole_number_from_1_on(topology, depth, built):
    with refused(match="depth|level"):
        create(topology, depth=depth)
    assert not built


WRONG_NUMBERS = [
    *(("classes", value) for value in (0, -1, 1.0, True, "1", None, 10 ** 9, float("nan"))),
    *(("in_channels", value) for value in (0, -1, 1.0, True, "1", None, 10 ** 9)),
    *(("dropout", value) for value in (1.0, 1, 2, -0.1, "0.5", None, float("nan"), True)),
    *(("dims", value) for value in (4, 1, 0, -2, 2.0, "2", None, True, [2])),
    *(("encoder_channels", value) for value in (
        (), (8, -1), (8, 0), (8, 1.0), (8, True), ("a", "b"), "ab", 8, None, (10 ** 9, 8),
        [1] * 40, {8, 16}, (8, None))),
    *(("decoder_channels", value) for value in (
        (), (8, -1), (8, 0), (8, 1.0), "ab", 8, (10 ** 9, 8), [1] * 40, (8, None))),
]


@pytest.mark.parametrize("argument, value", WRONG_NUMBERS, ids=repr)
def test_a_number_out_of_bounds_is_refused_by_name(argument, value, built):
    with refused(match=argument):
        create(**{argument: value})
    assert not built


def test_dims_4_is_not_sent_to_the_plain_encoder():
    with refused(match="dims"):
        create(encoder="test_resnet", dims=4)


def test_one_level_is_too_few_for_a_named_topology(built):
    with refused(ValueError, match="level|encoder_channels"):
        create(encoder_channels=(8,))
    assert not built


@pytest.mark.parametrize("task, classes", [("binary", 3), ("binary", 2), ("multiclass", 1)])
def test_a_task_that_cannot_have_so_many_classes_says_so(task, classes, built):
    with refused(ValueError, match=f"{task}.*{classes}"):
        create(task=task, classes=classes)
    assert not built


def test_deep_supervision_where_there_is_none_or_must_be():
    with refused(ValueError, match="'unet' has one head"):
        create("unet", deep_supervision=True)
    with refused(ValueError, match="'unet_e' needs deep_supervision=True"):
        create("unet_e", deep_supervision=False)


def test_an_output_at_a_depth_without_a_head_says_which_there_are():
    with refused(GraphError, match=r"no head at depth 1; .*\[2\].*deep_supervision=True"):
        create(output=1)


# -- graphs ----------------------------------------------------------------------------------------

MALFORMED = {  # of which node, and what of it
    "cycle": ({"x0_1": ["x0_2", "x0_0"], "x0_2": ["x0_1"]}, ["x0_2"], ["x0_1", "x0_2", "cycle"]),
    "unknown input": ({"x0_1": ["x0_0", "x1_1"]}, ["x0_1"], ["'x0_1'", "'x1_1'"]),
    "unknown key": ({"x0_1": {"inputs": ["x0_0"], "fusion": "sum"}}, ["x0_1"],
                    ["'x0_1'", "'fusion'", "fuse"]),
    "unknown fuse": ({"x0_1": {"inputs": ["x0_0"], "fuse": "summ"}}, ["x0_1"],
                     ["'x0_1'", "'summ'", "'sum'"]),
    "unknown block": ({"x0_1": {"inputs": ["x0_0"], "block": "double"}}, ["x0_1"],
                      ["'x0_1'", "'double'", "'double_conv'"]),
    "duplicate input": ({"x0_1": ["x0_0", "x0_0"]}, ["x0_1"], ["'x0_1'", "'x0_0'", "twice"]),
    "dead node": ({"x0_1": ["x0_0"], "x1_1": ["x1_0"]}, ["x0_1"], ["'x1_1'", "dead"]),
    "head that is no node": ({"x0_1": ["x0_0"]}, ["x0_2"], ["'x0_2'", "'x0_1'"]),
    "head on the encoder": ({"x0_1": ["x0_0"]}, ["x0_0"], ["'x0_0'"]),
    "duplicate head": ({"x0_1": ["x0_0"]}, ["x0_1", "x0_1"], ["'x0_1'", "twice"]),
    "no head": ({"x0_1": ["x0_0"]}, [], ["heads"]),
    "no node": ({}, ["x0_1"], ["nodes"]),
    "a name of its own": ({"up": ["x0_0"]}, ["up"], ["'up'"]),
    "width of 0": ({"x0_1": {"inputs": ["x0_0"], "channels": 0}}, ["x0_1"], ["'x0_1'", "channels"]),
    "too many": ({f"x{i}_{j}": ["x0_0"] for i in range(11) for j in range(1, 100)}, ["x0_1"],
                 ["1089", "1000"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_graph_is_one_error_before_any_module_is_built(name, built):
    nodes, heads, said = MALFORMED[name]
    with pytest.raises(GraphError) as error:
        create({"nodes": nodes, "heads": heads})
    assert all(part in str(error.value) for part in said), str(error.value)
    assert not built


def test_a_node_has_one_name():
    """Other alphabets' digits would make a second name for the same position."""
    nodes = {"x0_1": ["x0_0"], "x0_1\u0661": ["x0_1"], "x0_11": ["x0_1\u0661"]}
    with pytest.raises(GraphError, match="not a node name"):
        create({"nodes": nodes, "heads": ["x0_11"]})
    for name in ("x01_1", "x0_01", "X0_1", "x0_1 ", "x0_1\n", "x-1_1", "x0_1_1"):
        with pytest.raises(GraphError):
            create({"nodes": {name: ["x0_0"]}, "heads": [name]})


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, {"nodes": {}}, {"heads": []},
                                   {"nodes": [], "heads": []}, {"nodes": None, "heads": None},
                                   {"nodes": {"x0_1": 5}, "heads": ["x0_1"]},
                                   {"nodes": {"x0_1": "x0_0"}, "heads": ["x0_1"]},
                                   {"nodes": {5: ["x0_0"]}, "heads": [5]},
                                   {"nodes": {"x0_1": [5]}, "heads": ["x0_1"]},
                                   {"nodes": {"x0_1": [["x0_0"]]}, "heads": ["x0_1"]},
                                   {**GRAPH, "head": []}, {**GRAPH, "heads": "x0_1"},
                                   {**GRAPH, "encoder_row": -1}, {**GRAPH, "encoder_row": "0"},
                                   {**GRAPH, "encoder_row": True}, {**GRAPH, 5: 5}], ids=repr)
def test_what_is_no_graph_is_refused(value, built):
    with refused():
        create(value)
    assert not built


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["imagenett", "weights.pth", 5, ["a"], 1.5], ids=repr)
def test_unknown_weights_say_what_there_is(weights):
    with refused(ValueError, match=r"None, 'pretrained' .*or the path of a \.safetensors file"):
        create(encoder="test_resnet", encoder_weights=weights)


# -- images ----------------------------------------------------------------------------------------

IMAGES = [
    ((3, 8, 8), "(N, 3, H, W)"), ((8, 8), "(N, 3, H, W)"), ((), "(N, 3, H, W)"),
    ((1, 3, 8, 8, 8), "(N, 3, H, W)"), ((1, 4, 8, 8), "(N, 3, H, W)"),
    ((1, 8, 8, 3), "(N, 3, H, W)"), ((1, 3, 0, 8), "(N, 3, H, W)"), ((0, 3, 8, 8), "(N, 3, H, W)"),
]


@pytest.mark.parametrize("encoder", ["plain", "test_resnet"])
@pytest.mark.parametrize("shape, expected", IMAGES, ids=str)
def test_an_image_of_the_wrong_shape_says_the_right_and_the_given(encoder, shape, expected):
    model = create(encoder=encoder, decoder_channels=(4,) * 5).eval()
    for call in (model, model.forward_heads, model.predict, model.train()):
        with refused(ValueError) as error:
            call(torch.zeros(shape))
        assert expected in str(error.value) and str(shape) in str(error.value)


def test_a_volume_has_five_axes():
    model = create(dims=3)
    for shape in ((2, 3, 8, 8), (3, 8, 8, 8), (1, 2, 4, 4, 4)):
        with refused(ValueError) as error:
            model(torch.zeros(shape))
        assert "(N, 3, D, H, W)" in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
def test_an_image_is_of_floats(dtype):
    with refused(TypeError, match=str(dtype)) as error:
        create().eval()(torch.zeros(1, 3, 8, 8, dtype=dtype))
    assert "nestedseg.preprocess" in str(error.value)


@pytest.mark.parametrize("value", [None, "image", [[0.0]], torch.zeros(1, 3, 8, 8).numpy()],
                         ids=["None", "str", "list", "numpy"])
def test_an_image_is_a_tensor(value):
    with refused(TypeError, match=type(value).__name__):
        create().eval()(value)


@pytest.mark.parametrize("encoder", ["plain", "test_resnet"])
def test_one_tiny_image_cannot_train_batch_norm_and_the_error_says_what_can(encoder):
    model = create(encoder=encoder, decoder_channels=(4,) * 5).train()
    with refused(ValueError, match="norm='group'") as error:
        model(torch.zeros(1, 3, 3, 4))
    assert "(1, 3, 3, 4)" in str(error.value)
    assert model(torch.zeros(2, 3, 3, 4)).shape == (2, 1, 3, 4)
    assert model.eval()(torch.zeros(1, 3, 3, 4)).shape == (1, 1, 3, 4)


# -- the rest of a model ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -5, 1.5, "3", (3,), (0, 5), (5, 5, 5), (5, -5), True,
                                  (5, 1.5)], ids=repr)
def test_a_size_of_summary_is_one_whole_number_or_one_an_axis(size):
    with refused(match="size|axis"):
        create().summary(size)


@pytest.mark.parametrize("values", [
    {"mean": [0.5]}, {"mean": "abc"}, {"mean": [float("nan")] * 3}, {"mean": [True] * 3},
    {"std": [0.0] * 3}, {"std": [-1.0] * 3}, {"input_range": [1, 0]}, {"input_range": [1]},
    {"size": [0, 5]}, {"size": 5}, {"interpolation": 5}, {"means": [0.5] * 3},
], ids=repr)
def test_preprocessing_that_cannot_be_is_refused(values):
    model = create()
    before = model.config
    with refused(match=next(iter(values))):
        model.set_preprocessing(**values)
    assert model.config == before


def test_a_topology_name_that_is_taken_is_refused():
    for name in ("unetpp", "unet++"):
        with refused(ValueError, match="registered already"):
            nestedseg.register_topology(name)(lambda i, j, depth: None)


def test_a_topology_too_deep_is_refused_before_its_nodes_are_made():
    for depth in (1000, 10 ** 6, 32):
        with refused(match="depth"):
            nestedseg.topology("unetpp", depth)
