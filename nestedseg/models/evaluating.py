"""A model in eval mode for a while, also where several threads ask for that at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

_lock = Lock()
# The models that are in eval mode for a while: in how many threads, and which of their modules were
# in training mode before.
_borrowed: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]] = WeakKeyDictionary()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within it a model is in eval mode; then each of its modules is in the mode that it was in.

    The first thread to enter puts the model into eval mode, and the last one to leave puts it back.
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
