"""The files of the model that a folder holds at one moment, whatever is saved into it later.

They are opened before any is read, and stay open, so that they are there also when another model
has taken their place. A reader needs neither a lock nor the right to write.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path

from nestedseg.base.regular_files import open_regular
from nestedseg.hub import storage

OPEN_FILES = Path("/dev/fd")  # where the system gives open files a path; Windows does not
MOST_FILES = 200  # that are held open
ATTEMPTS = 1_000  # each fails only where a save is completed meanwhile


class Snapshot:
    """The files of a model, held open.

    Where open files have no path, or where there are too many, those that lie in the folder at the
    time are read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = hold(directory) if OPEN_FILES.is_dir() else {}
        weakref.finalize(self, close, self.files)

    def find(self, name: str) -> Path | None:
        """Where the file of this name can be read; ``None`` = the model has none.

        Raises:
            ValueError: it is no regular file.
        """
        if name in self.files:
            return OPEN_FILES / str(self.files[name])
        if self.files and storage.is_weights(name):
            return None
        return storage.find(self.directory, name)


def hold(directory: Path) -> dict[str, int]:
    """Descriptors of the files of the model in a folder, by name; none where that is no help."""
    for _ in range(ATTEMPTS):
        files: dict[str, int] = {}
        try:
            if take(directory, files):
                return files
        except FileNotFoundError:
            pass  # it was moved before it was opened
        except BaseException:
            close(files)
            raise
        close(files)
    return {}


def take(directory: Path, files: dict[str, int]) -> bool:
    """Opens the files of a model. Whether they are all of the same one.

    They are if the config is still the one that was opened first, and where it was: it is the first
    file that a save moves, and only after it has removed the files of the model before.
    """
    config = storage.find(directory, storage.CONFIG)
    if config is None or len(weights_in(directory)) > MOST_FILES:
        return True
    files[storage.CONFIG] = open_regular(config)
    for name in weights_in(directory):
        path = storage.find(directory, name)
        if path is not None:
            files[name] = open_regular(path)
    return (storage.find(directory, storage.CONFIG) == config and
            os.path.samestat(os.fstat(files[storage.CONFIG]), config.stat()))


def weights_in(directory: Path) -> list[str]:
    """The names of all files of weights; those that are committed first, from where they move."""
    names: dict[str, None] = {}
    for folder in (directory / storage.COMMITTED, directory):
        with suppress(FileNotFoundError):
            names |= dict.fromkeys(filter(storage.is_weights, os.listdir(folder)))
    return list(names)


def close(files: dict[str, int]) -> None:
    """Closes these files."""
    for descriptor in files.values():
        os.close(descriptor)
