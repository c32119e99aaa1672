"""The Hugging Face Hub through its own client, whose many errors come out as one."""

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
AGAIN = "Try again: files that came through whole are not sent twice"


class HubError(OSError):
    """A request to the Hub failed. The message names the repo, the file and what can be done."""


def is_repo_id(name: str) -> bool:
    """Whether a repo on the Hub may be called so: ``"user/name"``."""
    if not _ID.fullmatch(name):
        return False
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


@contextmanager
def explained(action: str) -> Iterator[None]:
    """Raises whatever the client raises as a `HubError` that begins with ``action``.

    The client lets through errors of its HTTP library, which is another one in each of its major
    versions, so that they can only be caught as any `Exception`.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        if type(error) is ValueError and isinstance(error.__cause__, Exception):
            error = error.__cause__  # what a forced download says hides why it failed
        text = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"{action}: {advice(error)} ({text[:500]})") from error


def advice(error: Exception) -> str:
    """What went wrong and what can be done about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return "its owner grants access. Ask for it on the repo's page, and give your token"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repo, or it is private. Check the name, or give a token " \
               "(token=..., or `hf auth login`) that may read it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repo has no such branch, tag or commit"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return f"it is not in the cache, and the Hub is overloaded or out of reach. {AGAIN}"
    if isinstance(error, errors.EntryNotFoundError):
        return "the repo has no such file"
    if status in (401, 403):
        return "access denied. The token is missing, has expired or has no right to do this: " \
               "make one at https://huggingface.co/settings/tokens"
    if status is not None and status >= 500:
        return f"the Hub is out of order (status {status}). Try again later"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full. Make room, or choose another cache_dir"
    if status == 412:
        return "somebody else has pushed at the same moment. Try again"
    if status is not None or isinstance(error, ValueError):
        return "it was refused"
    return f"the transfer broke. {AGAIN}"


class Repo:
    """The files of a repo at one commit, in the client's cache.

    Args:
        revision: a branch, tag or commit. The first file that is asked for tells which commit that
            is; all others are of the same one, so that a model is never put together from two.
        options: further arguments of `huggingface_hub.hf_hub_download`.
    """

    def __init__(self, name: str, revision: str | None = None, **options: Any) -> None:
        self.name, self.revision, self.options = name, revision, options

    def where(self, file: str) -> str:
        """What messages call this file."""
        return f"{file!r} of the repo {self.name!r}"

    def find(self, file: str) -> Path | None:
        """The file, downloaded where it is not cached; ``None`` = the repo has none.

        Raises:
            HubError: it cannot be had.
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
        """The file, downloaded where it is not cached.

        Raises:
            HubError: it cannot be had.
        """
        with explained(f"cannot load {self.where(file)}"):
            path = Path(huggingface_hub.hf_hub_download(
                self.name, file, revision=self.revision, library_name="nestedseg",
                library_version=__version__, **self.options))
        self.revision = path.parent.name  # .../snapshots/<commit>/<file>
        return path

    def damage(self, file: str, reason: str) -> Exception:
        """The error of a file that is not what was pushed."""
        return HubError(f"{self.where(file)} is damaged: {reason}. Load the model again with "
                        "force_download=True, which replaces what is in the cache")


def is_absence(error: BaseException | None) -> bool:
    """Whether the repo was asked and has no such file."""
    return isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError)
