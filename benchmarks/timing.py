"""Times several ways of computing the same, with interleaved runs, and compares their outputs."""

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
    """Median milliseconds of each way, of 5 to 15 runs, as many as fit into ``seconds``."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    start = time.perf_counter()
    for index in range(WARM + MOST):
        if index >= WARM + LEAST and time.perf_counter() - start > seconds:
            break
        for name, run in variants.items():
            times[name].append(1e3 * elapsed(run))
    return {name: round(statistics.median(values[WARM:]), 2) for name, values in times.items()}


def elapsed(run: Callable[[], Any]) -> float:
    """Seconds of one run, including the work that it queued on a CUDA device."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds_of(code: str) -> float:
    """The output of code that is run in a program of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def largest_error(variants: Variants, reference: str) -> dict[str, float]:
    """The largest difference of each output from the reference's, relative to its largest value."""
    exact = first(variants[reference]())
    return {name: float(f"{(first(run()) - exact).abs().max() / exact.abs().max():.1e}")
            for name, run in variants.items() if name != reference}


def first(output: Any) -> Tensor:
    """The output of a network, or the first output of one that returns several, like MONAI's."""
    return output[0] if isinstance(output, (list, tuple)) else output


def macs(module: nn.Module, inputs: Any) -> float:
    """Billions of multiply-accumulates of the convolutions in a forward pass."""
    on_meta = each(inputs, lambda x: x.to("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_copy(module)(on_meta)
    return round(counter.get_total_flops() / 2e9, 3)


def each(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Applies a function to a tensor, or to each tensor of a list."""
    return [change(x) for x in inputs] if isinstance(inputs, list) else change(inputs)


def last(inputs: Any) -> Any:
    """Images or features in channels_last."""
    return each(inputs, lambda x: x.contiguous(memory_format=LAST[x.dim()]))


def in_channels_last(module: nn.Module, dims: int = 2) -> nn.Module:
    """A copy of a model with weights in channels_last."""
    return copy.deepcopy(module).to(memory_format=LAST[dims + 2])


def compiled(module: nn.Module, **options: Any) -> Callable[..., Any]:
    """A compiled copy of a model."""
    return torch.compile(copy.deepcopy(module), options=options or None)
