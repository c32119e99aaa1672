"""The modules of a 2-D model made 3-D, in place: `CONVERSIONS` has a rule for each class of layer.

Kernels are inflated (Carreira & Zisserman, arXiv 1705.07750): each is repeated along depth and
divided by how often, so that on a volume that is the same in every slice, and away from its ends,
the result is that of the 2-D module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm import layers
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.selective_kernel import SelectiveKernelAttn
from timm.models import (
    _efficientnet_blocks,
    convnext,
    efficientvit_mit,
    fastvit,
    focalnet,
    hgnet,
    inception_next,
    metaformer,
    rdnet,
    senet,
)
from torch import Tensor, nn

from nestedseg.encoders.to_3d import layers as layers_3d


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


def convert_all(model: nn.Module, depth_strides: Mapping[str, int] | None = None,
                pretrained: bool = True) -> nn.Module:
    """Makes a model 3-D, in place; ``depth_strides`` are those of some modules, by path."""
    for path, module in model.named_modules():
        convert(module, (depth_strides or {}).get(path), pretrained)
    return model


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


def counterpart(module: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]]
                ) -> type[nn.Module]:
    """The 3-D class for a module of one of these classes, or of a subclass."""
    return next(classes[cls] for cls in type(module).__mro__ if cls in classes)


def convert_conv(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return  # its forward then fails on a volume, which names it
    sizes_of(module, depth_stride)
    fill = inflate if pretrained else redraw
    with torch.no_grad():
        weight = fill(module.weight, module.kernel_size[0])
    module.weight = nn.Parameter(weight, module.weight.requires_grad)
    module._reversed_padding_repeated_twice = [p for p in reversed(module.padding) for _ in (0, 1)]
    module.__class__ = layers_3d.Conv3dSame if isinstance(module, layers.Conv2dSame) else nn.Conv3d


def convert_standardised(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    sizes_of(module, depth_stride)
    kernel = module.kernel_size[0]
    module.weight = nn.Parameter(inflate(module.weight.detach() * kernel, kernel),
                                 module.weight.requires_grad)
    module.scale = getattr(module, "scale", 1.0) / kernel
    module.__class__ = layers_3d.StandardisedConv3d


def convert_pool(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    sizes_of(module, depth_stride)
    module.__class__ = counterpart(module, POOLS)


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
    module.__class__ = layers_3d.BlurPool3d


def convert_upsample(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    factor = pair(module.scale_factor)
    module.scale_factor = (factor[0] if depth_stride is None else float(depth_stride), *factor)
    module.mode = MODES.get(module.mode, module.mode)


def convert_pad(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    """Pads both ends of depth as it pads top and bottom."""
    module.padding = (*module.padding, *module.padding[2:])
    module.__class__ = counterpart(module, PADS)


def convert_scale(module: Any, depth_stride: int | None, pretrained: bool) -> None:
    """Its factors are laid out as ``(C, 1, 1, 1)``, where they were as ``(C, 1, 1)``."""
    if len(module.shape) > 1:
        module.shape = (*module.shape, 1)


def becomes(cls: type[nn.Module]) -> Callable[..., None]:
    """The rule for a class whose content stays as it is."""
    def convert_class(module: Any, depth_stride: int | None, pretrained: bool) -> None:
        module.__class__ = cls
    return convert_class


SAME = (layers.Conv2dSame, MaxPool2dSame, layers.AvgPool2dSame)
POOLS = {nn.MaxPool2d: nn.MaxPool3d, nn.AvgPool2d: nn.AvgPool3d,
         MaxPool2dSame: layers_3d.MaxPool3dSame, layers.AvgPool2dSame: layers_3d.AvgPool3dSame}
PADS = {nn.ConstantPad2d: nn.ConstantPad3d, nn.ZeroPad2d: nn.ZeroPad3d}
MODES = {"bilinear": "trilinear"}

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
    **dict.fromkeys(PADS, convert_pad),
    metaformer.Scale: convert_scale,
} | {cls: becomes(cls_3d) for cls, cls_3d in {
    nn.BatchNorm2d: nn.BatchNorm3d,
    nn.InstanceNorm2d: nn.InstanceNorm3d,
    nn.Dropout2d: nn.Dropout3d,
    layers.BatchNormAct2d: layers_3d.BatchNormAct3d,
    layers.LayerNorm2d: layers_3d.LayerNorm3d,
    layers.RmsNorm2d: layers_3d.RmsNorm3d,
    layers.SimpleNorm2d: layers_3d.SimpleNorm3d,
    GlobalResponseNorm: layers_3d.GlobalResponseNorm3d,
    layers.LayerScale2d: layers_3d.LayerScale3d,
    fastvit.LayerScale2d: layers_3d.FastVitLayerScale3d,
    layers.EcaModule: layers_3d.Eca3d,
    fastvit.Attention: layers_3d.FastVitAttention3d,
    layers.SEModule: layers_3d.SEModule3d,
    layers.EffectiveSEModule: layers_3d.EffectiveSEModule3d,
    _efficientnet_blocks.SqueezeExcite: layers_3d.SqueezeExcite3d,
    senet.SEModule: layers_3d.LegacySEModule3d,
    hgnet.EseModule: layers_3d.EseModule3d,
    layers.GlobalContext: layers_3d.GlobalContext3d,
    SelectiveKernelAttn: layers_3d.SelectiveKernelAttn3d,
    layers.SplitAttn: layers_3d.SplitAttn3d,
    focalnet.FocalModulation: layers_3d.FocalModulation3d,
    convnext.ConvNeXtBlock: layers_3d.ConvNeXtBlock3d,
    inception_next.MetaNeXtBlock: layers_3d.MetaNeXtBlock3d,
    rdnet.DenseBlock: layers_3d.DenseBlock3d,
    metaformer.MetaFormerStage: layers_3d.MetaFormerStage3d,
    efficientvit_mit.LiteMLA: layers_3d.LiteMLA3d,
    hgnet.StemV2: layers_3d.HGNetStem3d,
}.items()}
