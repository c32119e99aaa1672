"""The decoders of segmentation_models.pytorch (SMP) as graphs, with the names of their modules.

Rows count by stride here too: row 5 is stride 32, row 0 the image. Both decoders start at the
encoder's deepest feature. Their last block, in row 0, has no skip, because SMP does not use a
feature at stride 1. If the encoder starts at stride 4, there is no skip in row 1 either: a ``Unet``
has a block without a skip there, and a ``UnetPlusPlus`` only one block instead of a row of them.

For an encoder of depth 5 with a feature at every stride from 2 to 32:

==================================  ==========================  ============================
module in SMP                       here                        inputs of the node, in order
==================================  ==========================  ============================
Unet: decoder.blocks.0              x4_1                        x5_0, x4_0
Unet: decoder.blocks.1              x3_2                        x4_1, x3_0
Unet: decoder.blocks.3              x1_4                        x2_3, x1_0
Unet: decoder.blocks.4              x0_5                        x1_4
UnetPlusPlus: decoder.blocks.x_0_0  x4_1                        x5_0, x4_0
UnetPlusPlus: decoder.blocks.x_1_1  x3_1                        x4_0, x3_0
UnetPlusPlus: decoder.blocks.x_0_1  x3_2                        x4_1, x3_1, x3_0
UnetPlusPlus: decoder.blocks.x_0_3  x1_4                        x2_3, x1_3, x1_2, x1_1, x1_0
UnetPlusPlus: decoder.blocks.x_0_4  x0_5                        x1_4
decoder.<block>.conv1.0             decoder.<node>.block.conv1
decoder.<block>.conv1.1             decoder.<node>.block.norm1
segmentation_head.0                 decoder.head_x0_5
==================================  ==========================  ============================

SMP names the blocks of UNet++ x_{d}_{i}: i counts rows from the deepest, d counts blocks of a row
from the last. So x_{d}_{i} is x{4 - i}_{i - d + 1}, and its skips come in reverse order.
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


def smp_to_config(original: SmpConfig, found: Match, task: str | None) -> tuple[Config, Blocks]:
    """The configuration of the same model here, and the module here for each of SMP's.

    The modules are those of decoder and head; ``None`` stands for modules that SMP builds and never
    calls.

    Raises:
        ValueError: an encoder that does not fit, or a task that the activation does not allow.
    """
    options, body = describe_match(found, original)
    row = body.levels[0].stride[0].bit_length() - 1
    depth, widths = original.encoder_depth, {}
    for index, level in enumerate(body.levels):
        if 0 < row + index <= depth:
            widths[row + index] = level.channels
    if depth not in widths:
        raise refuse("encoder", f"{original.encoder_name!r} has no feature at stride {2 ** depth}, "
                     f"which encoder_depth={depth} needs")
    draw = unet_nodes if original.architecture == "Unet" else unet_plus_plus
    entry = entry_block(original, found)
    nodes, names = draw(original, widths, f"x{depth}_{int(bool(entry))}")
    if entry:
        nodes = {f"x{depth}_1": {"inputs": [f"x{depth}_0"], "block": entry}} | nodes
    *_, head = nodes
    graph = Graph(nodes, [head], row, original.architecture.lower())
    channels = (*reversed(original.decoder_channels), widths[depth])  # finest row first
    multiple, smallest = padding(graph, body, channels, original.norm)
    config = Config(
        graph=graph, decoder_channels=channels, classes=original.classes,
        task=smp_task(original, task), upsample=original.upsample, norm=original.norm,
        head_kernel=3, pad_multiple=multiple, pad_smallest=smallest,
        preprocessing=body.preprocessing,
        **vars(options) | {"image_size": body.fixed_size})
    return config, name_modules(original, found, names, head)


def smp_task(original: SmpConfig, task: str | None) -> Task:
    """The requested task; by default the one whose probabilities the model's activation gives.

    Raises:
        ValueError: the model's activation does not fit the task.
    """
    fits = ACTIVATIONS[original.activation]
    if task is None:
        default: Task = "binary" if original.classes == 1 else "multiclass"
        return default if default in fits else fits[-1]
    chosen = choose("task", task, TASKS)
    if chosen not in fits:
        raise ValueError(f"task {task!r} does not fit a model with the activation "
                         f"{original.activation!r}; allowed: {', '.join(fits)}")
    return chosen


def entry_block(original: SmpConfig, found: Match) -> str | None:
    """The block between the encoder's deepest feature and the decoder; ``None`` = there is none."""
    if has_centre(original) and original.architecture == "Unet":
        return "double_conv"
    return found.deepest[0] if found.deepest and original.encoder_depth == 5 else None


def has_centre(original: SmpConfig) -> bool:
    """Whether SMP builds a centre block. A ``UnetPlusPlus`` builds it, but never calls it."""
    return original.encoder_name.startswith("vgg")


def unet_nodes(original: SmpConfig, widths: Mapping[int, int],
               below: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The nodes of a ``Unet``, deepest first, and the node of each of SMP's blocks.

    Args:
        original: the model's configuration.
        widths: channels of the encoder's features, by row.
        below: the node that the deepest block reads.
    """
    depth, nodes, names = original.encoder_depth, {}, {}
    first = position(below)[1] + 1
    for index in range(depth):
        row = depth - 1 - index
        name = names[f"blocks.{index}"] = f"x{row}_{first + index}"
        inputs = [below, f"x{row}_0"] if row in widths else [below]
        nodes[name] = node(inputs, row, original.attention)
        below = name
    return nodes, names


def unet_plus_plus(original: SmpConfig, widths: Mapping[int, int],
                   below: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The nodes of a ``UnetPlusPlus``, and the node of each of SMP's blocks; see `unet_nodes`.

    They are not the paper's nodes. SMP's x_{d}_{i} is the (i - d + 1)th node of row depth - 1 - i;
    it reads the nodes before it in its row in reverse order.
    """
    depth, nodes, names = original.encoder_depth, {}, {}
    for i in range(depth):
        row = depth - 1 - i
        for d in range(i if row in widths else 0, -1, -1):
            column = i - d + 1
            inputs = [f"x{row + 1}_{column - 1}" if i else below]
            inputs += [f"x{row}_{k}" for k in range(column - 1, -1, -1) if row in widths]
            name = names[f"blocks.x_{d}_{i}"] = f"x{row}_{column}"
            nodes[name] = node(inputs, row, original.attention, widths[row] if d else None)
    return nodes, names


def node(inputs: list[str], row: int, attention: bool, channels: int | None = None) -> Any:
    """A node's value. Row 0 has no skip, and so no attention on its input, only on its output."""
    value: dict[str, Any] = {"inputs": inputs}
    if channels is not None:
        value["channels"] = channels
    if attention:
        value["block"] = "scse" if row else "scse_out"
    return value if len(value) > 1 else inputs


def name_modules(original: SmpConfig, found: Match, names: Mapping[str, str], head: str) -> Blocks:
    """The module here for each of SMP's modules with tensors; ``None`` = SMP never calls it."""
    modules: Blocks = {"segmentation_head.0": f"decoder.head_{head}"}
    entry = f"decoder.x{original.encoder_depth}_1.block"
    if found.deepest and original.encoder_depth == 5:
        modules[f"encoder.{found.deepest[1]}"] = f"{entry}.norm"
    for index, (layer, part) in itertools.product((1, 2), enumerate(("conv", "norm"))):
        if has_centre(original):
            called = original.architecture == "Unet"
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
