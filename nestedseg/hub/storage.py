"""Config and weights on disk: written atomically, read with strict checks and bounds, no pickles.

Files are first written to a folder of their own. Renaming that folder commits all of them at once.
Then they are moved to their places, and replace the files of an earlier model. If the program is
killed at any moment, readers find either the old model or the new one: they look among the
committed files first.
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
    """Writes the files of a model, all or none, and removes those of an earlier one.

    Args:
        directory: made if it does not exist; other files in it stay.
        writers: by file name, functions that write the file at the path they are given. They run in
            order, in one folder, so that each can read the files before it. One writes config.json.
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
    """A path to write to; the file replaces ``path`` when the context ends without an error."""
    draft = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield draft
        _to_disk(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def finish(directory: Path) -> None:
    """Moves committed files, if there are any, to their places; also those of a killed save.

    First the earlier model's weights are removed, then the config is moved, then the other files.
    As long as the config is in the folder of committed files, that folder has the whole model.
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
    """Whether a file of this name belongs to the weights of a saved model."""
    return name in (WEIGHTS, INDEX) or SHARD.fullmatch(name) is not None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(directory: Path, name: str) -> Path | None:
    """The path of a file of the model in a folder; ``None`` = it is not there."""
    committed = directory / _COMMITTED
    places = [committed] if (committed / CONFIG).is_file() else [committed, directory]
    return next((place / name for place in places if (place / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is too large, is not a JSON object, or has a key twice.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"the file is too large: {path.stat().st_size} bytes, allowed are at most "
                         f"{MAX_JSON_BYTES}")
    return parse_json(path.read_bytes())


def parse_json(text: bytes) -> dict[str, Any]:
    """The object in a JSON text.

    Raises:
        ValueError: it is not a JSON object, or has a key twice.
    """
    try:
        data = json.loads(text.decode("utf-8"), object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    return data


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file; no tensor is read.

    Raises:
        ValueError: the file is damaged, or its header is too large or has a name twice.
    """
    with path.open("rb") as file:  # read here too: safetensors itself accepts a name twice
        size = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
        if size > MAX_JSON_BYTES:
            raise ValueError(f"damaged, or not a safetensors file: a header of {size} bytes; at "
                             f"most {MAX_JSON_BYTES} are allowed")
        parse_json(file.read(size))
    with _damage(), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Reads some tensors of a safetensors file.

    Raises:
        ValueError: the file is damaged.
    """
    with _damage(), safe_open(path, framework="pt") as file:
        # Cloned, so that they do not stay mapped to a file that somebody may change.
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
        raise ValueError(f"damaged, or not a safetensors file: {error}") from error
