"""Maps that are computed again in the backward pass, so that training need not keep them.

`remade` does this for one map between two layers. torch.utils.checkpoint would call the modules
again, in the state that they have by then, and would also compute again everything that follows the
map. Here the second computation is a single function of tensors that autograd keeps anyway.
`Recomputable` uses torch.utils.checkpoint, for whole nodes and blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nestedseg.decoder.stateless import Stateless

# Whether this thread is within a `Recomputable` that forgets all of its maps.
_nested: ContextVar[bool] = ContextVar("nested", default=False)


class Recomputable(nn.Module):
    """A module whose ``forward`` is ``compute``; with ``checkpointing``, training keeps only its
    inputs, and computes the rest again in the backward pass."""

    checkpointing = False
    compute: Callable[..., Tensor]

    def forward(self, *inputs: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return self.compute(*inputs)
        context = copy_context()  # the backward pass may run in a thread of its own
        return checkpoint(lambda *inputs: context.copy().run(self._compute_nested, *inputs),
                          *inputs, use_reentrant=False,
                          context_fn=lambda: (nullcontext(), as_now(self)))

    def _compute_nested(self, *inputs: Tensor) -> Tensor:
        _nested.set(True)
        return self.compute(*inputs)


def set_checkpointing(modules: Iterable[nn.Module], enable: bool) -> None:
    """Turns checkpointing on or off in those modules that are `Recomputable`, not inside them."""
    for module in modules:
        if isinstance(module, Recomputable):
            module.checkpointing = enable


def as_now(module: nn.Module) -> AbstractContextManager[None]:
    """A context that gives a module the modes it has now, and restores its state afterwards.

    So a second pass runs in the modes of the first, and does not count a batch in the running
    statistics again.
    """
    modes = [(part, part.training) for part in module.modules()]

    @contextmanager
    def context() -> Iterator[None]:
        found = [(part, part.training) for part, _ in modes]
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        _set_modes(modes)
        try:
            yield
        finally:
            _set_modes(found)
            for buffer, before in buffers:
                buffer.data.copy_(before)  # .data: autograd must not take it for a change
    return context()


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for part, training in modes:
        part.training = training


def remade(make: Callable[..., Tensor], use: Callable[[Tensor], Tensor], *inputs: Tensor,
           again: Stateless | None) -> Tensor:
    """``use(make(*inputs))``, whose backward pass makes the value in between once more.

    For values that are cheap to make from ``inputs``, which must be kept for the backward pass
    anyway. See the module's docstring.

    Args:
        make: makes the value in the forward pass.
        again: gives the same value for the same inputs; ``None`` = nothing is sure to, and the
            value is kept.
    """
    if again is None or not _may_hook():
        return use(make(*inputs))
    value = _Remade(again, inputs)
    with torch.autograd.graph.saved_tensors_hooks(value.pack, value.unpack):
        made = make(*inputs)
        result = use(made)
    value.forget(made)
    return result


def _may_hook() -> bool:
    """Whether autograd saves tensors here and calls hooks for them."""
    return not (torch.compiler.is_compiling() or not torch.is_grad_enabled() or _nested.get()
                or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())


class _Kept:
    """A tensor that the backward pass needs, and its present version.

    torch checks that the tensors it saves are not changed in place, but not those that hooks save.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a tensor of shape {tuple(self.tensor.shape)} is at version "
                f"{self.tensor._version}; expected version {self.version}. Call backward() before "
                "changing weights or maps in place")
        return self.tensor


class _Remade:
    """The tensors that autograd saves inside `remade`, and how to make the dropped ones again.

    Each saved tensor is in a list of its own. `forget` empties the lists of the made value.
    """

    def __init__(self, again: Stateless, inputs: tuple[Tensor, ...]) -> None:
        self.again = again
        self.inputs = [x.detach() for x in inputs]
        self.precision = autocast_now(inputs[0].device.type)
        self.saved: list[list[_Kept]] = []
        self.needed: list[_Kept] = []
        self.uses = self.left = 0
        self.value: Tensor | None = None

    def pack(self, tensor: Tensor) -> list[_Kept]:
        self.saved.append([_Kept(tensor)])
        return self.saved[-1]

    def unpack(self, saved: list[_Kept]) -> Tensor:
        return saved[0].get() if saved else self.make_again()

    def forget(self, made: Tensor) -> None:
        """Drops the made value wherever it was saved, unless it is an input changed in place."""
        place = made.untyped_storage().data_ptr()
        if all(x.untyped_storage().data_ptr() != place for x in self.inputs):
            for saved in self.saved:
                tensor = saved[0].tensor
                if tensor.untyped_storage().data_ptr() == place and tensor.shape == made.shape:
                    saved.clear()
                    self.uses += 1
        self.saved = []
        self.needed = [*map(_Kept, self.inputs), *map(_Kept, self.again.reads)]

    def make_again(self) -> Tensor:
        """The value, made for the first of its uses in a backward pass and freed after the last."""
        if self.value is None:
            for kept in self.needed:
                kept.get()
            with torch.no_grad(), self.precision():
                self.value, self.left = self.again.function(*self.inputs), self.uses
        value, self.left = self.value, self.left - 1
        if not self.left:
            self.value = None
        return value


def autocast_now(device_type: str) -> Callable[[], AbstractContextManager[object]]:
    """A function that makes a context with the autocast settings of this moment."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype, enabled=enabled)
