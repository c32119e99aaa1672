"""Loads a semantic model from the files that the library saved."""

from __future__ import annotations

import torch

from nestedseg.base.errors import blamed
from nestedseg.decoder.meta import fill_weights, own_tensors
from nestedseg.decoder.names import block_shapes, head_shapes, needed_names
from nestedseg.encoders import Options
from nestedseg.encoders.names import certain_shapes, timm_shapes
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
    with blamed(source.where(storage.CONFIG)):
        needed, shapes = decoder_tensors(config)
    check_parts(source, layout, config.encoder_options, config.graph.levels, needed, shapes,
                depth is None)
    with blamed(source.where(storage.CONFIG)), torch.device("meta"):
        # without memory: a stranger's config may ask for any size
        model = SegmentationModel.from_config(config)
    known = model.state_dict().keys() if config == whole else None
    fill_weights(model, checkpoint.read_weights(source, layout, own_tensors(model), known))
    return model


def decoder_tensors(config: Config) -> tuple[set[str], dict[str, tuple[int, ...]]]:
    """The names of the decoder's tensors, and the shapes of some."""
    names = needed_names(config.graph, config.style, config.fused)
    if config.fused:
        return names, {}
    return names, (
        block_shapes(config.graph, config.decoder_channels, config.style) |
        head_shapes(config.graph, config.decoder_channels, config.classes, config.dims,
                    config.head_kernel))


def check_parts(source: checkpoint.Source, layout: checkpoint.Layout, encoder: Options,
                levels: int, needed: set[str], shapes: checkpoint.Shapes, whole: bool = True,
                prefix: str = "") -> None:
    """Refuses weights that cannot be those of the config, as far as is known without building it.

    Args:
        levels: that the encoder has at least.
        needed: names of the decoder's tensors.
        shapes: of some of them.
        whole: whether all files will be read.
        prefix: of the part of the model that has encoder and decoder.

    Raises:
        ValueError: naming what is missing, or of another shape.
    """
    known: checkpoint.Shapes = {}
    certain: checkpoint.Shapes = {}
    at = encoder_prefix(layout, encoder, levels, prefix)
    if at is not None:
        with blamed(source.where(storage.CONFIG)):
            known = timm_shapes(encoder)
            certain = certain_shapes(encoder, known)
    checkpoint.check_parts(
        source, layout, {f"{prefix}decoder.{name}" for name in needed},
        {f"{prefix}decoder.{name}": shape for name, shape in shapes.items()} |
        {f"{at}{name}": shape for name, shape in certain.items()},
        {f"{at}{name}": shape for name, shape in known.items()}, whole)


def encoder_prefix(layout: checkpoint.Layout, encoder: Options, levels: int,
                   prefix: str) -> str | None:
    """What precedes the names of a timm model's tensors; ``None`` = the encoder need not have any.

    Args:
        levels: that the encoder has at least. A stem may have them all.
    """
    if encoder.encoder == "plain":
        return None
    beginnings = [f"{prefix}encoder.{inner}" for inner in ("body.", f"stem.{levels - 1}.")]
    body, stem = (any(name.startswith(start) for name in layout.places) for start in beginnings)
    if encoder.stem and body:
        return beginnings[0]
    return None if encoder.stem and stem else f"{prefix}encoder."
