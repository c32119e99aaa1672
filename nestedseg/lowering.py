"""How the first convolution of a node is computed: obviously, or without the concatenation.

A node's first convolution acts on the concatenation of its inputs, each brought to the node's
resolution. "reference" does just that. "fast" computes the same numbers, up to rounding, from the
same parameters, and neither the concatenation nor an up-sampled map is ever written:

- `split_weight`: conv(cat(a, b)) = conv_a(a) + conv_b(b);
- `compose_nearest`: conv(nearest_up(x)) = conv_transpose(x), with a composed kernel.

Nothing else in the package knows how a node is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.errors import choose

if TYPE_CHECKING:
    from nestedseg.layers import Edge

EXECUTIONS = ("fast", "reference")
CONV = {2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}

_forced: list[str] = []  # by the context manager, innermost last


@contextmanager
def execution(name: str) -> Iterator[None]:
    """Within it, every model computes its nodes so, whatever it was created with.

    Args:
        name: "fast" or "reference".

    Raises:
        ValueError: another name.
    """
    _forced.append(choose("execution", name, EXECUTIONS))
    try:
        yield
    finally:
        _forced.pop()


def join(conv: nn.Module, edges: Sequence[Edge], inputs: Sequence[Tensor], fuse: str,
         default: str) -> Tensor:
    """``conv(fuse(edge(x) for each input))``, ``(N, C, *spatial)``."""
    if which(conv, fuse, default) == "fast":
        return join_fast(conv, edges, inputs)
    return join_reference(conv, edges, inputs, fuse)


def which(conv: nn.Module, fuse: str, default: str) -> str:
    """The execution that runs now: "fast", or "reference", with the reason why there is no other.

    Only the concatenation before a plain 3x3 convolution has a fast form.
    """
    name = _forced[-1] if _forced else default
    if name == "reference":
        return name
    if fuse != "concat":
        return f"reference: {fuse} fusion"
    plain = (set(conv.kernel_size) == {3} and set(conv.stride) == set(conv.dilation) == {1}
             and set(conv.padding) == {1} and conv.groups == 1 and conv.padding_mode == "zeros")
    return "fast" if plain else "reference: its first layer is no plain 3x3 convolution"


def join_reference(conv: nn.Module, edges: Sequence[Edge], inputs: Sequence[Tensor],
                   fuse: str) -> Tensor:
    """Resample, fuse, convolve."""
    maps = [edge(x) for edge, x in zip(edges, inputs)]
    return conv(reduce(torch.add, maps) if fuse == "sum" else torch.cat(maps, dim=1))


def join_fast(conv: nn.Module, edges: Sequence[Edge], inputs: Sequence[Tensor]) -> Tensor:
    """One transposed convolution of each up-sampled input, one convolution of all the others."""
    dims = inputs[0].dim() - 2
    weights = split_weight(conv.weight, [edge.out_channels for edge in edges])
    parts = list(zip(edges, inputs, weights))
    beside = [(edge(x), weight) for edge, x, weight in parts if not edge.composes]
    total = convolve_all(beside, conv.bias) if beside else None
    for edge, x, weight in parts:
        if edge.composes:
            bias = conv.bias if total is None else None  # once
            y = CONV_TRANSPOSE[dims](x, compose_nearest(weight, edge.up_by), bias,
                                     stride=edge.up_by, padding=1)
            total = y if total is None else total.add_(y)  # no backward pass needs the summands
    return total


def convolve_all(parts: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None) -> Tensor:
    """One convolution of maps of one resolution, each with its part of the weight.

    A wide convolution is faster than a sum of narrow ones, so the maps are concatenated for it;
    but the backward pass keeps the maps, which are there anyway, and concatenates them again.
    """
    maps, weights = [x for x, _ in parts], [weight for _, weight in parts]
    convolve = CONV[maps[0].dim() - 2]
    if len(maps) == 1:
        return convolve(maps[0], weights[0], bias, padding=1)
    joined, weight = torch.cat(maps, dim=1), torch.cat(weights, dim=1)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return convolve(joined, weight, bias, padding=1)
    address = joined.data_ptr()

    def pack(saved: Tensor) -> Tensor | list[Tensor]:
        return maps if saved.data_ptr() == address and saved.shape == joined.shape else saved

    def unpack(kept: Tensor | list[Tensor]) -> Tensor:
        return torch.cat(kept, dim=1) if isinstance(kept, list) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return convolve(joined, weight, bias, padding=1)


def split_weight(weight: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """The part of a convolution's weight that acts on each of the concatenated inputs.

    conv(cat(a, b), W) = conv(a, W_a) + conv(b, W_b).
    """
    return weight.split(list(widths), dim=1)


def compose_nearest(weight: Tensor, factor: Sequence[int]) -> Tensor:
    """The kernel of the transposed convolution that equals conv3x3 after nearest up-sampling.

    Along one axis, with up-sampling by f, y[p] = sum_t w[t] x[floor((p + t) / f)], t = -1, 0, 1.
    Written as y[p] = sum_q k[p - f q] x[q], that is k[o] = sum of those w[t] with 0 <= o + t < f,
    for o = -1 ... f. Stride f, padding 1; with f = 1 it is the flipped kernel. Sums alone, so it
    keeps float32 under autocast, and gradients reach the 3x3 weight.

    ``(out, in, 3, 3)`` -> ``(in, out, f + 2, f + 2)``.
    """
    for axis, f in enumerate(factor, start=2):
        taps = dict(zip((-1, 0, 1), weight.unbind(axis)))
        rows = [sum_of([tap for t, tap in taps.items() if 0 <= o + t < f])
                for o in range(-1, f + 1)]
        weight = torch.stack(rows, axis)
    return weight.transpose(0, 1)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum; of one tensor, itself."""
    return reduce(torch.add, tensors)
