"""Predictions of a model for images and volumes as they were read, in windows where needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.data.preprocessing import (
    Moments,
    check_image,
    measure,
    missing,
    preprocess,
    to_float,
)
from nestedseg.data.source import Source, blocks, whole
from nestedseg.data.volumes import Volume, resize
from nestedseg.models.model import SegmentationModel
from nestedseg.models.outputs import ensemble, probabilities
from nestedseg.prediction.sliding_window import OVERLAP, default_window, slide, stream

MEASURED = 2**22  # pixels that are measured at once


def predict_image(model: SegmentationModel, image: np.ndarray,
                  window: int | Sequence[int] | None = None, overlap: float = OVERLAP) -> Tensor:
    """Predicts the probabilities ``(classes, *spatial)`` for an image as it was read.

    Args:
        model: used in eval mode; ``model.output`` decides which head is used.
        image: ``(*spatial)`` or ``(*spatial, C)``; see `nestedseg.preprocess`.
        window: see `slide`; default: see `default_window`.
        overlap: see `slide`.

    Raises:
        ValueError: the image does not fit the model.

    Examples:
        >>> import nestedseg
        >>> from nestedseg.data import synthetic_nuclei
        >>> from nestedseg.prediction import predict_image, to_mask
        >>> model = nestedseg.create("unetpp", in_channels=1, depth=2)
        >>> images, _ = synthetic_nuclei(1, size=100)
        >>> probabilities = predict_image(model, images[0])
        >>> images[0].shape, probabilities.shape, to_mask(probabilities, model.task).shape
        ((100, 100), torch.Size([1, 100, 100]), (100, 100))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model, got {type(model).__name__}; "
                        "nestedseg.from_pretrained loads one")
    model.eval()
    x = _tensor(image, model)
    window = default_window(model, x.shape[2:]) if window is None else window
    logits = slide(model, x, window, overlap)
    return probabilities(logits, model.task)[0]


def predict_volume(model: SegmentationModel, volume: Volume,
                   window: int | Sequence[int] | None = None, overlap: float = OVERLAP
                   ) -> Iterator[tuple[slice, Tensor]]:
    """Predicts the probabilities of a volume on its own grid, slab by slab.

    Only one slab, as thick as a window, is in memory. For a model that was trained at a common
    spacing it is the whole volume, resampled to that spacing.

    Args:
        model: used in eval mode.
        volume: as returned by `nestedseg.data.open_volume`.
        window: see `slide`; default: see `default_window`.
        overlap: see `slide`.

    Yields:
        A slice of planes, in order, and their probabilities ``(classes, planes, H, W)``.

    Raises:
        ValueError: the volume does not fit the model, or has infinite voxels.
    """
    yield from predict_source([model], volume, window, overlap)


