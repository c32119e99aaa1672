"""Config and weights on disk: atomic to write, strict and bounded to read, never a pickle.

Files are first written to a folder of their own, then that folder is renamed, which commits them
all at once, then they are moved into place, in place of all files of an earlier model. Killed at
any moment, the model is the old one or the new one: a reader finds a committed file before the one
that it is about to replace.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nestedseg.topology.graph import no_duplicates

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
MAX_JSON_BYTES = 1_000_000
_COMMITTED = ".committed"
_SAVING = ".saving"
_BLOCK = 2 ** 20

Writer = Callable[[Path], object]


def replace_files(directory: Path, writers: Mapping[str, Writer]) -> None:
    """Writes the files of a model by name, all or none, in place of those of an earlier one.

    Args:
        directory: made where it is not there; other files in it stay.
        writers: each writes the file at the path that it is given; those before it are written,
            in the same folder. One of them is that of config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    finish(directory)
    for leftover in directory.glob(f"{_SAVING}.*"):
        shutil.rmtree(leftover)  # of a save that was killed
    pending = directory / f"{_SAVING}.{os.getpid()}"
    try:
        with writing(f"the model in {directory}", "What was in the folder before is unchanged"):
            pending.mkdir()
            for name, write in writers.items():
                _write(pending / name, write)
            _to_disk(pending)
            os.rename(pending, directory / _COMMITTED)
    except BaseException:
        shutil.rmtree(pending, ignore_errors=True)
        raise
    finish(directory)


def _write(path: Path, write: Writer) -> None:
    path.touch()
    mode = path.stat().st_mode  # safetensors makes files that only their owner can read
    write(path)
    path.chmod(mode)
    _to_disk(path)


@contextmanager
def writing(what: str, state: str, *kinds: type[Exception]) -> Iterator[None]:
    """Says what could not be written, and why, where a disk is full or may not be written to.

    Args:
        what: is written, and where.
        state: what the failure has left, in a sentence.
        kinds: of errors that a writer raises for a disk, besides an `OSError`.

    Raises:
        OSError: in the place of any of them.
    """
    expected: tuple[type[Exception], ...] = (OSError, SafetensorError, *kinds)
    try:
        yield
    except expected as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {what}: {reason}. {state}; free some space, or write to "
                      "another place") from error


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Where to write a file that is to take the place of ``path``, once it is complete."""
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        _to_disk(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def finish(directory: Path) -> None:
    """Moves committed files into place, where a save was killed before it had.

    The config goes first, after all of the earlier model's files: while it is still in the folder
    of committed files, so are all others, and they alone are the model.
    """
    committed = directory / _COMMITTED
    if not committed.is_dir():
        return
    if (committed / CONFIG).exists():
        for path in directory.iterdir():
            if is_weights(path.name) and not (committed / path.name).exists():
                path.unlink()
        os.replace(committed / CONFIG, directory / CONFIG)
    for path in committed.iterdir():
        os.replace(path, directory / path.name)
    committed.rmdir()
    _to_disk(directory)


def is_weights(name: str) -> bool:
    """Whether a saved model may have a file of this name, beside its config."""
    return name in (WEIGHTS, INDEX) or SHARD.fullmatch(name) is not None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(directory: Path, name: str) -> Path | None:
    """Where the file of this name of the model in a folder is; ``None`` = nowhere."""
    committed = directory / _COMMITTED
    places = [committed] if (committed / CONFIG).is_file() else [committed, directory]
    return next((place / name for place in places if (place / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is too large, no JSON object, or has a key twice.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
    return parse_json(path.read_bytes())


def parse_json(text: bytes) -> dict[str, Any]:
    """The object in a JSON text."""
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    return data


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file; none is read.

    Raises:
        ValueError: the file is damaged, or its header is too large or holds a name twice.
    """
    with path.open("rb") as file:  # safetensors itself takes the last of tensors of one name
        size = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
        if size > MAX_JSON_BYTES:
            raise ValueError(f"damaged or no safetensors file: a header of {size} bytes; at most "
                             f"{MAX_JSON_BYTES} are read")
        parse_json(file.read(size))
    with _damage(), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """These tensors of a safetensors file; the others are not read.

    Raises:
        ValueError: the file is damaged.
    """
    with _damage(), safe_open(path, framework="pt") as file:
        # Cloned: in memory of their own, not in a file that somebody may write to.
        return {name: file.get_tensor(name).clone() for name in names}


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"damaged or no safetensors file: {error}") from error
