"""The checkpoint of a run on disk: written whole or not at all, checked when it is read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nestedseg.base.regular_files import opened
from nestedseg.hub.storage import drafted, writing
from nestedseg.training.history import Epoch

PARTS = ("identity", "model", "optimizer", "scaler", "history")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Args:
        path: of its file.
        identity: all that the numbers of its run depend on.
        state: of the model, the optimizer and, or ``None``, the scaler of gradients.
        history: the epochs that were trained.
    """

    path: Path
    identity: dict[str, Any]
    state: dict[str, Any]
    history: list[Epoch]

    def restore(self, model: Any, optimizer: Any, scaler: Any) -> None:
        """Brings back the state of a training.

        Raises:
            ValueError: the state is not of such a model or optimizer.
        """
        with readable(self.path):
            model.load_state_dict(self.state["model"])
            optimizer.load_state_dict(self.state["optimizer"])
            if scaler is not None:
                scaler.load_state_dict(self.state["scaler"])


def read_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """The checkpoint in a file, its tensors on a device.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    with readable(path), opened(path) as file:
        state = torch.load(file, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        if missing := [part for part in PARTS if part not in state]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        for part, kind in (("identity", dict), ("model", dict), ("optimizer", dict),
                           ("history", list)):
            if not isinstance(state[part], kind):
                raise ValueError(f"its {part} is a {type(state[part]).__name__}")
        history = [Epoch(**epoch) for epoch in state["history"]]
    return Checkpoint(path, state["identity"], state, history)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Puts a checkpoint in the place of an earlier one, once it is written.

    Raises:
        OSError: it cannot be written; the earlier one is still there.
    """
    # torch's own writer raises a RuntimeError where the disk is full
    with writing(f"the checkpoint {path}", "The one of the epoch before is unchanged",
                 RuntimeError), drafted(path) as draft:
        torch.save(state, draft)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Names the file, and what to do, whatever torch makes of a damaged one.

    Raises:
        ValueError: in the place of any error within it.
    """
    try:
        yield
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"cannot resume from {path}: it is damaged, or it is not the checkpoint "
                         f"of such a run ({_reason(error)}). Restore it from a copy, or train in "
                         "another folder; the best model so far is beside it") from error


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's text says how to run any code in it
        return "it holds something else than tensors"
    return " ".join(str(error).split())
