"""Models from where they were saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nestedseg import storage
from nestedseg.config import Config
from nestedseg.errors import show
from nestedseg.model import SegmentationModel, build


def from_pretrained(directory: str | Path, depth: int | None = None) -> SegmentationModel:
    """The model, or detector, that its ``save_pretrained`` wrote, in eval mode.

    Encoder weights are never fetched again, nothing is unpickled, and every tensor must match.

    Args:
        directory: the folder with ``config.json`` and ``model.safetensors``.
        depth: prune to this depth; default: the whole model.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or its content is not what it should be.
    """
    directory = Path(directory)
    data = storage.read_config(directory)
    if depth is not None and "detector" in data:
        raise ValueError(f"{str(directory)!r} holds a detector, which has no depths; got {depth}")
    weights = storage.find(directory, storage.WEIGHTS)
    try:
        make = builder(data)
        with torch.device("meta"):
            plan = make()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(directory / storage.CONFIG)!r}: {error}") from error
    # Compared before anything is allocated: a stranger's config may ask for any size.
    check_shapes(storage.own_tensors(plan), storage.read_shapes(weights), str(weights))
    model = make()
    tensors = storage.read_tensors(weights)
    model.to(common_dtype(model.state_dict(), tensors, str(weights)))
    storage.load(model, tensors)
    return (model if depth is None else model.prune(depth)).eval()


def builder(data: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What builds the model of a config: a detector's says which in "detector"."""
    if "detector" in data:
        detection = import_module("nestedseg.detection")  # needs torchvision
        return partial(detection.build, detection.DetectorConfig.from_dict(data))
    return partial(build, Config.from_dict(data))


def common_dtype(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor],
                 where: str) -> torch.dtype:
    """The floating dtype that the weights were saved in.

    Raises:
        ValueError: there are several, or a tensor that should be floating is not, or the reverse.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{where!r}: {name!r} is of {tensor.dtype}")
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) != 1:
        raise ValueError(f"{where!r} mixes {sorted(map(str, dtypes))}; expected one dtype")
    return dtypes.pop()


def check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]],
                 where: str) -> None:
    """Refuses weights unless every tensor is there, with its shape, and no other.

    Raises:
        ValueError: naming those that differ.
    """
    missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or surplus:
        raise ValueError(f"{where!r} does not fit its config: {len(missing)} tensors are missing "
                         f"{show(sorted(missing))}, {len(surplus)} unknown {show(sorted(surplus))}")
    for name, tensor in expected.items():
        if tuple(tensor.shape) != found[name]:
            raise ValueError(f"{where!r}: {name!r} has shape {found[name]}, its config says "
                             f"{tuple(tensor.shape)}")
