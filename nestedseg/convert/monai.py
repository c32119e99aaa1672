"""MONAI's ``BasicUNet`` and ``BasicUNetPlusPlus``, 2-D and 3-D, as nestedseg models.

Their graphs are this library's "unet" and "unetpp" of depth 4 over the plain encoder. MONAI does
not record a model's arguments, so they are read off the layers of a live model, or must be given
with a state dict. MONAI itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nestedseg.convert.monai_layers import DEPTH, decoder_block, encoder_blocks, heads, inspect
from nestedseg.convert.monai_options import NETWORKS, MonaiConfig
from nestedseg.convert.weights import (
    State,
    check_state,
    load_weights,
    meta_model,
    pair_tensors,
    read_state,
    refuse_leftovers,
    untrained,
)
from nestedseg.decoder.layers import split_choice
from nestedseg.decoder.meta import own_tensors
from nestedseg.encoders import Options, describe_encoder
from nestedseg.models.config import Config
from nestedseg.models.model import SegmentationModel
from nestedseg.models.sizes import padding
from nestedseg.models.targets import choose_task
from nestedseg.topology.graph import Graph, position
from nestedseg.topology.rules import topology


def from_monai(source: nn.Module | Mapping[str, Tensor] | str | Path, *,
               network: str | None = None, task: str | None = None,
               **arguments: Any) -> SegmentationModel:
    """Converts a ``BasicUNet`` or ``BasicUNetPlusPlus`` of MONAI to a nestedseg model.

    In eval mode it gives the same logits for images whose sides are multiples of 16. For other
    sizes MONAI pads maps inside the network and nestedseg pads the image, so that logits differ
    near the far border. A bias before an instance norm has no effect and is left out; a bias before
    a batch norm becomes part of its mean; others stay. With ``deep_supervision`` all heads stay.

    Args:
        source: a live model; or, with ``network`` and its arguments, a state dict or the path of
            one (.safetensors, .pth).
        network: "BasicUNet" or "BasicUNetPlusPlus".
        task: "binary", "multiclass" or "multilabel". Default: binary if it has one class, else
            multiclass.
        arguments: the network's arguments that differ from its defaults: ``spatial_dims``,
            ``in_channels``, ``out_channels``, ``features``, ``deep_supervision``, ``act``,
            ``norm``, ``bias``, ``dropout``, ``upsample``.

    Raises:
        ValueError: a layer or argument without a counterpart here, or weights that do not fit.
        TypeError: arguments with a live model, or a state dict without ``network``.
        FileNotFoundError: no such file.
    """
    if isinstance(source, nn.Module):
        if network is not None or arguments:
            raise TypeError("network and its arguments are only for a state dict; they are read "
                            "off a live model, so leave them out")
        original, where = inspect(source), "the model"
        state = check_state(source.state_dict(), where)
    else:
        if network is None:
            raise TypeError("a state dict does not say which network it belongs to: also give "
                            f"network={' or '.join(map(repr, NETWORKS))} and its arguments")
        original = MonaiConfig.parse(network, arguments)
        where = "the state dict" if isinstance(source, Mapping) else repr(str(source))
        state = read_state(source)
    config = monai_to_config(original, task)
    model = meta_model(config)
    needed = own_tensors(model)
    return load_weights(model, translate_layers(original, config.graph, needed, state), where)


def monai_to_config(original: MonaiConfig, task: str | None) -> Config:
    """The configuration of the same model here, for the arguments of a MONAI network."""
    graph = topology(NETWORKS[original.network], DEPTH)
    if not original.deep_supervision:
        graph = graph.prune(DEPTH)
    nodes = {name: node_value(original, name, list(node.inputs))
             for name, node in graph.nodes.items()}
    graph = Graph(nodes, graph.heads, name=graph.name)
    options = Options("plain", original.in_channels, original.dims, original.features[:-1])
    body = describe_encoder(options)
    multiple, smallest = padding(graph, body, original.features[:-1], original.norm)
    return Config(
        graph=graph, decoder_channels=original.features[:-1], classes=original.classes,
        task=choose_task(task, original.classes), upsample=original.upsample, norm=original.norm,
        activation=original.activation, bias=original.bias and not absorbs_bias(original),
        dropout=original.dropout,
        pad_multiple=multiple, pad_smallest=smallest, preprocessing=body.preprocessing,
        **vars(options))


def node_value(original: MonaiConfig, name: str, inputs: list[str]) -> Any:
    """The value of a node with MONAI's widths.

    Up-sampling halves the channels, except in row 0; the last node has a width of its own.
    """
    row, column = position(name)
    below = original.features[row + 1]
    up, own = below // 2 if row else below, original.features[row]
    value: dict[str, Any] = {"inputs": inputs}
    if row == 0 and column == DEPTH:
        own = original.features[-1]
        value |= {"channels": own} if own != original.features[0] else {}
    if up != (own if original.upsample == "transpose" else below):
        value["up_channels"] = up
    return value if len(value) > 1 else inputs


def absorbs_bias(original: MonaiConfig) -> bool:
    """Whether the norm cancels the bias of the convolution before it."""
    return original.norm is not None and split_choice(original.norm)[0] in ("batch", "instance")


def translate_layers(original: MonaiConfig, graph: Graph, needed: Mapping[str, Tensor],
                     given: State) -> State:
    """MONAI's tensors under the names of this library.

    Args:
        original: the arguments of the network.
        graph: the graph of the model here.
        needed: the tensors of the model here.
        given: MONAI's tensors.

    Raises:
        ValueError: a layer has no place here; the message names it.
    """
    blocks = {block: f"encoder.x{row}_0"
              for row, block in enumerate(encoder_blocks(original.network))}
    modules: dict[str, str | None] = {}
    for name in graph.nodes:
        row, column = position(name)
        block = decoder_block(original.network, row, column)
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
                for head, node in heads(original.network).items()}
    names, left = pair_tensors(modules, needed, given)
    biases = {f"{own}.bias": f"{conv}.bias" for conv, own in modules.items()
              if own and f"{conv}.bias" in left} if absorbs_bias(original) else {}
    refuse_leftovers(left - set(biases.values()), "MONAI")
    state = {own: given[name] for own, name in names.items()}
    for own, name in biases.items():
        mean = own.replace(".conv", ".norm").replace("bias", "running_mean")
        if mean in state:  # a norm of y + b with the mean m is that of y with the mean m - b
            state[mean] = state[mean] - given[name]
    plain = [*([] if original.affine else ["norm"]), *([] if original.bias else ["conv"])]
    return state | untrained(plain, needed, state)
