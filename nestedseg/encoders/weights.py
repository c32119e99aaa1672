"""Weights of a timm model from a file, whatever classifier is in it: an encoder has none.

timm loads a state dict whole or not at all. A file that was written without a classifier, or with
one for other classes, would be refused for tensors that are thrown away at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from nestedseg.encoders.timm_model import SkipInitialValues


def source_of(file: Path, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What makes `timm.create_model` load a file.

    Args:
        file: .safetensors, with the timm model's state dict.
        name: of the timm model.
        arguments: that it is built with.
    """
    state = load_file(file)
    whole = shapes_of(name, arguments)
    body = shapes_of(name, arguments | {"num_classes": 0})
    if body.keys() <= state.keys():  # else timm knows the names of others, or says what is missing
        state |= {key: torch.zeros(shape) for key, shape in whole.items()
                  if key not in body and (key not in state or state[key].shape != shape)}
    return {"pretrained_cfg_overlay": {"state_dict": state, "label_offset": 0}}


def shapes_of(name: str, arguments: dict[str, Any]) -> dict[str, torch.Size]:
    """The shape of each tensor in the state dict of a timm model."""
    with torch.device("meta"), SkipInitialValues():
        state: dict[str, Tensor] = timm.create_model(name, **arguments).state_dict()
    return {key: tensor.shape for key, tensor in state.items()}
