"""Whether a converted model computes on volumes what it computed on images, found by numbers.

A model is run whole only on the meta device, for its shapes. The numbers are those of one module at
a time, in float64: its own code is run, but the modules that it calls do not compute. They answer
with random features, and what they are given counts as what the module gives. Two things are asked.

- Of a volume whose slices are all alike, and of such answers, it makes the slices that it makes of
  the image, away from the ends of depth.
- Of a volume whose depth and width are exchanged it makes what it makes of the volume, exchanged.
  That finds what equal slices hide: slices that are flipped, or that are pooled each for itself.

If this holds for each module it holds for the model, which is made of them. A layer that calls no
other and whose very class has a rule is not checked here: the tests do so for each rule. So the
convolutions of a large model are never computed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from nestedseg.encoders.probe import Probe
from nestedseg.encoders.timm_model import build_on, forward_taps
from nestedseg.encoders.to_3d.layout import Grid, Layout, layout_of
from nestedseg.encoders.to_3d.rules import CONVERSIONS, convert, convert_all
from nestedseg.encoders.to_3d.trace import Call, Trace, map_tensors, runs

TOLERANCE = 1e-6  # of the largest value: a few of timm's layers compute in float32
PERIOD = 16_411  # a prime: after so many, random numbers come again, which is faster than new ones
# Of a volume, in multiples of the deepest stride, smallest first. Depth and height differ, so that
# shapes tell them apart.
SIDES = ((2, 3, 1), (2, 3, 2), (3, 4, 3), (4, 5, 4), (5, 6, 5), (6, 7, 6))


class Refused(ValueError):
    """A module stands in the way of a conversion."""

    def __init__(self, path: str, module: nn.Module, reason: object) -> None:
        super().__init__(f"{path or 'the model itself'} ({type(module).__name__}): {reason}")


@lru_cache(maxsize=256)
def check(name: str, probe: Probe) -> None:
    """Checks that the rules make a timm model volumetric.

    Args:
        probe: what is known of it in 2-D.

    Raises:
        Refused: naming the first module that stands in the way.
    """
    model = build_on("meta", name, probe.in_channels, dict(probe.arguments))
    converted = convert_all(copy.deepcopy(model))
    check_conversion(model, converted, probe.in_channels, volume_for(converted, probe))
    if probe.runs_at:
        raise Refused("", model, f"it is built for images of {probe.runs_at} alone")


def check_conversion(model: nn.Module, converted: nn.Module, in_channels: int,
                     size: Sequence[int]) -> None:
    """Checks a model on the meta device that was converted, on a volume of this size.

    Raises:
        Refused: naming the first module that stands in the way.
    """
    calls, grids = run_both(model, converted, in_channels, size)
    for image, volume in cheapest(calls, grids):
        try:
            with torch.device("cpu"):  # whatever the default is just now
                check_call(image, volume, grids)
        except Exception as error:  # each module fails in its own way
            raise Refused(image.path, image.module, error) from error


def volume_for(converted: nn.Module, probe: Probe) -> tuple[int, ...]:
    """The smallest volume of `SIDES` that the model takes, or the largest if it takes none."""
    unit = probe.factor * max(feature.nominal for feature in probe.features)
    for sides in SIDES:
        depth, *image = (side * unit for side in sides)
        size = (depth, *(probe.runs_at or image))
        if min(size[1:]) >= probe.smallest and runs(converted, probe.in_channels, size):
            break
    return size


def run_both(model: nn.Module, converted: nn.Module, in_channels: int, size: Sequence[int]
             ) -> tuple[list[tuple[Call, Call]], dict[int, Grid]]:
    """The calls of all modules, with an image and with a volume, and the sizes of their features.

    Args:
        size: (D, H, W) of the volume, whose slices have the size of the image.

    Raises:
        Refused: one fails, or gives for the volume what does not correspond to the image's.
    """
    flat, deep = Trace(model), Trace(converted)
    failure: Exception | None = None
    try:
        flat.run(in_channels, size[1:])
        deep.run(in_channels, size)
    except Exception as error:  # each module fails in its own way
        failure = error
    grids: dict[int, Grid] = {}

    def look(volume: Tensor, image: Tensor) -> None:
        grid = layout_of(image.shape, volume.shape, grids).grid
        grids[math.prod(grid)] = grid

    for image, volume in zip(flat.calls, deep.calls):
        if image.path != volume.path:
            raise Refused(image.path, image.module, "it is called for an image, not for a volume")
        try:
            map_tensors(look, volume.given, image.given)
        except ValueError:
            continue  # its caller is to blame, which comes later
        try:
            map_tensors(look, gave(volume), gave(image))
        except ValueError as error:
            raise Refused(image.path, image.module, error) from error
    if failure is not None:
        last = (deep.running or flat.running)[-1]
        raise Refused(last.path, model.get_submodule(last.path), failure) from failure
    return list(zip(flat.calls, deep.calls)), grids


def cheapest(calls: Iterable[tuple[Call, Call]], grids: dict[int, Grid]) -> list[tuple[Call, Call]]:
    """Those to check: of each kind the one with the fewest numbers."""
    found: dict[Hashable, tuple[Call, Call]] = {}
    for image, volume in calls:
        if type(image.module) in CONVERSIONS and not image.calls:
            continue  # a layer of which the tests show it
        kind = kind_of(image, volume, grids)
        if kind not in found or size_of(volume) < size_of(found[kind][1]):
            found[kind] = image, volume
    return list(found.values())


def kind_of(image: Call, volume: Call, grids: dict[int, Grid]) -> Hashable:
    """What two calls have in common of which one check is enough: all but the sizes of features."""
    layouts: list[Layout] = []
    map_tensors(lambda deep, flat: layouts.append(layout_of(flat.shape, deep.shape, grids)),
                received(volume), received(image))
    heights = [layout.grid[1] if layout.grid else 0 for layout in layouts]
    least = min((height for height in heights if height > 1), default=1)
    features = [(layout.axis, layout.tokens, height // least)
                for layout, height in zip(layouts, heights)]
    module = image.module
    settings = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    inner = [type(child) for child in (*module.children(), *(call.module for call in image.calls))]
    return type(module), repr((settings, inner, features))


def size_of(call: Call) -> int:
    """How many numbers a module receives."""
    sizes = [0]
    map_tensors(lambda x: sizes.append(x.numel()), received(call))
    return sum(sizes)


# -- one module ------------------------------------------------------------------------------------


def check_call(image: Call, volume: Call, grids: dict[int, Grid]) -> None:
    """Checks the module of these calls.

    Raises:
        ValueError: it does not do to depth what it does to height and width.
    """
    def change(how: Callable[..., Any], tensors_of: Callable[[Call], list[Any]], part: int,
               *trees: Any) -> Any:
        return map_tensors(
            lambda deep, flat, *xs: how(layout_of(flat.shape, deep.shape, grids), *xs),
            tensors_of(volume)[part], tensors_of(image)[part], *trees)

    def run(answer: Callable[[int], Any]) -> dict[int, Any]:
        found: dict[int, Any] = {}
        play(module, image, answer,
             lambda part, tree: found.__setitem__(part, map_tensors(torch.clone, tree)))
        return found

    module = with_numbers(image.module)
    of_slice = run(lambda part: draw(received(image)[part], part))
    convert(module)
    play(module, image,
         lambda part: change(Layout.repeat, received, part, draw(received(image)[part], part)),
         lambda part, made: change(check_interior, gave, part, made,
                                   change(Layout.repeat, gave, part, of_slice[part])))
    of_volume = run(lambda part: draw(received(volume)[part], part))
    play(module, image,
         lambda part: change(Layout.swap, received, part, draw(received(volume)[part], part)),
         lambda part, made: change(check_swapped, gave, part, made,
                                   change(Layout.swap, gave, part, of_volume[part])))


def received(call: Call) -> list[Any]:
    """What a module was given by its caller, then by each module that it called."""
    return [call.given, *(inner.gave for inner in call.calls)]


def gave(call: Call) -> list[Any]:
    """What a module gave to its caller, and to each module that it called."""
    return [call.gave, *(inner.given for inner in call.calls)]


def with_numbers(module: nn.Module) -> nn.Module:
    """A module on the meta device with weights of its own, and the same modules within."""
    twin = copy.copy(module)
    parameters = {name: x if x is None else nn.Parameter(draw(x), False)
                  for name, x in module._parameters.items()}
    buffers = {name: x if x is None else draw(x) for name, x in module._buffers.items()}
    twin.__dict__.update(_parameters=parameters, _buffers=buffers)
    if "forward" in module.__dict__:  # chosen when it was built
        twin.__dict__["forward"] = MethodType(module.__dict__["forward"].__func__, twin)
    return twin


def draw(tree: Any, seed: int = 0) -> Any:
    """Random numbers in the place of tensors; zeros for whole ones, which may be indices.

    They are positive, for modules that divide by them or take roots.
    """
    random = torch.Generator().manual_seed(seed)

    def numbers(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return torch.zeros(x.shape, dtype=x.dtype)
        some = torch.rand(min(PERIOD, x.numel()), generator=random, dtype=torch.float64) + 0.5
        return some.repeat(x.numel() // PERIOD + 1)[:x.numel()].view(x.shape)

    return map_tensors(numbers, tree)


@torch.no_grad()
def play(module: nn.Module, call: Call, answer: Callable[[int], Any],
         take: Callable[[int, Any], None]) -> None:
    """Runs a module's own code.

    Args:
        call: of the module, which says in what order it calls others.
        answer: returns one of the things that it receives, see `received`.
        take: is told of one of the things that it gives, see `gave`.
    """
    waiting = list(enumerate((inner.module for inner in call.calls), 1))

    def run_child(child: nn.Module, *args: Any, **kwargs: Any) -> Any:
        part, expected = waiting.pop(0) if waiting else (0, None)
        if child is not expected:
            raise ValueError("it calls other modules for a volume than for an image")
        take(part, (args, kwargs))
        return answer(part)

    args, kwargs = answer(0)
    with ExitStack() as stack:
        for child in {inner.module for inner in call.calls}:
            stack.enter_context(replaced_forward(child, partial(run_child, child)))
        forward = module.forward if call.path else partial(forward_taps, module)
        take(0, forward(*args, **kwargs))
    if waiting:
        raise ValueError("it calls fewer modules for a volume than for an image")


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it, the module computes something else."""
    own = {"forward": module.__dict__["forward"]} if "forward" in module.__dict__ else {}
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        module.__dict__.update(own)


def check_interior(layout: Layout, made: Tensor, expected: Tensor) -> None:
    if not alike(layout.interior(made), layout.interior(expected)):
        raise ValueError("for a volume of equal slices its result is not the image's in each")


def check_swapped(layout: Layout, made: Tensor, expected: Tensor) -> None:
    if not alike(made, expected):
        raise ValueError("it does not do to depth what it does to width")


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether they are equal but for rounding."""
    if a.shape != b.shape or not a.is_floating_point():
        return torch.equal(a, b)
    largest = torch.linalg.vector_norm
    return bool(largest(a - b, math.inf) <= TOLERANCE * largest(b, math.inf))
