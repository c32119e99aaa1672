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
from nestedseg.topology.graph import Graph


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
