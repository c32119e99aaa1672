"""Models of other libraries (peers), and ours with the same topology, widths and weights."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from monai.networks import nets
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import nestedseg

MONAI_FEATURES = (16, 16, 32, 64, 128, 16)


def smp_pair(encoder: str,
             architecture: str = "UnetPlusPlus") -> tuple[nn.Module, nestedseg.SegmentationModel]:
    """segmentation_models.pytorch's model over a timm encoder, and ours."""
    peer = getattr(smp, architecture)(f"tu-{encoder}", encoder_weights=None)
    return pair(peer, nestedseg.convert.from_smp)


def monai_pair(dims: int = 3, network: str = "BasicUNetPlusPlus"
               ) -> tuple[nn.Module, nestedseg.SegmentationModel]:
    """MONAI's model, with its defaults except the widths, and ours."""
    peer = getattr(nets, network)(spatial_dims=dims, features=MONAI_FEATURES)
    return pair(peer, nestedseg.convert.from_monai)


def pair(peer: nn.Module, convert) -> tuple[nn.Module, nestedseg.SegmentationModel]:
    """The peer, with batch norms like those of a trained model, and the converted model."""
    for norm in peer.modules():  # 0 and 1 would make folding them look exact
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
    return peer.eval(), convert(peer)
