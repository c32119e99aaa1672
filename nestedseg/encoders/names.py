"""The tensors of a timm model, known without trying the model."""

from __future__ import annotations

import timm
import torch

from nestedseg.encoders.description import Options
from nestedseg.encoders.timm_encoder import parse_name


def timm_shapes(options: Options) -> dict[str, tuple[int, ...]]:
    """Names and shapes, as in an encoder without a stem, of all tensors of the whole timm model.

    An encoder has those that its levels need, some of them in other shapes. None where timm cannot
    build the model without memory.

    Raises:
        ValueError: there is no such model.
    """
    parse_name(options.encoder)
    try:
        with torch.device("meta"):
            model = timm.create_model(options.encoder)
    except Exception:  # each model in its own way
        return {}
    return {f"model.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
