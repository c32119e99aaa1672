"""Sliding windows: predicts a large image window by window, and a small one at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nestedseg.base.errors import number, show
from nestedseg.base.extras import require
from nestedseg.models.model import SegmentationModel

WINDOW = {2: 512, 3: 96}
OVERLAP = 0.25
MEANS = (nn.InstanceNorm3d, nn.GroupNorm)  # norms that take means over the volume that they get
MOST_PADDING = 1 / 8  # of a side; see `default_window`

Logits = TypeVar("Logits", Tensor, dict[int, Tensor])


@torch.no_grad()
def slide(forward: Callable[[Tensor], Logits], x: Tensor, window: int | Sequence[int] | None = None,
          overlap: float = OVERLAP) -> Logits:
    """Computes ``forward(x)``, window by window if the image is larger than a window.

    Windows overlap, and are blended with Gaussian weights, so that their borders do not show.

    Args:
        forward: maps ``(N, C, *window)`` to a tensor ``(N, K, *window)``, or a dict of such
            tensors.
        x: ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        window: size of a window in pixels along each axis, or one number for all. Default: 512, for
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
    """Computes the same as `slide` slab by slab along the first axis, with one slab in memory.

    Args:
        forward: see `slide`; it returns a tensor.
        read: returns some rows of the image, ``(N, C, rows, W)``, or planes of the volume,
            ``(N, C, planes, H, W)``.
        size: ``(H, W)`` of the image or ``(D, H, W)`` of the volume.
        window: see `slide`.
        overlap: see `slide`.

    Yields:
        A slice of rows or planes, in order, and their outputs ``(N, K, rows, W)`` or
        ``(N, K, planes, H, W)``.
    """
    latest: tuple[slice, Tensor] | None = None

    def cut(place: tuple[slice, ...]) -> Tensor:
        nonlocal latest
        if latest is None or latest[0] != place[0]:
            latest = place[0], read(place[0])
        return latest[1][(slice(None), slice(None), slice(None), *place[1:])]

    yield from stream(forward, cut, size, window, overlap)


@torch.no_grad()
def stream(forward: Callable[[Any], Tensor], cut: Callable[[tuple[slice, ...]], Any],
           size: Sequence[int], window: int | Sequence[int] | None = None,
           overlap: float = OVERLAP) -> Iterator[tuple[slice, Tensor]]:
    """As `slide_slabs`, but of the image only one window is asked for at a time.

    Args:
        forward: maps what ``cut`` returns to a tensor ``(N, K, *window)``.
        cut: returns a window of the image, by a slice for each axis. All windows with the same
            rows or planes are asked for one after the other.
        size: see `slide_slabs`.
        window: see `slide`.
        overlap: see `slide`.

    Yields:
        See `slide_slabs`. The tensor may be written to.
    """
    sides = window_sides(window, overlap, size)
    starts = [slab_starts(length, side, overlap) for length, side in zip(size, sides)]
    if all(len(each) == 1 for each in starts):
        yield slice(0, size[0]), forward(cut(tuple(slice(0, length) for length in size)))
        return
    carried: Tensor | None = None  # what earlier windows add to the rows that are not complete
    for start, following in zip(starts[0], [*starts[0][1:], size[0]]):
        slab: Tensor | None = None
        for corner in product((start,), *starts[1:]):
            place = tuple(slice(at, at + side) for at, side in zip(corner, sides))
            logits = forward(cut(place))
            if slab is None:
                slab = logits.new_zeros(*logits.shape[:2], sides[0], *size[1:])
                weights = _weights(sides, logits)
                if carried is not None:
                    slab[:, :, :carried.shape[2]] = carried
            slab[(slice(None), slice(None), slice(None), *place[1:])] += logits * weights
        assert slab is not None
        done = following - start
        whole = slab[:, :, :done]
        for axis, (length, side) in enumerate(zip(size, sides)):
            share = _shares(length, side, starts[axis], slab)
            share = share[start:following] if axis == 0 else share
            whole /= share.reshape(-1, *[1] * (len(size) - axis - 1))
        yield slice(start, following), whole
        carried = slab[:, :, done:].clone()  # without the rows that are complete


def _shares(length: int, side: int, starts: Sequence[int], like: Tensor) -> Tensor:
    """The sum of the weights of all windows at each place of an axis."""
    weights, total = _weights((side,), like), like.new_zeros(length)
    for start in starts:
        total[start:start + side] += weights
    return total


def slab_starts(planes: int, depth: int, overlap: float) -> list[int]:
    """The start of each window of `slide` along an axis with this number of planes."""
    step, last = max(1, int(depth * (1 - overlap))), planes - depth
    return [min(start, last) for start in range(0, last + step, step)]


def window_sides(window: int | Sequence[int] | None, overlap: float,
                 size: Sequence[int]) -> tuple[int, ...]:
    """The length of the window along each axis, at most that of the image.

    Raises:
        ValueError: ``window`` < 1 or for another number of axes, or ``overlap`` outside [0, 1).
    """
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
    """The default size of windows for an image: that of `slide`, with one exception.

    For volumes and models with instance or group norm, whose means include the padding, a window is
    shortened to a length that needs no padding, along axes where padding would add more than an
    eighth. If 36 voxels, for example, were padded to 48 along each axis, more than half of what the
    means are taken over would be padding. Less than an eighth is accepted, because a shorter window
    means several windows instead of one.

    Args:
        model: takes images with this number of axes.
        size: of the image, ``(H, W)`` or ``(D, H, W)``.
    """
    sides = window_sides(None, OVERLAP, size)
    if len(size) == 2 or not any(isinstance(module, MEANS) for module in model.modules()):
        return sides
    padded_to = zip(model.config["pad_multiple"], model.config["pad_smallest"])
    return tuple(_without_padding(side, multiple, least)
                 for side, (multiple, least) in zip(sides, padded_to))


def _without_padding(side: int, multiple: int, least: int) -> int:
    """The largest window up to ``side`` without padding; ``side`` if padding is small or needed."""
    added, whole = -side % multiple, side // multiple * multiple
    return whole if added > MOST_PADDING * side and whole >= max(multiple, least) else side


def _weights(window: Sequence[int], like: Tensor) -> Tensor:
    """Gaussian weights of a window, as a product over the axes.

    As they are a product, blending first within slabs and then between slabs gives the same as
    blending all windows at once.
    """
    importance = require("monai.data.utils").compute_importance_map
    axes = (importance((length,), mode="gaussian", device=like.device, dtype=like.dtype)
            for length in window)
    return reduce(lambda product, axis: product[..., None] * axis, axes)
