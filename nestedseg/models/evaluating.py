"""Eval mode for a while, also if several threads need it at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

_lock = Lock()
# For each model that is in eval mode for a while: the number of threads that need it, and the
# modules that were in training mode before.
_borrowed: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A context in which a model is in eval mode; afterwards each module has its mode of before.

    The first thread that enters switches the model to eval mode, and the last that leaves switches
    it back.
    """
    with _lock:
        threads, training = _borrowed.get(model, (0, []))
        if threads == 0:
            training = [module for module in model.modules() if module.training]
            model.eval()
        _borrowed[model] = threads + 1, training
    try:
        yield
    finally:
        with _lock:
            threads, training = _borrowed[model]
            if threads > 1:
                _borrowed[model] = threads - 1, training
            else:
                del _borrowed[model]
                for module in training:  # parts of the model may be frozen
                    module.training = True
