"""`pyramid`: a topology over an encoder as the backbone of a detector."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.base.errors import choose, nearest, show, whole, wholes
from nestedseg.decoder.compiler import build_decoder
from nestedseg.decoder.kernels import layout_of
from nestedseg.decoder.layers import (
    ACTIVATIONS,
    CONV,
    NORMS,
    UPSAMPLINGS,
    Choice,
    Style,
    batch_norms,
)
from nestedseg.decoder.lowering import EXECUTIONS
from nestedseg.encoders import Description, Options, build_encoder, describe_encoder
from nestedseg.models.config import check_choice, named_graph
from nestedseg.models.sizes import crop, pad, padding
from nestedseg.topology.graph import MAX_CHANNELS, Graph, GraphError, position
from nestedseg.topology.rules import pyramid_topology, read_graph

MAX_STRIDE = 2 ** 16
COARSER = {None: (), "pool": ("pool",), "p6p7": ("p6", "p7")}  # the names of the added levels


@dataclass(frozen=True)
class PyramidConfig:
    """The arguments of `pyramid`, resolved and checked; `pyramid` documents each of them.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: an unknown name, or a value out of bounds.
        GraphError: the graph does not have one head in each row, finest first.
    """

    graph: Graph
    encoder: Options
    out_channels: int = 256
    strides: tuple[int, ...] = (4, 8, 16, 32)
    coarser: str | None = None
    frozen_batch_norm: bool = False
    upsample: str = "nearest"
    norm: Choice | None = "group"
    activation: Choice = "relu"
    execution: str = "fast"

    def __post_init__(self) -> None:
        whole("out_channels", self.out_channels, 1, MAX_CHANNELS)
        object.__setattr__(self, "strides", wholes("strides", self.strides, 1, MAX_STRIDE))
        choose("upsample", self.upsample, UPSAMPLINGS)
        object.__setattr__(self, "activation",
                           check_choice("activation", self.activation, ACTIVATIONS))
        choose("execution", self.execution, EXECUTIONS)
        if self.norm is not None:
            object.__setattr__(self, "norm", check_choice("norm", self.norm, NORMS))
        if self.coarser is not None:
            choose("coarser levels", self.coarser, [name for name in COARSER if name])
        if type(self.frozen_batch_norm) is not bool:
            raise TypeError("frozen_batch_norm must be true or false, "
                            f"got {show(self.frozen_batch_norm)}")
        if self.encoder.dims != 2:
            raise ValueError("a feature pyramid is only for images, dims=2, got "
                             f"dims={self.encoder.dims}")
        rows = [position(head)[0] for head in self.graph.heads]
        if rows != list(range(len(self.strides))):
            raise GraphError(f"topology {self.graph.name!r}: a pyramid of {len(self.strides)} "
                             f"strides needs one head in each of its first {len(self.strides)} "
                             f"rows, finest first; it has them in rows {rows}")
        for head in self.graph.heads:
            if self.graph.nodes[head].channels not in (None, self.out_channels):
                raise GraphError(f"topology {self.graph.name!r}, node {head!r}: all levels have "
                                 f"out_channels={self.out_channels} channels, but this node has "
                                 f"{self.graph.nodes[head].channels}; leave its 'channels' out")

    @property
    def style(self) -> Style:
        return Style(2, self.norm, self.activation, 0.0, self.upsample, self.execution)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return data | {"topology": self.graph.name, "graph": self.graph.to_dict(),
                       "strides": list(self.strides),
                       "encoder": {key: list(value) if isinstance(value, tuple) else value
                                   for key, value in vars(self.encoder).items()}}

    @classmethod
    def from_dict(cls, data: Any) -> PyramidConfig:
        """The checked configuration in an object that `to_dict` wrote."""
        data = check_keys(cls, data, "pyramid", "topology")
        graph = named_graph(data["graph"], data.pop("topology", None))
        options = check_keys(Options, data["encoder"], "pyramid's encoder")
        return cls(**data | {"graph": graph, "encoder": Options(**options)})


def check_keys(kind: type, data: Any, what: str, *further: str) -> dict[str, Any]:
    """``data`` as a dict, if its keys are fields of the dataclass ``kind`` or among ``further``.

    Fields without a default must be there.

    Raises:
        TypeError: ``data`` is not an object.
        ValueError: a key is unknown or missing; ``what`` names the object in the message.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{what} must be an object, got {show(data)}")
    known = [*(f.name for f in fields(kind)), *further]
    for key in data:
        if key not in known:
            raise ValueError(f"unknown {what} key {show(key)}; {nearest(key, known)}")
    for field in fields(kind):
        if field.default is MISSING and field.name not in data:
            raise ValueError(f"the {what} key {field.name!r} is missing")
    return dict(data)


