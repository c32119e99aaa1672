"""Which timm model each encoder of segmentation_models.pytorch is, and which tensor is which."""

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
    """An encoder's timm model.

    Args:
        name: of the timm model.
        taps: the modules whose outputs are the features, where they are not timm's own.
        rename: gives timm's name of a tensor.
        deepest: a block that the deepest feature goes through first, and its layer there.
    """

    name: str
    taps: tuple[str, ...] | None = None
    rename: Callable[[str], str] = str
    deepest: tuple[str, str] | None = None


def efficientnet_b0(name: str) -> str:
    """lukemelas' names, in which blocks are counted through."""
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
    """torchvision's names, in which blocks are counted through, and layers are too."""
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
    """The names of its authors' code."""
    name = re.sub(r"^stage(\d)", lambda found: f"stages.{int(found[1]) - 1}", name)
    for theirs, timms in (("stages.-1.", "stem."), (".rbr_skip.", ".identity."),
                          (".rbr_conv.", ".conv_kxk."), (".rbr_scale.", ".conv_scale."),
                          (".se.reduce.", ".attn.fc1."), (".se.expand.", ".attn.fc2.")):
        name = name.replace(theirs, timms)
    return name


# Where the first feature is the stem's and timm's the first stage's; and that of the head.
STEM = ("bn1", "blocks.1", "blocks.2", "blocks.4", "blocks.6")
# Their densenet gives features after the next transition's norm, and norm5's without its ReLU.
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
# Prefixes of those whose code computes other numbers than timm's model of the name, and why.
OTHERS = {
    "efficientnet-": "it pads by the size of the images that it was first trained on",
    "inception": "it pads where timm's does not",
    "xception": "it pads where timm's does not",
    "dpn": "its features are joined and activated in another way than timm's",
    "timm-sk": "its attention has other widths than timm's",
}
# Renamed by their get_encoder: the universal encoder under an older name.
RENAMED = ("timm-regnet", "timm-res2", "timm-resnest", "timm-mobilenetv3", "timm-gernet")


def match(name: str) -> Match:
    """The timm model of an encoder.

    Raises:
        ValueError: there is none, or it computes something else.
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


def describe_match(found: Match, theirs: SmpConfig) -> tuple[Options, Description]:
    """The encoder here, and what it gives.

    Raises:
        ValueError: features that the two libraries bring to the decoder in different ways.
    """
    parse_name(found.name)
    taps = found.taps and found.taps[:theirs.encoder_depth]
    options = Options(found.name, theirs.in_channels, image_size=theirs.image_size,
                      encoder_taps=taps)
    body = describe_encoder(options)
    if body.pattern != "doubling":
        raise refuse("encoder", f"the features of {found.name!r} are {body.pattern}, and "
                     "resampled in another way here")
    return options, body


def canonical(name: str) -> str:
    """A tensor's name, whichever of timm's wrappers its model is in: some join the first parts."""
    return name.removeprefix("encoder.").removeprefix("model.").replace(".", "_")


def pair_encoder(found: Match, needed: Iterable[str],
                 given: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """The name there of each of our encoder's tensors, and tensors there that timm does not have.

    What our encoder has not, but timm's whole model has, reaches no feature.
    """
    def timms(name: str) -> str:
        return canonical(found.rename(name.removeprefix("encoder.")))

    theirs = {timms(name): name for name in given if name.startswith("encoder.")}
    names = {own: theirs[canonical(own)] for own in needed
             if own.startswith("encoder.") and canonical(own) in theirs}
    known = timm_names(found.name)
    return names, {name for key, name in theirs.items() if key not in known}


@lru_cache(maxsize=64)
def timm_names(name: str) -> frozenset[str]:
    """Of the tensors of a whole timm model."""
    with torch.device("meta"):
        return frozenset(map(canonical, timm.create_model(name).state_dict()))
