"""Times of several ways to compute the same, their runs interleaved, and how far outputs differ."""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nestedseg.decoder.meta import meta_copy

WARM = 2  # runs that do not count
LEAST, MOST = 5, 15  # runs that do
Variants = dict[str, Callable[[], Any]]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by axes


def timed(variants: Variants, seconds: float = 60) -> dict[str, float]:
    """Median milliseconds of each. Five to fifteen runs, as many as fit into ``seconds``."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    start = time.perf_counter()
    for index in range(WARM + MOST):
        if index >= WARM + LEAST and time.perf_counter() - start > seconds:
            break
        for name, run in variants.items():
            times[name].append(1e3 * elapsed(run))
    return {name: round(statistics.median(values[WARM:]), 2) for name, values in times.items()}


def elapsed(run: Callable[[], Any]) -> float:
    """Seconds of one run, to the end of what it queued on a CUDA device."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds_of(code: str) -> float:
    """What a program of its own prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def largest_error(variants: Variants, reference: str) -> dict[str, float]:
    """Of each output to that of the reference, relative to its largest value."""
    exact = first(variants[reference]())
    return {name: float(f"{(first(run()) - exact).abs().max() / exact.abs().max():.1e}")
            for name, run in variants.items() if name != reference}


def first(output: Any) -> Tensor:
    """MONAI's networks give a list."""
    return output[0] if isinstance(output, (list, tuple)) else output


def macs(module: nn.Module, inputs: Any) -> float:
    """Multiply-accumulates in G, of the convolutions that run."""
    on_meta = each(inputs, lambda x: x.to("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_copy(module)(on_meta)
    return round(counter.get_total_flops() / 2e9, 3)


def each(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or each of a list, changed."""
    return [change(x) for x in inputs] if isinstance(inputs, list) else change(inputs)


def last(inputs: Any) -> Any:
    """Images or features in channels_last."""
    return each(inputs, lambda x: x.contiguous(memory_format=LAST[x.dim()]))


def in_channels_last(module: nn.Module, dims: int = 2) -> nn.Module:
    """A copy whose weights are."""
    return copy.deepcopy(module).to(memory_format=LAST[dims + 2])


def compiled(module: nn.Module, **options: Any) -> Callable[..., Any]:
    """A copy, compiled."""
    return torch.compile(copy.deepcopy(module), options=options or None)
