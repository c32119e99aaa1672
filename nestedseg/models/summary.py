"""The summary of a model: parameters, multiply-accumulates and output stride of each depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nestedseg.base.errors import wholes
from nestedseg.decoder.meta import meta_copy
from nestedseg.encoders.description import MAX_SIDE
from nestedseg.models.network import Network


@dataclass(frozen=True)
class Row:
    """One line of a `Summary`: the cost of the model pruned to one depth.

    Attributes:
        depth: of the head.
        parameters: number of weights and biases.
        macs: multiply-accumulates of the convolutions for one image; the "fast" execution has
            fewer than the "reference".
        output_stride: of the head's node along each axis, in pixels of the image.
    """

    depth: int
    parameters: int
    macs: int
    output_stride: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """The cost of each depth of a model. Prints as a table, and iterates over its rows.

    Attributes:
        size: of the image, in pixels.
        rows: one `Row` for each depth, shallow -> deep.
    """

    size: tuple[int, ...]
    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        lines = [f"depth | parameters | MACs at {size} | output stride",
                 "---: | ---: | ---: | ---:"]
        lines += [f"{row.depth} | {row.parameters:,} | {row.macs / 1e9:.3f} G | "
                  f"{'x'.join(map(str, row.output_stride))}" for row in self.rows]
        return "\n".join(lines)


def summarise(model: Network, size: int | Sequence[int] | None) -> Summary:
    """See `SegmentationModel.summary`."""
    sides = image_size(model, size)
    rows = []
    for depth in model.depths:
        small = model.prune(depth).eval()
        stride = small.decoder.strides[small.graph.heads[0]]
        parameters = sum(p.numel() for p in small.parameters())
        macs = count_macs(small, model.config["in_channels"], sides)
        rows.append(Row(depth, parameters, macs, stride))
    return Summary(sides, tuple(rows))


def image_size(model: Network,
               size: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """One length for each axis: ``size``, else the preprocessing's, else 256 (2-D) or 64 (3-D)."""
    dims = model.config["dims"]
    if size is None:
        size = model.preprocessing["size"] or (256 if dims == 2 else 64)
    sides = wholes("size", (size,) * dims if isinstance(size, int) else size, 1, MAX_SIDE)
    if len(sides) != dims:
        raise ValueError(f"size needs {dims} numbers for a {dims}-D model, got {sides}")
    return sides


@torch.no_grad()
def count_macs(model: nn.Module, in_channels: int, size: Sequence[int]) -> int:
    """Multiply-accumulates of a forward pass on one image, counted on the meta device."""
    model, dtype = meta_copy(model), next(model.parameters()).dtype
    with FlopCounter() as counter:
        model(torch.empty(1, in_channels, *size, dtype=dtype, device="meta"))
    return counter.get_total_flops() // 2


class FlopCounter(FlopCounterMode):
    """torch's counter of operations, but only of the total.

    To count by module, torch's registers hooks on all modules, and nodes then have no fast form.
    """

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = NoModules()  # type: ignore[assignment]  # it needs no more than this


class NoModules:
    """In the place of torch's `ModuleTracker`: all operations belong to the whole."""

    parents = frozenset(("Global",))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass
