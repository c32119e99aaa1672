"""What encoders.py --peer smp-others reports: SMP's other networks over what its UNet++ refuses.

Its UnetPlusPlus of depth 5 is the one that ours is compared with. For each encoder that does not
run in it, others of segmentation_models.pytorch are tried, with its default arguments: forward, on
one image of the model's own size, and where that fails of the next larger size that the network
divides by.
"""

from __future__ import annotations

import math
import resource
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
WIDTHS = (256, 128, 64, 32, 16)  # of a decoder, SMP's own
NETWORKS = {f"{name}, depth {depth}": (kind, depth) for kind, name, depths in
            (("UnetPlusPlus", "UNet++", (4, 3)), ("Unet", "U-Net", (5, 4, 3)), ("DPT", "DPT", (4,)))
            for depth in depths}
SECONDS = 120  # of the processor, for a step; a longer one counts as failed
BYTES = 8 * 2 ** 30  # of address space for a process


def limit() -> None:
    """A process that takes too much memory fails, rather than the machine."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def in_time(step: Callable[[str], None]) -> Callable[[str], None]:
    """A step that raises an error when it takes too long."""
    def timed(device: str) -> None:
        signal.signal(signal.SIGPROF, _late)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            step(device)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return timed


def _late(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def build(encoder: str, kind: str, depth: int) -> Any:
    """A network of SMP over a timm model, without weights."""
    import segmentation_models_pytorch as smp

    widths = {} if kind == "DPT" else {"decoder_channels": WIDTHS[:depth]}
    return getattr(smp, kind)(f"tu-{encoder}", encoder_weights=None, encoder_depth=depth,
                              **widths).eval()


def padded(size: tuple[int, int], model: Any, kind: str, depth: int) -> tuple[int, ...]:
    """The next larger size that it divides by: DPT halves the grid of patches once."""
    divisor = 2 * model.encoder.output_strides[-1] if kind == "DPT" else 2 ** depth
    return tuple(math.ceil(side / divisor) * divisor for side in size)


def ran(record: Record, *steps: str) -> list[str]:
    """The networks that ran, in one of these steps."""
    return [name for name in NETWORKS
            if any(record.get(name, {}).get(step) == "ok" for step in steps)]


def compact(record: Record) -> Record:
    """The networks that ran at the own size, and padded; where none did, why not."""
    own = ran(record, "own")
    found: Record = {"own": own, "padded": [name for name in ran(record, "padded")
                                           if name not in own]}
    if not any(found.values()):
        found["failed"] = {name: record.get(name, {}).get("own", "not reached")[:120]
                           for name in NETWORKS}
    return found


def summarise(models: dict[str, Record]) -> dict[str, Any]:
    """Counts over models, each counted once, and of each network."""
    records = models.values()
    return {
        "models": len(records),
        "own": sum(bool(record["own"]) for record in records),
        "padded": sum(bool(record["own"] or record["padded"]) for record in records),
        "networks": {step: dict(Counter(name for record in records for name in record[step]))
                     for step in ("own", "padded")},
    }


def headline(results: Record) -> str:
    """The counts, as sentences."""
    summary = results["summary"]
    counts = "; ".join(
        f"{name}: {summary['networks']['own'].get(name, 0)}"
        + (f" and {more} padded" if (more := summary["networks"]["padded"].get(name)) else "")
        for name in NETWORKS)
    return (f"Of the {summary['models']:,} models that do not run in segmentation_models.pytorch's "
            f"UNet++ of depth 5 at their own size, {summary['own']:,} run at it in another of its "
            f"networks, and {summary['padded']:,} where the image may be padded ({counts}).")
