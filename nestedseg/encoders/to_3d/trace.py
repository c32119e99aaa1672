"""What the modules of a model are given and give in one run, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nestedseg.encoders.timm_model import forward_taps


@dataclass
class Call:
    """One call of a module.

    Args:
        path: of the module; empty for the model itself.
        given: positional and named arguments, tensors on the meta device among them.
        gave: what it returned.
        calls: those of other modules that its own code made, in order.
    """

    path: str
    module: nn.Module
    given: tuple[tuple[Any, ...], dict[str, Any]]
    gave: Any = None
    calls: list[Call] = field(default_factory=list)


class Trace:
    """Runs a model that is on the meta device.

    Attributes:
        calls: in the order in which they returned; the model's own is the last.
        running: those that have not returned, outermost first.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[Call] = []
        self.running: list[Call] = []

    def run(self, in_channels: int, size: Sequence[int]) -> None:
        """Computes all features of one image or volume of this size."""
        x = torch.empty(1, in_channels, *size, device="meta")
        with ExitStack() as hooks, torch.no_grad():
            for path, module in self.model.named_modules():
                for handle in (module.register_forward_pre_hook(partial(self._enter, path),
                                                                with_kwargs=True),
                               module.register_forward_hook(self._leave)):
                    hooks.callback(handle.remove)
            self._enter("", self.model, (x,), {})
            self._leave(self.model, (x,), forward_taps(self.model, x))

    def _enter(self, path: str, module: nn.Module, args: tuple[Any, ...],
               kwargs: dict[str, Any]) -> None:
        self.running.append(Call(path, module, keep((args, kwargs))))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], gave: Any) -> None:
        call = self.running.pop()
        call.gave = keep(gave)
        self.calls.append(call)
        if self.running:
            self.running[-1].calls.append(call)


@torch.no_grad()
def runs(model: nn.Module, in_channels: int, size: Sequence[int]) -> bool:
    """Whether a model on the meta device takes an image or volume of this size."""
    try:
        forward_taps(model, torch.empty(1, in_channels, *size, device="meta"))
    except Exception:  # each model refuses a size in its own way
        return False
    return True


def map_tensors(function: Callable[..., Any], *trees: Any) -> Any:
    """The first of some nested containers, with the function of the tensors in their place.

    Raises:
        ValueError: where the first has a tensor or a container of tensors, another has none.
    """
    first = trees[0]
    if isinstance(first, Tensor):
        if not all(isinstance(tree, Tensor) for tree in trees):
            raise ValueError("it handles a volume otherwise than an image")
        return function(*trees)
    if isinstance(first, torch.Size) or not isinstance(first, (list, tuple, dict)):
        return first
    if not has_tensors(first):
        return first
    if not all(type(tree) is type(first) and len(tree) == len(first) for tree in trees):
        raise ValueError("it handles a volume otherwise than an image")
    if isinstance(first, dict):
        return {key: map_tensors(function, *(tree[key] for tree in trees)) for key in first}
    return type(first)(map_tensors(function, *each) for each in zip(*trees))


def has_tensors(tree: Any) -> bool:
    """Whether there is a tensor in nested containers."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return isinstance(tree, Tensor)
    return any(map(has_tensors, tree))


def keep(tree: Any) -> Any:
    """The same tensors in containers of their own, to which nothing is appended later."""
    return map_tensors(lambda x: x, tree)
