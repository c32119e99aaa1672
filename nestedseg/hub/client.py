"""The Hugging Face Hub through its own client, whose many kinds of errors become `HubError`."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from nestedseg.base.version import __version__

_ID = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
AGAIN = "Try again: files that arrived completely are not sent twice"


class HubError(OSError):
    """A request to the Hub failed. The message names the repo, the file and what to do."""


def is_repo_id(name: str) -> bool:
    """Whether ``name`` has the form of a repo id on the Hub, ``"user/name"``."""
    if not _ID.fullmatch(name):
        return False
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Turns every error of the client inside into a `HubError` that begins with ``action``.

    The client also raises errors of its HTTP library, which differs between its major versions, so
    `Exception` is caught.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        if type(error) is ValueError and isinstance(error.__cause__, Exception):
            error = error.__cause__  # a forced download wraps the reason in a ValueError
        text = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"{action}: {advice(error)} ({text[:500]})") from error


def advice(error: Exception) -> str:
    """A sentence that says what went wrong, and what can be done about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "its owner must grant access. Ask for it on the repo's page, then give your token"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repo, or it is private. Check the name, or give a token with " \
               "access to it (token=..., or `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repo has no such branch, tag or commit"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return f"it is not in the cache, and the Hub is overloaded or out of reach. {AGAIN}"
    if isinstance(error, errors.EntryNotFoundError):
        return "the repo has no such file"
    if status in (401, 403):
        return "access denied. The token is missing, has expired or lacks the right to do this: " \
               "make one at https://huggingface.co/settings/tokens"
    if status is not None and status >= 500:
        return f"the Hub has a problem (status {status}). Try again later"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full. Make room, or choose another cache_dir"
    if status == 412:
        return "somebody else pushed at the same moment. Try again"
    if status is not None or isinstance(error, ValueError):
        return "the Hub refused the request"
    return f"the transfer was interrupted. {AGAIN}"


class Repo:
    """The files of a repo at one commit, in the client's cache.

    Args:
        name: the repo's id.
        revision: a branch, tag or commit. It is resolved to a commit with the first file; all other
            files come from that commit, so that a model is never mixed from two.
        options: further arguments of `huggingface_hub.hf_hub_download`.
    """

    def __init__(self, name: str, revision: str | None = None, **options: Any) -> None:
        self.name, self.revision, self.options = name, revision, options

    def where(self, file: str) -> str:
        """The name of a file in messages."""
        return f"{file!r} of the repo {self.name!r}"

    def find(self, file: str) -> Path | None:
        """The path of a file, downloaded if it is not in the cache; ``None`` = the repo lacks it.

        Raises:
            HubError: the download failed.
        """
        known = huggingface_hub.try_to_load_from_cache(
            self.name, file, self.options.get("cache_dir"), self.revision)
        if known is huggingface_hub._CACHED_NO_EXIST:
            return None
        try:
            return self.get(file)
        except HubError as error:
            if is_absence(error.__cause__):
                return None
            raise

    def get(self, file: str) -> Path:
        """The path of a file, downloaded if it is not in the cache.

        Raises:
            HubError: the download failed, or the repo does not have the file.
        """
        with explained(f"cannot load {self.where(file)}"):
            path = Path(huggingface_hub.hf_hub_download(
                self.name, file, revision=self.revision, library_name="nestedseg",
                library_version=__version__, **self.options))
        self.revision = path.parent.name  # .../snapshots/<commit>/<file>
        return path

    def damage(self, file: str, reason: str) -> Exception:
        """The error for a file whose content is not what was pushed."""
        return HubError(f"{self.where(file)} is damaged: {reason}. Load the model again with "
                        "force_download=True, which replaces what is in the cache")


def is_absence(error: BaseException | None) -> bool:
    """Whether an error means that the Hub was reached and the repo lacks the file."""
    return isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError)
