"""A 2-D model's modules made 3-D, in place, one rule a class: `CONVERSIONS`.

Kernels are inflated (Carreira & Zisserman, arXiv 1705.07750): each is repeated along depth and
divided by how often, so that on a volume that is the same in every slice, and away from its ends,
the result is that of the 2-D module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm import layers
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.encoders.translate import translated


def convert(module: nn.Module, depth_stride: int | None = None, pretrained: bool = True) -> None:
    """Makes a module 3-D, in place and without its children, if it is of a class that needs it.

    Args:
        depth_stride: by how much it shrinks depth, or enlarges it; default: as it does height.
        pretrained: whether its weights mean something; else they are drawn anew, for a kernel
            whose slices are equal learns to tell them apart only slowly.
    """
    conversion = conversion_of(module)
    if conversion is not None:
        conversion(module, depth_stride, pretrained)


def conversion_of(module: nn.Module) -> Callable[..., None] | None:
    """The rule of its class, or of the one whose forward it inherits."""
    for cls in type(module).__mro__:
        if cls in CONVERSIONS:
            return CONVERSIONS[cls] if type(module).forward is cls.forward else None
    return None


# A rule's ``module`` is Any: it is of a class in `CONVERSIONS`, whose attributes nn.Module lacks.

# -- kernels ---------------------------------------------------------------------------------------


def depth_kernel(kernel: int, padding: int, dilation: int, stride: int, depth_stride: int) -> int:
    """The kernel along depth: as along height, or where depth is strided less, no longer than fits.

    With padding p and dilation d, n slices give n / s if d (k - 1) lies in [2 p, 2 p + s - 1].
    Kernels that overlap without padding find it before them, or do without it on purpose.
    """
    if depth_stride >= stride or (padding == 0 and kernel > stride):
        return kernel
    return min(kernel, 1 + (2 * padding + depth_stride - 1) // dilation)


def inflate(weight: Tensor, kernel: int) -> Tensor:
    """``(out, in, h, w)`` -> ``(out, in, kernel, h, w)``, with the same sum."""
    return (weight / kernel).unsqueeze(2).repeat(1, 1, kernel, 1, 1)


def redraw(weight: Tensor, kernel: int) -> Tensor:
    """Random weights of that shape, their spread that of the 2-D ones, less for more summands."""
    if kernel == 1:
        return inflate(weight, kernel)
    spread = weight.std(correction=0) / kernel ** 0.5
    return torch.randn_like(inflate(weight, kernel)) * spread + weight.mean()


def pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def sizes_of(module: Any, depth_stride: int | None) -> None:
    """Kernel, stride, padding and dilation along three axes, depth's being the shorter side's."""
    kernel, stride = pair(module.kernel_size), pair(module.stride)
    padding, dilation = pair(module.padding), pair(getattr(module, "dilation", 1))
    short = kernel.index(min(kernel))
    step = stride[short] if depth_stride is None else depth_stride
    deep = kernel[short]
    if not getattr(module, "same_pad", False) and not isinstance(module, SAME):
        deep = depth_kernel(deep, padding[short], dilation[short], stride[short], step)
    module.kernel_size, module.stride = (deep, *kernel), (step, *stride)
    module.padding = (padding[short], *padding)
    if hasattr(module, "dilation"):
        module.dilation = (dilation[short], *dilation)


def convert_conv(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return  # its forward then fails on a volume, which names it
    sizes_of(module, depth_stride)
    fill = inflate if pretrained else redraw
    with torch.no_grad():
        weight = fill(module.weight, module.kernel_size[0])
    module.weight = nn.Parameter(weight, module.weight.requires_grad)
    module._reversed_padding_repeated_twice = [p for p in reversed(module.padding) for _ in (0, 1)]
    module.__class__ = Conv3dSame if isinstance(module, layers.Conv2dSame) else nn.Conv3d


def convert_standardised(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    sizes_of(module, depth_stride)
    kernel = module.kernel_size[0]
    module.weight = nn.Parameter(inflate(module.weight.detach() * kernel, kernel),
                                 module.weight.requires_grad)
    module.scale = getattr(module, "scale", 1.0) / kernel
    module.__class__ = StandardisedConv3d


def convert_pool(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    sizes_of(module, depth_stride)
    module.__class__ = next(POOLS[cls] for cls in type(module).__mro__ if cls in POOLS)


def convert_blur(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    """Blurs depth too, where it makes it coarser."""
    step = module.stride if depth_stride is None else depth_stride
    if step > 1:
        along = module.filt[0, 0].sum(1)
        module.filt = along.view(1, 1, -1, 1, 1) * module.filt.unsqueeze(2)
        module.padding = [*module.padding, *module.padding[:2]]
    else:
        module.filt = module.filt.unsqueeze(2)
        module.padding = [*module.padding, 0, 0]
    module.stride = (step, *pair(module.stride))
    module.__class__ = BlurPool3d


def convert_upsample(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    factor = pair(module.scale_factor)
    module.scale_factor = (factor[0] if depth_stride is None else float(depth_stride), *factor)
    module.__class__ = translated(nn.Upsample)


def becomes(cls: type[nn.Module]) -> Callable[..., None]:
    """The rule for a class whose content stays as it is."""
    def convert_class(module: Any, depth_stride: int | None, pretrained: bool) -> None:
        module.__class__ = cls
    return convert_class


# -- what timm has in 2-D alone --------------------------------------------------------------------


def pad_same(x: Tensor, module: Any, value: float = 0.0) -> Tensor:
    """TensorFlow's padding, such that n voxels give n / stride, rounded up."""
    dilation = pair(getattr(module, "dilation", 1))
    sides: list[int] = []
    for n, k, s, d in zip(x.shape[2:], module.kernel_size, module.stride,
                          dilation if len(dilation) == 3 else (1, 1, 1)):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        sides = [total // 2, total - total // 2, *sides]
    return F.pad(x, sides, value=value)


class Conv3dSame(nn.Conv3d):
    """A convolution with TensorFlow's padding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self))


class MaxPool3dSame(nn.MaxPool3d):
    """Max pooling with TensorFlow's padding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self, -float("inf")))


class AvgPool3dSame(nn.AvgPool3d):
    """Average pooling with TensorFlow's padding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, self))


class StandardisedConv3d(nn.Conv3d):
    """Weight standardisation (arXiv 1903.10520), with a gain where it is scaled (2101.08692)."""

    eps: float
    scale: float
    gain: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "same_pad", False):
            x = pad_same(x, self)
        scale = self.weight.new_full((self.out_channels,), self.scale)
        if hasattr(self, "gain"):
            scale = scale * self.gain.flatten()
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, scale,
                              training=True, momentum=0.0, eps=self.eps)
        return self._conv_forward(x, weight.view_as(self.weight), self.bias)


class BlurPool3d(nn.Module):
    """Anti-aliasing (arXiv 1904.11486): a binomial filter, then every other voxel."""

    filt: Tensor
    padding: list[int]
    pad_mode: str
    stride: tuple[int, int, int]

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.padding, mode=self.pad_mode)
        weight = self.filt.expand(x.shape[1], *self.filt.shape[1:])
        return F.conv3d(x, weight, stride=self.stride, groups=x.shape[1])


class BatchNormAct3d(layers.BatchNormAct2d):
    """Batch norm, then an activation."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(nn.BatchNorm3d.forward(self, x)))


SAME = (layers.Conv2dSame, MaxPool2dSame, layers.AvgPool2dSame)
POOLS = {nn.MaxPool2d: nn.MaxPool3d, nn.AvgPool2d: nn.AvgPool3d,
         MaxPool2dSame: MaxPool3dSame, layers.AvgPool2dSame: AvgPool3dSame}

CONVERSIONS: dict[type[nn.Module], Callable[..., None]] = {
    nn.Conv2d: convert_conv,
    layers.Conv2dSame: convert_conv,
    layers.StdConv2d: convert_standardised,
    layers.StdConv2dSame: convert_standardised,
    layers.ScaledStdConv2d: convert_standardised,
    layers.ScaledStdConv2dSame: convert_standardised,
    **dict.fromkeys(POOLS, convert_pool),
    layers.BlurPool2d: convert_blur,
    nn.Upsample: convert_upsample,
    nn.BatchNorm2d: becomes(nn.BatchNorm3d),
    layers.BatchNormAct2d: becomes(BatchNormAct3d),
    nn.InstanceNorm2d: becomes(nn.InstanceNorm3d),
    nn.Dropout2d: becomes(nn.Dropout3d),
}
