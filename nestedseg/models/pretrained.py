"""Loads a semantic model from the files that the library saved."""

from __future__ import annotations

import torch

from nestedseg.base.errors import blamed
from nestedseg.decoder.meta import fill_weights, own_tensors
from nestedseg.hub import checkpoint, storage
from nestedseg.models.config import Config
from nestedseg.models.factory import build_model
from nestedseg.models.model import SegmentationModel


def load_model(source: checkpoint.Source, data: dict[str, object],
               depth: int | None) -> SegmentationModel:
    """Loads a model from a config that `checkpoint.save` wrote, and the weights beside it.

    Args:
        source: where the files are.
        data: the content of the config.
        depth: the depth to prune to; ``None`` = the whole model.
    """
    checksum = data.pop(checkpoint.CHECKSUM, None)
    with blamed(source.where(storage.CONFIG)):
        whole = Config.from_dict(data)
    config = whole if depth is None else whole.prune(depth)
    layout = checkpoint.find_layout(source, len(whole.graph.heads) > 1, checksum)
    with blamed(source.where(layout.file)):
        checkpoint.check_nodes(config.graph, layout)
    with blamed(source.where(storage.CONFIG)), torch.device("meta"):
        model = build_model(config)  # without memory: a stranger's config may ask for any size
    known = model.state_dict().keys() if config == whole else None
    fill_weights(model, checkpoint.read_weights(source, layout, own_tensors(model), known))
    return model
