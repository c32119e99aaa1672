"""Nested U-Nets for image segmentation: skip topologies as data, over any timm encoder."""

from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

from nestedseg.encoders import encoder_info, list_encoders
from nestedseg.graph import Graph, GraphError
from nestedseg.hub import from_pretrained
from nestedseg.lowering import execution
from nestedseg.model import SegmentationModel, choose_depth, create
from nestedseg.preprocess import preprocess
from nestedseg.pyramid import FeaturePyramid, pyramid
from nestedseg.remote import HubError
from nestedseg.topologies import list_topologies, register_topology, topology
from nestedseg.version import __version__

if _TYPE_CHECKING:
    from nestedseg import convert as convert
    from nestedseg import data as data
    from nestedseg import detection as detection
    from nestedseg import inference as inference
    from nestedseg import instance_inference as instance_inference
    from nestedseg import instance_metrics as instance_metrics
    from nestedseg import instances as instances
    from nestedseg import losses as losses
    from nestedseg import metrics as metrics
    from nestedseg import training as training

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

_LAZY = ("convert", "data", "detection", "inference", "instance_inference", "instance_metrics",
         "instances", "losses", "metrics", "training")


def __getattr__(name: str) -> _ModuleType:
    # Loaded on first use: importing nestedseg costs no more than importing torch and timm.
    if name in _LAZY:
        return _import_module(f"nestedseg.{name}")
    raise AttributeError(f"module 'nestedseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
