"""What the saving and publishing of a model needs to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import huggingface_hub
from torch import nn

from nestedseg.topology.graph import Graph


class Saved(nn.Module):
    """A model that a config describes: a semantic one, or a detector."""

    @property
    def config(self) -> dict[str, Any]:
        """All that is needed to rebuild the model, as JSON-able values."""
        raise NotImplementedError

    @property
    def graph(self) -> Graph:
        """The skip topology."""
        raise NotImplementedError

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that have a head, shallow -> deep; none of a model that cannot be pruned."""
        raise NotImplementedError

    def prune(self, depth: int) -> Any:
        """The model that ends in the head of this depth, of a model that has depths."""
        raise NotImplementedError

    def _rebuild(self) -> nn.Module:
        """The model that its config builds, on the meta device."""
        raise NotImplementedError

    def _make_card(self, repo_id: str, config: Mapping[str, Any], license: str | None,
                   pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
        """The model card.

        Args:
            repo_id: where it will be, ``"user/name"``.
            config: the model's, with what is said of its training.
            license: as the Hub names it, say ``"mit"``.
            pictures: files in the repo, by what they show.
        """
        raise NotImplementedError
