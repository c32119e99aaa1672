"""Any timm model as an encoder, through timm's own ``forward_intermediates``."""

from __future__ import annotations

import logging
import math
import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.base.errors import nearest, show
from nestedseg.decoder.layers import CONV, Level
from nestedseg.encoders.checkpointing import guard_state
from nestedseg.encoders.contract import Encoder
from nestedseg.encoders.description import Description, Options, are_names
from nestedseg.encoders.feature_selection import (
    Neck,
    Tap,
    pattern_of,
    select_features,
    select_named,
)
from nestedseg.encoders.probe import Probe, probe, probe_named
from nestedseg.encoders.timm_model import (
    SkipInitialValues,
    forward_taps,
    listen,
    pretrained_cfg,
)
from nestedseg.encoders.to_3d.plan import depth_stride, plan
from nestedseg.encoders.unused import remove_unused
from nestedseg.encoders.weights import source_of

log = logging.getLogger(__name__)


class TimmEncoder(Encoder):
    """A timm model as an encoder: ``(N, in_channels, *spatial)`` -> features, finest first.

    Args:
        name: of the timm model.
        model: the timm model, perhaps made volumetric; unused parts are removed from it in place.
        in_channels: channels of the image.
        probed: the result of probing the model: which channels and sizes it takes.
        taps: the features that the levels are made from, finest first.
        levels: channels and stride of each level, finest first.
        smallest: the size of an image or volume that the model takes.
    """

    model: Any  # timm does not declare the methods that its models have beyond nn.Module's

    def __init__(self, name: str, model: nn.Module, in_channels: int, probed: Probe,
                 taps: tuple[Tap, ...], levels: tuple[Level, ...],
                 smallest: tuple[int, ...]) -> None:
        super().__init__()
        self.key = name, probed, levels
        self.runs_at = probed.runs_at
        self.meta_size = probed.runs_at or smallest
        self.model_channels = probed.in_channels
        if in_channels != probed.in_channels:
            self.colours = CONV[len(smallest)](in_channels, probed.in_channels, 1)
        self.model = model
        self.necks = nn.ModuleList(Neck(tap, self.runs_at is None, level.stride)
                                   for tap, level in zip(taps, levels))
        self.taps = tuple(tap.index for tap in taps)
        self.levels = levels
        if are_names(self.taps):
            listen(model, self.taps)
        self.keep(len(taps))

    def forward(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        if hasattr(self, "colours"):
            x = self.colours(x)
        if self.runs_at is not None and tuple(size) != self.runs_at:
            x = F.interpolate(x, size=self.runs_at, mode="bilinear", antialias=True)
        features = dict(zip(self._wanted, forward_taps(self.model, x, self._wanted)))
        return [neck(features[tap], size) for tap, neck in zip(self.taps, self.necks)]

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Turns timm's own checkpointing on or off, which works by stages or by blocks.

        Raises:
            ValueError: the timm model does not have it, or the levels are modules given by name.
        """
        if enable and are_names(self.taps):
            raise ValueError(f"timm's {self.key[0]!r} cannot checkpoint with encoder_taps given as "
                             f"modules, {self.taps}, which would run a second time in the backward "
                             "pass; use encoder=False")
        try:
            self.model.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            if enable:
                raise ValueError(f"timm's {self.key[0]!r} has no gradient checkpointing; "
                                 "use encoder=False") from error
        guard_state(self.model, enable)

    def keep(self, count: int) -> TimmEncoder:
        """Removes all levels but the ``count`` finest, and all modules that only those need."""
        self.taps, self.levels = self.taps[:count], self.levels[:count]
        self.necks = self.necks[:count]
        if not are_names(self.taps):
            self.model.prune_intermediate_layers(self._wanted, prune_norm=True)
        remove_unused(self.model, self._features_on_meta, (self.key, self.taps))
        return self

    @property
    def _wanted(self) -> list[int | str]:
        return sorted(set(self.taps))

    def _features_on_meta(self, model: nn.Module) -> list[Tensor]:
        x = torch.empty(1, self.model_channels, *self.meta_size, device="meta")
        return forward_taps(model, x, self._wanted)


def along_axes(stride: int, options: Options) -> tuple[int, ...]:
    """The stride along each axis, for a stride in height and width, a power of two."""
    if options.dims == 2:
        return stride, stride
    return depth_stride(stride, options.depth_strides), stride, stride


def describe_timm(options: Options) -> Description:
    """Describes a timm model: levels, sizes and preprocessing, found by running it on meta tensors.

    Raises:
        ValueError: taps, channels or dimensions that the model does not support.
    """
    flat = options.dims == 2
    probed = probe(options.encoder, options.in_channels, options.image_size if flat else None)
    features = probed.features
    if are_names(options.encoder_taps):
        if not flat:
            raise ValueError("encoder_taps that name modules are only for images; for volumes give "
                             f"indices from 0 to {len(features) - 1}, got {options.encoder_taps}")
        features = probe_named(options.encoder, probed, tuple(options.encoder_taps))
        taps = select_named(dict(zip(options.encoder_taps, features)))
    else:
        taps = select_features(features, options.encoder_taps, options.pyramid_channels)
    own = pretrained_cfg(options.encoder).input_size[-2:] if flat else None
    size = options.image_size or own
    halvings = int(math.log2(max(feature.nominal for feature in probed.features)))
    halved = options.depth_strides or ()
    if len(halved) > halvings:
        raise ValueError(f"depth_strides: encoder {options.encoder!r} halves height and width "
                         f"{halvings} times, got {len(halved)} strides")
    smallest = ((probed.smallest,) * 2 if flat
                else plan(options.encoder, probed, options.depth_strides).smallest)
    if not flat and any(tap.made for tap in taps):
        raise ValueError(f"encoder {options.encoder!r} cannot be made volumetric: all its features "
                         "have one stride, and the pyramid made from them is only for images")
    levels = tuple(Level(tap.channels, along_axes(tap.stride, options)) for tap in taps)
    return Description(
        levels, multiples_of(taps, probed, options), timm_preprocessing(options, size), smallest,
        pattern_of(features), size if probed.runs_at else None, backbone=(probed, taps))


def multiples_of(taps: tuple[Tap, ...], probed: Probe,
                 options: Options) -> tuple[tuple[int, ...], ...]:
    """For each level, what images are padded to a multiple of if that level is the deepest."""
    needed = [max(tap.stride, tap.feature.nominal) for tap in taps]
    if probed.runs_at:  # one size, whatever the depth
        needed = [max(needed)] * len(needed)
    return tuple(tuple(side * probed.factor for side in along_axes(deepest, options))
                 for deepest in accumulate(needed, max))


def build_timm_encoder(options: Options, weights: str | Path | bool | None,
                       description: Description, count: int) -> TimmEncoder:
    """Builds the encoder of a timm model with its ``count`` finest levels.

    The weights are loaded before levels are removed, so that all of them match at every depth.

    Args:
        weights: ``None`` = random; ``"pretrained"``, ``"imagenet"`` or ``True`` = those of the
            name's tag, else of timm's default tag; or the path of a .safetensors file with a plain
            timm state dict.

    Raises:
        ValueError: ``weights`` is none of these.
        OSError: the weights cannot be fetched or read.
    """
    probed, taps = description.backbone
    if probed.runs_at and not probed.arguments and options.image_size not in (None, probed.runs_at):
        log.warning("encoder %s cannot be built for images of %s: they are resized to %s inside it",
                    options.encoder, options.image_size, probed.runs_at)
    arguments = dict(probed.arguments) | {"in_chans": probed.in_channels}
    model = load_model(options.encoder, weights, arguments)
    if options.dims == 3:
        # levels are removed first: inflating the unused head of a VGG would take gigabytes
        model.prune_intermediate_layers([tap.index for tap in taps[:count]])
        plan(options.encoder, probed, options.depth_strides).apply(model, bool(weights))
    return TimmEncoder(options.encoder, model, options.in_channels, probed, taps[:count],
                       description.levels[:count], description.smallest)


def load_model(name: str, weights: str | Path | bool | None,
               arguments: dict[str, Any]) -> Any:
    """The plain timm model with its weights; timm itself adapts them to channels and size."""
    if not weights:
        with SkipInitialValues():
            return timm.create_model(name, **arguments)
    if weights is True or weights in ("pretrained", "imagenet"):
        file = None
    elif str(weights).endswith(".safetensors"):
        file = check_file(Path(weights))
    else:
        raise ValueError("encoder_weights must be None, 'pretrained' (or 'imagenet', which means "
                         f"the same) or the path of a .safetensors file, got {show(weights)}")
    try:
        source = {} if file is None else source_of(file, name, arguments)
        model = timm.create_model(name, pretrained=True, **arguments, **source)
    except Exception as error:  # timm, the Hub's client and its transport raise many kinds
        raise OSError(f"the weights {str(weights)!r} of encoder {name!r} could not be loaded: "
                      f"{error}. Use encoder_weights=None for random weights, or the path of a "
                      ".safetensors file with that timm model's state dict") from error
    log.info("encoder %s: %d tensors loaded from %s", name, len(model.state_dict()), weights)
    return model


def check_file(path: Path) -> Path:
    """The path, if a readable safetensors file is there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"encoder_weights: no such file: {str(path)!r}")
    try:
        with safe_open(path, framework="pt"):
            return path
    except SafetensorError as error:
        raise ValueError(f"encoder_weights: not a safetensors file: {str(path)!r} "
                         f"({error})") from error


