import ast
import importlib
import importlib.metadata
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import nestedseg

# Names that the issue fixes, and where it fixes their defaults.
NAMES = {"Graph", "GraphError", "SegmentationModel", "choose_depth", "create", "from_pretrained",
         "list_encoders", "list_topologies", "preprocess", "register_topology", "topology"}
SUBMODULES = {"convert", "data", "inference", "losses", "metrics", "training"}
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
        from nestedseg import topologies
        topologies._RULES.pop("test_ladder")


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


def test_submodules_are_loaded_on_first_use(fresh):
    own = {name for name in fresh["new"] if name.startswith("nestedseg.")}
    assert "nestedseg.model" in own
    later = {"losses", "metrics", "training", "inference", "cli", "demo", "report", "pictures"}
    assert not own & {f"nestedseg.{name}" for name in later}


def test_the_core_works_without_the_extras(fresh):
    assert fresh["summary"].startswith("depth | parameters")
    assert fresh["svg"].startswith("<svg")


@pytest.mark.parametrize("module", ["graph", "topologies", "feature_pyramids", "draw", "errors"])
def test_a_topology_is_data_and_needs_no_torch(module):
    source = (Path(nestedseg.__file__).parent / f"{module}.py").read_text()
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert not imported & {"torch", "timm", "numpy"}
    assert {name for name in imported if name.startswith("nestedseg")} <= {
        f"nestedseg.{name}" for name in ("draw", "errors", "graph", "extras", "feature_pyramids")
    } | {"nestedseg"}