class FeaturePyramid(nn.Module):
    """An encoder and a graph with a head on each level. Made by `nestedseg.pyramid`.

    Attributes:
        out_channels: channels of every level.
        strides: stride of each level, including the coarser ones that were added.
        channels: channels of each level, likewise.
        preprocessing: mean, std and more that the encoder's images are scaled by.
        config: the arguments that it was made with.
    """

    def __init__(self, config: PyramidConfig,
                 encoder_weights: str | Path | bool | None = None) -> None:
        super().__init__()
        whole_body = describe_encoder(config.encoder)
        self.skipped, count = find_levels(whole_body, config), len(config.strides)
        body = replace(whole_body, levels=whole_body.levels[self.skipped:],
                       multiples=whole_body.multiples[self.skipped:])
        widths = (config.out_channels,) * count
        self.config = config
        self.encoder = build_encoder(config.encoder, config.style, encoder_weights,
                                     self.skipped + count)
        self.decoder = build_decoder(config.graph, body.levels, None, widths, config.style)
        self.multiple, self.smallest = padding(config.graph, body, widths, config.norm)
        self.fixed_size, self.preprocessing = body.fixed_size, body.preprocessing
        self.out_channels = config.out_channels
        names = COARSER[config.coarser]
        self.names = (*map(str, range(count)), *names)
        self.strides: tuple[int, ...] = (
            *config.strides,
            *(config.strides[-1] * 2 ** n for n in range(1, len(names) + 1)))
        self.channels = (config.out_channels,) * len(self.strides)
        if config.coarser == "p6p7":
            self.p6 = make_coarser(config.out_channels)
            self.p7 = make_coarser(config.out_channels)
        if config.frozen_batch_norm:
            for norm in batch_norms(self.encoder):
                norm.requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        """A number of pixels; images whose sides are multiples of it are not padded."""
        return math.lcm(*self.multiple)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level by name, in the form of detectron2's backbones."""
        return {name: ShapeSpec(channels, stride) for name, channels, stride
                in zip(self.names, self.channels, self.strides)}

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The maps of all levels, in the form that torchvision's detectors expect.

        Args:
            x: ``(N, in_channels, H, W)``, floats; any size, unless the encoder is built for one.

        Returns:
            ``(N, out_channels, h, w)`` by name, "0", "1", ..., finest first; h is H divided by the
            level's stride, rounded up.

        Raises:
            ValueError: ``x`` has another shape, or is not of floats.
        """
        self._check_input(x)
        features = self.encoder(pad(x, self.multiple, self.smallest))[self.skipped:]
        maps = [crop(y, [math.ceil(n / stride) for n in x.shape[2:]]) for y, stride
                in zip(self.decoder(features, self.decoder.graph.depths), self.strides)]
        maps = list(layout_of(x, maps))
        if self.config.coarser == "pool":  # every second pixel
            maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        elif self.config.coarser == "p6p7":
            maps.append(self.p6(maps[-1]))
            maps.append(self.p7(F.relu(maps[-1])))
        return OrderedDict(zip(self.names, maps))

    def _check_input(self, x: Tensor) -> None:
        channels = self.config.encoder.in_channels
        if x.dim() != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(f"expected a float tensor (N, {channels}, H, W), got {x.dtype} "
                             f"{tuple(x.shape)}")
        if self.fixed_size is not None and tuple(x.shape[2:]) != self.fixed_size:
            raise ValueError(f"encoder {self.config.encoder.encoder!r} is built for images of "
                             f"{self.fixed_size}, got {tuple(x.shape[2:])}: make the pyramid with "
                             f"image_size={tuple(x.shape[2:])}, or resize the images")

    def train(self, mode: bool = True) -> FeaturePyramid:
        """Training or eval mode; frozen batch norms stay in eval mode."""
        super().train(mode)
        if self.config.frozen_batch_norm:
            for norm in batch_norms(self.encoder):
                norm.eval()
        return self


@dataclass(frozen=True)
class ShapeSpec:
    """Channels and stride of a feature map, with the fields of detectron2's class of this name."""

    channels: int
    stride: int
    height: int | None = None
    width: int | None = None


