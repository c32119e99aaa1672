"""Layers for which torch, on CPU, does not pick its fastest or most exact kernel by itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by axes
SMALL = 20_480  # elements that torch compares with, of an image without its last axis


def preferred_layout(x: Tensor) -> Tensor:
    """On CPU, images in channels_last for inference and not for training; volumes the reverse.

    Of images, transposed convolutions are up to three times faster in channels_last and other ones
    as fast, but the gradient of a weight takes more than three times as long. Of volumes, that
    gradient is the faster one.
    """
    if x.device.type != "cpu" or x.dim() not in CHANNELS_LAST or torch.jit.is_tracing():
        return x  # a trace is checked without gradients, and must be the same then
    last = torch.is_grad_enabled() == (x.dim() == 5)
    return x.contiguous(
        memory_format=CHANNELS_LAST[x.dim()] if last else torch.contiguous_format)


def layout_of(x: Tensor, outputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Outputs in the layout of the image that they were computed from, not in the preferred one."""
    return tuple(y.contiguous() for y in outputs) if x.is_contiguous() else tuple(outputs)


class Conv3d(nn.Conv3d):
    """torch's, but single small volumes are convolved as two halves.

    torch gives a batch of one small volume to a kernel that is six times slower than oneDNN's,
    which it takes for a batch of two.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = (self.kernel_size == (3, 3, 3) and self.padding == (1, 1, 1) and self.groups == 1
                 and self.stride == self.dilation == (1, 1, 1) and self.padding_mode == "zeros")
        if plain:
            return conv3x3(x, weight, bias)
        return super()._conv_forward(x, weight, bias)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution by 3 taps along each axis, padding 1, of ``(N, C, *spatial)``."""
    if x.dim() == 4:
        return F.conv2d(x, weight, bias, padding=1)
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and is_small(x):
        return conv_halves(x, weight, bias)
    return F.conv3d(x, weight, bias, padding=1)


def is_small(x: Tensor) -> bool:
    """Whether torch's own rule gives a volume to the slow kernel."""
    return x.shape[0] == 1 and x[0, ..., 0].numel() <= SMALL


def conv_halves(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv3x3` of one volume, as a batch of its two halves along the depth."""
    depth = x.shape[2]
    half = (depth + 1) // 2
    padded = F.pad(x, (0, 0, 0, 0, 1, 1 + depth % 2))
    halves = torch.cat([padded[:, :, :half + 2], padded[:, :, half:]])
    first, second = F.conv3d(halves, weight, bias, padding=(0, 1, 1)).split(1)
    return torch.cat([first, second], dim=2)[:, :, :depth]


class GroupNorm(nn.GroupNorm):
    """torch's, but never in channels_last on CPU, where it adds float32 one by one.

    Over a map of 512x512 that costs four digits, and its backward pass takes four times as long.
    With a group for each channel it is instance normalisation, which torch computes more slowly.
    """

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None,
               eps: float) -> Tensor:
    """What `GroupNorm` computes."""
    if x.device.type != "cpu" or x.is_contiguous():
        return F.group_norm(x, groups, weight, bias, eps)
    y = F.group_norm(x.contiguous(), groups, weight, bias, eps)
    return y.contiguous(memory_format=CHANNELS_LAST[x.dim()])
