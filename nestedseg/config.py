"""Everything needed to rebuild a model, as checked, JSON-able data.

`nestedseg.create` and the loading of a stranger's config.json both end here, so every field is
type-checked and bounded once, before anything is built from it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nestedseg.encoders.description import MAX_SIDE, Options
from nestedseg.errors import choose, nearest, show, whole, wholes
from nestedseg.graph import MAX_CHANNELS, Graph
from nestedseg.layers import ACTIVATIONS, NORMS, UPSAMPLINGS, Style
from nestedseg.lowering import EXECUTIONS
from nestedseg.targets import TASKS, check_classes

SCHEMA_VERSION = 1
MAX_NUMBER = 1e9  # mean, std and range of an image
MAX_SMALLEST = 4096  # pixels
OUTPUTS = ("deepest", "ensemble")


@dataclass(frozen=True)
class Config:
    """The arguments of `nestedseg.create`, resolved. See there for what each one means.

    Args:
        image_size: the one (H, W) that the encoder takes; ``None`` = any.
        pad_multiple: images are padded to a multiple of this along each axis; a pruned model keeps
            that of the model it came from, or its outputs would differ at the border.
        pad_smallest: and to no less than this.
        preprocessing: what `nestedseg.preprocess` applies.
        fused: whether it is the inference-only form that `SegmentationModel.fuse` gives.

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
    image_size: tuple[int, int] | None = None
    stem: bool | int | tuple[int, ...] = False
    encoder_taps: tuple[int, ...] | None = None
    pyramid_channels: tuple[int, ...] | None = None
    strides: tuple[tuple[int, ...], ...] | None = None
    depth_strides: tuple[int, ...] | None = None
    upsample: str = "nearest"
    norm: str | None = "batch"
    activation: str = "relu"
    dropout: float = 0.0
    dims: int = 2
    output: str | int = "deepest"
    execution: str = "fast"
    pad_multiple: tuple[int, ...] = (1, 1)
    pad_smallest: tuple[int, ...] = (1, 1)
    preprocessing: dict[str, Any] | None = None
    fused: bool = False

    def __post_init__(self) -> None:
        whole("classes", self.classes, 1, MAX_CHANNELS)
        for name, value in vars(self.encoder_options).items():  # checked there
            object.__setattr__(self, name, value)
        choose("task", self.task, TASKS)
        check_classes(self.task, self.classes)
        choose("upsample", self.upsample, UPSAMPLINGS)
        if self.norm is not None:
            choose("norm", self.norm, NORMS)
        choose("activation", self.activation, ACTIVATIONS)
        choose("execution", self.execution, EXECUTIONS)
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a probability in [0, 1), got {show(self.dropout)}")
        if type(self.fused) is not bool:
            raise TypeError(f"fused must be true or false, got {show(self.fused)}")
        check_output(self.output, self.graph)
        for name, high in (("decoder_channels", MAX_CHANNELS), ("pad_multiple", MAX_SIDE),
                           ("pad_smallest", MAX_SMALLEST)):
            object.__setattr__(self, name, wholes(name, getattr(self, name), 1, high))
        for name in ("pad_multiple", "pad_smallest"):
            if len(getattr(self, name)) != self.dims:
                raise ValueError(f"{name} needs {self.dims} numbers, got {getattr(self, name)}")
        object.__setattr__(self, "preprocessing",
                           check_preprocessing(self.preprocessing, self.in_channels))

    @property
    def encoder_options(self) -> Options:
        return Options(**{f.name: getattr(self, f.name) for f in fields(Options)})

    @property
    def style(self) -> Style:
        return Style(self.dims, self.norm, self.activation, self.dropout, self.upsample,
                     self.execution)

    def prune(self, depth: int) -> Config:
        """The configuration of the model that `prune(depth)` gives."""
        return replace(self, graph=self.graph.prune(depth), output="deepest")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, with the graph in full and its name."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data = {key: _lists(value) for key, value in data.items()}
        data["preprocessing"] = copy.deepcopy(self.preprocessing)
        return {"schema_version": SCHEMA_VERSION, "topology": self.graph.name,
                **data, "graph": self.graph.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """The checked configuration in an object that `to_dict` wrote."""
        data = dict(data)
        version = data.pop("schema_version", None)
        if type(version) is not int or version != SCHEMA_VERSION:
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
        short = isinstance(name, str) and len(name) <= 100
        graph = Graph.from_dict(data.pop("graph"), name if short else "graph")
        return cls(graph=graph, **data)


def check_output(output: str | int, graph: Graph) -> None:
    """Refuses an output that is neither "deepest" nor "ensemble" nor a depth with a head."""
    if isinstance(output, str):
        choose("output", output, OUTPUTS)
    else:
        graph.head(output)


def check_preprocessing(values: Any, channels: int) -> dict[str, Any]:
    """The preprocessing values, each of the type and within the bounds that they must have."""
    if not isinstance(values, Mapping):
        raise TypeError(f"preprocessing must be an object, got {show(values)}")
    checks = {"mean": lambda v: _numbers(v, channels),
              "std": lambda v: _numbers(v, channels) and min(v) > 0,
              "input_range": lambda v: _numbers(v, 2) and v[0] < v[1],
              "interpolation": lambda v: isinstance(v, str), "size": _size}
    for key in values:
        if key not in checks:
            raise ValueError(f"unknown preprocessing key {show(key)}; {nearest(key, checks)}")
    for key, fits in checks.items():
        if key not in values:
            raise ValueError(f"preprocessing lacks {key!r}")
        if not fits(values[key]):
            raise ValueError(f"preprocessing {key!r} of a model with {channels} input channels "
                             f"cannot be {show(values[key])}")
    return {key: list(v) if isinstance(v, (list, tuple)) else v for key, v in values.items()}


def _lists(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _numbers(value: Any, count: int) -> bool:
    return (isinstance(value, (list, tuple)) and len(value) == count
            and all(type(v) in (int, float) and abs(v) <= MAX_NUMBER for v in value))


def _size(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and len(value) in (2, 3)
                             and all(type(v) is int and 1 <= v <= MAX_SIDE for v in value))
