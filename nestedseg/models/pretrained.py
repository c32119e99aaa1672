"""Loads a semantic model from the files that the library saved."""

from __future__ import annotations

import torch

from nestedseg.base.errors import blamed
from nestedseg.decoder.meta import fill_weights, own_tensors
from nestedseg.decoder.names import needed_names
from nestedseg.encoders import Options
from nestedseg.encoders.names import timm_shapes
from nestedseg.hub import checkpoint, storage
from nestedseg.models.config import Config
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
    check_parts(source, layout, config.encoder_options,
                needed_names(config.graph, config.style, config.fused))
    with blamed(source.where(storage.CONFIG)), torch.device("meta"):
        # without memory: a stranger's config may ask for any size
        model = SegmentationModel.from_config(config)
    known = model.state_dict().keys() if config == whole else None
    fill_weights(model, checkpoint.read_weights(source, layout, own_tensors(model), known))
    return model


def check_parts(source: checkpoint.Source, layout: checkpoint.Layout, encoder: Options,
                needed: set[str], prefix: str = "") -> None:
    """Refuses weights that cannot be those of the config, as far as is known without building it.

    Args:
        needed: names of the decoder's tensors.
        prefix: of the part of the model that has encoder and decoder.

    Raises:
        ValueError: naming what is missing.
    """
    with blamed(source.where(layout.file)):
        checkpoint.check_needed(needed, layout, f"{prefix}decoder.")
    if encoder.encoder == "plain" or encoder.stem:  # of a stem's model no more may be left than it
        return
    with blamed(source.where(storage.CONFIG)):
        known = timm_shapes(encoder)
    if known:
        checkpoint.check_encoder(source, layout, known, f"{prefix}encoder.")
