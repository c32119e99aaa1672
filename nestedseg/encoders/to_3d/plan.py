"""How a timm model is made volumetric: found out once, without its weights, then applied to it.

The model is built for images, then the rules convert its modules one by one. Whether that works is
found by `check`: there is no list of model names.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from nestedseg.encoders.probe import Probe
from nestedseg.encoders.prober import nearest_power
from nestedseg.encoders.timm_model import build_on
from nestedseg.encoders.to_3d.check import Refused, check, run_both
from nestedseg.encoders.to_3d.layout import layout_of
from nestedseg.encoders.to_3d.rules import conversion_of, convert_all
from nestedseg.encoders.to_3d.trace import Call, Trace, runs

HALVING = 2  # the stride along depth of a halving for which none is given
SIDES = (5, 7, 9)  # of a volume whose features show the strides, in multiples of the deepest one


def depth_stride(stride: int, depth_strides: Sequence[int] | None) -> int:
    """The stride along depth where that along height is ``stride``, a power of two.

    Args:
        depth_strides: of each halving of height and width, finest first; those left out are 2.
    """
    halvings = stride.bit_length() - 1
    given = tuple(depth_strides or ())[:halvings]
    return math.prod(given) * HALVING ** (halvings - len(given))


@dataclass(frozen=True)
class Plan:
    """How a model is converted.

    Args:
        depth_strides: by path, of the modules that shrink or enlarge depth not as they do height.
        smallest: the smallest volume (D, H, W) that it takes.
    """

    depth_strides: dict[str, int]
    smallest: tuple[int, int, int]

    def apply(self, model: nn.Module, pretrained: bool) -> nn.Module:
        """Converts a model, in place; its weights are inflated, or drawn anew."""
        return convert_all(model, self.depth_strides, pretrained)


@lru_cache(maxsize=256)
def plan(name: str, probe: Probe, depth_strides: tuple[int, ...] | None) -> Plan:
    """How a timm model is converted.

    Args:
        probe: what is known of it in 2-D.
        depth_strides: see `depth_stride`.

    Raises:
        ValueError: it cannot be; the message names the module that stands in the way.
    """
    try:
        check(name, probe)
        return checked_plan(name, probe, depth_strides)
    except Refused as error:
        raise ValueError(f"encoder {name!r} cannot be made volumetric: {error}") from error


def checked_plan(name: str, probe: Probe, depth_strides: tuple[int, ...] | None) -> Plan:
    """The plan for a model that can be converted with full strides along depth.

    Raises:
        Refused: with these it cannot.
    """
    deepest = max(feature.nominal for feature in probe.features)
    unit, multiple = deepest * probe.factor, depth_stride(deepest, depth_strides) * probe.factor
    depth, *sides = SIDES[0] * multiple, *(side * unit for side in SIDES[1:])
    model = build_on("meta", name, probe.in_channels, dict(probe.arguments))
    converted = copy.deepcopy(model)
    trace = Trace(model)
    trace.run(probe.in_channels, sides)
    changed = changed_strides(trace.calls, sides[0], depth_strides)
    convert_all(converted, changed)
    calls, _ = run_both(model, converted, probe.in_channels, (depth, *sides))
    for image, volume in calls:
        check_depth(image, volume, (depth, *sides), depth_strides)

    def takes(*size: int) -> bool:
        return runs(converted, probe.in_channels, size)

    side = probe.smallest
    while not takes(depth, side, side):  # pooling in 3-D may need more
        side += unit
    depths = range(multiple, depth, multiple)
    return Plan(changed, (next((n for n in depths if takes(n, side, side)), depth), side, side))


def changed_strides(calls: Sequence[Call], height: int,
                    depth_strides: Sequence[int] | None) -> dict[str, int]:
    """By path, the strides along depth of the modules where they are not those along height.

    Args:
        calls: of all modules, with an image.
        height: of the image.

    Raises:
        Refused: a module runs at several resolutions, with other strides along depth.
    """
    found: dict[str, int] = {}
    for call in calls if depth_strides is not None else ():
        module: Any = call.module
        stride = getattr(module, "scale_factor", None) or getattr(module, "stride", None)
        if stride is None or conversion_of(module) is None:
            continue
        factor = int(stride[0] if isinstance(stride, (tuple, list)) else stride)
        finer = nearest_power(height / call.given[0][0].shape[2])
        if hasattr(module, "scale_factor"):
            finer //= factor
        step = (depth_stride(nearest_power(finer * factor), depth_strides)
                // depth_stride(finer, depth_strides))
        if step != nearest_power(factor) and found.setdefault(call.path, step) != step:
            raise Refused(call.path, module, "it runs at several resolutions, with other strides "
                          "along depth")
    return found


def check_depth(image: Call, volume: Call, size: tuple[int, ...],
                depth_strides: Sequence[int] | None) -> None:
    """Checks that a feature has the depth that the strides say.

    Raises:
        Refused: it has not.
    """
    if not isinstance(volume.gave, Tensor) or volume.gave.dim() == image.gave.dim():
        return
    depth, height, _ = layout_of(image.gave.shape, volume.gave.shape, {}).grid
    if height == 1:
        return
    stride = nearest_power(size[1] / height)
    step = depth_stride(stride, depth_strides)
    due, lost = size[0] / step, abs(height - size[1] / stride)  # by what pads nothing
    if abs(depth - due) >= 1 + lost * stride / step:
        raise Refused(image.path, image.module, f"it gives a depth of {depth} where {due:g} is due")
