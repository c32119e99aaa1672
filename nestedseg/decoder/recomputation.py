"""Maps that training computes again in the backward pass, to use less memory.

Two things are here, a switch and something that is always on:

- `Recomputable` modules (nodes and blocks) keep only their inputs when
  `SegmentationModel.set_grad_checkpointing` asks for it. This is `torch.utils.checkpoint`, made
  safe for batch norms.
- `remade` drops one map between two layers, for example the activated map between a norm and the
  convolution after it. The norm keeps its input anyway, so the activated map can be computed again
  at little cost, and a block keeps one map for each convolution instead of two.

`remade` does not use `torch.utils.checkpoint`, which would drop the same map, because

- activations work in place. Without a norm before it, an activation changes the very tensor that a
  checkpoint keeps as its input, and autograd then refuses the backward pass. `remade` sees that
  both share memory and keeps the map;
- a checkpoint saves and restores the state of the random generators and runs more Python code at
  every call. For `Recomputable`, which is asked for, that does not matter; `remade` runs in every
  training step of every block.

How `remade` works: hooks (`saved_tensors_hooks`) see each tensor that autograd saves while ``make``
and ``use`` run. Afterwards the saved tensors that are the made map, recognised by their memory, are
dropped. When the backward pass asks for one of them, ``make`` runs once more: without gradients,
under the same autocast, and without updating the statistics of batch norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_nested = False  # inside a checkpointed `Recomputable`, which keeps no maps that could be dropped


class Recomputable(nn.Module):
    """A module that computes ``compute`` and, with ``checkpointing``, keeps only its inputs."""

    checkpointing = False
    compute: Callable[..., Tensor]

    def forward(self, *inputs: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return self.compute(*inputs)
        return checkpoint(self.compute, *inputs, use_reentrant=False,
                          context_fn=lambda: (_nesting(), _again(self)))


def set_checkpointing(modules: Iterable[nn.Module], enable: bool) -> None:
    """Turns checkpointing on or off in those modules that are `Recomputable`, not inside them."""
    for module in modules:
        if isinstance(module, Recomputable):
            module.checkpointing = enable


def remade(make: Callable[..., Tensor], use: Callable[[Tensor], Tensor], *inputs: Tensor,
           module: nn.Module | None = None) -> Tensor:
    """``use(make(*inputs))``, where the value in between is not kept but made again.

    For values that are cheap to make from ``inputs``, which must be kept for the backward pass
    anyway. See the module's docstring.

    Args:
        make: a function that returns the same value for the same inputs.
        use: a function of that value.
        inputs: of ``make``.
        module: the module that ``make`` calls; its batch norms must not count a batch twice.
    """
    if _nested or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return use(make(*inputs))
    value = _Remade(make, inputs, module)
    with torch.autograd.graph.saved_tensors_hooks(value.pack, value.unpack):
        made = make(*inputs)
        result = use(made)
    value.forget(made)
    return result


class _Remade:
    """The tensors that autograd saves inside `remade`, and how to make the dropped ones again.

    Each saved tensor is in a list of its own. `forget` empties the lists of the made value.
    """

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
        """Drops the made value wherever it was saved, unless it is an input changed in place."""
        place = made.untyped_storage().data_ptr()
        if all(x.untyped_storage().data_ptr() != place for x in self.inputs):
            for saved in self.saved:
                if saved[0].untyped_storage().data_ptr() == place and saved[0].shape == made.shape:
                    saved.clear()
                    self.uses += 1
        self.saved = []

    def again(self) -> Tensor:
        """The value: made at its first use in a backward pass, and freed after its last."""
        if self.value is None:
            with torch.no_grad(), _without_statistics(self.module), self.precision():
                self.value, self.left = self.make(*self.inputs), self.uses
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
    """Keeps the running statistics of batch norms as they are: this is a batch's second pass."""
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
