"""Maps that training computes again in the backward pass instead of keeping them.

`remade` does so for one map between two layers. torch.utils.checkpoint would call the modules
again, in whatever state they are by then, and would compute all that follows the map a second time
too. Here the second pass is one function of tensors that are kept anyway. `Recomputable` uses
torch.utils.checkpoint, for whole nodes and blocks.
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
    """``forward`` is ``compute``; with ``checkpointing``, training keeps only its inputs."""

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
    """Turns it on or off in those of the modules that can do so; not in what lies within them."""
    for module in modules:
        if isinstance(module, Recomputable):
            module.checkpointing = enable


def as_now(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which a module computes as it does now, and which leaves it as it finds it.

    So a second pass is in the mode of the first, and no batch counts twice in running statistics.
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
                buffer.data.copy_(before)  # unseen by autograd, as a batch norm's own counting
    return context()


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for part, training in modes:
        part.training = training


def remade(make: Callable[..., Tensor], use: Callable[[Tensor], Tensor], *inputs: Tensor,
           again: Stateless | None) -> Tensor:
    """``use(make(*inputs))``, whose backward pass makes the value in between once more.

    For values that are cheap to make: the backward pass then keeps ``inputs`` instead.

    Args:
        make: makes the value in the forward pass.
        again: makes the same value from the same inputs; ``None`` = nothing provably does, so that
            the value is kept.
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
    """Whether autograd saves tensors here, and lets us decide how."""
    return not (torch.compiler.is_compiling() or not torch.is_grad_enabled() or _nested.get()
                or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())


class _Kept:
    """A tensor that a backward pass needs, as it is now.

    torch itself looks after the versions of what it saves, but not of what hooks save for it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a tensor of shape {tuple(self.tensor.shape)} is at version "
                f"{self.tensor._version}; expected version {self.version}. Call backward() before "
                "weights or maps are changed in place")
        return self.tensor


class _Remade:
    """What autograd saves in `remade`: tensors, or nothing where the made value would be."""

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
        """Drops the value where it was saved; not if it is an input, changed in place."""
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
    """A context that brings back the autocast, or the lack of one, that is in force here."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype, enabled=enabled)
