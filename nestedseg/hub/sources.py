"""Sources of a model's files: a folder, or a repo on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nestedseg.base.errors import as_path, show
from nestedseg.hub.checkpoint import Source
from nestedseg.hub.client import Repo, is_repo_id
from nestedseg.hub.snapshot import Snapshot


def open_source(name: str | Path, **options: Any) -> Source:
    """The folder of this name if it exists, else the repo with this id.

    Raises:
        FileNotFoundError: ``name`` is neither.
    """
    folder = as_path("a model's folder or repo", name)
    if name != "" and folder.is_dir():
        return Folder(folder)
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
        """The name of a file in messages."""
        return repr(str(self.directory / file))

    def find(self, file: str) -> Path | None:
        """The path of a file; ``None`` = it is not there."""
        return self.files.find(file)

    def get(self, file: str) -> Path:
        """The path of a file.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = self.find(file)
        if path is None:
            raise FileNotFoundError(f"not the folder of a saved model: {self.name!r}; {file} is "
                                    "missing")
        return path

    def damage(self, file: str, reason: str) -> Exception:
        """The error for a file whose content is not what was saved."""
        return ValueError(f"{self.where(file)} is damaged: {reason}. Copy or save the model again")
