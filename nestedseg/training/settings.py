"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nestedseg.base.errors import choose, number

PRECISIONS = ("auto", "no", "bf16", "fp16")


@dataclass(frozen=True)
class Settings:
    """The settings of a training run.

    Args:
        epochs: the most epochs to train.
        steps: batches in an epoch; ``None`` = as many as it takes to tile the training images.
        batch: patches in a batch, on each process.
        patch: size of a patch in pixels along each axis, or one number for all.
        foreground: the fraction of patches that are centred on a pixel of the foreground; ``None``
            = 0 for images, 1/3 for volumes.
        mirror: whether patches are mirrored and rotated at random. Use ``False`` if labels
            distinguish left from right, or front from back.
        lr: Adam's learning rate.
        patience: stop after this many epochs without a better validation score.
        seed: of everything random.
        precision: "auto" (bf16, else fp16, on a CUDA device; "no" on others), "no", "bf16" or
            "fp16".
        workers: processes that prepare patches; 0 = the training process prepares them itself.
        seconds: time limit: stop before an epoch that would exceed it; ``None`` = no limit.

    Raises:
        ValueError: a number out of bounds or an unknown precision.
    """

    epochs: int = 100
    steps: int | None = None
    batch: int = 8
    patch: int | tuple[int, ...] = 96
    foreground: float | None = None
    mirror: bool = True
    lr: float = 3e-4
    patience: int = 20
    seed: int = 0
    precision: str = "auto"
    workers: int = 0
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("steps", 1), ("batch", 1), ("patch", 1),
                            ("patience", 1), ("seed", 0), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and min(_numbers(name, value)) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("lr", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < number(name, value) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value}")
        if self.foreground is not None and not 0 <= number("foreground", self.foreground) <= 1:
            raise ValueError(f"foreground must be a fraction in [0, 1], got {self.foreground}")
        choose("precision", self.precision, PRECISIONS)


def _numbers(name: str, value: Any) -> list[Any]:
    """One number for all axes, or one for each."""
    several = isinstance(value, (tuple, list)) and value
    return [number(name, each) for each in (value if several else [value])]
