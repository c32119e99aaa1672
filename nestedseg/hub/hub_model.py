"""`HubModel`: the methods that save a model and push it to the Hub, the same for all models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

from nestedseg.base.errors import as_path
from nestedseg.hub import checkpoint, publish
from nestedseg.hub.contract import Saved


class HubModel(Saved):
    """A model that can be saved and pushed."""

    def save_pretrained(self, directory: str | Path) -> None:
        """Saves the model to a folder, as ``config.json`` and weights for `from_pretrained`.

        The weights are ``model.safetensors`` or, with several heads, one file for each depth and an
        index. An earlier model in the folder is replaced, all at once: if the program is killed,
        the folder contains either the old model or the new one.

        Args:
            directory: the folder; it is made if it does not exist.
        """
        checkpoint.save(as_path("directory", directory), self.config, self)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        metrics: Mapping[int, Mapping[str, float]] | None = None,
        dataset: str | None = None,
        license: str | None = None,
        training: Mapping[str, Any] | None = None,
        pictures: Mapping[str, Path] | None = None,
    ) -> huggingface_hub.CommitInfo:
        """Pushes the model and its card to a repo on the Hugging Face Hub, in one commit.

        Files of an earlier model in the repo are deleted, other files stay. A card is replaced only
        if it still has the library's mark; remove that line to keep a card of your own.

        Args:
            repo_id: ``"user/name"``; the repo is made if it does not exist.
            private: whether a new repo is private; default: the account's setting.
            token: a token with the right to write; default: the one stored by ``hf auth login``.
            revision: a branch, made if it does not exist; default: the main branch.
            commit_message: default: topology and version.
            metrics: scores by depth and name, ``{2: {"iou": 0.88, "dice": 0.94}}``, as fractions.
            dataset: what it was trained and scored on: a name, or the id of a data set on the Hub.
            license: the Hub's name of the licence, ``"mit"`` or ``"cc-by-4.0"``.
            training: further facts about the training: short texts and numbers.
            pictures: files for the card, by what they show.

        Returns:
            The client's `CommitInfo`: ``.oid`` is the commit's hash, ``.commit_url`` its address.

        Raises:
            HubError: the Hub refuses, or cannot be reached (an `OSError`).
            ValueError: facts that are not allowed, or an existing public repo with ``private``.
        """
        return publish.push_model(
            self, repo_id, private, token, revision, commit_message, metrics=metrics,
            dataset=dataset, license=license, training=training, pictures=pictures)
