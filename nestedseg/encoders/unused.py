"""Removes from a cut-down model what no longer reaches any feature that is kept.

timm's own cutting leaves such parts in a few models: branches of the last stage that only feed
coarser features. They would cost time and memory, and stop distributed training, which waits for
their gradients. What reaches a feature is read off autograd's graph, on a copy without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nestedseg.decoder.meta import meta_copy

Run = Callable[[nn.Module], Sequence[Tensor]]
Unused = dict[str, "type[nn.Module] | None"]

_found: dict[Hashable, Unused] = {}


class Zero(nn.Module):
    """Stands where a branch was whose result nobody reads: 0, whatever the input."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return x.new_zeros(())


def remove_unused(model: nn.Module, run: Run, key: Hashable) -> None:
    """Takes out, in place, the modules and parameters that no feature depends on.

    Args:
        run: computes the features that are kept; it is called with a copy on the meta device.
        key: of the model and its features: what is found for one is found once in a process.
    """
    key = key, tuple(name for name, _ in model.named_parameters())
    if key not in _found:
        _found[key] = find_unused(model, run)
    for path, stub in _found[key].items():
        if stub is None:
            to_buffer(model, path)
        else:
            model.set_submodule(path, stub())


def find_unused(model: nn.Module, run: Run) -> Unused:
    """What can go: stubs by the path of a module, ``None`` by that of a lone parameter."""
    ghost = meta_copy(model).eval()
    for parameter in ghost.parameters():
        parameter.requires_grad_()
    with torch.enable_grad():
        try:
            features = run(ghost)
        except Exception:  # a model that reads values has no meta form; it is left as it is
            return {}
        unused = unused_parameters(ghost, features)
        return UnusedModules(ghost, run, unused).found if unused else {}


def unused_parameters(ghost: nn.Module, features: Iterable[Tensor]) -> list[str]:
    """Names of the parameters that no feature depends on."""
    nodes = ancestors(feature.grad_fn for feature in features)
    used = {id(node.variable) for node in nodes if hasattr(node, "variable")}
    return [name for name, parameter in ghost.named_parameters() if id(parameter) not in used]


def ancestors(nodes: Iterable[Any]) -> set[Any]:
    """The nodes of autograd's graph from these back to the parameters."""
    found: set[Any] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    return found


class UnusedModules:
    """Replaces modules of a copy on which nothing depends, where it then still runs.

    ``found`` are the stubs by path, and with ``None`` the unused parameters of other modules.
    """

    def __init__(self, ghost: nn.Module, run: Run, unused: Sequence[str]) -> None:
        self.ghost, self.run, self.unused = ghost, run, set(unused)
        self.read, self.made = trace(ghost, run)
        self.shapes = self._shapes()
        self.found: Unused = {}
        self._replace(self._unused_below(""))
        left = dict(ghost.named_parameters())
        self.found |= {name: None for name in unused if name in left}

    def _unused_below(self, path: str) -> list[str]:
        """Paths of the outermost modules below ``path`` on which nothing depends."""
        found: list[str] = []
        for name, child in self.ghost.get_submodule(path).named_children():
            inner = f"{path}.{name}" if path else name
            own = {f"{inner}.{parameter}" for parameter, _ in child.named_parameters()}
            if own and own <= self.unused and self._is_unused(inner):
                found.append(inner)
            elif own & self.unused:
                found += self._unused_below(inner)
        return found

    def _is_unused(self, path: str) -> bool:
        if path in self.made:
            return self.read.isdisjoint(self.made[path])
        return not any(called.startswith(f"{path}.") for called in self.made)  # no mere container

    def _replace(self, paths: list[str]) -> None:
        """All at once if the copy then runs, else by halves."""
        before = {path: self.ghost.get_submodule(path) for path in paths}
        for stub in (nn.Identity, Zero) if paths else ():
            self._put({path: stub() for path in paths})
            if self._shapes() == self.shapes:
                self.found |= dict.fromkeys(paths, stub)
                return
        self._put(before)
        if len(paths) > 1:
            half = len(paths) // 2
            self._replace(paths[:half])
            self._replace(paths[half:])

    def _put(self, modules: dict[str, nn.Module]) -> None:
        for path, module in modules.items():
            self.ghost.set_submodule(path, module)

    @torch.no_grad()
    def _shapes(self) -> list[torch.Size] | None:
        """Of the features; ``None`` where the copy does not run."""
        try:
            return [feature.shape for feature in self.run(self.ghost)]
        except Exception:  # what misses a module fails in a way of its own
            return None


def trace(ghost: nn.Module, run: Run) -> tuple[set[Any], dict[str, list[Any]]]:
    """The nodes that features depend on, and those of each called module's outputs, by path."""
    made: dict[str, list[Any]] = {}
    hooks = [module.register_forward_hook(
        lambda module, args, output, path=path: made.setdefault(path, []).extend(nodes_of(output)))
        for path, module in ghost.named_modules()]
    read = ancestors(feature.grad_fn for feature in run(ghost))
    for hook in hooks:
        hook.remove()
    return read | {None}, made  # where a tensor comes from may be unknown


def nodes_of(output: Any) -> list[Any]:
    """Where tensors stand in autograd's graph; ``None`` = unknown."""
    outputs = output if isinstance(output, (list, tuple)) else [output]
    return [getattr(value, "grad_fn", None) for value in outputs]


def to_buffer(model: nn.Module, path: str) -> None:
    """A parameter that the model's code mentions stays, but is not trained."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)
