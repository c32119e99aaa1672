"""What an encoder is, for people who choose one."""

from __future__ import annotations

from dataclasses import dataclass

from nestedseg.encoders import timm_encoder
from nestedseg.encoders.description import Options
from nestedseg.encoders.timm_model import pretrained_cfg


@dataclass(frozen=True)
class EncoderInfo:
    """What `encoder_info` found.

    Args:
        name: of the timm model.
        strides: of each level, finest first.
        channels: likewise.
        parameters: of the whole timm model, its classifier included.
        pattern: "doubling", "isotropic" (one stride at every tap, as in a ViT; levels are made by
            a simple feature pyramid) or "irregular" (features are resampled).
        image_size: (H, W) in pixels that its weights were trained at.
        any_size: whether it takes images of any size; if not, say ``create(image_size=...)``.
        multiple: to what images are padded inside the model, at full depth.
    """

    name: str
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    parameters: int
    pattern: str
    image_size: tuple[int, ...]
    any_size: bool
    multiple: int


def encoder_info(name: str, dims: int = 2) -> EncoderInfo:
    """Strides, channels, size and sizes of a timm model. No weights are made.

    Args:
        name: of a timm model, with or without a tag.
        dims: 3 to try whether it can be made volumetric.

    Raises:
        ValueError: timm has no such model, or it is for images alone: the message names the module
            that cannot be made volumetric.
    """
    timm_encoder.parse_name(name)
    description = timm_encoder.describe(Options(name, dims=dims))
    probed, _ = description.backbone
    strides, channels = zip(*((level.stride[-1], level.channels) for level in description.levels))
    return EncoderInfo(
        name, strides, channels,
        probed.parameters, description.pattern,
        tuple(pretrained_cfg(name).input_size[-2:]), description.fixed_size is None,
        description.multiples[-1][-1])
