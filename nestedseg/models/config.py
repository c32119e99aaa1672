"""The configuration of a model: everything needed to rebuild it, as checked, JSON-able data.

Both `nestedseg.create` and the loading of a stranger's config.json make a `Config`, which checks
the type and bounds of every field before anything is built from it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nestedseg.base.errors import choose, nearest, show, whole, wholes
from nestedseg.base.extras import install_command
from nestedseg.base.version import __version__
from nestedseg.decoder.layers import (
    ACTIVATIONS,
    NORMS,
    OPTIONS,
    UPSAMPLINGS,
    Choice,
    Style,
    split_choice,
)
from nestedseg.decoder.lowering import EXECUTIONS
from nestedseg.encoders.description import MAX_SIDE, Options
from nestedseg.hub.facts import MAX_NUMBER, check_training, is_text
from nestedseg.models.targets import MAX_IGNORED, TASKS, Task, check_classes
from nestedseg.topology.graph import MAX_CHANNELS, Graph

SCHEMA_VERSION = 2
MAX_SMALLEST = 4096  # pixels
MAX_KERNEL = 31  # of a head, in pixels
OUTPUTS = ("deepest", "ensemble")


@dataclass(frozen=True)
class Config:
    """The arguments of `nestedseg.create`, resolved; `create` documents those not listed here.

    Args:
        image_size: the one (H, W) that the encoder takes; ``None`` = any.
        pad_multiple: images are padded to a multiple of this along each axis. A pruned model keeps
            the value of the model it came from; its outputs would otherwise differ at the border.
        pad_smallest: images are padded to at least this size along each axis.
        preprocessing: what `nestedseg.preprocess` applies.
        fused: whether this is the inference-only form that `SegmentationModel.fuse` returns.
        class_names: one for each channel of the logits.
        ignore_index: the values in the labels it was trained on that mean no class.
        training: what the model was trained on, and its scores; see `check_training`.

    Raises:
        ValueError: an unknown name, or a value out of bounds.
        TypeError: a value of the wrong type.
    """

    graph: Graph
    encoder: str
    decoder_channels: tuple[int, ...]
    classes: int = 1
    in_channels: int = 3
    task: Task = "binary"
    encoder_channels: tuple[int, ...] | None = None
    image_size: tuple[int, ...] | None = None
    stem: bool | int | tuple[int, ...] = False
    encoder_taps: tuple[int | str, ...] | None = None
    pyramid_channels: tuple[int, ...] | None = None
    strides: tuple[tuple[int, ...], ...] | None = None
    depth_strides: tuple[int, ...] | None = None
    upsample: str = "nearest"
    norm: Choice | None = "batch"
    activation: Choice = "relu"
    bias: bool = False
    dropout: float = 0.0
    dims: int = 2
    head_kernel: int = 1
    output: str | int = "deepest"
    execution: str = "fast"
    pad_multiple: tuple[int, ...] = (1, 1)
    pad_smallest: tuple[int, ...] = (1, 1)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    fused: bool = False
    class_names: tuple[str, ...] | None = None
    ignore_index: tuple[int, ...] = ()
    training: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        whole("classes", self.classes, 1, MAX_CHANNELS)
        for name, value in vars(self.encoder_options).items():  # checked there
            object.__setattr__(self, name, value)
        choose("task", self.task, TASKS)
        check_classes(self.task, self.classes)
        choose("upsample", self.upsample, UPSAMPLINGS)
        if self.upsample == "bicubic" and self.dims != 2:
            raise ValueError("upsample 'bicubic' is only for images, got dims=3; for volumes use "
                             "'nearest', 'bilinear', 'bilinear_corners' or 'transpose'")
        if self.norm is not None:
            object.__setattr__(self, "norm", check_choice("norm", self.norm, NORMS))
        object.__setattr__(self, "activation",
                           check_choice("activation", self.activation, ACTIVATIONS))
        if type(self.bias) is not bool:
            raise TypeError(f"bias must be true or false, got {show(self.bias)}")
        if whole("head_kernel", self.head_kernel, 1, MAX_KERNEL) % 2 == 0:
            raise ValueError(f"head_kernel must be odd, got {self.head_kernel}")
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
        if self.class_names is not None:
            object.__setattr__(self, "class_names",
                               check_class_names(self.class_names, self.classes))
        if self.ignore_index != ():
            several = [] if self.ignore_index == [] else wholes(
                "ignore_index", self.ignore_index, -MAX_IGNORED, MAX_IGNORED)
            object.__setattr__(self, "ignore_index", tuple(several))
        if self.training is not None:
            object.__setattr__(self, "training", check_training(self.training))

    @property
    def encoder_options(self) -> Options:
        return Options(**{f.name: getattr(self, f.name) for f in fields(Options)})

    @property
    def style(self) -> Style:
        return Style(self.dims, self.norm, self.activation, self.dropout, self.upsample,
                     self.execution, self.bias)

    def prune(self, depth: int) -> Config:
        """The configuration of the model that `prune(depth)` returns."""
        return replace(self, graph=self.graph.prune(depth), output="deepest")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values, with the whole graph and its name."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data = {key: _lists(value) for key, value in data.items()}
        data |= {key: copy.deepcopy(data[key])
                 for key in ("preprocessing", "norm", "activation", "training")}
        return {"schema_version": SCHEMA_VERSION, "topology": self.graph.name,
                **data, "graph": self.graph.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Config:
        """The checked configuration in an object that `to_dict` wrote."""
        data = migrate(data)
        name = data.pop("topology", None)
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise ValueError(f"unknown config key {show(key)}; {nearest(key, known)}")
        for key in known[:3]:
            if key not in data:
                raise ValueError(f"the config key {key!r} is missing")
        return cls(**data | {"graph": named_graph(data["graph"], name)})


def named_graph(data: Any, name: Any) -> Graph:
    """The graph in a config, and its name, which is stored beside it if it is a short text."""
    short = isinstance(name, str) and len(name) <= 100
    return Graph.from_dict(data, name if short else "graph")


def check_choice(kind: str, choice: Any, allowed: Mapping[str, Any]) -> Choice:
    """Checks a norm or activation, which is a name or an object with a name and options.

    Raises:
        ValueError: an unknown name or option, or a value out of bounds.
    """
    name, options = split_choice(choice)
    bounds = OPTIONS.get(choose(kind, name, allowed), {})
    for key, value in options.items():
        low, high = bounds[choose(f"option of {kind} {name!r}", key, bounds)]
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"{kind} {name!r}: {key!r} must be a number from {low} to {high}, "
                             f"got {show(value)}")
    if "groups" in options:
        whole(f"{kind} {name!r}: 'groups'", options["groups"], 1, MAX_CHANNELS)
    return {"name": name, **options} if options else name


def _to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 to 2: ``pad_smallest`` has a value for each axis; new fields are optional."""
    axes = 3 if data.get("dims") == 3 else 2
    return data | {"pad_smallest": [data.get("pad_smallest", 1)] * axes}


