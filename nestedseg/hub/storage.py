"""Config and weights on disk: written atomically, read with strict checks and bounds, no pickles.

Files are first written to a folder of their own. Renaming that folder commits all of them at once.
Then they are moved to their places, and replace the files of an earlier model. If the program is
killed at any moment, readers find either the old model or the new one: they look among the
committed files first. Processes that save into one folder wait for each other. A reader waits for
nobody: it opens all files of a model before it reads any, see `nestedseg.hub.snapshot`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from torch import Tensor

from nestedseg.base.errors import show
from nestedseg.base.regular_files import opened, read_at_most
from nestedseg.hub.lock import locked
from nestedseg.topology.graph import no_duplicates

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
MAX_JSON_BYTES = 1_000_000
COMMITTED = ".committed"
_SAVING = ".saving"
_BLOCK = 2 ** 20
WAIT = 60  # seconds, for another process that saves into the same folder

Writer = Callable[[Path], object]


def replace_files(directory: Path, writers: Mapping[str, Writer]) -> None:
    """Writes the files of a model, all or none, and removes those of an earlier one.

    Args:
        directory: made if it does not exist; other files in it stay.
        writers: by file name, functions that write the file at the path they are given. They run in
            order, in one folder, so that each can read the files before it. One writes config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory, WAIT, "Wait until it is done, or save into another folder") as lock:
        if lock.works:
            for leftover in directory.glob(f"{_SAVING}.*"):
                shutil.rmtree(leftover)  # of a save that was killed
        finish(directory)
        with writing(f"the model in {directory}", "What was in the folder before is unchanged"):
            _commit(directory, writers)
        finish(directory)


def _commit(directory: Path, writers: Mapping[str, Writer]) -> None:
    """Writes the files to a folder of their own, and renames it when they are on the disk."""
    pending = directory / f"{_SAVING}.{_unique()}"
    try:
        pending.mkdir()
        for name, write in writers.items():
            _write(pending / name, write)
        _to_disk(pending)
        os.rename(pending, directory / COMMITTED)
    except BaseException:
        shutil.rmtree(pending, ignore_errors=True)
        raise


def _unique() -> str:
    """A part of a file's name that no other process and no other thread uses."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


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
    draft = path.with_name(f".{path.stem}.{_unique()}{path.suffix}")
    try:
        yield draft
        _to_disk(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(path: Path) -> None:
    """Removes what processes that were killed had written of a file; see `drafted`."""
    for draft in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        draft.unlink(missing_ok=True)


def finish(directory: Path) -> None:
    """Moves committed files, if there are any, to their places; also those of a killed save.

    First the earlier model's weights are removed, then the config is moved, then the other files.
    As long as the config is in the folder of committed files, that folder has the whole model.
    """
    committed = directory / COMMITTED
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


# -- reading ---------------------------------------------------------------------------------------


def find(directory: Path, name: str) -> Path | None:
    """The path of a file of the model in a folder; ``None`` = it is not there.

    Raises:
        ValueError: it is not a regular file but, for example, a device, which may never end.
    """
    committed = directory / COMMITTED
    places = [committed] if (committed / CONFIG).is_file() else [committed, directory]
    return next((place / name for place in places if _is_regular(place / name)), None)


def _is_regular(path: Path) -> bool:
    """Whether there is a regular file, links followed."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{str(path)!r} is not a regular file but a device, pipe or socket, which "
                         "are never read")
    return stat.S_ISREG(mode)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is too large, is not a JSON object, or has a key twice.
    """
    return parse_json(read_at_most(path, MAX_JSON_BYTES))


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
    """The shape of each tensor in a safetensors file, as its header says; no tensor is read.

    Raises:
        ValueError: the file is damaged, or its header is too large or has a name twice.
    """
    with opened(path) as file, _damage():
        size = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
        if size > MAX_JSON_BYTES:
            raise ValueError(f"a header of {size} bytes; at most {MAX_JSON_BYTES} are allowed")
        header = parse_json(file.read(size))  # here, because safetensors accepts a name twice
        header.pop("__metadata__", None)
        end = 8 + size + max((_end(name, entry) for name, entry in header.items()), default=0)
        if (found := os.fstat(file.fileno()).st_size) != end:
            raise ValueError(f"it has {found} bytes, but its header says {end}")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _end(name: str, entry: Any) -> int:
    """Where the data of a tensor end, by its entry in the header."""
    shape, offsets = (entry.get("shape"), entry.get("data_offsets")) if isinstance(entry, dict) \
        else (None, None)
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{show(name)} is {show(entry)}")
    return offsets[1]


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


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
    with opened(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"damaged, or not a safetensors file: {error}") from error
