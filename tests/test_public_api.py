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

# Names that the issue fixes, and where it fixes their defaults.
NAMES = {"Graph", "GraphError", "SegmentationModel", "choose_depth", "create", "from_pretrained",
         "list_encoders", "list_topologies", "preprocess", "register_topology", "topology"}
SUBMODULES = {"convert", "data", "losses", "metrics", "prediction", "training"}
CREATE = {
    "classes": 1, "in_channels": 3, "task": None, "encoder_weights": None, "depth": None,
    "encoder_channels": (32, 64, 128, 256, 512), "decoder_channels": None,
    "deep_supervision": None, "upsample": "nearest", "norm": "batch", "activation": "relu",
    "dropout": 0.0, "dims": 2, "output": "deepest",
}
MODEL = {"forward", "forward_heads", "predict", "depths", "graph", "config", "summary", "prune",
         "output", "save_pretrained"}
GRAPH = {"from_dict", "to_dict", "from_json", "to_json", "depth", "order", "prune", "to_mermaid",
         "to_svg"}


def test_every_name_of_the_issue_is_there():
    assert {*nestedseg.__all__} >= NAMES
    assert all(hasattr(nestedseg, name) for name in nestedseg.__all__)
    assert all(hasattr(nestedseg.SegmentationModel, name) for name in MODEL)
    assert all(hasattr(nestedseg.Graph, name) for name in GRAPH)
    assert {*nestedseg.__all__} | SUBMODULES <= {*dir(nestedseg)}


def test_create_takes_what_the_issue_says_and_defaults_to_it():
    parameters = inspect.signature(nestedseg.create).parameters
    assert list(parameters)[:2] == ["topology", "encoder"]
    assert parameters["encoder"].default == "plain"
    for name, default in CREATE.items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == default
    assert list(inspect.signature(nestedseg.from_pretrained).parameters)[1] == "depth"
    assert list(inspect.signature(nestedseg.choose_depth).parameters) == ["scores", "tolerance"]


def test_losses_and_metrics_have_the_issues_names():
    for name in ("HybridLoss", "PaperHybridLoss", "DeepSupervision"):
        assert inspect.isclass(getattr(nestedseg.losses, name))
    assert inspect.isclass(nestedseg.metrics.SegmentationScores)
    assert callable(nestedseg.data.synthetic_nuclei)


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


# -- what importing costs --------------------------------------------------------------------------

FRESH = """
import json, sys, time
for name in ("accelerate", "matplotlib", "monai", "cv2", "scipy", "pandas"):
    sys.modules[name] = None  # as if it were not installed
import timm, torch
before = set(sys.modules)
start = time.process_time()
import nestedseg
seconds = time.process_time() - start
new = sorted(set(sys.modules) - before)

import tempfile
model = nestedseg.create("unetpp", encoder_channels=(2, 3, 4), deep_supervision=True)
logits, target = model(torch.zeros(2, 3, 9, 9)), torch.ones(2, 9, 9)
nestedseg.losses.DeepSupervision(nestedseg.losses.HybridLoss("binary"))(logits, target).backward()
nestedseg.metrics.SegmentationScores().update(logits[0].detach(), target)
folder = tempfile.mkdtemp()
model.prune(1).save_pretrained(folder)
loaded = nestedseg.from_pretrained(folder)
print(json.dumps({"seconds": seconds, "new": new, "summary": str(loaded.summary(16)),
                  "svg": model.graph.to_svg()}))
"""


@pytest.fixture(scope="module")
def fresh():
    """A fresh interpreter without the extras: what ``import nestedseg`` adds to timm, and then."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_takes_little_longer_than_importing_torch_and_timm(fresh):
    assert fresh["seconds"] < 0.5  # of processor time: other programs do not count


def test_importing_loads_no_further_package(fresh):
    packages = {name.split(".")[0] for name in fresh["new"]} - sys.stdlib_module_names
    assert packages <= {"nestedseg", "torch", "timm", "safetensors", "huggingface_hub"}


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


def test_functions_are_not_hidden_by_modules_of_their_name():
    code = ("import nestedseg.preprocess, nestedseg.pyramid, nestedseg.topology.graph;"
            "print(*map(callable, (nestedseg.preprocess, nestedseg.pyramid, nestedseg.topology)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True True True\n", done.stderr


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
