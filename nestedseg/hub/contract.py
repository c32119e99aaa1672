"""The contract between `nestedseg.hub` and the models that it saves and publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import huggingface_hub
from torch import nn

from nestedseg.topology.graph import Graph


class Saved(nn.Module):
    """The base class of models that can be saved: semantic models and detectors."""

    @property
    def config(self) -> dict[str, Any]:
        """Everything that is needed to rebuild the model, as JSON-able values."""
        raise NotImplementedError

    @property
    def graph(self) -> Graph:
        """The skip topology."""
        raise NotImplementedError

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that have a head, shallow -> deep; empty if the model cannot be pruned."""
        raise NotImplementedError

    def prune(self, depth: int) -> Any:
        """Extracts one depth as a standalone model; only called if there are depths."""
        raise NotImplementedError

    def _make_card(self, repo_id: str, config: Mapping[str, Any], license: str | None,
                   pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
        """Writes the model card.

        Args:
            repo_id: the repo that it is for, ``"user/name"``.
            config: the model's, including the facts about its training.
            license: the Hub's name for it, for example ``"mit"``.
            pictures: paths of files in the repo, by what they show.
        """
        raise NotImplementedError