def timm_preprocessing(options: Options, size: tuple[int, ...] | None) -> dict[str, Any]:
    """The preprocessing that the weights of this name and tag were trained with."""
    cfg, channels = pretrained_cfg(options.encoder), options.in_channels
    mean, std = list(cfg.mean), list(cfg.std)
    if len(mean) != channels:  # not RGB: timm repeats or sums its filters
        mean, std = [sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels
    return {"mean": mean, "std": std, "input_range": [0.0, 1.0],
            "interpolation": cfg.interpolation, "size": size and list(size)}


def parse_name(name: str) -> tuple[str, str]:
    """Splits a timm name into architecture and tag, and checks that timm has both.

    Raises:
        ValueError: timm has no such model or tag.
    """
    architecture, _, tag = str(name).partition(".")
    if not re.fullmatch(r"\w+", architecture) or not timm.is_model(architecture):
        raise ValueError(f"unknown encoder {show(name)}; "
                         f"{nearest(architecture, ['plain', *timm.list_models()])}")
    if tag:
        names = timm.list_models(f"{architecture}.*", pretrained=True)
        tags = [full.partition(".")[2] for full in names]
        if tag not in tags:
            raise ValueError(f"encoder {architecture!r} has no weights tagged {show(tag)}; "
                             f"{nearest(tag, tags)}")
    return architecture, tag
