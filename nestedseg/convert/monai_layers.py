"""The layers of MONAI's networks: their paths, and the arguments that can be read off them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from nestedseg.base.errors import show
from nestedseg.convert.monai_options import ACTIVATIONS, NETWORKS, NORMS, Kind, MonaiConfig
from nestedseg.convert.weights import refuse

DEPTH = 4
# MONAI's ``upsample``, by the name of the last layer of an up-sampling module.
UPSAMPLERS = {"deconv": "deconv", "upsample_non_trainable": "nontrainable"}


def inspect(model: nn.Module) -> MonaiConfig:
    """The arguments of a live model, read off its layers.

    Raises:
        ValueError: a layer has no counterpart here; the message names it.
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
    return MonaiConfig.parse(network, arguments)


def one_kind(layers: Mapping[str, nn.Module], paths: Sequence[str],
             describe: Callable[[nn.Module], Any]) -> Any:
    """The description that all layers at these paths share; ``None`` = there are no layers.

    Args:
        layers: all layers of the model, by path.
        paths: of the layers to describe.
        describe: returns ``None`` for a layer without a counterpart here.

    Raises:
        ValueError: a layer has no counterpart, or differs from the first; the message names it.
    """
    found = None
    for path in paths:
        kind = describe(layers[path])
        if kind is None:
            layer = " ".join(str(layers[path]).split())
            raise refuse(path, f"it is {layer}, which has no counterpart here")
        found = kind if found is None else found
        if kind != found:
            raise refuse(path, f"it is {show(kind)}, but {paths[0]!r} is {show(found)}, and all "
                               "must be alike")
    return found


def describe_layer(layer: nn.Module,
                   kinds: Mapping[str, Kind]) -> tuple[str, dict[str, Any]] | None:
    """MONAI's name and options of an activation or norm; ``None`` = it has no counterpart."""
    for name, kind in kinds.items():
        if type(layer).__name__ in kind.layers:
            options = (*kind.kept, *kind.fixed, *(["affine"] if kind.affine is not None else []))
            return name, {key: getattr(layer, key) for key in options}
    return None


def describe_dropout(layer: nn.Module) -> float | None:
    return layer.p if type(layer) is nn.Dropout else None


def describe_upsample(layer: nn.Module) -> str | None:
    name, last = list(layer.named_children())[-1]
    if isinstance(last, nn.Upsample) and not (last.align_corners and last.mode.endswith("linear")):
        return None
    return UPSAMPLERS.get(name)


def encoder_blocks(network: str) -> list[str]:
    """The paths of MONAI's modules for X^{0,0} ... X^{4,0}."""
    if network == "BasicUNet":
        return ["conv_0", *(f"down_{row}.convs" for row in range(1, DEPTH + 1))]
    return ["conv_0_0", *(f"conv_{row}_0.convs" for row in range(1, DEPTH + 1))]


def heads(network: str) -> dict[str, str]:
    """The node under each of MONAI's heads, by the head's path, shallow -> deep."""
    if network == "BasicUNet":
        return {"final_conv": f"x0_{DEPTH}"}
    return {f"final_conv_0_{column}": f"x0_{column}" for column in range(1, DEPTH + 1)}


def decoder_block(network: str, row: int, column: int) -> str:
    """The path of MONAI's module for X^{row,column}."""
    return f"upcat_{row + 1}" if network == "BasicUNet" else f"upcat_{row}_{column}"
