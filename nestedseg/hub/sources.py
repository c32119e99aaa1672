"""Where a model's files are: a folder, or a repo on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nestedseg.base.errors import show
from nestedseg.hub.checkpoint import Source
from nestedseg.hub.client import Repo, is_repo_id
from nestedseg.hub.snapshot import Snapshot


def open_source(name: str | Path, **options: Any) -> Source:
    """The folder of this name if there is one, else the repo.

    Raises:
        FileNotFoundError: it is neither.
    """
    if name != "" and Path(name).is_dir():
        return Folder(Path(name))
    if isinstance(name, str) and is_repo_id(name):
        return Repo(name, **options)
    raise FileNotFoundError(f"{show(str(name))} is neither a folder nor the id of a repo on the "
                            "Hugging Face Hub, like 'user/name'")


class Folder:
    """The files of the model that a folder holds now."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.name = directory, str(directory)
        self.files = Snapshot(directory)

    def where(self, file: str) -> str:
        """What messages call this file."""
        return repr(str(self.directory / file))

    def find(self, file: str) -> Path | None:
        """The file; ``None`` = it is not there."""
        return self.files.find(file)

    def get(self, file: str) -> Path:
        """The file.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = self.find(file)
        if path is None:
            raise FileNotFoundError(f"{self.name!r} holds no nestedseg model: {file} is missing")
        return path

    def damage(self, file: str, reason: str) -> Exception:
        """The error of a file that is not what was saved."""
        return ValueError(f"{self.where(file)} is damaged: {reason}. Copy or save the model again")
