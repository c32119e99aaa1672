"""Sliding windows: an image of any size through a model, at once where it is small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor, nn

from nestedseg.base.errors import number, show
from nestedseg.base.extras import require
from nestedseg.models.model import SegmentationModel

WINDOW = {2: 512, 3: 96}
OVERLAP = 0.25
MEANS = (nn.InstanceNorm3d, nn.GroupNorm)  # means over the volume that they are given
MOST_PADDING = 1 / 8  # of a side: eight windows in the place of one would cost more than it does

Logits = TypeVar("Logits", Tensor, dict[int, Tensor])


@torch.no_grad()
def slide(forward: Callable[[Tensor], Logits], x: Tensor, window: int | Sequence[int] | None = None,
          overlap: float = OVERLAP) -> Logits:
    """``forward(x)``, computed window by window where an image is larger than one.

    Windows overlap, and are blended with Gaussian weights, so that no border shows.

    Args:
        forward: ``(N, C, *window)`` to a tensor ``(N, K, *window)``, or to a dict of such tensors.
        x: ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        window: its size in pixels along each axis, or one number for all. Default: 512, in
            volumes 96.
        overlap: of neighbouring windows, as a fraction of a window in [0, 1). Default: 0.25.

    Returns:
        What ``forward`` returns, of the size of ``x``.

    Raises:
        ValueError: ``window`` < 1, or ``overlap`` outside [0, 1).
    """
    size = x.shape[2:]
    roi = window_sides(window, overlap, size)
    if roi == tuple(size):
        return forward(x)
    inferers = require("monai.inferers")
    return inferers.sliding_window_inference(x, roi, 1, forward, overlap=overlap, mode="gaussian",
                                             roi_weight_map=_weights(roi, x))


@torch.no_grad()
def slide_slabs(forward: Callable[[Tensor], Tensor], read: Callable[[slice], Tensor],
                size: Sequence[int], window: int | Sequence[int] | None = None,
                overlap: float = OVERLAP) -> Iterator[tuple[slice, Tensor]]:
    """What `slide` gives for a volume, slab by slab along D, of which no more than one is held.

    Args:
        forward: as of `slide`, to a tensor.
        read: some planes of the volume, ``(N, C, planes, H, W)``.
        size: ``(D, H, W)`` of the volume.
        window: see `slide`.
        overlap: see `slide`.

    Yields:
        Which planes, from first to last, and their ``(N, K, planes, H, W)``.
    """
    depth, planes = window_sides(window, overlap, size)[0], size[0]
    carried: tuple[Tensor, Tensor] | None = None
    starts = slab_starts(planes, depth, overlap)
    for start, following in zip(starts, [*starts[1:], planes]):
        logits = slide(forward, read(slice(start, start + depth)), window, overlap)
        weight = _weights((depth,), logits)[:, None, None].clone()
        logits = logits * weight
        if carried is not None:  # what the slabs before say of the same planes
            earlier, share = carried
            logits[:, :, :earlier.shape[2]] += earlier
            weight[:len(share)] += share
        done = following - start
        yield slice(start, following), logits[:, :, :done] / weight[:done]
        carried = logits[:, :, done:], weight[done:]


def slab_starts(planes: int, depth: int, overlap: float) -> list[int]:
    """Where the windows of `slide` start along an axis of so many planes."""
    step, last = max(1, int(depth * (1 - overlap))), planes - depth
    return [min(start, last) for start in range(0, last + step, step)]


def window_sides(window: int | Sequence[int] | None, overlap: float,
                 size: Sequence[int]) -> tuple[int, ...]:
    """The window along each axis, no longer than the image."""
    window = WINDOW[len(size)] if window is None else window
    if not isinstance(window, (int, Sequence)) or isinstance(window, (str, bytes)):
        raise TypeError(f"window must be a number, or one for each axis, got {show(window)}")
    sides = (window,) * len(size) if isinstance(window, int) else tuple(window)
    for name, value in (*(("window", side) for side in sides), ("overlap", overlap)):
        number(name, value)
    if len(sides) != len(size) or min(sides) < 1 or not 0 <= overlap < 1:
        raise ValueError(f"window must be at least 1 along each of {len(size)} axes and overlap in "
                         f"[0, 1), got window={window}, overlap={overlap}")
    return tuple(map(min, sides, size))


def default_window(model: SegmentationModel, size: Sequence[int]) -> tuple[int, ...]:
    """The windows in which an image goes through a model, unless others are asked for.

    They are those of `slide`; but in volumes, where the model normalises by means over the image,
    no longer than what needs no padding along axes to which that would add more than an eighth.
    For the padding is part of the means, and where 36 voxels become 48 along each axis, it is more
    than half of what they are taken of.

    Args:
        model: for images of as many axes.
        size: of the image, ``(H, W)`` or ``(D, H, W)``.
    """
    sides = window_sides(None, OVERLAP, size)
    if len(size) == 2 or not any(isinstance(module, MEANS) for module in model.modules()):
        return sides
    padded_to = zip(model.config["pad_multiple"], model.config["pad_smallest"])
    return tuple(_without_padding(side, multiple, least)
                 for side, (multiple, least) in zip(sides, padded_to))


def _without_padding(side: int, multiple: int, least: int) -> int:
    """The largest window up to ``side`` that is not padded; ``side`` if padding is small, or must
    be."""
    added, whole = -side % multiple, side // multiple * multiple
    return whole if added > MOST_PADDING * side and whole >= max(multiple, least) else side


def _weights(window: Sequence[int], like: Tensor) -> Tensor:
    """Gaussian, and a product over the axes: so slabs, blended within and then with each other,
    give what the whole would."""
    importance = require("monai.data.utils").compute_importance_map
    axes = (importance((length,), mode="gaussian", device=like.device, dtype=like.dtype)
            for length in window)
    return reduce(lambda product, axis: product[..., None] * axis, axes)
