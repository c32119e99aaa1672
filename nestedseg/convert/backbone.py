"""A model's trained encoder as a plain timm model."""

from __future__ import annotations

import logging

import timm
from torch import nn

from nestedseg.base.errors import show
from nestedseg.encoders.stem import StemmedEncoder
from nestedseg.encoders.timm_encoder import TimmEncoder
from nestedseg.models.model import SegmentationModel

log = logging.getLogger(__name__)


def timm_encoder(model: SegmentationModel, fill: bool = False) -> nn.Module:
    """The model's encoder as timm makes it, without a classifier, with the trained weights.

    It is `timm.create_model(name, num_classes=0)` with the encoder's input channels and image
    size, in the model's dtype, on its device and in eval mode. A model holds only what its features
    need: neither the stages below a pruned model's depth, nor, say, a ViT's final norm or an
    EfficientNet's head convolution.

    Args:
        model: a model over one of timm's encoders, not fused.
        fill: let timm initialise the layers that the encoder does not hold, and log their names;
            otherwise they are refused, for their weights are random.

    Raises:
        ValueError: the encoder is not timm's, or fused, or volumetric, or layers are missing.
    """
    config = model.config
    name = config["encoder"]
    if name == "plain":
        raise ValueError("the encoder is nestedseg's own plain one, of which timm knows nothing")
    if config["fused"]:
        raise ValueError("a fused model's encoder has lost its batch norms; take that of the model "
                         "it was made from")
    if config["dims"] != 2:
        raise ValueError(f"the encoder was made volumetric; timm's {name!r} is for images")
    encoder = model.encoder.body if isinstance(model.encoder, StemmedEncoder) else model.encoder
    if encoder is None:
        raise ValueError(f"the model was cut down to its stem; nothing is left of {name!r}")
    assert isinstance(encoder, TimmEncoder)  # the plain one was refused
    held = encoder.model.state_dict()
    _, trial, _ = encoder.key
    backbone = timm.create_model(name, num_classes=0, in_chans=trial.in_channels,
                                 **dict(trial.arguments))
    missing = sorted(backbone.state_dict().keys() - held.keys())
    if missing and not fill:
        raise ValueError(f"the encoder holds {len(held)} of the tensors of {name!r}, and not "
                         f"{len(missing)} more, {show(missing)}, which no feature of this model "
                         "needs; fill=True lets timm initialise them")
    if missing:
        log.warning("timm's %s: %d tensors are as timm initialises them: %s", name, len(missing),
                    ", ".join(missing))
    backbone.load_state_dict(held, strict=False)
    some = next(encoder.model.parameters())
    return backbone.to(device=some.device, dtype=some.dtype).eval()
