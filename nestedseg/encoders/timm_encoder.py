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
from nestedseg.encoders.probe import Probe, probe, probe_named
from nestedseg.encoders.pyramid import Neck, Tap, choose_taps, named_taps, pattern_of
from nestedseg.encoders.trial import forward_taps, listen, pretrained_cfg
from nestedseg.encoders.trim import trim
from nestedseg.encoders.volumetric import plan
from nestedseg.encoders.watch import depth_stride
from nestedseg.encoders.weights import source_of

log = logging.getLogger(__name__)


class TimmEncoder(Encoder):
    """Features of a timm model, ``(N, in_channels, *spatial)`` -> one a level, finest first.

    Args:
        name: of the timm model.
        model: the plain timm model, or one made volumetric, which is cut down in place.
        in_channels: channels of the image.
        trial: how the model is fed.
        taps: what the levels are made from, finest first.
        levels: likewise.
        smallest: an image or volume that it takes.
    """

    model: Any  # what timm's models have beside nn.Module is declared nowhere

    def __init__(self, name: str, model: nn.Module, in_channels: int, trial: Probe,
                 taps: tuple[Tap, ...], levels: tuple[Level, ...],
                 smallest: tuple[int, ...]) -> None:
        super().__init__()
        self.key = name, trial, levels
        self.runs_at = trial.runs_at
        self.trial_size = trial.runs_at or smallest
        self.model_channels = trial.in_channels
        if in_channels != trial.in_channels:
            self.colours = CONV[len(smallest)](in_channels, trial.in_channels, 1)
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
        """timm's own, stage by stage or block by block.

        Raises:
            ValueError: the model has none, or its levels are modules that were named.
        """
        if enable and are_names(self.taps):
            raise ValueError(f"gradient checkpointing would compute the modules {self.taps} of "
                             f"timm's {self.key[0]!r} out of turn; use encoder=False")
        try:
            self.model.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            if enable:
                raise ValueError(f"timm's {self.key[0]!r} has no gradient checkpointing; "
                                 "use encoder=False") from error
        guard_state(self.model, enable)

    def keep(self, count: int) -> TimmEncoder:
        """Removes all levels but the ``count`` finest, and what computes only them."""
        self.taps, self.levels = self.taps[:count], self.levels[:count]
        self.necks = self.necks[:count]
        if not are_names(self.taps):
            self.model.prune_intermediate_layers(self._wanted, prune_norm=True)
        trim(self.model, self._features_on_meta, (self.key, self.taps))
        return self

    @property
    def _wanted(self) -> list[int | str]:
        return sorted(set(self.taps))

    def _features_on_meta(self, model: nn.Module) -> list[Tensor]:
        x = torch.empty(1, self.model_channels, *self.trial_size, device="meta")
        return forward_taps(model, x, self._wanted)


def along_axes(stride: int, options: Options) -> tuple[int, ...]:
    """A stride of the timm model, a power of two, along each axis."""
    if options.dims == 2:
        return stride, stride
    return depth_stride(stride, options.depth_strides), stride, stride


def describe_timm(options: Options) -> Description:
    """Levels, sizes and preprocessing, found by trying the model on the meta device.

    Raises:
        ValueError: taps, channels or dimensions that it cannot serve.
    """
    flat = options.dims == 2
    trial = probe(options.encoder, options.in_channels, options.image_size if flat else None)
    features = trial.features
    if are_names(options.encoder_taps):
        if not flat:
            raise ValueError("encoder_taps that name modules are for images; for volumes, give "
                             f"numbers from 0 to {len(features) - 1}")
        features = probe_named(options.encoder, trial, tuple(options.encoder_taps))
        taps = named_taps(dict(zip(options.encoder_taps, features)))
    else:
        taps = choose_taps(features, options.encoder_taps, options.pyramid_channels)
    own = pretrained_cfg(options.encoder).input_size[-2:] if flat else None
    size = options.image_size or own
    halvings = int(math.log2(max(feature.nominal for feature in trial.features)))
    halved = options.depth_strides or ()
    if len(halved) > halvings:
        raise ValueError(f"depth_strides: encoder {options.encoder!r} halves height and width "
                         f"{halvings} times, got {len(halved)} strides")
    smallest = ((trial.smallest,) * 2 if flat
                else plan(options.encoder, trial, options.depth_strides).smallest)
    if not flat and any(tap.made for tap in taps):
        raise ValueError(f"encoder {options.encoder!r} cannot be made volumetric: its features "
                         "have one stride, and the pyramid made from them is for images alone")
    levels = tuple(Level(tap.channels, along_axes(tap.stride, options)) for tap in taps)
    return Description(
        levels, multiples_of(taps, trial, options), timm_preprocessing(options, size), smallest,
        pattern_of(features), size if trial.runs_at else None, backbone=(trial, taps))


