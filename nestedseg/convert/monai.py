"""MONAI's ``BasicUNet`` and ``BasicUNetPlusPlus``, 2-D and 3-D, as nestedseg models.

Their graphs are this library's "unet" and "unetpp" of depth 4 over the plain encoder. MONAI keeps
no record of a model's arguments, so that they are read off a live model's layers, or must be given
with a state dict. MONAI itself is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nestedseg.config import Config
from nestedseg.convert.weights import (
    State,
    check_state,
    fill,
    pair,
    plain_affine,
    plan,
    read_state,
    refuse,
    refuse_leftovers,
)
from nestedseg.encoders import Options, describe_encoder
from nestedseg.errors import choose, nearest, show, whole, wholes
from nestedseg.graph import MAX_CHANNELS, Graph, position
from nestedseg.layers import Choice, split_choice
from nestedseg.model import SegmentationModel, padding
from nestedseg.topologies import topology

NETWORKS = {"BasicUNet": "unet", "BasicUNetPlusPlus": "unetpp"}
DEPTH = 4
DEFAULTS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2,
            "features": (32, 32, 64, 128, 256, 32), "deep_supervision": False,
            "act": ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
            "norm": ("instance", {"affine": True}), "bias": True, "dropout": 0.0,
            "upsample": "deconv"}
UPSAMPLINGS = {"deconv": "transpose", "nontrainable": "bilinear_corners"}
# The last layer of their up-sampling.
UPSAMPLERS = {"deconv": "deconv", "upsample_non_trainable": "nontrainable"}


@dataclass(frozen=True)
class Kind:
    """A kind of activation or norm.

    Args:
        name: ours.
        layers: the classes of its layers.
        kept: our name of each of its options, and its default there.
        fixed: options that have no counterpart, with the value that they must have.
    """

    name: str
    layers: tuple[str, ...]
    kept: dict[str, tuple[str, Any]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


EPS = {"eps": ("eps", 1e-5)}
ACTIVATIONS = {
    "relu": Kind("relu", ("ReLU",)),
    "leakyrelu": Kind("leaky_relu", ("LeakyReLU",), {"negative_slope": ("negative_slope", 0.01)}),
    "elu": Kind("elu", ("ELU",), {"alpha": ("alpha", 1.0)}),
    "prelu": Kind("prelu", ("PReLU",), fixed={"num_parameters": 1}),
    "gelu": Kind("gelu", ("GELU",), fixed={"approximate": "none"}),
    "swish": Kind("silu", ("Swish",), fixed={"alpha": 1.0}),
    "memswish": Kind("silu", ("MemoryEfficientSwish",)),
    "mish": Kind("mish", ("Mish",)),
}
NORMS = {
    "batch": Kind("batch", ("BatchNorm2d", "BatchNorm3d"),
                  EPS | {"momentum": ("momentum", 0.1)}, {"track_running_stats": True}),
    "instance": Kind("instance", ("InstanceNorm2d", "InstanceNorm3d"), EPS,
                     {"track_running_stats": False}),
    "group": Kind("group", ("GroupNorm",), EPS | {"num_groups": ("groups", None)}),
}
CONV_BIAS = re.compile(r"\.conv\d\.bias$")
# Of no effect on a trained model: weights that are missing are ones, a PReLU's slope is trained.
FREE = ("inplace", "affine", "init", "momentum")


def from_monai(source: nn.Module | Mapping[str, Tensor] | str | Path, *,
               network: str | None = None, task: str | None = None,
               **arguments: Any) -> SegmentationModel:
    """A ``BasicUNet`` or ``BasicUNetPlusPlus`` of MONAI as a nestedseg model.

    In eval mode it gives the same logits, for images whose sides are multiples of 16. MONAI pads
    the maps of other sizes inside, nestedseg the image, so that those differ near the far border.
    A bias before an instance norm has no effect and is left out; one before a batch norm becomes
    part of its mean; others stay. With ``deep_supervision`` every head is kept.

    Args:
        source: a live model; or, with ``network`` and its arguments, a state dict or the path of
            one (.safetensors, .pth).
        network: "BasicUNet" or "BasicUNetPlusPlus".
        task: "binary", "multiclass" or "multilabel". Default: binary if it has one class, else
            multiclass.
        arguments: those of the network, where they are not its defaults: ``spatial_dims``,
            ``in_channels``, ``out_channels``, ``features``, ``deep_supervision``, ``act``,
            ``norm``, ``bias``, ``dropout``, ``upsample``.

    Raises:
        ValueError: a layer or argument that has no counterpart, or weights that do not fit.
        FileNotFoundError: no such file.
    """
    if isinstance(source, nn.Module):
        if network is not None or arguments:
            raise TypeError("a live model says what it is; give the network and its arguments with "
                            "a state dict alone")
        theirs, where = inspect(source), "the model"
        state = check_state(source.state_dict(), where)
    else:
        if network is None:
            raise TypeError("a state dict does not say what it belongs to: also give "
                            f"network={' or '.join(map(repr, NETWORKS))} and its arguments")
        theirs = Theirs.parse(network, arguments)
        where = "the state dict" if isinstance(source, Mapping) else repr(str(source))
        state = read_state(source)
    ours = mirror(theirs, task)
    needed = plan(ours)
    return fill(ours, needed, translate(theirs, ours.graph, needed, state), where)


@dataclass(frozen=True)
class Theirs:
    """A network's arguments, as `nestedseg.create` takes them where it has the like."""

    network: str
    dims: int
    in_channels: int
    classes: int
    features: tuple[int, ...]
    deep_supervision: bool
    activation: Choice
    norm: Choice | None
    bias: bool
    dropout: float
    upsample: str

    @classmethod
    def parse(cls, network: str, arguments: Mapping[str, Any]) -> Theirs:
        """The checked arguments, and MONAI's defaults of the others.

        Raises:
            ValueError: an argument that has no counterpart, or is out of bounds.
            TypeError: one of the wrong type.
        """
        choose("network", network, NETWORKS)
        for key in arguments:
            if key not in DEFAULTS or (key == "deep_supervision" and network == "BasicUNet"):
                raise TypeError(f"{network} has no argument {show(key)}; {nearest(key, DEFAULTS)}")
        given = DEFAULTS | dict(arguments)
        dims = whole("spatial_dims", given["spatial_dims"], 1, 3)
        if dims == 1:
            raise ValueError("spatial_dims must be 2 or 3, got 1")
        features = wholes("features", given["features"], 1, MAX_CHANNELS, most=6)
        if len(features) != 6:
            raise ValueError(f"features must be 6 numbers, got {features}")
        for key in ("deep_supervision", "bias"):
            if type(given[key]) is not bool:
                raise TypeError(f"{key} must be true or false, got {show(given[key])}")
        upsample = given["upsample"]
        if upsample not in UPSAMPLINGS:
            raise refuse("upcat_*.upsample", f"upsample={show(upsample)}; "
                         f"{nearest(upsample, UPSAMPLINGS)}")
        return cls(network, dims, whole("in_channels", given["in_channels"], 1, MAX_CHANNELS),
                   whole("out_channels", given["out_channels"], 1, MAX_CHANNELS), features,
                   given["deep_supervision"], read_kind("A", given["act"], ACTIVATIONS),
                   read_kind("N", given["norm"], NORMS) if given["norm"] else None,
                   given["bias"], read_dropout(given["dropout"] or 0.0), UPSAMPLINGS[upsample])


