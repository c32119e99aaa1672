"""Pushes a model to a repo on the Hugging Face Hub: weights, config and card, in one commit."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub

from nestedseg.base.errors import show
from nestedseg.base.version import __version__
from nestedseg.hub import checkpoint, storage
from nestedseg.hub.card import is_ours
from nestedseg.hub.client import explained, is_repo_id
from nestedseg.hub.contract import Saved
from nestedseg.hub.facts import check_training

CARD = "README.md"
MAIN = "main"
# Files that an earlier push, also by another library, may have left. They are deleted, because
# readers would load some of them in place of the new ones.
STALE = (storage.WEIGHTS, "model-?????-of-?????.safetensors", storage.INDEX, "pytorch_model.bin",
         "pytorch_model-?????-of-?????.bin", "pytorch_model.bin.index.json")


def push_model(model: Saved, repo_id: str, private: bool | None = None,
               token: str | bool | None = None, revision: str | None = None,
               commit_message: str | None = None, **facts: Any) -> huggingface_hub.CommitInfo:
    """Pushes a model; see `HubModel.push_to_hub`. ``facts`` are further arguments of `write_repo`.
    """
    with TemporaryDirectory() as name:
        folder = Path(name, "repo")
        write_repo(model, folder, repo_id, **facts)
        open_repo(repo_id, private, token)
        api = huggingface_hub.HfApi(token=token, library_name="nestedseg",
                                    library_version=__version__)
        with explained(f"cannot push to the repo {repo_id!r}"):
            if revision not in (None, MAIN):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            before = api.model_info(repo_id, revision=revision)
            if CARD in {file.rfilename for file in before.siblings or ()}:
                card = api.hf_hub_download(repo_id, CARD, revision=before.sha, cache_dir=name)
                if not is_ours(Path(card).read_text(encoding="utf-8", errors="replace")):
                    (folder / CARD).unlink()
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, parent_commit=before.sha,
                commit_message=commit_message or f"{model.graph.name} by nestedseg {__version__}",
                delete_patterns=list(STALE))


def open_repo(repo_id: str, private: bool | None = None, token: str | bool | None = None) -> None:
    """Makes a repo if it does not exist.

    Raises:
        HubError: it cannot be made or written to.
        ValueError: ``repo_id`` is not a repo id, or a private repo was asked for and it is public.
    """
    check_repo_id(repo_id)
    api = huggingface_hub.HfApi(token=token)
    with explained(f"cannot open the repo {repo_id!r}"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        public = private and not api.model_info(repo_id).private
    if public:
        raise ValueError(f"private=True, but the repo {repo_id!r} exists and is public: make it "
                         "private in its settings, or choose another name")


def check_repo_id(repo_id: str) -> None:
    """Checks that ``repo_id`` has the form ``"user/name"``.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(repo_id, str) or not is_repo_id(repo_id):
        raise ValueError(f"expected the id of a repo, like 'user/name', got {show(repo_id)}")


def write_repo(model: Saved, folder: Path, repo_id: str,
               metrics: Mapping[Any, Any] | None = None,
               dataset: str | None = None, license: str | None = None,
               training: Mapping[str, Any] | None = None,
               pictures: Mapping[str, Path] | None = None) -> None:
    """Writes the files that `push_model` sends to a folder. A card without the mark is kept.

    Raises:
        ValueError: scores of a depth without a head, or facts that are not allowed.
        FileNotFoundError: a picture is missing.
    """
    check_repo_id(repo_id)
    if license is not None and (not isinstance(license, str) or not license.isprintable()):
        raise ValueError(f"license must be a name like 'mit', got {show(license)}")
    pictures = pictures or {}
    config = model.config
    config["training"] = training_facts(model, config["training"], metrics, dataset, training)
    names = {text: Path(path).name for text, path in pictures.items()}
    card = model._make_card(repo_id, config, license, names)
    checkpoint.save(folder, config, model)
    for path in pictures.values():
        shutil.copyfile(path, folder / Path(path).name)
    path = folder / CARD
    if not path.exists() or is_ours(path.read_text(encoding="utf-8", errors="replace")):
        card.save(path)


def training_facts(model: Saved, before: Mapping[str, Any] | None,
                   metrics: Mapping[Any, Any] | None, dataset: str | None,
                   training: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The facts about the training for the config: the earlier ones, updated with the new ones."""
    now = dict(training or {})
    if dataset is not None:
        now["dataset"] = dataset
    if metrics is not None:
        now["metrics"] = scores_by_depth(model, metrics) if model.depths else dict(metrics)
    return check_training({**(before or {}), **now}, by_depth=bool(model.depths)) or None


def scores_by_depth(model: Saved,
                    metrics: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The scores in the form that the config keeps, with depths as strings.

    Raises:
        GraphError: there is no head at a depth.
    """
    for depth in metrics:
        model.graph.head(depth)
    return {str(depth): dict(scores) for depth, scores in metrics.items()}