def multiples_of(taps: tuple[Tap, ...], trial: Probe,
                 options: Options) -> tuple[tuple[int, ...], ...]:
    """To what images are padded where each level is the deepest."""
    needed = [max(tap.stride, tap.feature.nominal) for tap in taps]
    if trial.runs_at:  # one size, whatever the depth
        needed = [max(needed)] * len(needed)
    return tuple(tuple(side * trial.factor for side in along_axes(deepest, options))
                 for deepest in accumulate(needed, max))


def build_timm_encoder(options: Options, weights: str | Path | bool | None,
                       description: Description, count: int) -> TimmEncoder:
    """The encoder of a timm model with its ``count`` finest levels.

    The weights are loaded before it is cut, so a depth never changes which of them match.

    Args:
        weights: ``None`` = random; ``"imagenet"`` or ``True`` = those of the name's tag, else of
            timm's default tag; or the path of a .safetensors file with a plain timm state dict.

    Raises:
        ValueError: unknown weights.
        OSError: the weights cannot be fetched or read.
    """
    trial, taps = description.backbone
    if trial.runs_at and not trial.arguments and options.image_size not in (None, trial.runs_at):
        log.warning("encoder %s cannot be built for images of %s: inside it they are resized to %s",
                    options.encoder, options.image_size, trial.runs_at)
    arguments = dict(trial.arguments) | {"in_chans": trial.in_channels}
    model = load_model(options.encoder, weights, arguments)
    if options.dims == 3:
        # cut first: the head of a VGG alone would inflate to 2.9 GB
        model.prune_intermediate_layers([tap.index for tap in taps[:count]])
        plan(options.encoder, trial, options.depth_strides).apply(model, bool(weights))
    return TimmEncoder(options.encoder, model, options.in_channels, trial, taps[:count],
                       description.levels[:count], description.smallest)


def load_model(name: str, weights: str | Path | bool | None,
               arguments: dict[str, Any]) -> Any:
    """The plain timm model with its weights; timm itself adapts them to channels and size."""
    if not weights:
        return timm.create_model(name, **arguments)
    if weights is True or weights == "imagenet":
        file = None
    elif str(weights).endswith(".safetensors"):
        file = check_file(Path(weights))
    else:
        raise ValueError(f"encoder_weights must be None, 'imagenet' or the path of a .safetensors "
                         f"file, got {show(weights)}")
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
    """The path, if there is a readable safetensors file."""
    if not path.is_file():
        raise FileNotFoundError(f"encoder_weights: no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt"):
            return path
    except SafetensorError as error:
        raise ValueError(f"encoder_weights: {str(path)!r} is no safetensors file: "
                         f"{error}") from error


def timm_preprocessing(options: Options, size: tuple[int, ...] | None) -> dict[str, Any]:
    """What the weights of this name and tag were trained with."""
    cfg, channels = pretrained_cfg(options.encoder), options.in_channels
    mean, std = list(cfg.mean), list(cfg.std)
    if len(mean) != channels:  # other channels than RGB: timm repeats or sums its filters
        mean, std = [sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels
    return {"mean": mean, "std": std, "input_range": [0.0, 1.0],
            "interpolation": cfg.interpolation, "size": size and list(size)}


def parse_name(name: str) -> tuple[str, str]:
    """Architecture and tag of a timm name.

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
