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
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn import functional as F

from nestedseg.base.errors import choose
from nestedseg.decoder.edges import Edge
from nestedseg.decoder.kernels import conv3x3
from nestedseg.decoder.recomputation import remade

EXECUTIONS = ("fast", "reference")
CONV = {2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}

_forced: list[str] = []  # executions set by `execution`, the innermost last


@contextmanager
def execution(name: str) -> Iterator[None]:
    """A context in which all models use this execution, whatever they were created with.

    Args:
        name: "fast" or "reference".

    Raises:
        ValueError: ``name`` is neither.
    """
    _forced.append(choose("execution", name, EXECUTIONS))
    try:
        yield
    finally:
        _forced.pop()


def which(conv: nn.Module, fuse: str, default: str) -> str:
    """The execution that is used now: "fast", or "reference", with the reason if that was not
    asked for.

    Only a concatenation before a plain 3x3 convolution has a fast form.
    """
    name = _forced[-1] if _forced else default
    if name == "reference":
        return name
    if fuse != "concat":
        return f"reference: {fuse} fusion"
    plain = (isinstance(conv, (nn.Conv2d, nn.Conv3d)) and set(conv.kernel_size) == {3}
             and set(conv.stride) == set(conv.dilation) == {1} and set(conv.padding) == {1}
             and conv.groups == 1 and conv.padding_mode == "zeros")
    return "fast" if plain else "reference: its first layer is not a plain 3x3 convolution"


def join(conv: nn.Module, edges: Sequence[Edge], inputs: Sequence[Tensor], fuse: str,
         default: str) -> Tensor:
    """``conv(fuse(edge(x) for each input))``, ``(N, C, *spatial)``."""
    if which(conv, fuse, default) == "fast":
        assert isinstance(conv, (nn.Conv2d, nn.Conv3d))
        # a traced graph must be valid for all sizes, so the choice must not depend on them
        pixels = [0 if torch.compiler.is_compiling() else x.numel() // x.shape[1] for x in inputs]
        return join_fast(Parts.of(conv, edges, pixels), edges, inputs)
    return join_reference(conv, edges, inputs, fuse)


def join_reference(conv: nn.Module, edges: Sequence[Edge], inputs: Sequence[Tensor],
                   fuse: str) -> Tensor:
    """The "reference" execution: resample the inputs, fuse them, convolve."""
    maps = [edge(x) for edge, x in zip(edges, inputs)]
    return conv(reduce(torch.add, maps) if fuse == "sum" else torch.cat(maps, dim=1))


@dataclass(frozen=True)
class Parts:
    """A convolution of concatenated inputs, split into one part for each input.

    Args:
        kernels: for each input the kernel of the transposed convolution that does its up-sampling
            and its part of the convolution; ``None`` = its edge brings it to the node's resolution.
        beside: the weight that acts on all inputs whose kernel is ``None``, concatenated; ``None``
            if there are none.
        bias: of the convolution.
        border: what each tap adds for the biases of composed edges, ``(out, 3, 3)``.
    """

    kernels: tuple[Tensor | None, ...]
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
                   for edge, weight, paid in zip(edges, weights, pays) if paid and edge.transposes]
        return cls(tuple(kernels), torch.cat(beside, dim=1) if beside else None, conv.bias,
                   reduce(torch.add, borders) if borders else None)


def join_fast(parts: Parts, edges: Sequence[Edge], inputs: Sequence[Tensor]) -> Tensor:
    """The "fast" execution: a transposed convolution of each composed input, and one convolution of
    all others, added up."""
    dims = inputs[0].dim() - 2
    beside = [edge(x) for edge, x, kernel in zip(edges, inputs, parts.kernels) if kernel is None]
    total = None if parts.beside is None else convolve_all(beside, parts.beside, parts.bias)
    for edge, x, kernel in zip(edges, inputs, parts.kernels):
        if kernel is not None:
            bias = parts.bias if total is None else None  # added only once
            y = CONV_TRANSPOSE[dims](x, kernel, bias, stride=edge.up_by, padding=1)
            total = y if total is None else total.add_(y)  # in place: no gradient needs the terms
    assert total is not None  # every node has an input
    if parts.border is not None:
        total = total.add_(border_map(parts.border, total.shape[2:]))
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
        return reduce(Tensor.add_, map(conv3x3, maps, weights, biases))
    return remade(lambda *parts: torch.cat(parts, dim=1),
                  lambda joined: conv3x3(joined, weight, bias), *maps)


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