def read_kind(letter: str, value: Any, kinds: Mapping[str, Kind]) -> Choice:
    """An activation or norm as `nestedseg.create` takes it.

    Args:
        letter: MONAI's name of its layer, "A" or "N".
        value: a name, or a name and its options.

    Raises:
        ValueError: there is none of the kind here, or not with these options.
    """
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], Mapping)
    name, options = value if pair else (value, {})
    if not isinstance(name, str) or name.lower() not in kinds:
        raise refuse(f"*.adn.{letter}", f"{show(value)}; {nearest(name, kinds)}")
    kind = kinds[name.lower()]
    for key, given in options.items():
        if key not in (*kind.kept, *kind.fixed, *FREE) or kind.fixed.get(key, given) != given:
            raise refuse(f"*.adn.{letter}", f"{name!r} with {key}={show(given)}")
    kept = {own: options.get(key, default) for key, (own, default) in kind.kept.items()}
    return {"name": kind.name, **kept} if kept else kind.name


def read_dropout(value: Any) -> float:
    """The probability of an element-wise dropout."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and value[0] == "dropout":
        value = dict(value[1]).get("p", 0.5)
    if type(value) not in (int, float):
        raise refuse("*.adn.D", f"{show(value)}; only a probability")
    return float(value)


def inspect(model: nn.Module) -> Theirs:
    """The arguments of a live model, read off its layers.

    Raises:
        ValueError: naming a layer that has no counterpart.
    """
    network = type(model).__name__
    if network not in NETWORKS:
        raise refuse(network, f"only {' and '.join(NETWORKS)} of MONAI can be converted")
    layers = dict(model.named_modules())
    blocks = encoder_blocks(network)
    convs = [layers[f"{block}.conv_0.conv"] for block in blocks]
    first, last = convs[0], layers[list(heads(network))[-1]]
    up = [path for path in layers if path.endswith(".upsample")]
    arguments = {
        "spatial_dims": len(first.kernel_size), "in_channels": first.in_channels,
        "out_channels": last.out_channels, "bias": first.bias is not None,
        "features": (*(conv.out_channels for conv in convs), last.in_channels),
        "upsample": one_kind(layers, up, describe_upsample),
        **{key: one_kind(layers, [path for path in layers if path.endswith(f".adn.{letter}")], read)
           for key, letter, read in (
               ("act", "A", lambda layer: describe_layer(layer, ACTIVATIONS)),
               ("norm", "N", lambda layer: describe_layer(layer, NORMS)),
               ("dropout", "D", describe_dropout))}}
    if network == "BasicUNetPlusPlus":
        arguments["deep_supervision"] = bool(model.deep_supervision)
    return Theirs.parse(network, arguments)


def one_kind(layers: Mapping[str, nn.Module], paths: Sequence[str],
             describe: Callable[[nn.Module], Any]) -> Any:
    """What all of these layers are; ``None`` = there are none.

    Raises:
        ValueError: naming one that has no counterpart, or is another than the first.
    """
    found = None
    for path in paths:
        kind = describe(layers[path])
        if kind is None:
            raise refuse(path, " ".join(str(layers[path]).split()))
        found = kind if found is None else found
        if kind != found:
            raise refuse(path, f"{show(kind)}, where {paths[0]!r} is {show(found)}")
    return found


def describe_layer(layer: nn.Module,
                   kinds: Mapping[str, Kind]) -> tuple[str, dict[str, Any]] | None:
    """The name and options that make it."""
    for name, kind in kinds.items():
        if type(layer).__name__ in kind.layers:
            return name, {key: getattr(layer, key) for key in (*kind.kept, *kind.fixed)}
    return None


def describe_dropout(layer: nn.Module) -> float | None:
    return layer.p if type(layer) is nn.Dropout else None


def describe_upsample(layer: nn.Module) -> str | None:
    name, last = list(layer.named_children())[-1]
    if isinstance(last, nn.Upsample) and not (last.align_corners and last.mode.endswith("linear")):
        return None
    return UPSAMPLERS.get(name)


def encoder_blocks(network: str) -> list[str]:
    """Their modules of X^{0,0} ... X^{4,0}."""
    if network == "BasicUNet":
        return ["conv_0", *(f"down_{row}.convs" for row in range(1, DEPTH + 1))]
    return ["conv_0_0", *(f"conv_{row}_0.convs" for row in range(1, DEPTH + 1))]


def heads(network: str) -> dict[str, str]:
    """The node under each of their heads, shallow -> deep."""
    if network == "BasicUNet":
        return {"final_conv": f"x0_{DEPTH}"}
    return {f"final_conv_0_{column}": f"x0_{column}" for column in range(1, DEPTH + 1)}


def decoder_block(network: str, row: int, column: int) -> str:
    """Their module of X^{row,column}."""
    return f"upcat_{row + 1}" if network == "BasicUNet" else f"upcat_{row}_{column}"


def mirror(theirs: Theirs, task: str | None) -> Config:
    """The configuration of the same model here."""
    graph = topology(NETWORKS[theirs.network], DEPTH)
    if not theirs.deep_supervision:
        graph = graph.prune(DEPTH)
    nodes = {name: node_value(theirs, name, list(node.inputs))
             for name, node in graph.nodes.items()}
    graph = Graph(nodes, graph.heads, name=graph.name)
    options = Options("plain", theirs.in_channels, theirs.dims, theirs.features[:-1])
    body = describe_encoder(options)
    multiple, smallest = padding(graph, body, theirs.features[:-1], theirs.norm)
    default = "binary" if theirs.classes == 1 else "multiclass"
    return Config(
        graph=graph, decoder_channels=theirs.features[:-1], classes=theirs.classes,
        task=default if task is None else task, upsample=theirs.upsample, norm=theirs.norm,
        activation=theirs.activation, bias=theirs.bias and not absorbs_bias(theirs),
        dropout=theirs.dropout,
        pad_multiple=multiple, pad_smallest=smallest, preprocessing=body.preprocessing,
        **vars(options))


def node_value(theirs: Theirs, name: str, inputs: list[str]) -> Any:
    """A node's value: up-sampling halves the channels but in row 0; the last node has its own."""
    row, column = position(name)
    below = theirs.features[row + 1]
    up, own = below // 2 if row else below, theirs.features[row]
    value: dict[str, Any] = {"inputs": inputs}
    if row == 0 and column == DEPTH:
        own = theirs.features[-1]
        value |= {"channels": own} if own != theirs.features[0] else {}
    if up != (own if theirs.upsample == "transpose" else below):
        value["up_channels"] = up
    return value if len(value) > 1 else inputs


