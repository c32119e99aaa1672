"""An image or volume as it comes from a file -> the tensor that a model takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Preprocessed(Protocol):
    """A model that says what its images must be: a `SegmentationModel` or a detector."""

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def preprocessing(self) -> dict[str, Any]: ...


class Moments(NamedTuple):
    """Mean and mean square of each channel over all pixels of an image."""

    mean: np.ndarray
    mean_square: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """Standard deviation; 1 where all pixels are the same."""
        variance = np.clip(self.mean_square - self.mean**2, 0, None)
        return np.where(variance > 0, np.sqrt(variance), 1)


def preprocess(image: np.ndarray, model: Preprocessed, moments: Moments | None = None) -> Tensor:
    """A float32 batch of one, ``(1, C, *spatial)``, scaled and normalised as the model expects.

    Integers of a picture are divided by the largest value of their type (255, 65535), so they lie
    in [0, 1], where floats are taken to lie; voxels of a volume are taken as they are. Then
    ``model.preprocessing`` applies: where it says ``standardise``, the image less its own mean,
    over its own standard deviation; then ``input_range``, ``mean`` and ``std``. The size is left as
    it is.

    Args:
        image: ``(H, W)``, ``(D, H, W)``, or such with channels last; uint8, uint16, bool or float,
            a volume also of other integers. One channel is repeated where the model takes several.
        model: the model whose preprocessing applies. A detector takes such images one by one, and
            normalises them itself.
        moments: of the whole that the image is a part of, for ``standardise``; default: its own.

    Raises:
        ValueError: wrong number of axes or channels.
        TypeError: another type of number.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"expected an image as an array of numpy, got {type(image).__name__}")
    if not hasattr(model, "preprocessing"):
        raise TypeError(f"expected a model with its preprocessing, got {type(model).__name__}")
    dims, channels = model.config.get("dims", 2), len(model.preprocessing["mean"])
    image = image[..., None] if image.ndim == dims else image
    if image.ndim != dims + 1 or image.shape[-1] not in (1, channels):
        axes = ", ".join("DHW"[-dims:])
        raise ValueError(f"expected an image ({axes}) or ({axes}, {channels}), got {image.shape}")
    values = to_float(image)
    if model.preprocessing.get("standardise"):
        values = standardise(values, moments or measure([values]))
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))
    return normalise(x.expand(channels, *x.shape[1:]), model.preprocessing)[None]


def to_float(image: np.ndarray) -> np.ndarray:
    """``(*spatial, C)`` as float32; integers of pictures as `to_unit` scales them."""
    if image.ndim == 4 and image.dtype.kind in "iu":  # Hounsfield units, say
        return image.astype(np.float32)
    return to_unit(image)


def to_unit(image: np.ndarray) -> np.ndarray:
    """The image as float32; integers divided by the largest value of their type."""
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(np.float32) / np.iinfo(image.dtype).max
    if image.dtype == bool or np.issubdtype(image.dtype, np.floating):
        return image.astype(np.float32)
    raise TypeError(f"expected an image of uint8, uint16, bool or float, got {image.dtype}")


def measure(blocks: Iterable[np.ndarray]) -> Moments:
    """The moments of an image ``(*spatial, C)`` that comes in blocks along its first axis."""
    count = 0
    total = squares = np.zeros(1)
    for block in blocks:
        values = block.reshape(-1, block.shape[-1])
        count += len(values)
        total = total + values.sum(0, np.float64)
        squares = squares + np.square(values, dtype=np.float64).sum(0)
    return Moments(total / count, squares / count)


def standardise(values: np.ndarray, moments: Moments) -> np.ndarray:
    """``(*spatial, C)`` with mean 0 and standard deviation 1 in each channel of the whole."""
    return ((values - moments.mean) / moments.std).astype(np.float32)


def normalise(x: Tensor, preprocessing: dict[str, Any]) -> Tensor:
    """``(..., C, *spatial)`` in [0, 1] -> the input range, minus mean, over std, per channel."""
    low, high = preprocessing["input_range"]
    shape = (-1,) + (1,) * (x.dim() - 1)
    mean, std = (torch.tensor(preprocessing[key]).reshape(shape) for key in ("mean", "std"))
    return (x * (high - low) + low - mean) / std