def make_coarser(channels: int) -> nn.Conv2d:
    """A 3x3 convolution with stride 2, which adds a level coarser than the encoder's (RetinaNet).
    """
    conv = CONV[2](channels, channels, 3, stride=2, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.bias)
    return conv


def find_levels(body: Description, config: PyramidConfig) -> int:
    """How many of the encoder's finest levels are finer than the pyramid, which skips them.

    Raises:
        ValueError: the encoder does not have all of the pyramid's strides.
    """
    offered = tuple(level.stride[0] for level in body.levels)
    count = len(config.strides)
    for first in range(len(offered) - count + 1):
        if offered[first:first + count] == config.strides:
            return first
    raise ValueError(f"strides {config.strides} do not fit encoder {config.encoder.encoder!r}, "
                     f"whose levels have strides {offered}; choose consecutive ones of these")


def pyramid(
    topology: str | Path | Mapping[str, Any] | Graph = "fpnpp",
    encoder: str = "resnet50",
    *,
    out_channels: int = 256,
    strides: Sequence[int] = (4, 8, 16, 32),
    coarser: str | None = None,
    encoder_weights: str | Path | bool | None = None,
    frozen_batch_norm: bool | None = None,
    in_channels: int = 3,
    encoder_channels: Sequence[int] = (32, 64, 128, 256, 512),
    image_size: Sequence[int] | None = None,
    pyramid_channels: Sequence[int] | None = None,
    upsample: str = "nearest",
    norm: str | Mapping[str, Any] | None = "group",
    activation: str | Mapping[str, Any] = "relu",
    execution: str = "fast",
) -> FeaturePyramid:
    """A feature pyramid, for detectors: a skip topology over an encoder, with a map for each level.

    Sources: Lin et al., Feature pyramid networks, 2017, arXiv 1612.03144; Zhou et al., UNet++,
    IEEE TMI 2020, section IV-B, doi:10.1109/TMI.2019.2959609.

    Args:
        topology: "fpn" (Lin's), "fpn_plus", "fpnpp" (with UNet++'s dense skips); the name of
            another topology, whose skips the pyramid then has; or a graph of your own with a head
            on each level, finest first.
        encoder: see `nestedseg.create`; its levels must have the ``strides``.
        out_channels: channels of every level.
        strides: stride of each level, finest first, at least two.
        coarser: adds coarser levels: "pool" (every second pixel of the coarsest level, named
            "pool", as in Mask R-CNN) or "p6p7" (two convolutions with stride 2, named "p6" and
            "p7", as in RetinaNet). Default: none.
        encoder_weights: see `nestedseg.create`.
        frozen_batch_norm: whether the encoder's batch norms keep their weights and statistics in
            training, as is usual for small batches. Default: only with encoder weights.
        in_channels: channels of the images.
        encoder_channels: widths of the plain encoder.
        image_size: see `nestedseg.create`.
        pyramid_channels: see `nestedseg.create`.
        upsample: see `nestedseg.create`.
        norm: norm of the nodes with a norm and an activation ("fpn" has no such nodes): "batch",
            "instance", "group" (8 groups) or ``None``.
        activation: activation of the same nodes; see `nestedseg.create`.
        execution: see `nestedseg.create`.

    Raises:
        ValueError: an unknown name, or numbers that do not fit together.
        GraphError: a malformed topology.
        OSError: encoder weights that cannot be fetched or read.
    """
    sequences: dict[str, Any] = {  # `Options` makes tuples of them
        "encoder_channels": encoder_channels if encoder == "plain" else None,
        "image_size": image_size, "pyramid_channels": pyramid_channels}
    options = Options(encoder, in_channels, **sequences)
    strides = wholes("strides", strides, 1, MAX_STRIDE)
    if isinstance(topology, str) and not topology.endswith(".json"):
        graph = pyramid_topology(topology, len(strides) - 1)
    else:
        graph = read_graph(topology)
    frozen = bool(encoder_weights) if frozen_batch_norm is None else frozen_batch_norm
    config = PyramidConfig(graph, options, out_channels, strides, coarser, frozen, upsample, norm,
                           activation, execution)
    return FeaturePyramid(config, encoder_weights)
