"""The module names from before the package was divided into subpackages.

Code and pickles made with an earlier version use these names. Each is entered as a stand-in, which
imports the module that replaced it when one of its attributes is asked for.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "nestedseg"
# Short names that stay without a warning: users of other libraries know them.
SHORT = {"losses": "training.losses", "metrics": "evaluation.metrics"}
MOVED = {
    "blocks": "decoder.blocks", "card": "hub.card", "checkpointing": "decoder.recomputation",
    "compiler": "decoder.compiler", "config": "models.config", "demo": "cli.demo",
    "detection": "instances.detectors", "detector_card": "instances.card",
    "draw": "topology.drawing", "errors": "base.errors", "export": "models.export",
    "extras": "base.extras", "feature_pyramids": "topology.fpn",
    "finetune": "models.parameter_groups", "fuse": "decoder.fuse", "graph": "topology.graph",
    "inference": "prediction", "instance_inference": "instances.prediction",
    "instance_metrics": "instances.metrics", "instance_report": "training.report.instances",
    "kernels": "decoder.kernels", "layers": "decoder.layers", "lowering": "decoder.lowering",
    "meta": "decoder.meta", "model": "models", "nodes": "decoder.nodes",
    "pictures": "evaluation.visualise_masks", "preprocess": "data.preprocessing",
    "publish": "hub.publish", "pyramid": "models.backbone", "remote": "hub.client",
    "report": "training.report.semantic", "shards": "hub.checkpoint",
    "slices": "evaluation.visualise_volumes", "sources": "hub.sources", "storage": "hub.storage",
    "summary": "models.summary", "targets": "models.targets", "tasks": "training.tasks",
    "topologies": "topology.rules", "version": "base.version",
}
# Names that changed with their module. Pickles of whole models refer to the first.
RENAMED = {"nodes.Node": "NodeModule", "tasks.Task": "TrainingTask",
           "tasks.PixelTask": "SemanticTask"}


class StandIn(ModuleType):
    """A module that passes on the attributes of the module that replaced it."""

    def __init__(self, name: str, place: str, deprecated: bool) -> None:
        super().__init__(name, f"Stands for `{place}`.")
        self.__spec__ = ModuleSpec(name, None)
        self._place, self._deprecated = place, deprecated

    def __dir__(self) -> list[str]:
        return dir(import_module(self._place))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        short = self.__name__.removeprefix(f"{PACKAGE}.")
        value = getattr(import_module(self._place), RENAMED.get(f"{short}.{name}", name))
        if self._deprecated:
            warnings.warn(f"{self.__name__} is now {self._place}", DeprecationWarning,
                          stacklevel=2)
        return value


def keep_old_names() -> None:
    """Makes modules importable under their earlier names.

    The stand-ins are entered in `sys.modules` before anybody imports them. An import of the module
    ``nestedseg.pyramid``, for example, would otherwise replace the function `nestedseg.pyramid`.
    """
    for names, deprecated in ((SHORT, False), (MOVED, True)):
        for name, place in names.items():
            full = f"{PACKAGE}.{name}"
            sys.modules[full] = StandIn(full, f"{PACKAGE}.{place}", deprecated)