def absorbs_bias(theirs: Theirs) -> bool:
    """Whether the norm subtracts the bias of the convolution before it again."""
    return theirs.norm is not None and split_choice(theirs.norm)[0] in ("batch", "instance")


def translate(theirs: Theirs, graph: Graph, needed: Mapping[str, Tensor], given: State) -> State:
    """Their tensors under our names.

    Raises:
        ValueError: naming a layer that has no place here.
    """
    blocks = {block: f"encoder.x{row}_0"
              for row, block in enumerate(encoder_blocks(theirs.network))}
    modules: dict[str, str | None] = {}
    for name in graph.nodes:
        row, column = position(name)
        block = decoder_block(theirs.network, row, column)
        blocks[f"{block}.convs"] = f"decoder.{name}.block"
        edge = f"decoder.{name}.edges.x{row + 1}_{column - 1}"
        modules |= {f"{block}.upsample.deconv": f"{edge}.up",
                    f"{block}.upsample.preconv": f"{edge}.project"}
    for block, own in blocks.items():
        for index in (0, 1):
            modules |= {f"{block}.conv_{index}.conv": f"{own}.conv{index + 1}",
                        f"{block}.conv_{index}.adn.N": f"{own}.norm{index + 1}",
                        f"{block}.conv_{index}.adn.A": f"{own}.act{index + 1}"}
    modules |= {head: f"decoder.head_{node}" if node in graph.heads else None
                for head, node in heads(theirs.network).items()}
    names, left = pair(modules, needed, given)
    biases = {f"{own}.bias": f"{conv}.bias" for conv, own in modules.items()
              if own and f"{conv}.bias" in left} if absorbs_bias(theirs) else {}
    refuse_leftovers(left - set(biases.values()), "MONAI")
    state = {own: given[name] for own, name in names.items()}
    for own, name in biases.items():
        mean = own.replace(".conv", ".norm").replace("bias", "running_mean")
        if mean in state:  # a norm of y + b with the mean m is that of y with the mean m - b
            state[mean] = state[mean] - given[name]
    for own in [own for own in needed if own not in state and CONV_BIAS.search(own)]:
        state[own] = state[own.replace("bias", "weight")].new_zeros(needed[own].shape)
    return state | plain_affine(needed, state)
