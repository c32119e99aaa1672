"""Forward code that was written for images, run on volumes, ``(N, C, D, H, W)`` or channels last.

The rule: what such code does to height and width alike is done to depth too. Squeeze-excitation's
``x.mean((2, 3))``, which over two of a volume's three axes would be wrong and raise no error,
becomes ``x.mean((2, 3, 4))``. What it does to only one of them is refused. A translated call is
left as it is, since translated modules lie within each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nestedseg.encoders.unpack import with_depth

VOLUME = 5  # axes
# An image's axes -> a volume's: those reduced over, and those of channels moved to the end or back.
AXES = {(0,): (0,), (1,): (1,), (2, 3): (2, 3, 4), (1, 2): (1, 2, 3)}
ORDERS = {(0, 2, 3, 1): (0, 2, 3, 4, 1), (0, 3, 1, 2): (0, 4, 1, 2, 3)}
MODES = {"bilinear": "trilinear"}

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Untranslatable(ValueError):
    """The code does something to height or width that cannot be done to depth too."""


class ForVolumes(TorchFunctionMode):
    """Within it, the functions in `RULES` do to depth what they do to height and width."""

    def __torch_function__(self, function: Callable[..., Any], types: Any,
                           args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        function, args, kwargs = translate(function, args, kwargs or {})
        return function(*args, **kwargs)


def translate(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A call as a volume needs it; the same objects where that is the call as it is."""
    rule = RULES.get(function)
    return rule(function, args, kwargs) if rule else (function, args, kwargs)


class Translated(nn.Module):
    """Stands before a class of timm's, whose forward it runs `ForVolumes`."""

    original: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with ForVolumes():
            return super().forward(*args, **kwargs)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        with ForVolumes():
            # of the class that it stands before
            return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # pickle finds classes by their names, and this one has none
        return _empty, (self.original,), self.__dict__


@cache
def unpacking(cls: type[nn.Module]) -> type[nn.Module]:
    """The class with a forward that unpacks five sizes; itself where it unpacks none."""
    forward = with_depth(cls.forward)
    if forward is cls.forward:
        return cls
    return type(cls.__name__, (cls,), {"forward": forward, "original": cls})


@cache
def translated(cls: Any) -> type[nn.Module]:
    """The class with its forward translated."""
    return type(cls.__name__, (Translated, unpacking(cls)), {"original": cls})


def _empty(cls: Any) -> nn.Module:
    return translated(cls).__new__(translated(cls))


# -- the rules -------------------------------------------------------------------------------------


def is_volume(x: Any) -> bool:
    """Whether it is a map of features, or several on an axis of their own; kernels are none."""
    return isinstance(x, Tensor) and x.dim() >= VOLUME and not isinstance(x, nn.Parameter)


def is_pooled(x: Tensor) -> bool:
    """Whether one voxel is left, so that the axes of space do not matter any more."""
    return all(side == 1 for side in x.shape[-3:])


