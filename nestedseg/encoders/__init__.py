"""Encoders: the paper's plain one, and every timm model, behind one contract.

An encoder is a module with ``levels`` (channels and stride of each feature, finest first),
``forward(x) -> [feature, ...]`` and ``keep(count)``, which removes all but the ``count`` finest
levels. Its `Description` is had without building it.
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path

import timm
from torch import nn

from nestedseg.encoders import plain, timm_encoder
from nestedseg.encoders.description import Description, Options
from nestedseg.encoders.info import EncoderInfo, encoder_info
from nestedseg.encoders.stem import StemmedEncoder, stem_channels
from nestedseg.layers import Level, Style

__all__ = ["Description", "EncoderInfo", "Options", "build_encoder", "describe_encoder",
           "encoder_info", "list_encoders"]


def list_encoders(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names that ``create(encoder=...)`` takes: "plain" and timm's models.

    Args:
        pattern: a shell-style pattern, like ``"*vit*"``.
        pretrained: only those with pretrained weights, as ``"name.tag"``.
    """
    names = timm.list_models(pattern, pretrained=pretrained)
    return ["plain", *names] if fnmatch.fnmatch("plain", pattern) and not pretrained else names


def describe_encoder(options: Options) -> Description:
    """What the encoder offers, before it is built.

    Raises:
        ValueError: unknown name, or options that it cannot serve.
    """
    if options.encoder == "plain":
        description = plain.describe(options)
    else:
        timm_encoder.parse_name(options.encoder)
        if options.dims != 2:
            raise ValueError(f"dims={options.dims} needs encoder='plain'; got {options.encoder!r}, "
                             "a 2-D model")
        description = timm_encoder.describe(options)
    return with_stem(description, options) if options.stem else description


def with_stem(description: Description, options: Options) -> Description:
    """The description with the stem's levels before the encoder's own."""
    finest = description.levels[0].stride
    widths = stem_channels(options.stem, finest[0])
    strides = [(2 ** row,) * len(finest) for row in range(len(widths))]
    levels = tuple(Level(width, stride) for width, stride in zip(widths, strides))
    whole_image = [description.multiples[0]] if description.fixed_size else strides
    multiples = (*(whole_image * len(strides))[:len(strides)], *description.multiples)
    return replace(description, levels=levels + description.levels, multiples=multiples)


def build_encoder(options: Options, style: Style,
                  weights: str | Path | bool | None = None) -> nn.Module:
    """The encoder with all its levels, its weights loaded.

    Raises:
        ValueError: unknown name, or weights asked for an encoder that has none.
        OSError: weights that cannot be fetched or read.
    """
    description = describe_encoder(options)
    if options.encoder != "plain":
        encoder: nn.Module = timm_encoder.build(options, weights, description)
    elif weights:
        raise ValueError("the plain encoder has no pretrained weights; use encoder_weights=None, "
                         f"got {weights!r}")
    else:
        encoder = plain.PlainEncoder(options.in_channels, description, style)
    if not options.stem:
        return encoder
    return StemmedEncoder(options.in_channels, description.levels, encoder, style)
