"""`preprocess`: turns an image or volume as read from a file into the tensor that a model takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Preprocessed(Protocol):
    """What `preprocess` needs of a model; a `SegmentationModel` and a detector have it."""

    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def preprocessing(self) -> dict[str, Any]: ...


class Moments(NamedTuple):
    """The mean and the mean square of each channel, over all pixels of an image."""

    mean: np.ndarray
    mean_square: np.ndarray

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each channel; 1 if all pixels are the same."""
        variance = np.clip(self.mean_square - self.mean**2, 0, None)
        return np.where(variance > 0, np.sqrt(variance), 1)


def preprocess(image: np.ndarray, model: Preprocessed, moments: Moments | None = None) -> Tensor:
    """Scales and normalises an image as the model expects; a float32 batch ``(1, C, *spatial)``.

    Integers of an image are divided by the largest value of their type (255 or 65535), which gives
    values in [0, 1]; floats are assumed to be in [0, 1] already. Voxels of a volume are taken as
    they are. Then ``model.preprocessing`` is applied: with ``standardise``, the image's own mean is
    subtracted, and the result divided by its own standard deviation; then follow ``input_range``,
    ``mean`` and ``std``. The size does not change.

    Args:
        image: ``(H, W)`` or ``(D, H, W)``, or with channels last; uint8, uint16, bool or float, for
            a volume also other integers. A single channel is repeated if the model takes several.
        model: the model whose preprocessing is applied. A detector takes the images of the batch
            one by one, and normalises them itself.
        moments: for ``standardise``, if the image is a part of a larger one: those of the whole.
            Default: the image's own.

    Raises:
        ValueError: wrong number of axes or channels.
        TypeError: an unsupported dtype.

    Examples:
        >>> import numpy as np
        >>> import nestedseg
        >>> model = nestedseg.create("unetpp", "resnet18")
        >>> image = np.full((100, 75, 3), 255, np.uint8)
        >>> x = nestedseg.preprocess(image, model)
        >>> x.shape, x.dtype
        (torch.Size([1, 3, 100, 75]), torch.float32)
        >>> x[0, :, 0, 0]  # white, less ImageNet's mean, over its standard deviation
        tensor([2.2489, 2.4286, 2.6400])
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
    """``(*spatial, C)`` as float32; integers of an image, not a volume, are scaled to [0, 1]."""
    if image.ndim == 4 and image.dtype.kind in "iu":  # for example Hounsfield units
        return image.astype(np.float32)
    return to_unit(image)


def to_unit(image: np.ndarray) -> np.ndarray:
    """An image as float32; integers are divided by the largest value of their type."""
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(np.float32) / np.iinfo(image.dtype).max
    if image.dtype == bool or np.issubdtype(image.dtype, np.floating):
        return image.astype(np.float32)
    raise TypeError(f"unsupported dtype {image.dtype} of an image; supported: uint8, uint16, bool "
                    "and floats")


def measure(blocks: Iterable[np.ndarray]) -> Moments:
    """The moments of an image ``(*spatial, C)``, given in blocks along its first axis."""
    count = 0
    total = squares = np.zeros(1)
    for block in blocks:
        values = block.reshape(-1, block.shape[-1])
        count += len(values)
        total = total + values.sum(0, np.float64)
        squares = squares + np.square(values, dtype=np.float64).sum(0)
    return Moments(total / count, squares / count)


def standardise(values: np.ndarray, moments: Moments) -> np.ndarray:
    """Values ``(*spatial, C)`` minus the mean, divided by the standard deviation, per channel."""
    return ((values - moments.mean) / moments.std).astype(np.float32)


def normalise(x: Tensor, preprocessing: dict[str, Any]) -> Tensor:
    """Maps ``(C, *spatial)`` from [0, 1] to the input range, minus mean, divided by std."""
    low, high = preprocessing["input_range"]
    shape = (-1,) + (1,) * (x.dim() - 1)
    mean, std = (torch.tensor(preprocessing[key]).reshape(shape) for key in ("mean", "std"))
    return (x * (high - low) + low - mean) / std