# The function that brings a config of each earlier version to the next.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2}


def migrate(data: Mapping[str, Any]) -> dict[str, Any]:
    """Brings a config of an earlier schema version to the present one.

    Raises:
        ValueError: an unknown version; the message says which nestedseg reads it.
    """
    data = dict(data)
    version, writer = data.pop("schema_version", None), data.pop("nestedseg_version", None)
    if type(version) is not int or version not in (*MIGRATIONS, SCHEMA_VERSION):
        known = isinstance(writer, str) and re.fullmatch(r"[0-9]+(\.[0-9a-z]+){1,4}", writer)
        newer = f"nestedseg {writer[:30]}, which wrote it, or a later one" if known \
            else "a newer nestedseg"
        raise ValueError(f"config schema version {show(version)} is unknown to nestedseg "
                         f"{__version__}, which reads versions {min(MIGRATIONS)} to "
                         f"{SCHEMA_VERSION}. Install {newer}: {install_command()} in an up-to-date "
                         "clone of the nestedseg repository")
    for earlier in range(version, SCHEMA_VERSION):
        data = MIGRATIONS[earlier](data)
    return data


def check_output(output: str | int, graph: Graph) -> None:
    """Checks that an output is "deepest", "ensemble" or a depth with a head.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(output, str):
        choose("output", output, OUTPUTS)
    else:
        graph.head(output)


PREPROCESSING = {  # what messages say that each value must be
    "mean": "one number per channel", "std": "one number above 0 per channel",
    "input_range": "two numbers, the lower first", "interpolation": "a name",
    "size": f"None, or 2 or 3 whole numbers from 1 to {MAX_SIDE}",
    "standardise": "true or false", "spacing": "None, or 3 numbers above 0 (mm along D, H, W)",
    "value_range": "None, or one pair (low, high), or one for each channel", "nodata": "a number",
    "clip": "true or false",
}


def check_preprocessing(values: Any, channels: int) -> dict[str, Any]:
    """The preprocessing values, if each has the right type and is within its bounds.

    Raises:
        TypeError: ``values`` is not an object.
        ValueError: a key is unknown or missing, or a value does not fit.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"preprocessing must be an object, got {show(values)}")
    checks = {"mean": lambda v: _numbers(v, channels),
              "std": lambda v: _numbers(v, channels) and min(v) > 0,
              "input_range": lambda v: _numbers(v, 2) and v[0] < v[1],
              "interpolation": lambda v: isinstance(v, str), "size": _size}
    optional = {"standardise": lambda v: type(v) is bool,
                "spacing": lambda v: v is None or (_numbers(v, 3) and min(v) > 0),
                "value_range": lambda v: v is None or _ranges(v, channels),
                "clip": lambda v: type(v) is bool,
                "nodata": lambda v: v is None or _numbers([v], 1)}
    for key in values:
        if key not in checks | optional:
            raise ValueError(f"unknown preprocessing key {show(key)}; "
                             f"{nearest(key, checks | optional)}")
    for key in checks:
        if key not in values:
            raise ValueError(f"the preprocessing key {key!r} is missing; needed are "
                             f"{', '.join(checks)}")
    for key, fits in (checks | optional).items():
        if key in values and not fits(values[key]):
            raise ValueError(f"invalid preprocessing {key!r} for {channels} input channels: "
                             f"expected {PREPROCESSING[key]}, got {show(values[key])}")
    return {key: _lists(v) for key, v in values.items()}


