"""The configuration of a segmentation_models.pytorch model, checked field by field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nestedseg.base.errors import choose, nearest, show, whole, wholes
from nestedseg.convert.weights import refuse
from nestedseg.decoder.layers import Choice
from nestedseg.models.targets import TASKS, Task
from nestedseg.topology.graph import MAX_CHANNELS

ARCHITECTURES = ("Unet", "UnetPlusPlus")
# SMP up-samples by 2, where "nearest-exact" and "area" give the same as "nearest".
INTERPOLATIONS = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic",
                  "nearest-exact": "nearest", "area": "nearest"}
# The tasks that each activation fits. Without one, the outputs are logits, which fit all tasks.
ACTIVATIONS: dict[str | None, tuple[Task, ...]] = {
    None: TASKS, "identity": TASKS, "sigmoid": ("binary", "multilabel"),
    "softmax": ("multiclass",), "softmax2d": ("multiclass",)}
CHANNELS = (256, 128, 64, 32, 16)
NORMS = ("batchnorm", "instancenorm", "identity")
IGNORED = ("encoder_weights", "drop_rate", "drop_path_rate")  # no effect on a trained model
KEYS = ("_model_class", "encoder_name", "encoder_depth", "decoder_channels", "decoder_use_norm",
        "decoder_use_batchnorm", "decoder_attention_type", "decoder_interpolation", "in_channels",
        "classes", "activation", "aux_params", "img_size", *IGNORED)


@dataclass(frozen=True)
class SmpConfig:
    """The arguments of ``smp.Unet`` or ``smp.UnetPlusPlus``, with their defaults.

    Args:
        norm: in the form of `nestedseg.create`.
        image_size: the size that the encoder was built for; ``None`` = not given.
    """

    architecture: str
    encoder_name: str
    encoder_depth: int
    decoder_channels: tuple[int, ...]
    norm: Choice | None
    attention: bool
    upsample: str
    in_channels: int
    classes: int
    activation: str | None
    image_size: tuple[int, ...] | None

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> SmpConfig:
        """Checks the arguments in a config.

        Raises:
            ValueError: an argument that is unknown, out of bounds or without a counterpart here.
            TypeError: an argument of the wrong type.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be an object, got {type(config).__name__}")
        architecture = check_architecture(config.get("_model_class"))
        for key in config:
            if key not in KEYS:
                raise ValueError(f"unknown argument {show(key)} of a segmentation_models.pytorch "
                                 f"model; {nearest(key, KEYS)}")
        if config.get("aux_params") is not None:
            raise refuse("classification_head", "nestedseg models have no classification head; "
                         "create the model with aux_params=None, and load its weights without it")
        depth = whole("encoder_depth", config.get("encoder_depth", 5), 1, 5)
        channels = wholes("decoder_channels", config.get("decoder_channels", CHANNELS), 1,
                          MAX_CHANNELS)
        if len(channels) != depth:
            raise ValueError(f"decoder_channels needs {depth} values, because encoder_depth is "
                             f"{depth}, got {len(channels)}: {channels}")
        attention = config.get("decoder_attention_type")
        if attention is not None:
            choose("decoder_attention_type", attention, ["scse"])
        activation = config.get("activation")
        if not isinstance(activation, (str, type(None))) or activation not in ACTIVATIONS:
            raise refuse("segmentation_head.2", f"unsupported activation {show(activation)}; "
                         "models here return logits, and predict() their sigmoid or softmax")
        return cls(
            architecture, _text("encoder_name", config.get("encoder_name", "resnet34")), depth,
            channels, parse_norm(config), attention is not None,
            INTERPOLATIONS[choose("decoder_interpolation",
                                  config.get("decoder_interpolation", "nearest"), INTERPOLATIONS)],
            whole("in_channels", config.get("in_channels", 3), 1, MAX_CHANNELS),
            whole("classes", config.get("classes", 1), 1, MAX_CHANNELS), activation,
            _size(config.get("img_size")))


def check_architecture(name: Any) -> str:
    """The class of a model, checked before its arguments, which are those of the class.

    Raises:
        ValueError: it has no counterpart.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"segmentation_models.pytorch's {show(name)} (_model_class) has no "
                         f"counterpart; {nearest(name, ARCHITECTURES)}")
    return name


def parse_norm(config: Mapping[str, Any]) -> Choice | None:
    """The decoder's norm in the form of `nestedseg.create`.

    Raises:
        ValueError: a norm or option without a counterpart here.
        TypeError: the norm is neither a name nor an object.
    """
    norm = config.get("decoder_use_norm", "batchnorm")
    if config.get("decoder_use_batchnorm") is not None:  # the name in older releases
        norm = config["decoder_use_batchnorm"]
    if isinstance(norm, bool):
        norm = "batchnorm" if norm else "identity"
    options = {"type": norm.lower()} if isinstance(norm, str) else norm
    if not isinstance(options, Mapping):
        raise TypeError(f"decoder_use_norm must be a name or an object, got {show(norm)}")
    options = dict(options)
    kind = options.pop("type", None)
    if kind == "layernorm":
        raise refuse("decoder.blocks.*.conv1.1", "it is a LayerNorm over the image's last axis, "
                     "which works only if the image's width equals the number of channels")
    if kind not in NORMS:
        raise refuse("decoder.blocks.*.conv1.1",
                     f"unsupported norm {show(kind)}; {nearest(kind, NORMS)}")
    if kind == "identity":
        return None
    statistics = kind == "batchnorm"
    for key, has in (("affine", True), ("track_running_stats", statistics)):
        if options.pop(key, has) is not has:
            raise refuse("decoder.blocks.*.conv1.1",
                         f"unsupported: {kind} with {key}={not has}; only {has} can be converted")
    if not statistics:
        options.pop("momentum", None)  # instance norm keeps no statistics
    return {"name": kind.removesuffix("norm"), **options}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise TypeError(f"{name} must be a name, got {show(value)}")
    return value


def _size(value: Any) -> tuple[int, ...] | None:
    return None if value is None else wholes(
        "img_size", (value, value) if isinstance(value, int) else value, 1, MAX_CHANNELS, most=2)
