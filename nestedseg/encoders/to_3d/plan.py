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
        model = build_on("meta", name, probe.in_channels, dict(probe.arguments))
        changed = {} if depth_strides is None else other_strides(model, probe, depth_strides)
    except Refused as error:
        raise ValueError(f"encoder {name!r} cannot be made volumetric: {error}") from error
    return Plan(changed, smallest_volume(convert_all(model, changed), probe, depth_strides))


def smallest_volume(converted: nn.Module, probe: Probe,
                    depth_strides: tuple[int, ...] | None) -> tuple[int, int, int]:
    """(D, H, W) of the smallest volume that a converted model takes."""
    def takes(*size: int) -> bool:
        return runs(converted, probe.in_channels, size)

    multiple, unit = units(probe, depth_strides)
    deep, side = SIDES[0] * multiple, probe.smallest
    while not takes(deep, side, side):  # pooling in 3-D may need more
        side += unit
    depths = range(multiple, deep, multiple)
    return next((depth for depth in depths if takes(depth, side, side)), deep), side, side


def units(probe: Probe, depth_strides: tuple[int, ...] | None) -> tuple[int, int]:
    """What depth, and height and width, must be multiples of."""
    deepest = max(feature.nominal for feature in probe.features)
    return depth_stride(deepest, depth_strides) * probe.factor, deepest * probe.factor


def other_strides(model: nn.Module, probe: Probe, depth_strides: tuple[int, ...]) -> dict[str, int]:
    """By path, the strides along depth of the modules where they are not those along height.

    Raises:
        Refused: with these the model cannot be converted.
    """
    multiple, unit = units(probe, depth_strides)
    size = SIDES[0] * multiple, SIDES[1] * unit, SIDES[2] * unit
    trace = Trace(model)
    trace.run(probe.in_channels, size[1:])
    found = strides_of(trace.calls, size[1], depth_strides)
    converted = convert_all(copy.deepcopy(model), found)
    for image, volume in run_both(model, converted, probe.in_channels, size)[0]:
        check_depth(image, volume, size, depth_strides)
    return found


def strides_of(calls: Sequence[Call], height: int,
               depth_strides: Sequence[int]) -> dict[str, int]:
    """The same, from how coarse the features are that each module is given.

    Args:
        calls: of all modules, with an image.
        height: of the image.

    Raises:
        Refused: a module runs at several resolutions, with other strides along depth.
    """
    found: dict[str, int] = {}
    for call in calls:
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
