"""Encoders: the paper's plain one and timm's models, all as an `Encoder`.

`describe_encoder` gives the `Description` of an encoder without building it.
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path

import timm

from nestedseg.base.errors import show, text
from nestedseg.decoder.layers import Level, Style
from nestedseg.encoders import plain, timm_encoder
from nestedseg.encoders.contract import Encoder
from nestedseg.encoders.description import Description, Options
from nestedseg.encoders.info import EncoderInfo, encoder_info
from nestedseg.encoders.stem import StemmedEncoder, stem_channels

__all__ = ["Description", "Encoder", "EncoderInfo", "Options", "build_encoder",
           "describe_encoder", "encoder_info", "list_encoders"]


def list_encoders(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """The names that ``create(encoder=...)`` accepts: "plain" and timm's models.

    Args:
        pattern: a shell-style pattern, like ``"*vit*"``.
        pretrained: list only pretrained weights, as ``"name.tag"``.
    """
    if not isinstance(pretrained, bool):
        raise TypeError(f"pretrained must be True or False, got {show(pretrained)}")
    names = timm.list_models(text("pattern", pattern), pretrained=pretrained)
    return ["plain", *names] if fnmatch.fnmatch("plain", pattern) and not pretrained else names


def describe_encoder(options: Options) -> Description:
    """The levels, sizes and preprocessing of an encoder, before it is built.

    Raises:
        ValueError: an unknown name, or options that the encoder does not support.
    """
    body = describe_body(options)
    return with_stem(body, options.stem) if options.stem else body


def describe_body(options: Options) -> Description:
    """The description of an encoder without its stem."""
    if options.encoder == "plain":
        return plain.describe_plain(options)
    timm_encoder.parse_name(options.encoder)
    return timm_encoder.describe_timm(options)


def with_stem(body: Description, stem: bool | int | tuple[int, ...]) -> Description:
    """Adds the stem's levels to a description, before the encoder's own."""
    finest = body.levels[0].stride
    widths = stem_channels(stem, max(finest))
    strides = [tuple(min(2 ** row, stride) for stride in finest) for row in range(len(widths))]
    levels = tuple(map(Level, widths, strides))
    multiples = [body.multiples[0]] * len(widths) if body.fixed_size else strides
    return replace(body, levels=levels + body.levels, multiples=(*multiples, *body.multiples))


def build_encoder(options: Options, style: Style, weights: str | Path | bool | None,
                  count: int) -> Encoder:
    """Builds an encoder with its ``count`` finest levels, and loads its weights.

    Raises:
        ValueError: an unknown name, or weights for the plain encoder, which has none.
        OSError: the weights cannot be fetched or read.
    """
    if not isinstance(weights, (str, Path, bool, type(None))):  # an array has no truth value
        raise ValueError("encoder_weights must be None, 'pretrained' or the path of a .safetensors "
                         f"file, got {show(weights)}")
    levels, body = describe_encoder(options).levels, describe_body(options)
    added = len(levels) - len(body.levels)
    encoder: Encoder
    if options.encoder != "plain":
        encoder = timm_encoder.build_timm_encoder(options, weights, body, max(1, count - added))
    elif weights:
        raise ValueError("the plain encoder has no pretrained weights; use encoder_weights=None, "
                         f"got {weights!r}")
    else:
        encoder = plain.PlainEncoder(options.in_channels, body, style).keep(count)
    if not added:
        return encoder
    return StemmedEncoder(options.in_channels, levels, added, encoder, style).keep(count)
