"""Layers for which torch, on CPU, does not choose its fastest or most accurate kernel by itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.decoder.untouched import bypassed

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by axes
SMALL = 20_480  # torch's own limit, in elements of a volume without its last axis; see `is_small`


def preferred_layout(x: Tensor) -> Tensor:
    """The input in the memory layout that is faster on a CPU; on other devices as it is.

    Images: channels_last for inference, where transposed convolutions are faster in it and other
    convolutions as fast; contiguous for training, because the gradient of a weight is much slower
    in channels_last. Volumes: the reverse, because there that gradient is faster in channels_last.
    """
    if x.device.type != "cpu" or x.dim() not in CHANNELS_LAST or torch.jit.is_tracing():
        return x  # a trace is checked without gradients, and must be the same then
    last = torch.is_grad_enabled() == (x.dim() == 5)
    return x.contiguous(
        memory_format=CHANNELS_LAST[x.dim()] if last else torch.contiguous_format)


def layout_of(x: Tensor, outputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Outputs in the memory layout of the image ``x``, whatever layout was used in between."""
    return tuple(y.contiguous() for y in outputs) if x.is_contiguous() else tuple(outputs)


@bypassed
class Conv3d(nn.Conv3d):
    """torch's 3-D convolution, except that a batch of one small volume is convolved as two halves.

    For such a batch torch uses a kernel of its own that is several times slower than oneDNN's,
    which it uses for a batch of two.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plain = (self.kernel_size == (3, 3, 3) and self.padding == (1, 1, 1) and self.groups == 1
                 and self.stride == self.dilation == (1, 1, 1) and self.padding_mode == "zeros")
        if plain:
            return conv3x3(x, weight, bias)
        return super()._conv_forward(x, weight, bias)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution with a kernel of 3 along each axis and padding 1, of ``(N, C, *spatial)``."""
    if x.dim() == 4:
        return F.conv2d(x, weight, bias, padding=1)
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and is_small(x):
        return conv_halves(x, weight, bias)
    return F.conv3d(x, weight, bias, padding=1)


def is_small(x: Tensor) -> bool:
    """Whether torch's own rule would use its slow kernel for this volume."""
    return x.shape[0] == 1 and x[0, ..., 0].numel() <= SMALL


def conv_halves(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv3x3` of one volume, as a batch of its two halves along the depth."""
    depth = x.shape[2]
    half = (depth + 1) // 2
    padded = F.pad(x, (0, 0, 0, 0, 1, 1 + depth % 2))
    halves = torch.cat([padded[:, :, :half + 2], padded[:, :, half:]])
    first, second = F.conv3d(halves, weight, bias, padding=(0, 1, 1)).split(1)
    return torch.cat([first, second], dim=2)[:, :, :depth]


@bypassed
class GroupNorm(nn.GroupNorm):
    """torch's group normalisation, but computed on contiguous maps on a CPU.

    In channels_last torch adds up the float32 values of a map one by one there, which loses digits
    on large maps, and its backward pass is slower. With one group for each channel this is instance
    normalisation, and faster than torch's own.
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
