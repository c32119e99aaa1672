"""Loads a detector from the files that the library saved."""

from __future__ import annotations

import torch

from nestedseg.base.errors import blamed
from nestedseg.decoder.meta import fill_weights, own_tensors
from nestedseg.decoder.names import block_shapes, needed_names
from nestedseg.hub import checkpoint, storage
from nestedseg.instances.detectors import Detector, DetectorConfig, build_detector
from nestedseg.models.pretrained import check_parts


def load_detector(source: checkpoint.Source, data: dict[str, object],
                  depth: int | None) -> Detector:
    """Loads a detector from a config that `checkpoint.save` wrote, and the weights beside it.

    Raises:
        ValueError: a ``depth`` is given, or a file is damaged.
    """
    if depth is not None:
        raise ValueError(f"{source.name!r} is a detector, which has no depths, got depth={depth}; "
                         "leave it out")
    checksum = data.pop(checkpoint.CHECKSUM, None)
    with blamed(source.where(storage.CONFIG)):
        config = DetectorConfig.from_dict(data)
    layout, pyramid = checkpoint.find_layout(source, False, checksum), config.pyramid
    widths = (pyramid.out_channels,) * len(pyramid.strides)
    with blamed(source.where(storage.CONFIG)):
        needed = needed_names(pyramid.graph, pyramid.style, heads=False)
        shapes = block_shapes(pyramid.graph, widths, pyramid.style)
    check_parts(source, layout, pyramid.encoder, pyramid.graph.levels, needed, shapes,
                prefix="backbone.")
    with blamed(source.where(storage.CONFIG)), torch.device("meta"):
        model = build_detector(config)
    fill_weights(model, checkpoint.read_weights(source, layout, own_tensors(model),
                                                model.state_dict().keys()))
    return model
