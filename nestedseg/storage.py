"""Config and weights on disk: atomic to write, strict and bounded to read, never a pickle.

Files are first written to a folder of their own, then that folder is renamed, which commits them
all at once, then they are moved into place. Killed at any moment, the model is the old one or the
new one: a reader finds a committed file before the one that it is about to replace.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAX_CONFIG_BYTES = 4_000_000
_COMMITTED = ".committed"
_SAVING = ".saving"


def save(directory: Path, config: Mapping[str, Any], model: nn.Module) -> None:
    """Writes both files, in place of earlier ones."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in own_tensors(model).items()}
    replace_files(directory, {
        WEIGHTS: lambda path: safetensors.torch.save_file(tensors, path, {"format": "pt"}),
        CONFIG: lambda path: path.write_text(
            json.dumps(config, indent=2) + "\n", encoding="utf-8")})


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, with one name for each tensor: some timm models share theirs."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `own_tensors`."""
    names = {id(tensor): name for name, tensor in own_tensors(model).items()}
    model.load_state_dict({name: tensors[names[id(tensor)]] for name, tensor
                           in model.state_dict(keep_vars=True).items()})


def replace_files(directory: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Writes files by name, all or none of them."""
    directory.mkdir(parents=True, exist_ok=True)
    finish(directory)
    for leftover in directory.glob(f"{_SAVING}.*"):
        shutil.rmtree(leftover)  # of a save that was killed
    pending = directory / f"{_SAVING}.{os.getpid()}"
    pending.mkdir()
    try:
        for name, write in writers.items():
            path = pending / name
            path.touch()
            mode = path.stat().st_mode  # safetensors makes files that only their owner can read
            write(path)
            path.chmod(mode)
            _to_disk(path)
        _to_disk(pending)
        os.rename(pending, directory / _COMMITTED)
    except BaseException:
        shutil.rmtree(pending, ignore_errors=True)
        raise
    finish(directory)


def finish(directory: Path) -> None:
    """Moves committed files into place, where a save was killed before it had."""
    committed = directory / _COMMITTED
    if committed.is_dir():
        for path in committed.iterdir():
            os.replace(path, directory / path.name)
        committed.rmdir()
        _to_disk(directory)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(directory: Path, name: str) -> Path:
    """Where the file of this name is.

    Raises:
        FileNotFoundError: there is none.
    """
    for path in (directory / _COMMITTED / name, directory / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{str(directory)!r} holds no nestedseg model: {name} is missing")


def read_config(directory: Path) -> dict[str, Any]:
    """The object in config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is too large or no JSON object.
    """
    path = find(directory, CONFIG)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{str(path)!r} has {path.stat().st_size} bytes; at most "
                         f"{MAX_CONFIG_BYTES} are read")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {type(data).__name__}")
    return data


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file; none is read.

    Raises:
        ValueError: the file is damaged.
    """
    with _named(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ValueError: the file is damaged.
    """
    with _named(path):
        return safetensors.torch.load_file(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged or no safetensors file: {error}") from None