def _ranges(value: Any, channels: int) -> bool:
    """Whether it is one pair (low, high), or one for each channel."""
    return isinstance(value, (list, tuple)) and len(value) in (1, channels) \
        and all(_numbers(pair, 2) and pair[0] < pair[1] for pair in value)


def check_class_names(names: Any, classes: int) -> tuple[str, ...]:
    """The class names as a tuple, if there is a different short text for each class.

    Raises:
        TypeError: ``names`` is not a list of short texts.
        ValueError: there are more or fewer names than classes, or two are the same.
    """
    if not isinstance(names, (list, tuple)) or not all(map(is_text, names)):
        raise TypeError(f"class_names must be a list of short texts, got {show(names)}")
    if len(names) != classes or len(set(names)) != classes:
        raise ValueError(f"class_names must be {classes} different names, got {show(names)}")
    return tuple(names)


def _lists(value: Any) -> Any:
    """The value with all tuples in it as lists, for JSON."""
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _numbers(value: Any, count: int) -> bool:
    return (isinstance(value, (list, tuple)) and len(value) == count
            and all(type(v) in (int, float) and abs(v) <= MAX_NUMBER for v in value))


def _size(value: Any) -> bool:
    return value is None or (isinstance(value, (list, tuple)) and len(value) in (2, 3)
                             and all(type(v) is int and 1 <= v <= MAX_SIDE for v in value))
