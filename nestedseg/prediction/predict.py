"""Images and volumes as they were read, through a model: what it predicts for the whole."""

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
    """The probabilities ``(classes, *spatial)`` that a model gives for an image as it was read.

    Args:
        model: used in eval mode; ``model.output`` says which head.
        image: ``(*spatial)`` or ``(*spatial, C)``; see `nestedseg.preprocess`.
        window: see `slide`; default: see `default_window`.
        overlap: see `slide`.

    Raises:
        ValueError: an image that does not fit the model.
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
    """The probabilities ``(classes, planes, H, W)`` of a volume, slab by slab, on its own grid.

    Memory is taken for one slab, as thick as a window; a model that was trained at a common spacing
    needs the whole volume instead, resampled to it.

    Args:
        model: used in eval mode.
        volume: as `nestedseg.data.open_volume` gives it.
        window: see `slide`; default: see `default_window`.
        overlap: see `slide`.

    Yields:
        Which planes, from first to last, and their probabilities.

    Raises:
        ValueError: a volume that does not fit the model, or with NaN or infinite voxels.
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
    """The logits ``(1, classes, *spatial)`` of each head for an image as it was read, by depth.

    Where ``model.output`` is "ensemble", the ensemble's stand beside them under that name. A large
    image goes through the model in windows, see `default_window`.

    Args:
        model: used in eval mode.
        image: ``(*spatial)`` or ``(*spatial, C)``; see `nestedseg.preprocess`.

    Raises:
        ValueError: an image that does not fit the model.
    """
    model.eval()
    x = _tensor(image, model)
    by_depth = slide(model.forward_heads, x, default_window(model, x.shape[2:]))
    heads: dict[int | str, Tensor] = {depth: logits for depth, logits in by_depth.items()}
    if model.output == "ensemble":
        heads["ensemble"] = ensemble(tuple(heads.values()), model.task)
    return heads


def output_key(model: SegmentationModel) -> int | str:
    """Which of `predict_heads` is the model's output in eval mode."""
    return model.depths[-1] if model.output == "deepest" else model.output


def to_mask(scores: Tensor, task: str) -> np.ndarray:
    """The class of each pixel.

    Args:
        scores: probabilities ``(classes, *spatial)``.
        task: "binary" (foreground above 0.5) or "multiclass" (the most probable).

    Returns:
        ``(*spatial)``, uint8: class indices; of "binary" 0 and 1.

    Raises:
        ValueError: "multilabel", whose classes overlap, or more than 256 classes.
    """
    if task == "multilabel" or len(scores) > 256:
        raise ValueError("a mask holds one of at most 256 classes per pixel; got task "
                         f"{task!r} with {len(scores)} classes")
    mask = scores[0] > 0.5 if task == "binary" else scores.argmax(0)
    return mask.to("cpu", torch.uint8).numpy()


def _tensor(image: np.ndarray, model: SegmentationModel, moments: Moments | None = None) -> Tensor:
    return preprocess(image, model, moments).to(next(model.parameters()).device)


def _planes(volume: Volume) -> Iterable[np.ndarray]:
    """A volume's voxels ``(planes, H, W, C)``, a few planes at a time."""
    step = max(1, 2 ** 22 // math.prod(volume.stored.shape[1:]))
    for start in range(0, volume.shape[0], step):
        planes = volume[start:start + step]
        yield planes.reshape(*planes.shape[:3], -1)
