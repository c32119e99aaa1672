"""Sizes of images: padding them for the encoder, and bringing logits back to the image's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestedseg.base.errors import choose
from nestedseg.decoder.compiler import infer_levels
from nestedseg.decoder.layers import NORMS, Choice, resize_logits, split_choice
from nestedseg.encoders import Description
from nestedseg.models.config import Config
from nestedseg.topology.graph import Graph

BEYOND = 4  # a graph may have two rows below the encoder's deepest level, each of twice the stride
MAX_PIXELS = {2: 2 ** 22, 3: 2 ** 24}  # by axes, that the smallest image is padded to


def padding(graph: Graph, body: Description, channels: Sequence[int],
            norm: Choice | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How images are padded along each axis: to a multiple of the first tuple, and to at least the
    second."""
    strides = [shape.stride for shape in infer_levels(graph, body.levels, channels).values()]
    multiple = tuple(math.lcm(*axis) for axis in zip(body.multiples[graph.levels - 1], *strides))
    if norm is not None and choose("norm", split_choice(norm)[0], NORMS) in ("instance", "group"):
        # these norms need at least two pixels at the deepest level: one has no variance
        return multiple, tuple(max(n, *(2 * stride for stride in axis))
                               for n, axis in zip(body.smallest, zip(*strides)))
    return multiple, body.smallest


def check_sizes(config: Config, body: Description) -> None:
    """Refuses a config that says more of the sizes of images than its encoder asks for.

    What is padded to is stored, because a pruned model keeps that of the model it came from. So it
    may be more than the graph needs, but not more than any graph over this encoder would.

    Args:
        body: the encoder's.

    Raises:
        ValueError: sizes that no model over this encoder has, or that images should not be
            padded to.
    """
    multiple, smallest = config.pad_multiple, config.pad_smallest
    needed, least = padding(config.graph, body, config.decoder_channels, config.norm)
    most = [BEYOND * math.lcm(*axis) for axis in zip(body.multiples[-1], needed)]
    if any(m % n for m, n in zip(multiple, needed)):
        raise ValueError(f"pad_multiple {multiple} is no multiple of {needed}")
    if any(m > n for m, n in zip(multiple, most)):
        raise ValueError(f"pad_multiple {multiple} is more than any model over the encoder "
                         f"{config.encoder!r} needs; at most {most} is allowed")
    if any(n > max(m, 2 * a) for n, m, a in zip(smallest, least, most)):
        raise ValueError(f"pad_smallest {smallest} is more than any model over the encoder "
                         f"{config.encoder!r} needs; at most {[2 * n for n in most]} is allowed")
    pixels = math.prod(map(max, multiple, smallest))
    if pixels > MAX_PIXELS[config.dims]:
        raise ValueError(f"every image would be padded to a multiple of {multiple} and at least "
                         f"{smallest}, {pixels} pixels; at most {MAX_PIXELS[config.dims]} are "
                         "allowed. Use fewer levels")
    if config.image_size not in (None, body.fixed_size):
        allowed = body.fixed_size or "None, because it takes any size"
        raise ValueError(f"image_size of a model over the encoder {config.encoder!r} must be "
                         f"{allowed}, got {config.image_size}")


def pad(x: Tensor, multiple: Sequence[int], smallest: Sequence[int]) -> Tensor:
    """Pads the far end of each axis by repeating the border, to a size that the encoder accepts."""
    sizes = [(at_least(n, least) + m - 1) // m * m
             for n, least, m in zip(x.shape[2:], smallest, multiple)]
    missing: list[Any] = [target - n for target, n in zip(sizes, x.shape[2:])]
    if not any(isinstance(n, torch.SymInt) or n for n in missing):  # a SymInt may or may not be 0
        return x
    return F.pad(x, [side for n in reversed(missing) for side in (0, n)], mode="replicate")


def at_least(n: int | torch.SymInt, least: int) -> Any:
    """The larger of two sizes. A symbolic size stays symbolic; ``max`` would fix it in a trace."""
    return torch.sym_max(n, least) if isinstance(n, torch.SymInt) else max(n, least)


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first ``size`` pixels along each spatial axis."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


def resize_all(logits: Sequence[Tensor], strides: Sequence[tuple[int, ...]]) -> Sequence[Tensor]:
    """Logits up-sampled to the image's size; if all have the same stride, as one batch."""
    if len(logits) > 1 and len(set(strides)) == 1:
        stacked = torch.stack(tuple(logits))
        resized = resize_logits(stacked.flatten(0, 1), strides[0])
        return resized.unflatten(0, stacked.shape[:2]).unbind()
    return [resize_logits(y, stride) for y, stride in zip(logits, strides)]
