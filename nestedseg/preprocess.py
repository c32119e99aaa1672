"""An image or volume as it comes from a file -> the tensor that a model takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def preprocess(image: np.ndarray, model: nn.Module) -> Tensor:
    """A float32 batch of one, ``(1, C, *spatial)``, scaled and normalised as the model expects.

    Integers are divided by the largest value of their type (255, 65535), so they lie in [0, 1];
    floats are taken to lie there. Then ``model.preprocessing`` applies: ``input_range``, ``mean``
    and ``std``. The size is left as it is.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, for a 3-D model with a D before; uint8, uint16, bool or
            float. Grey images are repeated where the model takes several channels.
        model: the model whose preprocessing applies.

    Raises:
        ValueError: wrong number of axes or channels.
        TypeError: another type of number.
    """
    channels, dims = model.config["in_channels"], model.config["dims"]
    axes = ", ".join("DHW"[-dims:])
    image = image[..., None] if image.ndim == dims else image
    if image.ndim != dims + 1 or image.shape[-1] not in (1, channels):
        raise ValueError(f"expected an image ({axes}) or ({axes}, {channels}), got {image.shape}")
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(to_unit(image), -1, 0)))
    return normalise(x.expand(channels, *x.shape[1:]), model.preprocessing)[None]


def to_unit(image: np.ndarray) -> np.ndarray:
    """The image as float32; integers divided by the largest value of their type."""
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(np.float32) / np.iinfo(image.dtype).max
    if image.dtype == bool or np.issubdtype(image.dtype, np.floating):
        return image.astype(np.float32)
    raise TypeError(f"expected an image of uint8, uint16, bool or float, got {image.dtype}")


def normalise(x: Tensor, preprocessing: dict[str, object]) -> Tensor:
    """``(..., C, *spatial)`` in [0, 1] -> the input range, minus mean, over std, per channel."""
    low, high = preprocessing["input_range"]
    shape = (-1,) + (1,) * (x.dim() - 1)
    mean, std = (torch.tensor(preprocessing[key]).reshape(shape) for key in ("mean", "std"))
    return (x * (high - low) + low - mean) / std