def three(value: Any) -> Any:
    """A size, stride or the like along three axes; other values as they are.

    Raises:
        Untranslatable: it differs between height and width.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return value
    if value[0] != value[1]:
        raise Untranslatable(f"the sizes {tuple(value)}, which differ between height and width")
    return (value[0],) * 3


def neighbours(function_3d: Callable[..., Tensor]) -> Callable[..., Call]:
    """A function that looks at neighbours, like pooling: its counterpart in 3-D."""
    def rule(function: Callable[..., Tensor], args: tuple[Any, ...],
             kwargs: dict[str, Any]) -> Call:
        if not is_volume(args[0]):
            return function, args, kwargs
        return (function_3d, tuple(map(three, args)),
                {key: three(value) for key, value in kwargs.items()})
    return rule


def interpolate(function: Callable[..., Tensor], args: tuple[Any, ...],
                kwargs: dict[str, Any]) -> Call:
    """Resizing, to a size or by a factor."""
    function, args, kwargs = neighbours(function)(function, args, kwargs)
    if is_volume(args[0]) and kwargs.get("mode") in MODES:
        kwargs = kwargs | {"mode": MODES[kwargs["mode"]]}
    return function, args, kwargs


def pad(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """(left, right, top, bottom), with front and back the same."""
    x, sides, *rest = args if len(args) > 1 else (*args, kwargs["pad"])
    if not is_volume(x) or len(sides) == 6:
        return function, args, kwargs
    pairs = {tuple(sides[i:i + 2]) for i in range(0, len(sides), 2)}
    if len(sides) != 4 or len(pairs) != 1:
        raise Untranslatable(f"padding by {tuple(sides)}, which differs between the axes")
    kwargs = {key: value for key, value in kwargs.items() if key != "pad"}
    return function, (x, tuple(sides[:2]) * 3, *rest), kwargs


def along(position: int) -> Callable[..., Call]:
    """A function of one or more axes, ``dim``, which is its argument at this position."""
    def rule(function: Callable[..., Tensor], args: tuple[Any, ...],
             kwargs: dict[str, Any]) -> Call:
        tensors = args[0] if isinstance(args[0], (tuple, list)) else args[:1]
        if not any(map(is_volume, tensors)):
            return function, args, kwargs
        if "axis" in kwargs:
            kwargs = {"dim" if key == "axis" else key: value for key, value in kwargs.items()}
        dim = args[position] if len(args) > position else kwargs.get("dim")
        axes = () if dim is None else tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
        if axes in ((), (-1,), *AXES.values()):  # -1 are channels: no code does so to width alone
            return function, args, kwargs
        key = tuple(sorted(axis % (VOLUME - 1) for axis in axes))
        if key not in AXES or (max(x.dim() for x in tensors) > VOLUME and AXES[key] != key):
            raise Untranslatable(f"along axes {key}, height and width not alike")
        if len(args) > position:
            return function, (*args[:position], AXES[key], *args[position + 1:]), kwargs
        return function, args, kwargs | {"dim": AXES[key]}
    return rule


def permute(function: Callable[..., Tensor], args: tuple[Any, ...],
            kwargs: dict[str, Any]) -> Call:
    """Channels moved to the end, or back."""
    x, order = args[0], _sizes(args[1:], kwargs.get("dims"))
    if not is_volume(x) or len(order) == x.dim():  # no image's: of queries, keys and values, say
        return function, args, kwargs
    if order not in ORDERS:
        raise Untranslatable(f"axes in the order {order}")
    return function, (x, ORDERS[order]), {}


def reshape(function: Callable[..., Tensor], args: tuple[Any, ...],
            kwargs: dict[str, Any]) -> Call:
    """A value a channel, ``(..., 1, 1)``; of a volume, a shape that leaves the axes of space, or
    makes one of them: all voxels as a set, as attention without positions sees them."""
    x, sizes = args[0], _sizes(args[1:], kwargs.get("shape"))
    if sizes[-2:] == (1, 1) and len(sizes) in (3, 4, 5) and sizes[-3] != 1:
        return function, (x, (*sizes, 1)), {}
    if is_volume(x) and not is_pooled(x) and sizes[-3:] != tuple(x.shape[-3:]):
        voxels = math.prod(x.shape[-3:])
        last = sizes[-1] if sizes[-1] != -1 else x.numel() // math.prod(sizes[:-1])
        if last != voxels:
            raise Untranslatable("another shape for the axes of space")
    return function, args, kwargs


def flatten(function: Callable[..., Tensor], args: tuple[Any, ...],
            kwargs: dict[str, Any]) -> Call:
    """What is pooled, or all axes of space: all voxels as a set."""
    start = args[1] if len(args) > 1 else kwargs.get("start_dim", 0)
    end = args[2] if len(args) > 2 else kwargs.get("end_dim", -1)
    if is_volume(args[0]) and not is_pooled(args[0]) and (start, end) not in ((2, -1), (2, 4)):
        if (start, end) == (2, 3) and args[0].dim() == VOLUME:
            return function, (args[0], 2, 4), {}
        raise Untranslatable("flattened axes of space")
    return function, args, kwargs


def index(function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """``x[..., None, None]``, a value a channel; of a volume, what is cut alike from all sides."""
    x, where = args
    if not isinstance(where, tuple) or len(where) < 3:
        return function, args, kwargs
    if where[-2:] == (None, None) and where[-3] is not None:
        return function, (x, (*where, None)), kwargs
    if not is_volume(x):
        return function, args, kwargs
    if len(where) == VOLUME and where[-3] == where[-2] == where[-1]:
        return function, args, kwargs
    if len(where) != VOLUME - 1 or not isinstance(where[-1], slice) or where[-1] != where[-2]:
        raise Untranslatable("pixels picked from height and width not alike")
    return function, (x, (*where, where[-1])), kwargs


def broadcast(function: Callable[..., Tensor], args: tuple[Any, ...],
              kwargs: dict[str, Any]) -> Call:
    """A volume and a parameter ``(C, 1, 1)``, a value a channel."""
    if not any(map(is_volume, args)):
        return function, args, kwargs
    wide = [isinstance(x, nn.Parameter) and x.dim() in (VOLUME - 2, VOLUME - 1)
            and tuple(x.shape[-2:]) == (1, 1) for x in args]
    if not any(wide):
        return function, args, kwargs
    return function, tuple(x.unsqueeze(-1) if w else x for x, w in zip(args, wide)), kwargs


def _sizes(values: tuple[Any, ...], named: Any) -> tuple[Any, ...]:
    """Sizes or axes, which may be given one by one or as one sequence."""
    values = values or (named,)
    return tuple(values[0]) if isinstance(values[0], (tuple, list)) else tuple(values)


RULES: dict[Callable[..., Any], Callable[..., Call]] = {
    F.conv2d: neighbours(F.conv3d),
    F.avg_pool2d: neighbours(F.avg_pool3d),
    F.max_pool2d: neighbours(F.max_pool3d),
    torch.max_pool2d: neighbours(F.max_pool3d),
    F.adaptive_avg_pool2d: neighbours(F.adaptive_avg_pool3d),
    F.adaptive_max_pool2d: neighbours(F.adaptive_max_pool3d),
    F.interpolate: interpolate,
    F.pad: pad,
    Tensor.permute: permute,
    torch.permute: permute,
    Tensor.view: reshape,
    Tensor.reshape: reshape,
    torch.reshape: reshape,
    Tensor.flatten: flatten,
    torch.flatten: flatten,
    Tensor.__getitem__: index,
} | {getattr(owner, name): along(position)
     for name, position in {"mean": 1, "sum": 1, "amax": 1, "amin": 1, "softmax": 1, "var": 1,
                            "std": 1, "unbind": 1, "norm": 2, "chunk": 2, "split": 2}.items()
     for owner in (Tensor, torch)} | {
    function: broadcast for function in (
        torch.add, torch.mul, Tensor.add, Tensor.add_, Tensor.mul, Tensor.mul_, Tensor.__mul__,
        Tensor.__rmul__, Tensor.__add__, Tensor.__radd__)} | {
    torch.cat: along(1), torch.stack: along(1), F.softmax: along(1), F.normalize: along(2)}
