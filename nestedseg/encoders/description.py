"""What is known of an encoder before it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestedseg.layers import Level


@dataclass(frozen=True)
class Description:
    """An encoder's pyramid.

    Args:
        levels: channels and stride of each feature, finest first.
        preprocessing: mean, std, input_range, interpolation and size (H, W) of its images.
        taps: for timm models, the index of each level among timm's features.
    """

    levels: tuple[Level, ...]
    preprocessing: dict[str, Any]
    taps: tuple[int, ...] = ()
