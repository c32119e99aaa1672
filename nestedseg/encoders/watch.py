"""A timm model watched while it is made volumetric: module by module, against its own run in 2-D.

Every module must give the height and width that it gave for the image, and the depth that the
strides along depth say, and no function may see a volume that is not known to treat its axes of
space alike. The first that departs is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nestedseg.encoders.inflate import conversion_of
from nestedseg.encoders.translate import (
    RULES,
    ForVolumes,
    Translated,
    Untranslatable,
    is_pooled,
    is_volume,
    translate,
)
from nestedseg.encoders.trial import forward_taps, nearest_power

HALVING = 2  # the stride along depth of a halving for which none is given

# What treats the axes of space alike whatever its other arguments are, by name.
ALIKE = frozenset((
    "__get__", "__len__", "dim", "numel", "size", "new_empty", "new_full", "new_zeros",
    "contiguous", "detach", "to", "type_as", "clone", "__add__", "__iadd__", "__imul__",
    "__mul__", "__pow__", "__radd__", "__rmul__", "__rsub__", "__sub__", "__truediv__", "abs",
    "add", "add_", "addcmul", "clamp", "clamp_", "div", "div_", "eq", "exp", "expand",
    "expand_as", "mul", "mul_", "neg", "pow", "rsqrt", "sqrt", "square", "sub", "sub_", "gelu",
    "hardsigmoid", "hardsigmoid_", "hardswish", "hardswish_", "hardtanh", "hardtanh_",
    "leaky_relu", "leaky_relu_", "mish", "prelu", "relu", "relu6", "relu_", "sigmoid",
    "sigmoid_", "silu", "silu_", "softplus", "tanh", "batch_norm", "group_norm", "layer_norm",
    "rms_norm", "linear", "dropout", "dropout_", "conv3d", "avg_pool3d", "max_pool3d",
    "adaptive_avg_pool3d", "adaptive_max_pool3d",
))


def depth_stride(stride: int, depth_strides: Sequence[int] | None) -> int:
    """The stride along depth where that along height is ``stride``, a power of two.

    Args:
        depth_strides: of each halving of height and width, finest first; those left out are 2.
    """
    halvings = stride.bit_length() - 1
    given = tuple(depth_strides or ())[:halvings]
    return math.prod(given) * HALVING ** (halvings - len(given))


class Watch:
    """Runs a model on the meta device, first on an image, then, converted, on volumes.

    Attributes:
        depth_strides: by path, of the modules that shrink or enlarge depth not as they do height.
        classes: the classes of modules whose code had to be translated.
    """

    def __init__(self, model: nn.Module, in_channels: int, given: Sequence[int] | None) -> None:
        self.model, self.in_channels, self.given = model, in_channels, given
        self.depth_strides: dict[str, int] = {}
        self.classes: set[type[nn.Module]] = set()
        self._calls: list[tuple[str, nn.Module]] = []  # that have not returned
        self._shapes: dict[str, list[tuple[int, ...]]] = {}  # what each module gave for the image

    @property
    def where(self) -> str:
        """The module that was running last."""
        path, module = self._calls[-1]
        return f"{path or 'the model itself'} ({type(module).__name__})"

    def see_image(self, size: tuple[int, ...]) -> None:
        """Runs it in 2-D."""
        def before(path: str, module: nn.Module, x: Any) -> None:
            if self.given is not None and isinstance(x, Tensor):
                self._measure(path, module, nearest_power(size[0] / x.shape[2]))

        def after(path: str, module: nn.Module, output: Any) -> None:
            self._shapes.setdefault(path, []).append(tuple(getattr(output, "shape", ())))

        self._run(size, before, after)

    def see_volume(self, size: tuple[int, ...]) -> None:
        """Runs it, converted, in 3-D.

        Raises:
            Untranslatable: a module departs from what it gave for the image.
        """
        shapes = {path: iter(seen) for path, seen in self._shapes.items()}

        def after(path: str, module: nn.Module, output: Any) -> None:
            flat = next(shapes[path])
            if is_volume(output) and not is_pooled(output):
                self._compare(tuple(output.shape), flat, size)

        with Audit(self):
            self._run(size, lambda *call: None, after)

    def takes(self, size: tuple[int, int, int]) -> bool:
        """Whether it runs, converted, on a volume of this size."""
        try:
            with ForVolumes():
                self._run(size, lambda *call: None, lambda *call: None)
        except Exception:  # each model refuses a size in its own way
            return False
        return True

    def _run(self, size: Sequence[int], before: Callable[..., None],
             after: Callable[..., None]) -> None:
        """Runs the model; its modules' calls are told to ``before`` and ``after``."""
        self._calls = [("", self.model)]

        def enter(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
            self._calls.append((path, module))
            before(path, module, args[0] if args else None)

        def leave(path: str, module: nn.Module, output: Any) -> None:
            after(path, module, output)
            self._calls.pop()

        with ExitStack() as hooks:
            for path, module in self.model.named_modules():
                for handle in (
                        module.register_forward_pre_hook(
                            lambda module, args, path=path: enter(path, module, args)),
                        module.register_forward_hook(
                            lambda module, args, output, path=path: leave(path, module, output))):
                    hooks.callback(handle.remove)
            x = torch.empty(1, self.in_channels, *size, device="meta")
            with torch.no_grad():
                forward_taps(self.model, x)

    def _measure(self, path: str, module: nn.Module, finer: int) -> None:
        """Notes the stride along depth of a module whose input has this stride."""
        if conversion_of(module) is None:
            return
        given: Any = getattr(module, "scale_factor", None) or getattr(module, "stride", 1)
        factor = int(given[0] if isinstance(given, (tuple, list)) else given)
        if hasattr(module, "scale_factor"):
            finer //= factor
        step = (depth_stride(nearest_power(finer * factor), self.given)
                // depth_stride(finer, self.given))
        if step != nearest_power(factor) and self.depth_strides.setdefault(path, step) != step:
            raise Untranslatable("it runs at several resolutions, with other strides along depth")

    def _compare(self, shape: tuple[int, ...], flat: tuple[int, ...],
                 size: tuple[int, ...]) -> None:
        """A feature ``(N, ..., D, H, W)`` or ``(N, D, H, W, C)`` against its image's."""
        last = (shape[0], *shape[2:]) == flat  # channels last
        if not last and (*shape[:-3], *shape[-2:]) != flat:
            raise Untranslatable(f"it gives {shape} for a volume, and {flat} for an image")
        depth, height = shape[1:3] if last else shape[-3:-1]
        stride = nearest_power(size[1] / height)
        step = depth_stride(stride, self.given)
        due, lost = size[0] / step, abs(height - size[1] / stride)  # by what pads nothing
        if abs(depth - due) >= 1 + lost * stride / step:
            raise Untranslatable(f"it gives {shape}, a depth of {depth} where {due:g} is due")


class Audit(ForVolumes):
    """Refuses functions that are not known to do alike to all axes of a volume."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, function: Callable[..., Any], types: Any,
                           args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        _, module = self.watch._calls[-1]
        call = translate(function, args, kwargs)
        if any(a is not b for a, b in zip(call, (function, args, kwargs))):
            if not isinstance(module, Translated):
                self.watch.classes.add(getattr(module, "original", type(module)))
        elif function not in RULES and getattr(function, "__name__", "") not in ALIKE:
            for x in values_of(args, kwargs.values()):
                if is_volume(x) and not is_pooled(x):
                    raise Untranslatable(f"it calls {function.__name__}")
        function, args, kwargs = call
        return function(*args, **kwargs)


def values_of(*containers: Any) -> Iterator[Any]:
    """What is in them, and in the lists and tuples in them."""
    for container in containers:
        for value in container:
            if isinstance(value, (list, tuple)):
                yield from value
            else:
                yield value
