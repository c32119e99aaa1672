"""The number arguments of torchvision's detectors: which there are, and what each may be.

torchvision looks at most of them no sooner than in a forward pass, and some make it compute without
end, or NaN.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from nestedseg.base.errors import nearest, show
from nestedseg.base.extras import require
from nestedseg.models.sizes import MAX_PIXELS

if TYPE_CHECKING:
    from torchvision.models.detection import transform
else:
    transform = require("torchvision.models.detection.transform", "detection")

SIDES = ("min_size", "max_size", "fixed_size")  # in pixels
LONGEST = 16_384  # of these sides
MAX_DIVISOR = 512  # pixels, that images may be padded to a multiple of
MAX_COUNT = 10 ** 6  # of boxes
MAX_COLOUR = 10 ** 6
MAX_SIZES = 32  # among which training chooses
SMALLEST = 1e-6  # of what is divided by


def check_numbers(kind: type[nn.Module], name: str, arguments: Any, channels: int) -> None:
    """Checks that arguments are numbers that torchvision's class takes.

    Args:
        kind: the detector's class, and ``name`` its name for the message.
        channels: of the image.

    Raises:
        TypeError: ``arguments`` is not an object.
        ValueError: an unknown argument, or a value that is not a number in bounds.
    """
    if not isinstance(arguments, Mapping):
        raise TypeError(f"arguments must be an object, got {show(arguments)}")
    defaults = numbers_of(kind)
    lengths = {"image_mean": channels, "image_std": channels, "bbox_reg_weights": 4,
               "fixed_size": 2}
    for key, value in arguments.items():
        if key not in defaults:
            raise ValueError(f"unknown number argument {show(key)} of {name}; "
                             f"{nearest(key, sorted(defaults))}. For heads of your own, pass "
                             "nestedseg.pyramid(...) to torchvision's class yourself")
        check_number(key, value, defaults[key], lengths.get(key))
    if math.prod(arguments.get("fixed_size", ())) > MAX_PIXELS[2]:
        raise ValueError(f"fixed_size must be at most {MAX_PIXELS[2]} pixels in all, "
                         f"got {show(arguments['fixed_size'])}")
    values = defaults | dict(arguments)
    for prefix in ("", "rpn_", "box_"):
        low, high = f"{prefix}bg_iou_thresh", f"{prefix}fg_iou_thresh"
        if low in values and values[low] > values[high]:
            raise ValueError(f"{low} must be at most {high}, {values[high]}, got {values[low]}")


def check_number(name: str, value: Any, default: Any, length: int | None) -> None:
    """Checks one argument.

    Args:
        default: torchvision's, whose type says what it is.
        length: of a list; ``None`` = it is one number, or ``min_size``, which may be several.

    Raises:
        ValueError: it is not what it should be.
    """
    low, high, whole = bounds(name, default)
    several = isinstance(value, (list, tuple))
    if length is not None:
        fits, what = several and len(value) == length, f"a list of {length} numbers"
    elif name == "min_size":
        fits = not several or 1 <= len(value) <= MAX_SIZES
        what = f"a number, or a list of at most {MAX_SIZES},"
    else:
        fits, what = not several, "a whole number" if whole else "a number"
    numbers = value if several else [value]
    if not fits or not all(type(n) in ((int,) if whole else (int, float)) and low <= n <= high
                           for n in numbers):
        unit = " pixels" if name in SIDES else ""
        raise ValueError(f"{name} must be {what} from {low} to {high}{unit}, got {show(value)}")


def bounds(name: str, default: Any) -> tuple[float, float, bool]:
    """The smallest and the largest value of an argument, and whether it must be whole."""
    if name in SIDES:
        return 1, LONGEST, name == "fixed_size"
    if name == "size_divisible":
        return 1, MAX_DIVISOR, True
    if name in ("image_std", "bbox_reg_weights"):
        return SMALLEST, MAX_COLOUR, False
    if name == "image_mean":
        return 0, MAX_COLOUR, False
    return (1, MAX_COUNT, True) if type(default) is int else (0, 1, False)


def numbers_of(kind: type[nn.Module]) -> dict[str, Any]:
    """The number arguments of torchvision's class and of its image transform, with defaults."""
    parameters = [*inspect.signature(transform.GeneralizedRCNNTransform).parameters.values(),
                  *inspect.signature(kind.__bases__[-1]).parameters.values()]
    lists = ("image_mean", "image_std", "bbox_reg_weights", "fixed_size")
    return {each.name: each.default for each in parameters
            if type(each.default) in (int, float) or each.name in lists}
