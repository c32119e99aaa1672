"""Volumes without ends: padding along depth repeats the last slice, instead of zeros.

A network of any receptive field, or with global means, then has an interior everywhere, so that
the inflation identity can be tested to the last digit on volumes of a few slices.
"""

from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Endless(TorchFunctionMode):
    """Within it, zero padding along depth repeats the border."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in PADDING:
            return without_ends(function, PADDING[function], list(args), dict(kwargs))
        if function is F.pad and len(args[1]) == 6 and args[0].dim() == 5:
            x, sides = args[0], args[1]
            x = F.pad(x, (0, 0, 0, 0, *sides[4:]), mode="replicate") if any(sides[4:]) else x
            return function(x, (*sides[:4], 0, 0), *args[2:], **kwargs)
        return function(*args, **kwargs)


# Where each function has its padding among its arguments.
PADDING = {F.conv3d: 4, F.avg_pool3d: 3}


def without_ends(function, position, args, kwargs):
    padding = args[position] if len(args) > position else kwargs.get("padding", 0)
    padding = (padding,) * 3 if isinstance(padding, int) else tuple(padding)
    if padding[0]:
        args[0] = F.pad(args[0], (0, 0, 0, 0, padding[0], padding[0]), mode="replicate")
        padding = (0, *padding[1:])
    if len(args) > position:
        args[position] = padding
    else:
        kwargs["padding"] = padding
    return function(*args, **kwargs)
