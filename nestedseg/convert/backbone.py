"""`timm_encoder`: a model's trained encoder as a plain timm model."""

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
    """The encoder of a model as a plain timm model without classifier, with the trained weights.

    It is `timm.create_model(name, num_classes=0)` with the encoder's input channels and image
    size, in the model's dtype, on its device and in eval mode. An encoder has only the layers that
    its features need: it lacks the stages below a pruned model's depth, and for example a ViT's
    final norm or an EfficientNet's head convolution.

    Args:
        model: a model over one of timm's encoders, not fused.
        fill: let timm initialise the layers that the encoder lacks, at random, and log their names;
            otherwise missing layers are an error.

    Raises:
        ValueError: the encoder is not timm's, or fused, or volumetric, or layers are missing.
    """
    config = model.config
    name = config["encoder"]
    if name == "plain":
        raise ValueError("encoder 'plain' is nestedseg's own, not one of timm's; use a model over "
                         "a timm encoder")
    if config["fused"]:
        raise ValueError("a fused model's encoder has lost its batch norms; use the model that it "
                         "was made from")
    if config["dims"] != 2:
        raise ValueError(f"the encoder was made volumetric, dims={config['dims']}, but timm's "
                         f"{name!r} is for images; use a model with dims=2")
    encoder = model.encoder.body if isinstance(model.encoder, StemmedEncoder) else model.encoder
    if encoder is None:
        raise ValueError(f"the model was pruned to the levels of its stem, so nothing is left of "
                         f"{name!r}; use a greater depth")
    assert isinstance(encoder, TimmEncoder)  # the plain one was rejected above
    held = encoder.model.state_dict()
    _, probed, _ = encoder.key
    backbone = timm.create_model(name, num_classes=0, in_chans=probed.in_channels,
                                 **dict(probed.arguments))
    missing = sorted(backbone.state_dict().keys() - held.keys())
    if missing and not fill:
        raise ValueError(f"the encoder has {len(held)} of the tensors of {name!r} and lacks "
                         f"{len(missing)}, {show(missing)}, which no feature of this model needs; "
                         "use fill=True to let timm initialise them")
    if missing:
        log.warning("timm's %s: %d tensors are as timm initialises them: %s", name, len(missing),
                    ", ".join(missing))
    backbone.load_state_dict(held, strict=False)
    some = next(encoder.model.parameters())
    return backbone.to(device=some.device, dtype=some.dtype).eval()
