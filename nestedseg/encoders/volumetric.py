"""A timm model made volumetric: what is found out once, without weights, and applied to the model.

The model is built for images, then its modules are converted one by one (`inflate`), and the code
around them is translated (`translate`). Whether that works is found by trying it (`watch`): there
is no list of model names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from nestedseg.encoders.inflate import convert
from nestedseg.encoders.probe import Probe
from nestedseg.encoders.translate import translated, unpacking
from nestedseg.encoders.trial import build_on
from nestedseg.encoders.watch import Watch, depth_stride

SIDES = (5, 7, 9)  # of the trial's volume, in multiples of what the model divides by


@dataclass(frozen=True)
class Plan:
    """How a model is converted.

    Args:
        depth_strides: by path, of the modules that shrink or enlarge depth not as they do height.
        classes: the classes of modules whose code must be translated.
        smallest: the smallest volume (D, H, W) that it takes.
    """

    depth_strides: dict[str, int]
    classes: frozenset[type[nn.Module]]
    smallest: tuple[int, int, int]

    def apply(self, model: nn.Module, pretrained: bool) -> nn.Module:
        """Converts a model, in place; its weights are inflated, or drawn anew."""
        for path, module in model.named_modules():
            convert(module, self.depth_strides.get(path), pretrained)
            kind: Any = type(module)
            if kind in self.classes:
                module.__class__ = translated(kind)
        return model


@lru_cache(maxsize=256)
def plan(name: str, probe: Probe, depth_strides: tuple[int, ...] | None) -> Plan:
    """How a timm model is converted, found by trying it.

    Args:
        probe: what is known of it in 2-D.
        depth_strides: see `depth_stride`.

    Raises:
        ValueError: it cannot be; the message names the module that stands in the way.
    """
    deepest = max(feature.nominal for feature in probe.features)
    multiple = depth_stride(deepest, depth_strides) * probe.factor
    size = probe.runs_at or tuple(side * deepest * probe.factor for side in SIDES[1:])
    model = build_on("meta", name, probe.in_channels, dict(probe.arguments))
    watch = Watch(model, probe.in_channels, depth_strides)
    try:
        watch.see_image(size)
        for path, module in model.named_modules():
            convert(module, watch.depth_strides.get(path))
            kind: Any = type(module)
            if unpacking(kind) is not kind:
                watch.classes.add(kind)
                module.__class__ = unpacking(kind)
        watch.see_volume((SIDES[0] * multiple, *size))
    except Exception as error:  # each model fails in its own way
        raise ValueError(f"encoder {name!r} cannot be made volumetric: {watch.where}: "
                         f"{error}") from error
    if probe.runs_at:
        raise ValueError(f"encoder {name!r} cannot be made volumetric: the model itself is built "
                         f"for images of {probe.runs_at} alone")
    depth, side = SIDES[0] * multiple, probe.smallest
    while not watch.takes((depth, side, side)):  # pooling in 3-D may need more
        side += deepest * probe.factor
    depth = next(n for n in range(multiple, depth + 1, multiple)
                 if n == depth or watch.takes((n, side, side)))
    return Plan(watch.depth_strides, frozenset(watch.classes), (depth, side, side))
