"""From the features that a timm model gives to levels with doubling strides: one rule a pattern."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.base.errors import wholes
from nestedseg.decoder.layers import LINEAR
from nestedseg.encoders.probe import Feature
from nestedseg.topology.graph import MAX_CHANNELS

SIMPLE_PYRAMID = (4, 8, 16, 32)  # strides, after ViTDet


@dataclass(frozen=True)
class Tap:
    """One level of the pyramid: which of timm's features it is made from, and how.

    Args:
        index: of the feature, or the name of the module that gives it.
        feature: what is known of it.
        channels: of the level.
        stride: of the level, a power of two.
        made: whether the level is made from the feature, not the feature itself.
    """

    index: int | str
    feature: Feature
    channels: int
    stride: int
    made: bool


def pattern_of(features: Sequence[Feature]) -> str:
    """"doubling", "isotropic" (one stride at every tap) or "irregular"."""
    strides = sorted({feature.nominal for feature in features})
    if len(strides) == 1:
        return "isotropic"
    doubles = strides == [strides[0] * 2 ** i for i in range(len(strides))]
    return "doubling" if doubles and all(f.fits for f in features) else "irregular"


def select_features(features: Sequence[Feature], taps: Sequence[int | str] | None,
                channels: Sequence[int] | None) -> tuple[Tap, ...]:
    """The levels, finest first.

    Isotropic models get a simple feature pyramid (Li et al., ViTDet, arXiv 2203.16527), its levels
    made from evenly spaced taps, so that a pruned model drops blocks; the others, the deepest tap
    of each distinct stride, resampled to the nearest power of two where it is none.

    Args:
        taps: which features to use, in timm's numbering; default: by the rule.
        channels: of the made levels of an isotropic model, finest first.

    Raises:
        ValueError: a tap that the model has not, or numbers that do not fit together.
    """
    chosen = None if taps is None else wholes("encoder_taps", taps, 0, len(features) - 1)
    if pattern_of(features) == "isotropic":
        return _simple_pyramid(features, chosen, channels)
    if channels is not None:
        raise ValueError("pyramid_channels is for encoders whose features all have one stride; "
                         f"this one's have {[f.nominal for f in features]}")
    if chosen is not None:
        check_own_strides(chosen, [features[tap] for tap in chosen])
    indices = sorted(chosen) if chosen is not None else range(len(features))
    deepest = {features[index].nominal: index for index in indices}
    return tuple(Tap(index, features[index], features[index].channels, stride, False)
                 for stride, index in sorted(deepest.items()))


def select_named(features: Mapping[str, Feature]) -> tuple[Tap, ...]:
    """A level from what each of these modules gives, finest first.

    Raises:
        ValueError: two of them have one stride.
    """
    check_own_strides([*features], [*features.values()])
    return tuple(Tap(name, feature, feature.channels, feature.nominal, False)
                 for name, feature in sorted(features.items(), key=lambda item: item[1].nominal))


def check_own_strides(taps: Sequence[int | str], features: Sequence[Feature]) -> None:
    """Refuses taps two of which would be one level.

    Raises:
        ValueError: naming the taps and their strides.
    """
    strides = [feature.nominal for feature in features]
    if len(set(strides)) < len(strides):
        raise ValueError(f"encoder_taps {list(taps)} have the strides {strides}; each level needs "
                         "its own")


def _simple_pyramid(features: Sequence[Feature], taps: Sequence[int] | None,
                    channels: Sequence[int] | None) -> tuple[Tap, ...]:
    count = len(SIMPLE_PYRAMID)
    if taps is None:
        taps = [math.ceil((level + 1) * len(features) / count) - 1 for level in range(count)]
    if channels is None:  # each doubling of the resolution halves the channels
        steps = [max(1, features[tap].nominal // stride)
                 for tap, stride in zip(taps, SIMPLE_PYRAMID)]
        channels = [max(1, features[tap].channels // step) for tap, step in zip(taps, steps)]
    for name, values in (("encoder_taps", taps), ("pyramid_channels", channels)):
        if len(values) != count:
            raise ValueError(f"{name}: this encoder's pyramid has {count} levels, with strides "
                             f"{list(SIMPLE_PYRAMID)}; got {len(values)} values {list(values)}")
    wholes("pyramid_channels", channels, 1, MAX_CHANNELS)
    return tuple(Tap(tap, features[tap], width, stride, True)
                 for tap, width, stride in zip(taps, channels, SIMPLE_PYRAMID))


class Neck(nn.Module):
    """A feature brought to its level's stride and channels.

    Features that are levels as they come pass through. Made ones are first normalised (timm drops
    a ViT's last norm), then up-sampled by 2x2 transposed convolutions, or max-pooled.

    Args:
        any_size: whether the encoder sees the image at the image's own size, whatever that is.
        stride: of the level along each axis; default: the tap's, in 2-D.
    """

    def __init__(self, tap: Tap, any_size: bool = True,
                 stride: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.fits = tap.feature.fits and any_size
        self.pool = max(1, tap.stride // tap.feature.nominal) if tap.made else 1
        self.grid = (tap.feature.nominal,) * 2 if tap.made else stride or (tap.stride,) * 2
        self.layers = make_layers(tap) if tap.made else nn.Identity()

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if not self.fits:
            target = tuple(side // stride for side, stride in zip(size, self.grid))
            if x.shape[2:] != target:
                x = F.interpolate(x, size=target, mode=LINEAR[len(target)], align_corners=False)
        x = self.layers(x)
        return F.max_pool2d(x, self.pool) if self.pool > 1 else x


def make_layers(tap: Tap) -> nn.Sequential:
    """Norm, then doublings of the resolution, or a 1x1 convolution where only channels differ."""
    channels = tap.feature.channels
    layers: list[nn.Module] = [LayerNorm2d(channels)]
    doublings = max(0, round(math.log2(tap.feature.nominal / tap.stride)))
    for step in range(doublings):
        width = tap.channels if step == doublings - 1 else max(1, channels // 2)
        layers.append(nn.ConvTranspose2d(channels, width, 2, stride=2))
        if step < doublings - 1:
            layers += [LayerNorm2d(width), nn.GELU()]
        channels = width
    if channels != tap.channels:
        layers.append(nn.Conv2d(channels, tap.channels, 1))
    return nn.Sequential(*layers)
