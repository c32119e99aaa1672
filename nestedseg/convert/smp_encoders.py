"""The timm model of each encoder of segmentation_models.pytorch (SMP), and timm's tensor names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import timm
import torch

from nestedseg.base.errors import nearest, show
from nestedseg.convert.smp_options import SmpConfig
from nestedseg.convert.weights import refuse
from nestedseg.encoders import Description, Options, describe_encoder
from nestedseg.encoders.timm_encoder import parse_name


@dataclass(frozen=True)
class Match:
    """The timm model that computes the same as an encoder of SMP.

    Args:
        name: of the timm model.
        taps: the modules whose outputs are SMP's features; ``None`` = they are timm's features.
        rename: turns SMP's name of a tensor into timm's.
        deepest: a block here that the deepest feature passes first, and the layer of SMP's encoder
            that it stands for.
    """

    name: str
    taps: tuple[str, ...] | None = None
    rename: Callable[[str], str] = str
    deepest: tuple[str, str] | None = None


def efficientnet_b0(name: str) -> str:
    """timm's name for one of lukemelas/EfficientNet-PyTorch, which numbers blocks across stages."""
    starts = (0, 1, 3, 5, 8, 11, 15)
    found = re.fullmatch(r"_blocks\.(\d+)\._(\w+?)(\..+)", name)
    if not found:
        return {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head",
                "_bn1": "bn2"}.get(name.partition(".")[0], "?") + "." + name.partition(".")[2]
    number, layer, leaf = int(found[1]), found[2], found[3]
    stage = max(index for index, start in enumerate(starts) if start <= number)
    layers = {"depthwise_conv": "conv_dw", "se_reduce": "se.conv_reduce",
              "se_expand": "se.conv_expand", "bn0": "bn1", "bn1": "bn2", "bn2": "bn3",
              "expand_conv": "conv_pw", "project_conv": "conv_pwl"}
    if stage == 0:  # the one block without an expansion
        layers |= {"bn1": "bn1", "bn2": "bn2", "project_conv": "conv_pw"}
    return f"blocks.{stage}.{number - starts[stage]}.{layers.get(layer, '?')}{leaf}"


def mobilenet_v2(name: str) -> str:
    """timm's name for one of torchvision's MobileNetV2, which numbers blocks across stages."""
    starts = (1, 2, 4, 7, 11, 14, 17, 18)
    found = re.fullmatch(r"features\.(\d+)\.(.+)\.(\w+)", name)
    if not found:
        return name
    number, layer, leaf = int(found[1]), found[2], found[3]
    if number in (0, 18):
        layers = {"0": "conv_stem", "1": "bn1"} if number == 0 else {"0": "conv_head", "1": "bn2"}
        return f"{layers.get(layer, '?')}.{leaf}"
    stage = max(index for index, start in enumerate(starts) if start <= number)
    layers = {"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw", "conv.1.1": "bn2",
              "conv.2": "conv_pwl", "conv.3": "bn3"}
    if stage == 0:  # the one block without an expansion
        layers = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
    return f"blocks.{stage}.{number - starts[stage]}.{layers.get(layer, '?')}.{leaf}"


def mobileone(name: str) -> str:
    """timm's name for one of the code of MobileOne's authors."""
    name = re.sub(r"^stage(\d)", lambda found: f"stages.{int(found[1]) - 1}", name)
    for old, new in (("stages.-1.", "stem."), (".rbr_skip.", ".identity."),
                     (".rbr_conv.", ".conv_kxk."), (".rbr_scale.", ".conv_scale."),
                     (".se.reduce.", ".attn.fc1."), (".se.expand.", ".attn.fc2.")):
        name = name.replace(old, new)
    return name


# For encoders whose first feature in SMP is the stem's output, but in timm the first stage's.
STEM = ("bn1", "blocks.1", "blocks.2", "blocks.4", "blocks.6")
# SMP's DenseNet takes features after the next transition's norm, the last after norm5 without ReLU.
DENSE = ("features.norm0", *(f"features.transition{n}.norm" for n in (1, 2, 3)),
         "features.denseblock4")
SAME = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
        "resnext101_32x4d", "resnext101_32x8d", "resnext101_32x16d", "resnext101_32x32d",
        *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")))
