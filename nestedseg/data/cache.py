"""A folder of decoded images, memory-mapped: shared by workers, processes and later runs.

A file's entry is found by its path, size and time of change, so that a changed file is decoded
again. Entries appear complete or not at all: they are written under another name and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nestedseg.data.files import known_suffix
from nestedseg.data.layouts.drawing import Drawn
from nestedseg.data.medical import detached
from nestedseg.data.source import Source, blocks, whole
from nestedseg.data.volumes import MASK_OF

MOST_BYTES = 64 * 2**30  # that a cache takes by default, and never more than half of what is free
ABANDONED = 3600  # seconds after which an unfinished entry belongs to a process that was killed


class Cache:
    """The folder.

    Args:
        folder: is made if it is missing.
        most_bytes: its largest size in bytes; the entries of other data sets that were not used for
            the longest time make room. Default: 64 GiB, at most half of the free space.
    """

    def __init__(self, folder: str | Path, most_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        for part in self.folder.glob("*.part"):
            if now - part.stat().st_mtime > ABANDONED:
                part.unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free
        self.most_bytes = min(MOST_BYTES, (free + self.size()) // 2) \
            if most_bytes is None else most_bytes
        self.used: set[Path] = set()

    def __str__(self) -> str:
        size, most = self.size() / 2**30, self.most_bytes / 2**30
        return f"{self.folder} ({size:.2f} of at most {most:.0f} GiB)"

    def size(self) -> int:
        """The size of all entries in bytes."""
        return sum(stat.st_size for _, stat in self._entries())

    def wrap(self, source: Source, *facts: Any) -> Source:
        """The source, or if its numbers must be decoded, a copy of them that is made once.

        Args:
            source: an opened file.
            facts: what else its numbers depend on, such as the spacing they are resampled to.
        """
        if source.mapped:
            return source
        files = source.label.files if isinstance(source, Drawn) else [source.path]
        return _Cached(source, self, self.entry(files, *facts))

    def entry(self, paths: Sequence[Path], *facts: Any, suffix: str = ".npy") -> Path:
        """Where something is kept that depends on these files and facts.

        Args:
            paths: of the files; a changed file has another entry.
            facts: anything with a `repr`.
            suffix: of the entry.
        """
        stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
                 for given in paths for path in parts_of(given)]
        key = json.dumps([stats, [repr(fact) for fact in facts]])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"

    def load(self, entry: Path) -> np.ndarray | None:
        """The memory-mapped array of an entry; ``None`` if it is not there.

        Args:
            entry: its path.
        """
        try:
            array = np.load(entry, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):  # missing, or cut short by a full disk
            return None
        self._touch(entry)
        return array

    def store(self, entry: Path, source: Source) -> None:
        """Keeps the numbers of a source, if there is room for them.

        Args:
            entry: its path.
            source: is decoded block by block, if it can be read in windows.

        Raises:
            ValueError: the source is damaged.
        """
        self.used.add(entry)
        shape = (*source.shape, source.channels)
        if not self._make_room(math.prod(shape) * source.dtype.itemsize):
            return
        header = {"descr": np.lib.format.dtype_to_descr(source.dtype), "fortran_order": False,
                  "shape": shape}
        windows = blocks(source.shape) if source.windowed else [whole(source.shape)]
        try:
            with self.part(entry) as part, part.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for window in windows:  # whole rows, one block after the other
                    file.write(np.ascontiguousarray(source.read(window)).data)
        except OSError:  # the disk became full
            return

    def part(self, entry: Path) -> _Part:
        """A context with a path to write to, which then becomes the entry.

        Args:
            entry: its path.
        """
        return _Part(entry)

    def _touch(self, entry: Path) -> None:
        self.used.add(entry)
        try:
            os.utime(entry)
        except OSError:  # a folder that others own, or an entry that was removed just now
            return

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.iterdir():
            try:
                found.append((path, path.stat()))
            except FileNotFoundError:
                continue  # removed by another process
        return found

    def _make_room(self, size: int) -> bool:
        """Removes the oldest entries of other data sets until so many bytes fit in."""
        entries = sorted(self._entries(), key=lambda each: each[1].st_mtime)
        taken = sum(stat.st_size for _, stat in entries)
        for path, stat in entries:
            if taken + size <= self.most_bytes:
                break
            if path not in self.used and path.suffix != ".part":
                path.unlink(missing_ok=True)
                taken -= stat.st_size
        return taken + size <= self.most_bytes and shutil.disk_usage(self.folder).free > 2 * size


def parts_of(path: Path) -> list[Path]:
    """All files on which the numbers of one depend: those in a folder, such as DICOM slices and the
    chunks of a Zarr array, and the voxels that a header leads to."""
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    voxels = detached(path) if known_suffix(path) in MASK_OF else None
    return [path, *([voxels] if voxels is not None and voxels.is_file() else [])]


class _Part:
    """Makes a file complete or not at all."""

    def __init__(self, entry: Path) -> None:
        self.entry = entry
        self.draft = entry.with_name(f"{entry.name}.{os.getpid()}.{os.urandom(4).hex()}.part")

    def __enter__(self) -> Path:
        return self.draft

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            os.replace(self.draft, self.entry)
        self.draft.unlink(missing_ok=True)


class _Cached:
    """A source that is decoded once; a `Source`."""

    windowed = mapped = True

    def __init__(self, source: Source, cache: Cache, entry: Path) -> None:
        self.source, self.cache, self.entry = source, cache, entry
        self.path, self.shape, self.channels = source.path, source.shape, source.channels
        self.dtype, self.nodata = source.dtype, source.nodata
        self._mapped: np.ndarray | None = None
        self._tried = False

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window; see `Source`."""
        if self._mapped is None and not self._tried:
            self._mapped, self._tried = self._load(), True
        if self._mapped is None:  # there is no room for it
            return self.source.read(window)
        return np.array(self._mapped[tuple(window or whole(self.shape))])

    def _load(self) -> np.ndarray | None:
        if self._found() is None:
            self.cache.store(self.entry, self.source)
        return self._found()

    def _found(self) -> np.ndarray | None:
        array = self.cache.load(self.entry)
        fits = array is not None and array.dtype == self.dtype \
            and array.shape == (*self.shape, self.channels)
        return np.asarray(array) if fits else None  # a plain view, which is faster to cut

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.cache, self.entry)
