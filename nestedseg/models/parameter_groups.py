"""Parameter groups for an optimiser: a learning rate for the encoder, no decay of norms and biases.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nestedseg.models.network import Network


def parameter_groups(model: Network, lr: float, encoder_lr_scale: float,
                     weight_decay: float) -> list[dict[str, Any]]:
    """See `SegmentationModel.parameter_groups`."""
    if not lr > 0 or not encoder_lr_scale >= 0 or not weight_decay >= 0:
        raise ValueError("lr must be > 0, encoder_lr_scale and weight_decay >= 0, got "
                         f"lr={lr}, encoder_lr_scale={encoder_lr_scale}, "
                         f"weight_decay={weight_decay}")
    groups = []
    parts: tuple[tuple[nn.Module, float], ...] = (
        (model.encoder, lr * encoder_lr_scale), (model.decoder, lr))
    for part, rate in parts:
        trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
        for decay, chosen in ((weight_decay, [p for p in trained if p.ndim > 1]),
                              (0.0, [p for p in trained if p.ndim <= 1])):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return groups