MATCHES: dict[str, Match] = {
    **{name: Match(name) for name in SAME},
    "senet154": Match("legacy_senet154"),
    **{f"se_{name}": Match(f"legacy_se{name}")
       for name in ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x4d")},
    **{f"timm-efficientnet-{size}": Match(f"efficientnet_{size}", STEM)
       for size in (*(f"b{n}" for n in range(9)), "l2")},
    **{f"timm-tf_efficientnet_lite{n}": Match(f"efficientnet_lite{n}", STEM) for n in range(5)},
    **{f"densenet{n}": Match(f"densenet{n}", DENSE, deepest=("batch_norm", "features.norm5"))
       for n in (121, 161, 169, 201)},
    "efficientnet-b0": Match("tf_efficientnet_b0", (*STEM[:3], "blocks.4.0", STEM[4]),
                             efficientnet_b0),
    **{f"mobileone_s{n}": Match(f"mobileone_s{n}", rename=mobileone) for n in range(5)},
    "mobilenet_v2": Match("mobilenetv2_100", ("blocks.0", *STEM[1:-1], "bn2"), mobilenet_v2),
}
# Prefixes of encoders that compute something else than timm's model of that name, and why.
OTHERS = {
    "efficientnet-": "it pads by the size of the images that it was first trained on",
    "inception": "it pads where timm's does not",
    "xception": "it pads where timm's does not",
    "dpn": "its features are joined and activated in another way than timm's",
    "timm-sk": "its attention has other widths than timm's",
}
# Older names in SMP of "tu-" encoders, which are any timm model.
RENAMED = ("timm-regnet", "timm-res2", "timm-resnest", "timm-mobilenetv3", "timm-gernet")


def match(name: str) -> Match:
    """The timm model of one of SMP's encoders.

    Raises:
        ValueError: timm has no such model, or one that computes something else.
    """
    if name.startswith(RENAMED):
        name = "tu-" + ("tf_" if "mobilenetv3" in name else "") + name.removeprefix("timm-")
    if name.startswith("tu-"):
        return Match(name.removeprefix("tu-"))
    if name not in MATCHES:
        reasons = [reason for prefix, reason in OTHERS.items() if name.startswith(prefix)]
        reason = reasons[0] if reasons else "timm has no such model"
        raise refuse("encoder", f"{show(name)}: {reason}; "
                     f"{nearest(name, [*MATCHES, 'tu-<any timm model>'])}")
    return MATCHES[name]


def describe_match(found: Match, config: SmpConfig) -> tuple[Options, Description]:
    """The options and the description of an encoder here.

    Raises:
        ValueError: features that the two libraries resample in different ways.
    """
    parse_name(found.name)
    taps = found.taps and found.taps[:config.encoder_depth]
    options = Options(found.name, config.in_channels, image_size=config.image_size,
                      encoder_taps=taps)
    body = describe_encoder(options)
    if body.pattern != "doubling":
        raise refuse("encoder", f"the strides of {found.name!r} are {body.pattern}, and its "
                     "features are resampled in another way here")
    return options, body


def canonical(name: str) -> str:
    """A form of a tensor's name that does not depend on timm's wrappers, which change prefixes."""
    return name.removeprefix("encoder.").removeprefix("model.").replace(".", "_")


def pair_encoder(found: Match, needed: Iterable[str],
                 given: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """SMP's name for each tensor of the encoder here, and SMP's tensors that timm does not have.

    Tensors that timm's whole model has, but the encoder here lacks, are in neither: no feature
    needs them.
    """
    def timm_name(name: str) -> str:
        return canonical(found.rename(name.removeprefix("encoder.")))

    original = {timm_name(name): name for name in given if name.startswith("encoder.")}
    names = {own: original[canonical(own)] for own in needed
             if own.startswith("encoder.") and canonical(own) in original}
    known = timm_names(found.name)
    return names, {name for key, name in original.items() if key not in known}


@lru_cache(maxsize=64)
def timm_names(name: str) -> frozenset[str]:
    """The canonical names of all tensors of a timm model."""
    with torch.device("meta"):
        return frozenset(map(canonical, timm.create_model(name).state_dict()))
