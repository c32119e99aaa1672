"""`encoder_info`: the strides, channels and sizes of an encoder, for people who choose one."""

from __future__ import annotations

from dataclasses import dataclass

from nestedseg.encoders import timm_encoder
from nestedseg.encoders.description import Options
from nestedseg.encoders.trial import pretrained_cfg


@dataclass(frozen=True)
class EncoderInfo:
    """The result of `encoder_info`.

    Args:
        name: of the timm model.
        strides: stride of each level, finest first.
        channels: channels of each level, finest first.
        parameters: of the whole timm model, including its classifier.
        pattern: "doubling", "isotropic" (all features have one stride, as in a ViT; a simple
            feature pyramid makes the levels) or "irregular" (features are resampled).
        image_size: (H, W) in pixels that its weights were trained at.
        any_size: whether it takes images of any size; if not, give ``create(image_size=...)``.
        multiple: images are padded inside the model to a multiple of this, at full depth.
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
    """Strides, channels, parameters and image sizes of a timm model, without making its weights.

    Args:
        name: of a timm model, with or without a tag.
        dims: 3 to find out whether it can be made volumetric.

    Raises:
        ValueError: timm has no such model; or, with ``dims=3``, it cannot be made volumetric: the
            message names the module that cannot.
    """
    timm_encoder.parse_name(name)
    description = timm_encoder.describe_timm(Options(name, dims=dims))
    probed, _ = description.backbone
    strides, channels = zip(*((level.stride[-1], level.channels) for level in description.levels))
    return EncoderInfo(
        name, strides, channels,
        probed.parameters, description.pattern,
        tuple(pretrained_cfg(name).input_size[-2:]), description.fixed_size is None,
        description.multiples[-1][-1])
