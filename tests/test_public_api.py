import importlib
import importlib.metadata
import inspect
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import nestedseg
from nestedseg.base.moved import MOVED
from nestedseg.instances import detectors

TINY = {"encoder_channels": (4, 6, 8)}
RESNET = {"encoder": "test_resnet", "decoder_channels": (4,) * 5}
SIZED = {"encoder": "test_vit_relpos", "decoder_channels": (4,) * 4}
# By argument: the documented default in full, a value that must show, and other arguments.
DEFAULTS = {
    "encoder": ("plain", "test_resnet", {}),
    "classes": (1, 2, {}),
    "in_channels": (3, 4, {}),
    "task": ("binary", "multilabel", {}),
    "task of classes": ("multiclass", "multilabel", {"classes": 3}),
    "encoder_weights": (None, ..., RESNET),
    "depth": (2, 1, {}),
    "encoder_channels": ((32, 64, 128, 256, 512), (32, 64, 128, 256, 511), {}),
    "decoder_channels": ((4, 6), (4, 4), {}),
    "decoder_channels over timm": ((32, 64, 128, 256), (32, 64, 128, 255),
                                   {"encoder": "test_resnet"}),
    "deep_supervision": (False, True, {}),
    "deep_supervision of unet_e": (True, ..., {"topology": "unet_e"}),  # which has no other
    "upsample": ("nearest", "bilinear", {}),
    "norm": ("batch", "instance", {}),
    "activation": ("relu", "gelu", {}),
    "bias": (False, True, {}),
    "dropout": (0.0, 0.9, {}),
    "dims": (2, 3, {}),
    "head_kernel": (1, 3, {}),
    "output": ("deepest", "ensemble", {"deep_supervision": True}),
    "image_size": ((160, 160), (96, 160), SIZED),
    "stem": (False, True, RESNET),
    "encoder_taps": ((0, 1, 2, 3, 4), (1, 2, 3, 4), RESNET),
    "pyramid_channels": ((24, 48, 96, 96), (32, 32, 32, 32), SIZED),
    "strides": (((2, 2), (2, 2)), ((1, 2), (2, 2)), {}),
    "depth_strides": ((2, 2, 2, 2, 2), (1, 2, 2, 2, 2), RESNET | {"dims": 3}),
    "execution": ("fast", "reference", {}),
    "class_names": (None, ("cell",), {}),
}


def outcome(topology="unetpp", **arguments):
    """The configuration, the shapes of the weights, and what a seeded model gives in training."""
    torch.manual_seed(0)
    small = TINY if arguments.get("encoder", "plain") == "plain" else {}
    model = nestedseg.create(topology, **small | arguments)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    size = model.config["image_size"] or [32] * model.config["dims"]
    with torch.no_grad():
        logits = model(torch.randn(2, model.config["in_channels"], *size))
    return model.config, shapes, logits if isinstance(logits, tuple) else (logits,)


def same(one, other, but=None):
    """Whether two outcomes are; a configuration may keep the argument as it was given."""
    first, second = one[0] | {but: None}, other[0] | {but: None}
    return first == second and one[1] == other[1] and all(map(torch.equal, one[2], other[2]))


@pytest.mark.parametrize("row", DEFAULTS)
def test_a_default_of_create_is_what_is_documented(row):
    name, (documented, other, given) = row.split()[0], DEFAULTS[row]
    implied = outcome(**given) if name != "encoder_channels" else outcome(
        encoder_channels=inspect.signature(nestedseg.create).parameters[name].default)
    assert same(outcome(**given | {name: documented}), implied, but=name)
    assert other is ... or not same(outcome(**given | {name: other}), implied)


def test_every_argument_of_create_has_a_documented_default():
    arguments = [*inspect.signature(nestedseg.create).parameters]
    assert arguments[0] == "topology" and {*arguments[1:]} == {row.split()[0] for row in DEFAULTS}


@pytest.mark.parametrize("name, room", nestedseg._NAMES.items())
def test_a_short_name_is_the_object_of_its_room(name, room):
    assert getattr(nestedseg, name) is getattr(importlib.import_module(f"nestedseg.{room}"), name)
    assert name in dir(nestedseg) and name in nestedseg.__all__


def test_topologies_are_listed_and_a_new_one_is_one_function():
    assert {"unet", "unet_e", "unet_plus", "unetpp"} <= {*nestedseg.list_topologies()}

    @nestedseg.register_topology("test_ladder")
    def ladder(i, j, depth):
        return [f"x{i + 1}_{j - 1}"] if i + j == depth else None

    try:
        assert "test_ladder" in nestedseg.list_topologies()
        model = nestedseg.create("test_ladder", encoder_channels=(2, 3, 4))
        assert model.graph.to_dict()["nodes"] == {"x1_1": ["x2_0"], "x0_2": ["x1_1"]}
        assert model.config["topology"] == "test_ladder"
    finally:
        from nestedseg.topology import rules
        rules._RULES.pop("test_ladder")


def test_an_attribute_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lossses'"):
        nestedseg.lossses  # noqa: B018


def test_the_version_is_that_of_the_installed_package():
    assert nestedseg.__version__ == importlib.metadata.version("nestedseg")
    assert (Path(nestedseg.__file__).parent / "py.typed").exists()


# -- what importing loads --------------------------------------------------------------------------

