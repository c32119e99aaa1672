"""`preprocess`: turns an image or volume as read from a file into the tensor that a model takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def preprocess(image: np.ndarray, model: Preprocessed, moments: Moments | None = None,
               nodata: float | None = None) -> Tensor:
    """Scales and normalises an image as the model expects; a float32 batch ``(1, C, *spatial)``.

    What ``model.preprocessing`` says is applied in this order:

    1. ``value_range``, the values (low, high) that become 0 and 1, one pair for all channels or one
       for each; with ``clip``, values outside become 0 and 1 too. Without it, uint8 and uint16 of
       an image are divided by the largest value of their type (255 or 65535), and all other
       numbers, and the voxels of a volume, are taken as they are.
    2. With ``standardise``, the image's own mean is subtracted, and the result divided by its own
       standard deviation.
    3. ``input_range``, ``mean`` and ``std``.
    4. Pixels that were not measured, those that are NaN or ``nodata``, become 0, which is the mean.

    The size does not change.

    Args:
        image: ``(H, W)`` or ``(D, H, W)``, or with channels last; whole numbers, floats or bool. A
            single channel is repeated if the model takes several.
        model: the model whose preprocessing is applied. A detector takes the images of the batch
            one by one, and normalises them itself.
        moments: for ``standardise``, if the image is a part of a larger one: those of the whole.
            Default: the image's own.
        nodata: the value of pixels that were not measured. Default: that of
            ``model.preprocessing``, if it has one.

    Raises:
        ValueError: wrong number of axes or channels, or infinite pixels.
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
    options = model.preprocessing
    channels = len(options["mean"])
    image = image[..., None] if image.ndim == model.config.get("dims", 2) else image
    check_image(image.shape, model)
    gone = missing(image, options.get("nodata") if nodata is None else nodata)
    values = scale(image, options.get("value_range"), options.get("clip", False))
    if options.get("standardise"):
        values = standardise(values, moments or measure([(values, gone)]))
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))
    x = normalise(x.expand(channels, *x.shape[1:]), options)
    if gone is not None:
        x = x.masked_fill(torch.from_numpy(np.moveaxis(gone, -1, 0)), 0)
    return x[None]


def check_image(shape: Sequence[int], model: Preprocessed) -> None:
    """Checks that an image ``(*spatial, C)`` has the axes and channels that a model takes.

    Raises:
        ValueError: it does not.
    """
    dims, channels = model.config.get("dims", 2), len(model.preprocessing["mean"])
    if len(shape) != dims + 1 or shape[-1] not in (1, channels):
        axes = ", ".join("DHW"[-dims:])
        raise ValueError(f"expected an image ({axes}) or ({axes}, {channels}), got {tuple(shape)}")


def missing(image: np.ndarray, nodata: float | None = None) -> np.ndarray | None:
    """Where an image ``(*spatial, C)`` was not measured: NaN or ``nodata``; ``None`` = nowhere.

    Raises:
        ValueError: there are infinite numbers.
    """
    gone = None
    if image.dtype.kind == "f":
        finite = np.isfinite(image)
        if not finite.all():
            gone = np.isnan(image)
            if not (finite | gone).all():
                raise ValueError("there are infinite pixels; replace them, or give nodata")
    if nodata is not None and not np.isnan(nodata):
        equal = image == image.dtype.type(nodata) if _fits(nodata, image.dtype) else None
        if equal is not None and equal.any():
            gone = equal if gone is None else gone | equal
    return gone


def _fits(value: float, dtype: np.dtype) -> bool:
    """Whether a type has the value, so that a pixel can be equal to it."""
    if dtype.kind not in "iu":
        return True
    info = np.iinfo(dtype)
    return float(value).is_integer() and info.min <= value <= info.max


def scale(image: np.ndarray, value_range: Sequence[Any] | None = None,
          clip: bool = False) -> np.ndarray:
    """``(*spatial, C)`` as float32, with ``value_range`` as 0 ... 1; see `preprocess`."""
    if value_range is None:
        return to_float(image)
    low, high = np.asarray(value_range, np.float64).reshape(-1, 2).T
    values = ((image - low) / (high - low)).astype(np.float32)
    return np.clip(values, 0, 1) if clip else values


def to_float(image: np.ndarray) -> np.ndarray:
    """``(*spatial, C)`` as float32; uint8 and uint16 of an image, not a volume, as 0 ... 1."""
    if image.ndim == 4 and image.dtype.kind in "iu":  # for example Hounsfield units
        return image.astype(np.float32)
    return to_unit(image)


def to_unit(image: np.ndarray) -> np.ndarray:
    """An image as float32; uint8 and uint16 are divided by the largest value of their type."""
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(np.float32) / np.iinfo(image.dtype).max
    if image.dtype.kind in "biuf":
        return image.astype(np.float32)
    raise TypeError(f"unsupported dtype {image.dtype} of an image; supported are whole numbers, "
                    "floats and bool")


def measure(blocks: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> Moments:
    """The moments of an image ``(*spatial, C)``, given in blocks along its first axis.

    Args:
        blocks: the values of each, and where it was not measured (``None`` = nowhere).
    """
    count: Any = 0
    total = squares = np.zeros(1)
    for block, gone in blocks:
        values = block.reshape(-1, block.shape[-1])
        measured: Any = len(values)
        if gone is not None:
            gone = gone.reshape(values.shape)
            values, measured = np.where(gone, np.float32(0), values), measured - gone.sum(0)
        count = count + measured
        total = total + values.sum(0, np.float64)
        squares = squares + np.square(values, dtype=np.float64).sum(0)
    count = np.maximum(count, 1)
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
