"""What all models of the library have in common: they are saved, and pushed to the Hub, alike."""

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
        """Writes ``config.json`` and the weights, which `from_pretrained` reads.

        The weights are ``model.safetensors``; of several heads, one file for each depth and their
        index. They replace an earlier model's, all at once: killed at any moment, the folder holds
        the old model or the new one.

        Args:
            directory: made where it is not there.
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

        Files of an earlier model go; others stay, and so does a card that somebody has made their
        own: the library writes anew only those with its mark.

        Args:
            repo_id: ``"user/name"``; made where it is not there.
            private: whether a repo that is made is private; default: as the account says.
            token: with the right to write; default: the one stored by ``hf auth login``.
            revision: branch, made where it is not there; default: the main one.
            commit_message: default: topology and version.
            metrics: scores by depth and name, ``{2: {"iou": 0.88, "dice": 0.94}}``, as fractions.
            dataset: what it was trained and scored on: a name, or the id of a data set on the Hub.
            license: as the Hub names it, ``"mit"`` or ``"cc-by-4.0"``.
            training: what else is to be known of the training: short texts and numbers.
            pictures: files for the card, by what they show.

        Returns:
            The client's account of the commit; ``.oid`` is its name, ``.commit_url`` its address.

        Raises:
            HubError: the Hub refuses, or is out of reach (an `OSError`).
            ValueError: facts that cannot be, or a public repo where a private one was asked for.
        """
        return publish.push_model(
            self, repo_id, private, token, revision, commit_message, metrics=metrics,
            dataset=dataset, license=license, training=training, pictures=pictures)
