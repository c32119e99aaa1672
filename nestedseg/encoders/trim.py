"""Removes from a cut-down model what no longer reaches any feature that is kept.

timm's own cutting leaves such parts in a few models: branches of the last stage that only feed
coarser features. They would cost time and memory, and stop distributed training, which waits for
their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from nestedseg.meta import meta_copy

Run = Callable[[nn.Module], Sequence[Tensor]]
Idle = dict[str, "type[nn.Module] | None"]

_found: dict[Hashable, Idle] = {}


class Nothing(nn.Module):
    """Stands where a branch was whose result nobody reads: 0, whatever the input."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x.new_zeros(())


def trim(model: nn.Module, run: Run, key: Hashable) -> None:
    """Takes out, in place, the modules and parameters that get no gradient.

    Args:
        run: computes the features that are kept; it is called with a copy on the meta device.
        key: of the model and its features: what is found for one is found once in a process.
    """
    if key not in _found:
        _found[key] = find_idle(model, run)
    for path, stub in _found[key].items():
        if stub is None:
            to_buffer(model, path)
        else:
            model.set_submodule(path, stub())


def find_idle(model: nn.Module, run: Run) -> Idle:
    """What can go: stubs by the path of a module, ``None`` by that of a lone parameter."""
    ghost = meta_copy(model).eval()
    unused = unused_parameters(ghost, run)
    idle: Idle = {}
    if unused:
        with torch.no_grad():
            shapes = shapes_of(ghost, run)
            collect(ghost, unused, lambda: shapes_of(ghost, run) == shapes, idle)
    return idle


def unused_parameters(ghost: nn.Module, run: Run) -> set[str]:
    """Names of the parameters that no feature depends on; none where it cannot be found out."""
    parameters = dict(ghost.named_parameters())
    with torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_()
        try:
            total = sum(feature.sum() for feature in run(ghost))
        except Exception:  # a model that reads values has no meta form; it is left as it is
            return set()
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {name for name, grad in zip(parameters, grads) if grad is None}


def collect(ghost: nn.Module, unused: set[str], runs: Callable[[], bool], idle: Idle,
            path: str = "") -> None:
    """Adds what is unused below ``path``, from the outermost inwards, if the copy then runs."""
    module = ghost.get_submodule(path)
    for name, _ in module.named_parameters(recurse=False):
        if join(path, name) in unused:
            idle[join(path, name)] = None
    for name, child in module.named_children():
        inner = join(path, name)
        own = {join(inner, parameter) for parameter, _ in child.named_parameters()}
        stub = stub_for(ghost, inner, runs) if own and own <= unused else None
        if stub is not None:
            idle[inner] = stub
        elif own & unused:
            collect(ghost, unused, runs, idle, inner)


def to_buffer(model: nn.Module, path: str) -> None:
    """A parameter that the model's code mentions stays, but is not trained."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)


def stub_for(ghost: nn.Module, path: str, runs: Callable[[], bool]) -> type[nn.Module] | None:
    """Puts a stub in a module's place in the copy, if it runs so."""
    before = ghost.get_submodule(path)
    for stub in (nn.Identity, Nothing):
        ghost.set_submodule(path, stub())
        if runs():
            return stub
    ghost.set_submodule(path, before)
    return None


def shapes_of(ghost: nn.Module, run: Run) -> list[torch.Size] | None:
    """The shapes of the features; ``None`` where the copy does not run."""
    try:
        return [feature.shape for feature in run(ghost)]
    except Exception:  # what misses a module fails in a way of its own
        return None


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
