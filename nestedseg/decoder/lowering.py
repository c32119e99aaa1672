"""How the first convolution of a node is computed: literally, or without the concatenation.

A node's first convolution acts on the concatenation of its inputs, each brought to the node's
resolution. The execution "reference" does just that. "fast" computes the same numbers, up to
rounding, from the same parameters, but never writes up-sampled maps to memory, nor, where that is
faster, the concatenation:

- `split_weight`: conv(cat(a, b)) = conv_a(a) + conv_b(b);
- `compose_nearest`: conv(nearest_up(x)) = conv_transpose(x), with a composed kernel;
- `compose_transpose`: conv(conv_transpose(x)) = conv_transpose(x), with a composed kernel;
- `compose_bias`: what the bias of the transposed convolution adds, which is less at the border.

`nestedseg.decoder.fuse` does the same once and for all, with the functions of this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn import functional as F

from nestedseg.base.errors import choose
from nestedseg.decoder.edges import Edge
from nestedseg.decoder.kernels import conv3x3
from nestedseg.decoder.recomputation import remade
from nestedseg.decoder.stateless import Stateless

EXECUTIONS = ("fast", "reference")
CONV = {2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}

_forced: ContextVar[str | None] = ContextVar("execution", default=None)


@contextmanager
def execution(name: str) -> Iterator[None]:
    """A context in which all models use this execution, whatever they were created with.

    It applies to the current thread or asynchronous task only.

    Args:
        name: "fast" or "reference".

    Raises:
        ValueError: ``name`` is neither.
    """
    before = _forced.set(choose("execution", name, EXECUTIONS))
    try:
        yield
    finally:
        _forced.reset(before)


def forced() -> str | None:
    """The execution that an enclosing `execution` sets, if there is one."""
    return _forced.get()


def is_plain(conv: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether it is an ordinary 3x3 convolution: stride 1, padding 1 with zeros, one group."""
    one = (1,) * len(conv.kernel_size)
    return (conv.kernel_size == (3,) * len(one) and conv.stride == conv.dilation == one
            and conv.padding == one and conv.groups == 1 and conv.padding_mode == "zeros")


