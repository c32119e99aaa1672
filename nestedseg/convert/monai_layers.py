"""The layers of MONAI's networks: where they are, and the arguments that they tell of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from nestedseg.base.errors import show
from nestedseg.convert.monai_options import ACTIVATIONS, NETWORKS, NORMS, Kind, MonaiConfig
from nestedseg.convert.weights import refuse

DEPTH = 4
# The last layer of their up-sampling.
UPSAMPLERS = {"deconv": "deconv", "upsample_non_trainable": "nontrainable"}


def inspect(model: nn.Module) -> MonaiConfig:
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
    return MonaiConfig.parse(network, arguments)


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
