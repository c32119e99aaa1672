"""Counts the bytes that a forward pass leaves alive: its outputs, and what the backward pass needs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Records every storage that operations write, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None,
                           ) -> Any:
        result = function(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.made.append((StorageWeakRef(storage), storage.nbytes()))
        return result


def held_bytes(run: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """Bytes alive after ``run`` as long as its result is; those of ``known`` tensors not counted.

    Unlike autograd's own hooks it sees what nested hooks keep.
    """
    with Allocations() as allocations:
        result = run()
    gc.collect()
    before = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in known}
    alive = {ref.cdata: size for ref, size in allocations.made
             if not ref.expired() and ref.cdata not in before}
    del result
    return sum(alive.values())


def peak_bytes(run: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """The most bytes alive at once between the operations of ``run``, ``known`` not counted."""
    before = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in known}
    peak = 0

    class Peak(Allocations):
        def __torch_dispatch__(self, *call: Any) -> Any:
            nonlocal peak
            result = super().__torch_dispatch__(*call)
            self.made = [(ref, size) for ref, size in self.made if not ref.expired()]
            alive = {ref.cdata: size for ref, size in self.made if ref.cdata not in before}
            peak = max(peak, sum(alive.values()))
            return result

    with Peak():
        run()
    return peak
