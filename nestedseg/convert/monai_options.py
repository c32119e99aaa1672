"""The arguments of MONAI's networks, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nestedseg.base.errors import choose, nearest, show, whole, wholes
from nestedseg.convert.weights import refuse
from nestedseg.decoder.layers import Choice
from nestedseg.topology.graph import MAX_CHANNELS

NETWORKS = {"BasicUNet": "unet", "BasicUNetPlusPlus": "unetpp"}
DEFAULTS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2,
            "features": (32, 32, 64, 128, 256, 32), "deep_supervision": False,
            "act": ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
            "norm": ("instance", {"affine": True}), "bias": True, "dropout": 0.0,
            "upsample": "deconv"}
UPSAMPLINGS = {"deconv": "transpose", "nontrainable": "bilinear_corners"}


@dataclass(frozen=True)
class Kind:
    """A kind of activation or norm in MONAI, and its counterpart here.

    Args:
        name: the name here.
        layers: the names of its classes.
        kept: for each option with a counterpart, the name here and MONAI's default.
        fixed: options without a counterpart, with the value that they must have.
        affine: whether a norm has weights by default.
    """

    name: str
    layers: tuple[str, ...]
    kept: dict[str, tuple[str, Any]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    affine: bool | None = None


EPS = {"eps": ("eps", 1e-5)}
ACTIVATIONS = {
    "relu": Kind("relu", ("ReLU",)),
    "leakyrelu": Kind("leaky_relu", ("LeakyReLU",), {"negative_slope": ("negative_slope", 0.01)}),
    "elu": Kind("elu", ("ELU",), {"alpha": ("alpha", 1.0)}),
    "prelu": Kind("prelu", ("PReLU",), fixed={"num_parameters": 1}),
    "gelu": Kind("gelu", ("GELU",), fixed={"approximate": "none"}),
    "swish": Kind("silu", ("Swish",), fixed={"alpha": 1.0}),
    "memswish": Kind("silu", ("MemoryEfficientSwish",)),
    "mish": Kind("mish", ("Mish",)),
}
NORMS = {
    "batch": Kind("batch", ("BatchNorm2d", "BatchNorm3d"),
                  EPS | {"momentum": ("momentum", 0.1)}, {"track_running_stats": True}, True),
    "instance": Kind("instance", ("InstanceNorm2d", "InstanceNorm3d"), EPS,
                     {"track_running_stats": False}, False),
    "group": Kind("group", ("GroupNorm",), EPS | {"num_groups": ("groups", None)}, affine=True),
}
# Options that may have any value: they do not change the outputs of a trained model, or (affine)
# are handled elsewhere.
FREE = ("inplace", "affine", "init", "momentum")


@dataclass(frozen=True)
class MonaiConfig:
    """The arguments of a MONAI network, in the form of `nestedseg.create` where it has them too.

    Args:
        affine: whether the norms have weights.
    """

    network: str
    dims: int
    in_channels: int
    classes: int
    features: tuple[int, ...]
    deep_supervision: bool
    activation: Choice
    norm: Choice | None
    affine: bool
    bias: bool
    dropout: float
    upsample: str

    @classmethod
    def parse(cls, network: str, arguments: Mapping[str, Any]) -> MonaiConfig:
        """Checks arguments, and adds MONAI's defaults for those that are not given.

        Raises:
            ValueError: an argument without a counterpart here, or out of bounds.
            TypeError: an unknown argument, or one of the wrong type.
        """
        choose("network", network, NETWORKS)
        known = [key for key in DEFAULTS if (network, key) != ("BasicUNet", "deep_supervision")]
        for key in arguments:
            if key not in known:
                raise TypeError(f"unknown argument {show(key)} of {network}; "
                                f"{nearest(key, known)}")
        given: dict[str, Any] = DEFAULTS | dict(arguments)
        features = wholes("features", given["features"], 1, MAX_CHANNELS, most=6)
        if len(features) != 6:
            raise ValueError(f"features needs 6 numbers, got {len(features)}: {features}")
        for key in ("deep_supervision", "bias"):
            if type(given[key]) is not bool:
                raise TypeError(f"{key} must be true or false, got {show(given[key])}")
        upsample = given["upsample"]
        if upsample not in UPSAMPLINGS:
            raise refuse("upcat_*.upsample", f"unsupported upsample={show(upsample)}; "
                         f"{nearest(upsample, UPSAMPLINGS)}")
        norm = given["norm"] or None
        return cls(network, whole("spatial_dims", given["spatial_dims"], 2, 3),
                   whole("in_channels", given["in_channels"], 1, MAX_CHANNELS),
                   whole("out_channels", given["out_channels"], 1, MAX_CHANNELS), features,
                   given["deep_supervision"], read_kind("A", given["act"], ACTIVATIONS),
                   norm and read_kind("N", norm, NORMS), norm is None or has_weights(norm),
                   given["bias"], read_dropout(given["dropout"] or 0.0), UPSAMPLINGS[upsample])


def read_kind(letter: str, value: Any, kinds: Mapping[str, Kind]) -> Choice:
    """Converts an activation or norm to the form of `nestedseg.create`.

    Args:
        letter: MONAI's name of its layer, "A" or "N".
        value: a name, or a name and its options.
        kinds: the kinds that have a counterpart here, by MONAI's name in lower case.

    Raises:
        ValueError: it has no counterpart here, or not with these options.
    """
    name, options = split_option(value)
    if not isinstance(name, str) or name.lower() not in kinds:
        raise refuse(f"*.adn.{letter}", f"unsupported {show(value)}; {nearest(name, kinds)}")
    kind = kinds[name.lower()]
    for key, given in options.items():
        if key not in (*kind.kept, *kind.fixed, *FREE) or kind.fixed.get(key, given) != given:
            raise refuse(f"*.adn.{letter}", f"unsupported: {name!r} with {key}={show(given)}")
    kept = {own: options.get(key, default) for key, (own, default) in kind.kept.items()}
    return {"name": kind.name, **kept} if kept else kind.name


def split_option(value: Any) -> tuple[Any, Mapping[str, Any]]:
    """Splits an argument of MONAI into a name and its options, of which there may be none."""
    pair = isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[1], Mapping)
    return tuple(value) if pair else (value, {})


def has_weights(norm: Any) -> bool:
    """Whether a norm, given as to `read_kind`, has weights."""
    name, options = split_option(norm)
    return bool(options.get("affine", NORMS[name.lower()].affine))


def read_dropout(value: Any) -> float:
    """The probability of an element-wise dropout, which MONAI gives as a number or with options.

    Raises:
        ValueError: another kind of dropout.
    """
    name, options = split_option(value)
    if name == "dropout":
        value = options.get("p", 0.5)
    if type(value) not in (int, float):
        raise refuse("*.adn.D", f"dropout={show(value)}; only a probability can be converted")
    return float(value)
