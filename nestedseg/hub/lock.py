"""A lock on a folder, held by one process at a time; it is released when that process ends.

The lock is the operating system's own, on a file in the folder that says who holds it. Where the
file system has no locks, as some network file systems, nothing is locked.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nestedseg.base.errors import show

LOCK = ".lock"
MAX_BYTES = 1_000  # of what a lock file says
PAUSE = 0.02  # seconds between two attempts
NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class FolderInUse(OSError):
    """Another process holds the folder. The message says which one, and what can be done."""


class Lock:
    """The lock of a folder, as long as it is held.

    Args:
        file: that is locked, by its descriptor.
        works: whether the file system has locks.
    """

    def __init__(self, path: Path, file: int, works: bool) -> None:
        self.path, self.file, self.works = path, file, works
        _HELD.add(self)

    def release(self) -> None:
        """The file goes first, while no other process can hold it."""
        _HELD.discard(self)
        with suppress(OSError):
            self.path.unlink()
        with suppress(OSError):
            os.close(self.file)


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A forked process, say a loader's worker, would keep a lock that its parent has released."""
    for lock in list(_HELD):
        with suppress(OSError):
            os.close(lock.file)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextmanager
def locked(directory: Path, seconds: float, cure: str) -> Iterator[Lock]:
    """Holds the lock of a folder.

    Args:
        seconds: how long to wait for another process that holds it.
        cure: what the message says can be done.

    Raises:
        FolderInUse: another process still holds it.
    """
    path, end = directory / LOCK, time.monotonic() + seconds
    while (lock := _try(path)) is None:
        if time.monotonic() >= end:
            raise FolderInUse(f"{str(directory)!r} is in use by {holder(path)}. {cure}")
        time.sleep(PAUSE)
    try:
        yield lock
    finally:
        lock.release()


def holder(path: Path) -> str:
    """Who holds a lock, as its file says."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MAX_BYTES))
        who, host, since = data["process"], data["host"], data["since"]
        return f"process {show(who)} on {show(host)}, since {show(since)}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _try(path: Path) -> Lock | None:
    """The lock, unless another process holds it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except PermissionError:  # another user's, who may have been killed
        file = os.open(path, os.O_RDONLY | NO_LINK)
    try:
        works = _lock(file)
        with suppress(FileNotFoundError):
            # whoever held it before has removed the file, and another process may have made it anew
            if works is not None and os.path.samestat(os.fstat(file), path.stat()):
                with suppress(OSError):
                    _sign(file)
                return Lock(path, file, works)
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _sign(file: int) -> None:
    who = {"process": os.getpid(), "host": socket.gethostname()[:100],
           "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    os.ftruncate(file, 0)
    os.write(file, json.dumps(who).encode())


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> bool | None:
        """Whether files can be locked here; ``None`` = another process has locked this one."""
        os.lseek(file, MAX_BYTES, os.SEEK_SET)  # behind what others may read
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return None
        finally:
            os.lseek(file, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def _lock(file: int) -> bool | None:
        """Whether files can be locked here; ``None`` = another process has locked this one."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:
            return False
        return True
