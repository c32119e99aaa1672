"""Config and weights on disk: atomic to write, strict and bounded to read, never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAX_CONFIG_BYTES = 4_000_000


def save(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes both files under temporary names and renames them once both are whole."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    pending = [write_pending(directory / WEIGHTS, weights),
               write_pending(directory / CONFIG, json.dumps(config, indent=2).encode())]
    for temporary, path in pending:
        os.replace(temporary, path)


def write_pending(path: Path, data: bytes) -> tuple[Path, Path]:
    """Writes ``data`` to the disk beside ``path``; renaming the one to the other is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary, path


def read_config(directory: Path) -> dict[str, Any]:
    """The object in config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is too large or no JSON object.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{str(directory)!r} holds no nestedseg model: {CONFIG} is missing")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{str(path)!r} has {path.stat().st_size} bytes; at most "
                         f"{MAX_CONFIG_BYTES} are read")
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {type(data).__name__}")
    return data


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{str(directory)!r} holds no weights: {WEIGHTS} is missing")
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged or no safetensors file: {error}") from None
