"""Any timm model as an encoder, through timm's own ``forward_intermediates``."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from nestedseg.encoders.description import Description
from nestedseg.errors import nearest, show
from nestedseg.layers import Level

log = logging.getLogger(__name__)


class TimmEncoder(nn.Module):
    """Features of a timm model, ``(N, in_channels, H, W)`` -> one a level, finest first.

    Args:
        model: a plain timm model, which is cut down in place.
        description: its levels and taps.
    """

    def __init__(self, model: nn.Module, description: Description) -> None:
        super().__init__()
        self.model = model
        self.taps = description.taps
        self.levels = description.levels
        self.keep(len(self.levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(x, indices=self.taps, output_fmt="NCHW",
                                                intermediates_only=True)

    def keep(self, count: int) -> TimmEncoder:
        """Removes all levels but the ``count`` finest, and what computes only them."""
        self.taps, self.levels = self.taps[:count], self.levels[:count]
        self.model.prune_intermediate_layers(self.taps)
        return self


def build(name: str, in_channels: int, weights: str | Path | bool | None,
          description: Description) -> TimmEncoder:
    """The encoder of a timm model with all its levels.

    Args:
        weights: ``None`` = random; ``"imagenet"`` or ``True`` = those of the name's tag, else of
            timm's default tag; or the path of a .safetensors file with a plain timm state dict.

    Raises:
        ValueError: unknown weights.
        OSError: the weights cannot be fetched or read.
    """
    return TimmEncoder(load_model(name, in_channels, weights), description)


@lru_cache(maxsize=64)
def describe(name: str, in_channels: int) -> Description:
    """Taps and levels, measured by a forward pass on the meta device.

    timm's declared ``reduction`` is wrong for about a hundred models, so it is not read.

    Raises:
        ValueError: strides that do not double.
    """
    size = get_pretrained_cfg(name).input_size[-1]
    with torch.device("meta"), torch.no_grad():
        model = timm.create_model(name, in_chans=in_channels).eval()
        features = model.forward_intermediates(torch.empty(1, in_channels, size, size),
                                               output_fmt="NCHW", intermediates_only=True)
    strides = [round(size / feature.shape[-1]) for feature in features]
    # the deepest tap of each distinct stride
    taps = tuple(sorted({stride: tap for tap, stride in enumerate(strides)}.values()))
    levels = tuple(Level(features[tap].shape[1], (strides[tap],) * 2) for tap in taps)
    finest = levels[0].stride[0]
    if [level.stride[0] for level in levels] != [finest * 2 ** i for i in range(len(levels))]:
        raise ValueError(f"encoder {name!r}: its strides {strides} do not double from level to "
                         "level")
    return Description(levels, preprocessing_of(name, in_channels), taps)


def load_model(name: str, in_channels: int, weights: str | Path | bool | None) -> nn.Module:
    """The plain timm model with its weights; timm itself adapts them to ``in_channels``."""
    if not weights:
        return timm.create_model(name, in_chans=in_channels)
    if weights is True or weights == "imagenet":
        source = {}
    elif str(weights).endswith(".safetensors"):
        file = str(check_file(Path(weights)))
        source = {"pretrained_cfg_overlay": {"file": file, "custom_load": False}}
    else:
        raise ValueError(f"encoder_weights must be None, 'imagenet' or the path of a .safetensors "
                         f"file, got {show(weights)}")
    try:
        model = timm.create_model(name, pretrained=True, in_chans=in_channels, **source)
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
                         f"{error}") from None


def preprocessing_of(name: str, in_channels: int) -> dict[str, Any]:
    """What the weights of this name and tag were trained with."""
    cfg = get_pretrained_cfg(name)
    mean, std = list(cfg.mean), list(cfg.std)
    if len(mean) != in_channels:  # other channels than RGB: timm repeats or sums its filters
        mean, std = [sum(mean) / len(mean)] * in_channels, [sum(std) / len(std)] * in_channels
    return {"mean": mean, "std": std, "input_range": [0.0, 1.0],
            "interpolation": cfg.interpolation, "size": list(cfg.input_size[1:])}


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
