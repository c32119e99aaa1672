"""The decoders of segmentation_models.pytorch as graphs, and where each of their modules is there.

Both start from the encoder's deepest feature, and their last block, which has no skip, is one row
finer than the finest feature that they use. An encoder that starts at stride 4 has no skip at
stride 2 either: there a ``Unet`` has a block without one, and a ``UnetPlusPlus`` one block alone,
not a row of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from nestedseg.base.errors import choose
from nestedseg.convert.smp_encoders import Match, describe_match
from nestedseg.convert.smp_options import ACTIVATIONS, SmpConfig
from nestedseg.convert.weights import refuse
from nestedseg.models.config import Config
from nestedseg.models.sizes import padding
from nestedseg.models.targets import TASKS, Task
from nestedseg.topology.graph import Graph, position

Blocks = dict[str, "str | None"]
ATTENTION = {"cSE.1": "squeeze", "cSE.3": "excite", "sSE.0": "spatial"}


def smp_to_config(theirs: SmpConfig, found: Match, task: str | None) -> tuple[Config, Blocks]:
    """The configuration of the same model here.

    And our module for each of theirs in the decoder and head; ``None`` for those that are built
    and never called.

    Raises:
        ValueError: an encoder that does not fit, or a task that the activation does not serve.
    """
    options, body = describe_match(found, theirs)
    row = body.levels[0].stride[0].bit_length() - 1
    depth, widths = theirs.encoder_depth, {}
    for index, level in enumerate(body.levels):
        if 0 < row + index <= depth:
            widths[row + index] = level.channels
    if depth not in widths:
        raise refuse("encoder", f"{theirs.encoder_name!r} has no feature at stride {2 ** depth}, "
                     f"which encoder_depth={depth} needs")
    draw = unet_nodes if theirs.architecture == "Unet" else unet_plus_plus
    entry = entry_block(theirs, found)
    nodes, names = draw(theirs, widths, f"x{depth}_{int(bool(entry))}")
    if entry:
        nodes = {f"x{depth}_1": {"inputs": [f"x{depth}_0"], "block": entry}} | nodes
    *_, head = nodes
    graph = Graph(nodes, [head], row, theirs.architecture.lower())
    channels = (*reversed(theirs.decoder_channels), widths[depth])  # finest row first
    multiple, smallest = padding(graph, body, channels, theirs.norm)
    config = Config(
        graph=graph, decoder_channels=channels, classes=theirs.classes,
        task=smp_task(theirs, task), upsample=theirs.upsample, norm=theirs.norm, head_kernel=3,
        pad_multiple=multiple, pad_smallest=smallest, preprocessing=body.preprocessing,
        **vars(options) | {"image_size": body.fixed_size})
    return config, name_modules(theirs, found, names, head)


def smp_task(theirs: SmpConfig, task: str | None) -> Task:
    """The task whose probabilities are the model's outputs, or the one that was asked for."""
    fits = ACTIVATIONS[theirs.activation]
    if task is None:
        default: Task = "binary" if theirs.classes == 1 else "multiclass"
        return default if default in fits else fits[-1]
    chosen = choose("task", task, TASKS)
    if chosen not in fits:
        raise ValueError(f"a model that ends in {theirs.activation!r} serves the tasks "
                         f"{', '.join(fits)}, not {task!r}")
    return chosen


def entry_block(theirs: SmpConfig, found: Match) -> str | None:
    """The block that the encoder's deepest feature goes through before the decoder."""
    if has_centre(theirs) and theirs.architecture == "Unet":
        return "double_conv"
    return found.deepest[0] if found.deepest and theirs.encoder_depth == 5 else None


def has_centre(theirs: SmpConfig) -> bool:
    """Whether there is a centre block, which a ``UnetPlusPlus`` builds and never calls."""
    return theirs.encoder_name.startswith("vgg")


def unet_nodes(theirs: SmpConfig, widths: Mapping[int, int],
               below: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Nodes, deepest first, and the node of each of their blocks.

    Args:
        widths: of the encoder's features, by row.
        below: what the deepest block reads.
    """
    depth, nodes, names = theirs.encoder_depth, {}, {}
    first = position(below)[1] + 1
    for index in range(depth):
        row = depth - 1 - index
        name = names[f"blocks.{index}"] = f"x{row}_{first + index}"
        inputs = [below, f"x{row}_0"] if row in widths else [below]
        nodes[name] = node(inputs, row, theirs.attention)
        below = name
    return nodes, names


def unet_plus_plus(theirs: SmpConfig, widths: Mapping[int, int],
                   below: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The same for the nested decoder, whose nodes are not the paper's.

    The one named x_{d}_{i} there is the (i - d + 1)th of row depth - 1 - i; it reads the rest of
    its row in reverse.
    """
    depth, nodes, names = theirs.encoder_depth, {}, {}
    for i in range(depth):
        row = depth - 1 - i
        for d in range(i if row in widths else 0, -1, -1):
            column = i - d + 1
            inputs = [f"x{row + 1}_{column - 1}" if i else below]
            inputs += [f"x{row}_{k}" for k in range(column - 1, -1, -1) if row in widths]
            name = names[f"blocks.x_{d}_{i}"] = f"x{row}_{column}"
            nodes[name] = node(inputs, row, theirs.attention, widths[row] if d else None)
    return nodes, names


def node(inputs: list[str], row: int, attention: bool, channels: int | None = None) -> Any:
    """A node's value. The last block has no skip, and does without the attention to its inputs."""
    value: dict[str, Any] = {"inputs": inputs}
    if channels is not None:
        value["channels"] = channels
    if attention:
        value["block"] = "scse" if row else "scse_out"
    return value if len(value) > 1 else inputs


def name_modules(theirs: SmpConfig, found: Match, names: Mapping[str, str], head: str) -> Blocks:
    """Our module for each of theirs that has tensors."""
    modules: Blocks = {"segmentation_head.0": f"decoder.head_{head}"}
    entry = f"decoder.x{theirs.encoder_depth}_1.block"
    if found.deepest and theirs.encoder_depth == 5:
        modules[f"encoder.{found.deepest[1]}"] = f"{entry}.norm"
    for index, (layer, part) in itertools.product((1, 2), enumerate(("conv", "norm"))):
        if has_centre(theirs):
            called = theirs.architecture == "Unet"
            modules[f"decoder.center.{index - 1}.{layer}"] = (f"{entry}.{part}{index}" if called
                                                              else None)
        for block, name in names.items():
            modules[f"decoder.{block}.conv{index}.{layer}"] = f"decoder.{name}.block.{part}{index}"
    for (block, name), (part, piece) in itertools.product(names.items(), ATTENTION.items()):
        own = f"decoder.{name}.block"
        modules[f"decoder.{block}.attention1.attention.{part}"] = (
            None if name == head else f"{own}.entry.{piece}")
        modules[f"decoder.{block}.attention2.attention.{part}"] = f"{own}.attention.{piece}"
    return modules
