"""Everything needed to rebuild a model, as checked, JSON-able data.

`nestedseg.create` and the loading of a stranger's config.json both end here, so every field is
type-checked and bounded once, before anything is built from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nestedseg.errors import choose, nearest, show, whole, wholes
from nestedseg.graph import MAX_CHANNELS, Graph
from nestedseg.layers import ACTIVATIONS, NORMS, UPSAMPLINGS, Style
from nestedseg.targets import TASKS, check_classes

SCHEMA_VERSION = 1
OUTPUTS = ("deepest", "ensemble")


@dataclass(frozen=True)
class Config:
    """The arguments of `nestedseg.create`, resolved. See there for what each one means.

    Args:
        pad_multiple: images are padded to a multiple of this along each axis; a pruned model keeps
            that of the model it came from, or its outputs would differ at the border.
        preprocessing: what `nestedseg.preprocess` applies.

    Raises:
        ValueError: an unknown name, or a value out of bounds.
        TypeError: a value of the wrong type.
    """

    graph: Graph
    encoder: str
    decoder_channels: tuple[int, ...]
    classes: int = 1
    in_channels: int = 3
    task: str = "binary"
    encoder_channels: tuple[int, ...] | None = None
    upsample: str = "nearest"
    norm: str | None = "batch"
    activation: str = "relu"
    dropout: float = 0.0
    dims: int = 2
    output: str | int = "deepest"
    pad_multiple: tuple[int, ...] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole("classes", self.classes, 1, MAX_CHANNELS)
        whole("in_channels", self.in_channels, 1, MAX_CHANNELS)
        whole("dims", self.dims, 2, 3)
        choose("task", self.task, TASKS)
        check_classes(self.task, self.classes)
        choose("upsample", self.upsample, UPSAMPLINGS)
        if self.norm is not None:
            choose("norm", self.norm, NORMS)
        choose("activation", self.activation, ACTIVATIONS)
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a probability in [0, 1), got {show(self.dropout)}")
        check_output(self.output, self.graph)
        for name, high in (("decoder_channels", MAX_CHANNELS), ("encoder_channels", MAX_CHANNELS),
                           ("pad_multiple", 2 ** 16)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, wholes(name, getattr(self, name), 1, high))
        object.__setattr__(self, "preprocessing", check_preprocessing(self.preprocessing))

    @property
    def style(self) -> Style:
        return Style(self.dims, self.norm, self.activation, self.dropout, self.upsample)

    def prune(self, depth: int) -> Config:
        """The configuration of the model that `prune(depth)` gives."""
        return replace(self, graph=self.graph.prune(depth), output="deepest")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, with the graph in full and its name."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data = {key: list(v) if isinstance(v, tuple) else v for key, v in data.items()}
        return {"schema_version": SCHEMA_VERSION, "topology": self.graph.name,
                **data, "graph": self.graph.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """The checked configuration in an object that `to_dict` wrote."""
        data = dict(data)
        version = data.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ValueError(f"config schema version {show(version)} is unknown to this nestedseg, "
                             f"which reads version {SCHEMA_VERSION}; a newer nestedseg may read it")
        name = data.pop("topology", "graph")
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise ValueError(f"unknown config key {show(key)}; {nearest(key, known)}")
        for key in known[:3]:
            if key not in data:
                raise ValueError(f"the config key {key!r} is missing")
        graph = Graph.from_dict(data.pop("graph"), name if isinstance(name, str) else "graph")
        return cls(graph=graph, **data)


def check_output(output: str | int, graph: Graph) -> None:
    """Refuses an output that is neither "deepest" nor "ensemble" nor a depth with a head."""
    if isinstance(output, str):
        choose("output", output, OUTPUTS)
    else:
        graph.head(output)


def check_preprocessing(values: Any) -> dict[str, Any]:
    """The preprocessing values, each of the type and within the bounds that they must have."""
    if not isinstance(values, Mapping):
        raise TypeError(f"preprocessing must be an object, got {show(values)}")
    checks = {"mean": _numbers, "std": _positive, "input_range": _pair, "size": _size,
              "interpolation": lambda value: isinstance(value, str)}
    for key, value in values.items():
        if key not in checks:
            raise ValueError(f"unknown preprocessing key {show(key)}; {nearest(key, checks)}")
        if not checks[key](value):
            raise ValueError(f"preprocessing {key!r} cannot be {show(value)}")
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _numbers(value: Any) -> bool:
    return (isinstance(value, (list, tuple)) and 1 <= len(value) <= MAX_CHANNELS
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value))


def _positive(value: Any) -> bool:
    return _numbers(value) and min(value) > 0


def _pair(value: Any) -> bool:
    return _numbers(value) and len(value) == 2 and value[0] < value[1]


def _size(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and len(value) in (2, 3)
                             and all(type(v) is int and 1 <= v <= 2 ** 16 for v in value))

