"""Predictions of a model for images and volumes as they were read, in windows where needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.data.preprocessing import Moments, measure, preprocess
from nestedseg.data.volumes import Volume, resize
from nestedseg.models.model import SegmentationModel
from nestedseg.models.outputs import ensemble, probabilities
from nestedseg.prediction.sliding_window import OVERLAP, default_window, slide, slide_slabs


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
        ValueError: the volume does not fit the model, or has NaN or infinite voxels.
    """
    spacing = model.preprocessing.get("spacing")
    if spacing is not None:
        resampled = resize(volume[:], volume.shape_at(spacing))
        scores = predict_image(model, resampled, window, overlap)
        yield slice(0, volume.shape[0]), F.interpolate(scores[None], volume.shape,
                                                       mode="trilinear")[0]
        return
    model.eval()
    window = default_window(model, volume.shape) if window is None else window
    moments = measure(_planes(volume)) if model.preprocessing.get("standardise") else None
    for planes, logits in slide_slabs(model, lambda planes: _tensor(volume[planes], model, moments),
                                      volume.shape, window, overlap):
        yield planes, probabilities(logits, model.task)[0]


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


def _tensor(image: np.ndarray, model: SegmentationModel, moments: Moments | None = None) -> Tensor:
    """The image on the device, and of the type of number, of the model's weights."""
    return preprocess(image, model, moments).to(next(model.parameters()))


def _planes(volume: Volume) -> Iterable[np.ndarray]:
    """The voxels of a volume, a few planes ``(planes, H, W, C)`` at a time."""
    step = max(1, 2 ** 22 // math.prod(volume.stored.shape[1:]))
    for start in range(0, volume.shape[0], step):
        planes = volume[start:start + step]
        yield planes.reshape(*planes.shape[:3], -1)
