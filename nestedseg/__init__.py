"""Nested U-Nets for image segmentation: skip topologies as data, over any timm encoder."""

from importlib import import_module as _import_module
from sys import modules as _modules
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from nestedseg.base.moved import SHORT as _SHORT
from nestedseg.base.moved import keep_old_names as _keep_old_names
from nestedseg.base.version import __version__
from nestedseg.topology import Graph, GraphError, list_topologies, register_topology, topology

if _TYPE_CHECKING:
    from nestedseg import convert as convert
    from nestedseg import data as data
    from nestedseg import evaluation as evaluation
    from nestedseg import instances as instances
    from nestedseg import prediction as prediction
    from nestedseg import training as training
    from nestedseg.convert import from_pretrained as from_pretrained
    from nestedseg.data import preprocess as preprocess
    from nestedseg.decoder.lowering import execution as execution
    from nestedseg.encoders import encoder_info as encoder_info
    from nestedseg.encoders import list_encoders as list_encoders
    from nestedseg.evaluation import metrics as metrics
    from nestedseg.hub.client import HubError as HubError
    from nestedseg.models import FeaturePyramid as FeaturePyramid
    from nestedseg.models import SegmentationModel as SegmentationModel
    from nestedseg.models import choose_depth as choose_depth
    from nestedseg.models import create as create
    from nestedseg.models import pyramid as pyramid
    from nestedseg.training import losses as losses

__all__ = [
    "FeaturePyramid",
    "Graph",
    "GraphError",
    "HubError",
    "SegmentationModel",
    "__version__",
    "choose_depth",
    "create",
    "encoder_info",
    "execution",
    "from_pretrained",
    "list_encoders",
    "list_topologies",
    "preprocess",
    "pyramid",
    "register_topology",
    "topology",
]

# Imported on first use, so that working with graphs does not import torch: the subpackage of each
# public name, and the subpackages that are public themselves.
_NAMES = {
    "FeaturePyramid": "models", "HubError": "hub.client", "SegmentationModel": "models",
    "choose_depth": "models", "create": "models", "encoder_info": "encoders",
    "execution": "decoder.lowering", "from_pretrained": "convert", "list_encoders": "encoders",
    "preprocess": "data", "pyramid": "models",
}
_ROOMS = ("convert", "data", "evaluation", "instances", "prediction", "training")


def __getattr__(name: str) -> _Any:
    if name in _NAMES:
        value = getattr(_import_module(f"nestedseg.{_NAMES[name]}"), name)
        globals()[name] = value  # replaces a module of this name; found directly the next time
        return value
    if name in _ROOMS or f"nestedseg.{name}" in _modules:
        return _import_module(f"nestedseg.{name}")
    raise AttributeError(f"module 'nestedseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_ROOMS, *_SHORT})


_keep_old_names()