def join(conv: nn.Conv2d | nn.Conv3d, edges: Sequence[Edge], inputs: Sequence[Tensor]) -> Tensor:
    """``conv(cat(edge(x) for each input))``, ``(N, C, *spatial)``."""
    # a traced graph must be valid for all sizes, so the choice must not depend on them
    pixels = [0 if torch.compiler.is_compiling() else x.numel() // x.shape[1] for x in inputs]
    return join_fast(Parts.of(conv, edges, pixels), edges, inputs)


@dataclass(frozen=True)
class Parts:
    """A convolution of concatenated inputs, split into one part for each input.

    Args:
        kernels: for each input the kernel of the transposed convolution that does its up-sampling
            and its part of the convolution; ``None`` = its edge brings it to the node's resolution.
        strides: for each input the stride of that transposed convolution.
        beside: the weight for all inputs that their edges bring to the node's resolution, which
            are concatenated; ``None`` = there are none.
        bias: of the convolution.
        border: what each tap adds for the biases of composed edges, ``(out, 3, 3)``.
    """

    kernels: tuple[Tensor | None, ...]
    strides: tuple[tuple[int, ...], ...]
    beside: Tensor | None
    bias: Tensor | None
    border: Tensor | None

    @classmethod
    def of(cls, conv: nn.Conv2d | nn.Conv3d, edges: Sequence[Edge],
           pixels: Sequence[float] | None = None) -> Parts:
        """Splits ``conv``, and composes its parts with the edges for which that is less work.

        Args:
            conv: the node's first convolution.
            edges: those of the node, in the order of its inputs.
            pixels: of each input, if the parts are used for one pass only. ``None`` = they are
                used many times, so that the work of composing does not count.
        """
        weights = split_weight(conv.weight, [edge.out_channels for edge in edges])
        pays = [composing_pays(edge, weight, count) for edge, weight, count
                in zip(edges, weights, pixels or [math.inf] * len(edges))]
        kernels = [compose(edge, weight) if paid else None
                   for edge, weight, paid in zip(edges, weights, pays)]
        beside = [weight for weight, paid in zip(weights, pays) if not paid]
        borders = [compose_bias(weight, edge.up.bias)
                   for edge, weight, paid in zip(edges, weights, pays)
                   if paid and edge.transposes and edge.up.bias is not None]
        return cls(tuple(kernels), tuple(edge.up_by for edge in edges),
                   torch.cat(beside, dim=1) if beside else None, conv.bias,
                   reduce(torch.add, borders) if borders else None)


def join_fast(parts: Parts, edges: Sequence[Any], inputs: Sequence[Tensor]) -> Tensor:
    """One transposed convolution of each composed input, one convolution of all the others.

    Args:
        edges: of each input; those with a composed kernel are not called.
    """
    dims = inputs[0].dim() - 2
    beside = [edge(x) for edge, x, kernel in zip(edges, inputs, parts.kernels) if kernel is None]
    total = None if parts.beside is None else convolve_all(beside, parts.beside, parts.bias)
    for x, kernel, stride in zip(inputs, parts.kernels, parts.strides):
        if kernel is not None:
            bias = parts.bias if total is None else None  # once
            y = CONV_TRANSPOSE[dims](x, kernel, bias, stride=stride, padding=1)
            total = y if total is None else add(total, y)
    assert total is not None  # a node has an input
    if parts.border is not None:
        total = add(total, border_map(parts.border, total.shape[2:]))
    return total


def convolve_all(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of concatenated maps of the same resolution.

    For images one wide convolution is faster than a sum of narrow ones, so the maps are
    concatenated. Autograd keeps only the maps, which are in memory anyway, and the backward pass
    concatenates them again. For volumes on a CPU the sum of narrow convolutions is faster.
    """
    if len(maps) == 1:
        return conv3x3(maps[0], weight, bias)
    if maps[0].dim() == 5 and maps[0].device.type == "cpu":
        weights = split_weight(weight, [x.shape[1] for x in maps])
        biases = [bias, *[None] * (len(maps) - 1)]
        return reduce(add, map(conv3x3, maps, weights, biases))
    return remade(concatenate, lambda joined: conv3x3(joined, weight, bias), *maps,
                  again=Stateless(concatenate))


def concatenate(*maps: Tensor) -> Tensor:
    """The concatenation of maps along the channels, ``(N, C, *spatial)``."""
    return torch.cat(maps, dim=1)


def add(total: Tensor, y: Tensor) -> Tensor:
    """The sum of two maps, written over ``total``, which no backward pass needs.

    Under transforms of torch.func it is a new tensor, because ``y`` may have a hidden batch axis
    that ``total`` lacks.
    """
    return total + y if torch._C._are_functorch_transforms_active() else total.add_(y)


# -- the algebra ----------------------------------------------------------------------------------


def split_weight(weight: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Splits a convolution's weight into the parts that act on each of the concatenated inputs.

    conv(cat(a, b), W) = conv(a, W_a) + conv(b, W_b).
    """
    return weight.split(list(widths), dim=1)


def compose(edge: Edge, weight: Tensor) -> Tensor:
    """The one kernel that does an edge's up-sampling and the convolution after it."""
    if edge.transposes:
        return compose_transpose(weight, edge.up.weight)
    return compose_nearest(weight, edge.up_by)


def compose_nearest(weight: Tensor, factor: Sequence[int]) -> Tensor:
    """The kernel of the transposed convolution that equals conv3x3 after nearest up-sampling.

    Along one axis, with up-sampling by f, y[p] = sum_t w[t] x[floor((p + t) / f)], t = -1, 0, 1.
    Written as y[p] = sum_q k[p - f q] x[q], k[o] is the sum of all w[t] with 0 <= o + t < f, for
    o = -1 ... f. Stride f, padding 1; with f = 1 it is the flipped kernel. There are only sums, so
    float32 stays float32 under autocast, and gradients reach the 3x3 weight.

    ``(out, in, 3, 3)`` -> ``(in, out, f + 2, f + 2)``.
    """
    for axis, f in enumerate(factor, start=2):
        taps = dict(zip((-1, 0, 1), weight.unbind(axis)))
        rows = [reduce(torch.add, [tap for t, tap in taps.items() if 0 <= o + t < f])
                for o in range(-1, f + 1)]
        weight = torch.stack(rows, axis)
    return weight.transpose(0, 1)


def compose_transpose(weight: Tensor, up: Tensor) -> Tensor:
    """The kernel of the transposed convolution that equals conv3x3 after one with stride = kernel.

    A kernel is the response to an impulse. The first layer's response is its own kernel ``up``, and
    the convolution turns that into conv3x3(up), one pixel wider on each side. So k = conv3x3(up)
    with padding 2, where each input channel of ``up`` is taken as an image. Stride f, padding 1.
    Computed in float32 also under autocast.

    ``(out, mid, 3, 3)``, ``(in, mid, f, f)`` -> ``(in, out, f + 2, f + 2)``.
    """
    kind = weight.device.type
    with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
        return CONV[weight.dim() - 2](up, weight, padding=2)


def compose_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """What each tap of conv3x3 adds for a map that equals ``bias`` everywhere; see `border_map`.

    conv(z + b) = conv(z) + conv(b). Outside of the image z + b is 0, so conv(b) is not constant: it
    is smaller at the border.

    ``(out, mid, 3, 3)``, ``(mid,)`` -> ``(out, 3, 3)``.
    """
    return torch.tensordot(weight, bias.to(weight.dtype), dims=([1], [0]))


def border_map(taps: Tensor, size: Sequence[int]) -> Tensor:
    """conv3x3 of a map of ones, as matrix products: each pixel adds the taps inside the image.

    Which taps are inside is decided for each axis separately, by an (n, 3) matrix of zeros and
    ones.

    ``(out, 3, 3)`` -> ``(out, H, W)``.
    """
    for n in size:
        inside = F.pad(taps.new_ones(n), (1, 1)).unfold(0, 3, 1)
        taps = torch.tensordot(taps, inside, dims=([1], [1]))
    return taps


def composing_pays(edge: Edge, weight: Tensor, pixels: float = math.inf) -> bool:
    """Whether one composed kernel is less work than up-sampling and then convolving.

    For nearest up-sampling always: it has (f + 2) / f instead of 3 taps along each axis, and
    composing takes only sums. For a transposed convolution if that takes fewer multiplications,
    including those of composing.

    Args:
        weight: the part of the convolution that acts on this edge.
        pixels: of the edge's input, in all images of the batch together.
    """
    if not edge.transposes:
        return edge.composes
    mid, wide, out = edge.out_channels, edge.up.in_channels, weight.shape[0]
    grown, taps = math.prod(edge.up_by), math.prod(weight.shape[2:])
    reach = math.prod([f + 2 for f in edge.up_by])
    saved = grown * mid * (wide + taps * out) - wide * out * reach
    return pixels * saved > wide * mid * out * reach * taps