def predict_source(models: Sequence[SegmentationModel], source: Source,
                   window: int | Sequence[int] | None = None, overlap: float = OVERLAP,
                   mirror: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Predicts the probabilities of an opened image or volume, a few rows or planes at a time.

    Of the image only the rows of one window are in memory, and of the outputs the same.

    Args:
        models: used in eval mode; the probabilities are the mean of theirs.
        source: as returned by `nestedseg.data.open_image` or `nestedseg.data.open_volume`.
        window: see `slide`; default: see `default_window`, of the first model.
        overlap: see `slide`.
        mirror: whether each window is also predicted mirrored along all axes, and averaged.

    Yields:
        A slice of rows or planes, in order, and their probabilities ``(classes, rows, W)`` or
        ``(classes, planes, H, W)``.

    Raises:
        ValueError: the image does not fit the models, the models do not fit each other, or there
            are infinite pixels.
    """
    first = check_together(models)
    for model in models:
        check_image((*source.shape, source.channels), model)
    spacing = first.preprocessing.get("spacing")
    if spacing is not None and isinstance(source, Volume):
        shape = source.shape_at(spacing)
        resampled = InMemory(resize(source.read().astype(np.float32), shape), source)
        scores = torch.cat([scores.cpu() for _, scores in _predict(
            models, resampled, window, overlap, mirror)], 1)
        yield slice(0, source.shape[0]), F.interpolate(scores[None], source.shape,
                                                       mode="trilinear")[0]
        return
    yield from _predict(models, source, window, overlap, mirror)


def check_together(models: Sequence[SegmentationModel]) -> SegmentationModel:
    """The first model, if the outputs of all can be averaged.

    Raises:
        ValueError: they differ in what they take or give.
    """
    first = models[0]
    for other in models[1:]:
        for what, a, b in (*((key, first.config[key], other.config[key]) for key in
                             ("classes", "task", "dims", "class_names")),
                           *((key, first.preprocessing.get(key), other.preprocessing.get(key))
                             for key in ("spacing", "nodata"))):
            if a != b:
                raise ValueError(f"the models cannot be averaged: their {what} are {a} and {b}")
    return first


def nodata_for(model: SegmentationModel, source: Source) -> float | None:
    """The value of pixels that were not measured: the model's, otherwise what the file says.

    Training takes them in the same order, see ``nodata`` of `nestedseg.data.LabelledImages`.
    """
    own = model.preprocessing.get("nodata")
    return source.nodata if own is None else own


def _predict(models: Sequence[SegmentationModel], source: Source,
             window: int | Sequence[int] | None, overlap: float, mirror: bool
             ) -> Iterator[tuple[slice, Tensor]]:
    for model in models:
        model.eval()
    first = models[0]
    window = default_window(first, source.shape) if window is None else window
    nodata = nodata_for(first, source)
    moments = _moments(source, nodata) if any(each.preprocessing.get("standardise")
                                              for each in models) else None
    latest: tuple[slice, np.ndarray] | None = None

    def cut(place: tuple[slice, ...]) -> Any:
        nonlocal latest
        if latest is None or latest[0] != place[0]:
            latest = None  # first, so that there are never two
            latest = place[0], source.read((place[0], *whole(source.shape[1:])))
        return latest[1][(slice(None), *place[1:])]

    def forward(raw: np.ndarray) -> Tensor:
        logits = [each for model in models
                  for each in _logits(model, raw, moments, nodata, mirror)]
        return logits[0] if len(logits) == 1 else ensemble(logits, first.task)

    for rows, logits in stream(forward, cut, source.shape, window, overlap):
        yield rows, probabilities(logits, first.task)[0]


def _logits(model: SegmentationModel, raw: np.ndarray, moments: Moments | None,
            nodata: float | None, mirror: bool) -> Iterator[Tensor]:
    """The logits of a window, and of its mirror images, mirrored back."""
    x = preprocess(raw, model, moments, nodata).to(next(model.parameters()))
    axes = range(2, x.dim())
    flips = [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]
    for flip in flips if mirror else [()]:
        yield model(x.flip(flip)).flip(flip)


def _moments(source: Source, nodata: float | None) -> Moments:
    """The moments of the whole image, read block by block."""
    def parts() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for window in blocks(source.shape, MEASURED):
            raw = source.read(window)
            yield to_float(raw), missing(raw, nodata)
    return measure(parts())


class InMemory:
    """An image in memory; a `Source`.

    Args:
        pixels: ``(*spatial, C)``.
        source: that they are of.
    """

    windowed = mapped = True

    def __init__(self, pixels: np.ndarray, source: Source) -> None:
        self.pixels, self.path, self.nodata = pixels, source.path, source.nodata
        self.shape: tuple[int, ...] = pixels.shape[:-1]
        self.channels, self.dtype = pixels.shape[-1], pixels.dtype

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window; see `Source`."""
        return self.pixels[tuple(window or whole(self.shape))]


def predict_heads(model: SegmentationModel, image: np.ndarray) -> dict[int | str, Tensor]:
    """Predicts the logits ``(1, classes, *spatial)`` of every head for an image, by depth.

    If ``model.output`` is "ensemble", there is an entry "ensemble" with the ensemble's logits too.
    Large images are predicted in windows, see `default_window`.

    Args:
        model: used in eval mode.
        image: ``(*spatial)`` or ``(*spatial, C)``; see `nestedseg.preprocess`.

    Raises:
        ValueError: the image does not fit the model.
    """
    model.eval()
    x = _tensor(image, model)
    by_depth = slide(model.forward_heads, x, default_window(model, x.shape[2:]))
    heads: dict[int | str, Tensor] = {depth: logits for depth, logits in by_depth.items()}
    if model.output == "ensemble":
        heads["ensemble"] = ensemble(tuple(heads.values()), model.task)
    return heads


def output_key(model: SegmentationModel) -> int | str:
    """The key of `predict_heads` for the model's output in eval mode: a depth or "ensemble"."""
    return model.depths[-1] if model.output == "deepest" else model.output


def to_mask(scores: Tensor, task: str) -> np.ndarray:
    """The class of each pixel, from probabilities.

    Args:
        scores: probabilities ``(classes, *spatial)``.
        task: "binary" (foreground above 0.5) or "multiclass" (the most probable).

    Returns:
        ``(*spatial)``, uint8: class indices; for "binary" 0 and 1.

    Raises:
        ValueError: "multilabel", whose classes overlap, or more than 256 classes.
    """
    if task == "multilabel" or len(scores) > 256:
        raise ValueError("a mask has one of at most 256 classes per pixel, which does not fit task "
                         f"{task!r} with {len(scores)} classes")
    mask = scores[0] > 0.5 if task == "binary" else scores.argmax(0)
    return mask.to("cpu", torch.uint8).numpy()


def _tensor(image: np.ndarray, model: SegmentationModel) -> Tensor:
    """The image on the device, and of the type of number, of the model's weights."""
    return preprocess(image, model).to(next(model.parameters()))
