"""Opens files that strangers may have placed: regular files only, for a device may never end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file to read, from its beginning.

    Raises:
        ValueError: it is not a regular file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        file.seek(0)  # the path of an open file may share its position, as in `hub.snapshot`
        yield file


def open_regular(path: Path) -> int:
    """The descriptor of a regular file to read. A pipe is not waited for.

    Raises:
        ValueError: it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
                         | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise ValueError(f"{str(path)!r} is not a regular file")


def read_at_most(path: Path, most: int) -> bytes:
    """The content of a regular file that has at most so many bytes.

    Raises:
        ValueError: it is larger, or not a regular file.
    """
    with opened(path) as file:
        content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"the file is too large: {os.fstat(file.fileno()).st_size} bytes, "
                             f"allowed are at most {most}")
    return content
