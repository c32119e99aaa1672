"""Encoders: the paper's plain one, and every timm model, behind one contract.

An encoder is a module with ``levels`` (channels and stride of each feature, finest first),
``forward(x) -> [feature, ...]`` and ``keep(count)``, which removes all but the ``count`` finest
levels. Its `Description` is had without building it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import timm
from torch import nn

from nestedseg.encoders import plain, timm_encoder
from nestedseg.encoders.description import Description
from nestedseg.layers import Style

__all__ = ["Description", "build_encoder", "describe_encoder", "list_encoders"]


def list_encoders(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names that ``create(encoder=...)`` takes: "plain" and timm's models.

    Args:
        pattern: a shell-style pattern, like ``"*vit*"``.
        pretrained: only those with pretrained weights, as ``"name.tag"``.
    """
    names = timm.list_models(pattern, pretrained=pretrained)
    return ["plain", *names] if fnmatch.fnmatch("plain", pattern) and not pretrained else names


def describe_encoder(name: str, in_channels: int, channels: Sequence[int] | None,
                     dims: int) -> Description:
    """What the encoder of this name offers, before it is built.

    Raises:
        ValueError: unknown name, or one that has no such form.
    """
    if name == "plain":
        return plain.describe(in_channels, channels, dims)
    timm_encoder.parse_name(name)
    if dims != 2:
        raise ValueError(f"dims={dims} needs encoder='plain'; got {name!r}, a 2-D model")
    return timm_encoder.describe(name, in_channels)


def build_encoder(name: str, in_channels: int, channels: Sequence[int] | None, style: Style,
                  weights: str | Path | bool | None) -> nn.Module:
    """The encoder of this name with all its levels, its weights loaded.

    Raises:
        ValueError: unknown name, or weights asked for an encoder that has none.
        OSError: weights that cannot be fetched or read.
    """
    description = describe_encoder(name, in_channels, channels, style.dims)
    if name != "plain":
        return timm_encoder.build(name, in_channels, weights, description)
    if weights:
        raise ValueError("the plain encoder has no pretrained weights; use encoder_weights=None, "
                         f"got {weights!r}")
    return plain.PlainEncoder(in_channels, description, style)
