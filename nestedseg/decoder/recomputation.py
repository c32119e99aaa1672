"""Maps that training computes again in the backward pass instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_nested = False  # within a `Recomputable` that forgets all of its maps


class Recomputable(nn.Module):
    """``forward`` is ``compute``; with ``checkpointing``, training keeps its inputs alone."""

    checkpointing = False
    compute: Callable[..., Tensor]

    def forward(self, *inputs: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return self.compute(*inputs)
        return checkpoint(self.compute, *inputs, use_reentrant=False,
                          context_fn=lambda: (_nesting(), _again(self)))


def set_checkpointing(modules: Iterable[nn.Module], enable: bool) -> None:
    """Turns it on or off in those of the modules that can do so; not in what lies within them."""
    for module in modules:
        if isinstance(module, Recomputable):
            module.checkpointing = enable


def remade(make: Callable[..., Tensor], use: Callable[[Tensor], Tensor], *inputs: Tensor,
           module: nn.Module | None = None) -> Tensor:
    """``use(make(*inputs))``, whose backward pass makes the value in between once more.

    For values that are cheap to make: the backward pass then keeps ``inputs`` instead. A value of
    a `SyncBatchNorm` is not: it would take all processes, which go backward each in its own time.

    Args:
        make: gives the same value for the same inputs.
        module: what it calls, whose batch norms must not count a batch twice.
    """
    if (_nested or torch.compiler.is_compiling() or not torch.is_grad_enabled()
            or isinstance(module, nn.SyncBatchNorm)):
        return use(make(*inputs))
    value = _Remade(make, inputs, module)
    with torch.autograd.graph.saved_tensors_hooks(value.pack, value.unpack):
        made = make(*inputs)
        result = use(made)
    value.forget(made)
    return result


class _Remade:
    """What autograd saves in `remade`: tensors, or nothing where the made value would be."""

    def __init__(self, make: Callable[..., Tensor], inputs: tuple[Tensor, ...],
                 module: nn.Module | None) -> None:
        self.make, self.inputs, self.module = make, [x.detach() for x in inputs], module
        self.precision = autocast_now(inputs[0].device.type)
        self.saved: list[list[Tensor]] = []
        self.uses = self.left = 0
        self.value: Tensor | None = None

    def pack(self, tensor: Tensor) -> list[Tensor]:
        self.saved.append([tensor])
        return self.saved[-1]

    def unpack(self, saved: list[Tensor]) -> Tensor:
        return saved[0] if saved else self.again()

    def forget(self, made: Tensor) -> None:
        """Drops the value where it was saved; not if it is an input, changed in place."""
        place = made.untyped_storage().data_ptr()
        if all(x.untyped_storage().data_ptr() != place for x in self.inputs):
            for saved in self.saved:
                if saved[0].untyped_storage().data_ptr() == place and saved[0].shape == made.shape:
                    saved.clear()
                    self.uses += 1
        self.saved = []

    def again(self) -> Tensor:
        """The value, made for the first of its uses in a backward pass and freed after the last."""
        if self.value is None:
            with torch.no_grad(), _without_statistics(self.module), self.precision():
                self.value, self.left = self.make(*self.inputs), self.uses
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


@contextmanager
def _nesting() -> Iterator[None]:
    global _nested
    before, _nested = _nested, True
    try:
        yield
    finally:
        _nested = before


@contextmanager
def _again(module: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_nesting())
        stack.enter_context(_without_statistics(module))
        yield


@contextmanager
def _without_statistics(module: nn.Module | None) -> Iterator[None]:
    """The second pass must not count in a batch norm's running statistics again."""
    modules = module.modules() if module is not None else ()
    before = [(m, m.momentum, m.num_batches_tracked, m.num_batches_tracked.clone())
              for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats
              and m.num_batches_tracked is not None]
    for norm, *_ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, batches, count in before:
            norm.momentum = momentum
            batches.copy_(count)
