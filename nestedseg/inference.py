"""Whole images of any size through a model: at once where small, by a sliding window where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from nestedseg.extras import require
from nestedseg.model import SegmentationModel, ensemble, probabilities
from nestedseg.preprocess import preprocess

WINDOW = 512
OVERLAP = 0.25

Logits = TypeVar("Logits", Tensor, dict[int, Tensor])


@torch.no_grad()
def slide(forward: Callable[[Tensor], Logits], x: Tensor, window: int = WINDOW,
          overlap: float = OVERLAP) -> Logits:
    """``forward(x)``, computed window by window where an image is larger than one.

    Windows overlap, and are blended with Gaussian weights, so that no border shows.

    Args:
        forward: ``(N, C, h, w)`` to a tensor ``(N, K, h, w)``, or to a dict of such tensors.
        x: ``(N, C, H, W)``.
        window: height and width of a window in pixels. Default: 512.
        overlap: of neighbouring windows, as a fraction of a window in [0, 1). Default: 0.25.

    Returns:
        What ``forward`` returns, of the size ``(H, W)``.

    Raises:
        ValueError: ``window`` < 1, or ``overlap`` outside [0, 1).
    """
    if window < 1 or not 0 <= overlap < 1:
        raise ValueError("window must be at least 1 and overlap in [0, 1), "
                         f"got window={window}, overlap={overlap}")
    if max(x.shape[2:]) <= window:
        return forward(x)
    inferers = require("monai.inferers")
    roi = [min(window, length) for length in x.shape[2:]]
    return inferers.sliding_window_inference(x, roi, 1, forward, overlap=overlap, mode="gaussian")


def predict_image(model: SegmentationModel, image: np.ndarray, window: int = WINDOW,
                  overlap: float = OVERLAP) -> Tensor:
    """The probabilities ``(classes, H, W)`` that a model gives for an image as it was read.

    Args:
        model: used in eval mode; ``model.output`` says which head.
        image: ``(H, W)`` or ``(H, W, C)``; see `nestedseg.preprocess`.
        window: see `slide`.
        overlap: see `slide`.

    Raises:
        ValueError: an image that does not fit the model.
    """
    model.eval()
    logits = slide(model, _tensor(image, model), window, overlap)
    return probabilities(logits, model.task)[0]


def predict_heads(model: SegmentationModel, image: np.ndarray) -> dict[int | str, Tensor]:
    """The logits ``(1, classes, H, W)`` of each head for an image as it was read, by depth.

    Where ``model.output`` is "ensemble", the ensemble's stand beside them under that name.
    """
    model.eval()
    heads: dict[int | str, Tensor] = slide(model.forward_heads, _tensor(image, model))
    if model.output == "ensemble":
        heads["ensemble"] = ensemble(tuple(heads.values()), model.task)
    return heads


def output_key(model: SegmentationModel) -> int | str:
    """Which of `predict_heads` is the model's output in eval mode."""
    return model.depths[-1] if model.output == "deepest" else model.output


def to_mask(scores: Tensor, task: str) -> np.ndarray:
    """Probabilities ``(classes, H, W)`` to class indices ``(H, W)``, uint8; binary: 0 and 1.

    Raises:
        ValueError: "multilabel", whose classes overlap, or more than 256 classes.
    """
    if task == "multilabel" or len(scores) > 256:
        raise ValueError("a mask holds one of at most 256 classes per pixel; got task "
                         f"{task!r} with {len(scores)} classes")
    mask = scores[0] > 0.5 if task == "binary" else scores.argmax(0)
    return mask.to("cpu", torch.uint8).numpy()


def _tensor(image: np.ndarray, model: SegmentationModel) -> Tensor:
    return preprocess(image, model).to(next(model.parameters()).device)