FRESH = """
import json, sys
for name in ("accelerate", "matplotlib", "monai", "cv2", "scipy", "pandas"):
    sys.modules[name] = None  # as if it were not installed
before = set(sys.modules)
import nestedseg
of_import = sorted(set(sys.modules) - before)
import timm, torch
before = set(sys.modules)
model = nestedseg.create("unetpp", encoder_channels=(2, 3, 4), deep_supervision=True)
of_create = sorted(set(sys.modules) - before)
import nestedseg.preprocess, nestedseg.pyramid, nestedseg.topology.graph
functions = [callable(each) for each in (
    nestedseg.preprocess, nestedseg.pyramid, nestedseg.topology)]

import tempfile
logits, target = model(torch.zeros(2, 3, 9, 9)), torch.ones(2, 9, 9)
nestedseg.losses.DeepSupervision(nestedseg.losses.HybridLoss("binary"))(logits, target).backward()
nestedseg.metrics.SegmentationScores().update(logits[0].detach(), target)
folder = tempfile.mkdtemp()
model.prune(1).save_pretrained(folder)
loaded = nestedseg.from_pretrained(folder)
print(json.dumps({"import": of_import, "create": of_create, "functions": functions,
                  "summary": str(loaded.summary(16)), "svg": model.graph.to_svg()}))
"""


@pytest.fixture(scope="module")
def fresh():
    """A fresh interpreter without the extras: what each step loads, and what it gives."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def packages(modules):
    return {name.split(".")[0] for name in modules} - sys.stdlib_module_names


def test_importing_loads_no_torch(fresh):
    assert packages(fresh["import"]) == {"nestedseg"}


def test_creating_a_model_loads_no_further_package(fresh):
    assert {"nestedseg"} <= packages(fresh["create"]) <= {
        "nestedseg", "torch", "timm", "safetensors", "huggingface_hub"}


def test_functions_are_not_hidden_by_modules_of_their_name(fresh):
    assert fresh["functions"] == [True, True, True]


def test_the_core_works_without_the_extras(fresh):
    assert fresh["summary"].startswith("depth | parameters")
    assert fresh["svg"].startswith("<svg")


# -- names of the version before the package was divided into rooms --------------------------------

ROOMS = [importlib.import_module(f"nestedseg.{room}") for room in (
    "convert", "data", "encoders", "evaluation", "instances", "models", "prediction", "topology",
    "training")]
PUBLIC = [getattr(module, name) for module in (detectors, *ROOMS) for name in module.__all__]
EARLIER = """
nestedseg.summary.Summary nestedseg.summary.Row nestedseg.preprocess.preprocess
nestedseg.convert.from_smp nestedseg.convert.from_monai nestedseg.convert.timm_encoder
nestedseg.graph.Node nestedseg.encoders.EncoderInfo nestedseg.losses.HybridLoss
nestedseg.losses.PaperHybridLoss nestedseg.losses.DeepSupervision
nestedseg.metrics.SegmentationScores nestedseg.metrics.Score nestedseg.data.find_pairs
nestedseg.data.Pair nestedseg.data.list_images nestedseg.data.split_pairs
nestedseg.data.spatial_axes nestedseg.data.read_image nestedseg.data.read_label
nestedseg.data.open_volume nestedseg.data.Volume nestedseg.data.new_mask
nestedseg.data.LabelledImages nestedseg.data.Patches nestedseg.data.EpochSampler
nestedseg.data.synthetic_nuclei nestedseg.training.fit nestedseg.training.Settings
nestedseg.training.Epoch nestedseg.training.best_epoch nestedseg.inference.predict_image
nestedseg.inference.predict_volume nestedseg.inference.predict_heads
nestedseg.inference.output_key nestedseg.inference.to_mask nestedseg.inference.default_window
nestedseg.inference.slide nestedseg.inference.slide_slabs nestedseg.pyramid.pyramid
nestedseg.detection.mask_rcnn nestedseg.detection.faster_rcnn nestedseg.detection.retinanet
nestedseg.detection.Detector nestedseg.instance_inference.predict_instances
nestedseg.instances.to_target nestedseg.instances.from_prediction nestedseg.instances.from_mask
nestedseg.instances.renumber nestedseg.instances.find_pieces nestedseg.instances.put_together
nestedseg.instances.Piece nestedseg.data.LabelledInstances nestedseg.data.InstancePatches
nestedseg.instance_metrics.InstanceScores nestedseg.instance_metrics.bowl_score
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", EARLIER)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_earlier_name_leads_to_what_is_public_now(name):
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    assert value in PUBLIC
    reached = getattr(nestedseg, module.removeprefix("nestedseg."))
    assert reached is value or getattr(reached, attribute) is value  # a function, or a module


@pytest.mark.parametrize("name", MOVED)
def test_a_module_that_moved_says_where_to(name):
    place = importlib.import_module(f"nestedseg.{MOVED[name]}")
    public = "__version__" if name == "version" else next(
        key for key in vars(place) if not key.startswith("_"))
    with pytest.warns(DeprecationWarning, match=f"nestedseg.{name} is now {place.__name__}"):
        assert getattr(importlib.import_module(f"nestedseg.{name}"), public) is getattr(
            place, public)


def test_a_model_that_was_pickled_whole_under_the_old_names_is_read():
    model = nestedseg.create("unetpp", encoder_channels=(2, 3)).eval()
    old = {place: name for name, place in MOVED.items() if name != "model"}
    text = pickle.dumps(model, 0)  # of protocol 0: names are lines
    for place, name in old.items():
        text = text.replace(f"cnestedseg.{place}\n".encode(), f"cnestedseg.{name}\n".encode())
    text = text.replace(b"cnestedseg.models.model\n", b"cnestedseg.model\n")
    text = text.replace(b"cnestedseg.nodes\nNodeModule\n", b"cnestedseg.nodes\nNode\n")
    assert b"cnestedseg.nodes\nNode\n" in text and b"cnestedseg.model\n" in text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        again = pickle.loads(text)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(again(x), model(x))
