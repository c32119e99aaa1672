"""3-D counterparts of layers that timm has in 2-D alone.

Each is a subclass of timm's layer with a forward for volumes, ``(N, C, D, H, W)``. A layer of a
model becomes one by a change of its class, so its parameters keep their names.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from timm import layers
from timm.layers.grn import GlobalResponseNorm
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
from timm.models._manipulate import checkpoint_seq
from torch import Tensor, nn
from torch.nn import functional as F

SPACE = (2, 3, 4)  # the axes of depth, height and width


def per_channel(values: Tensor) -> Tensor:
    """``(C,)`` -> ``(C, 1, 1, 1)``, which is broadcast over a volume."""
    return values.view(-1, 1, 1, 1)


# -- convolution and pooling -----------------------------------------------------------------------


def pad_same(x: Tensor, module: Any, value: float = 0.0) -> Tensor:
    """TensorFlow's padding, such that n voxels give n / stride, rounded up."""
    dilation = getattr(module, "dilation", 1)
    sides: list[int] = []
    for n, k, s, d in zip(x.shape[2:], module.kernel_size, module.stride,
                          dilation if isinstance(dilation, tuple) else (dilation,) * 3):
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


# -- layers that look at single positions, or at all of them ---------------------------------------


class DepthAsHeight(nn.Module):
    """Before a 2-D layer: the volume is an image to it, whose slices lie below each other.

    That is right for layers to which the places of pixels mean nothing, whether channels come
    first or last: norms of each pixel, scales of each channel, statistics of all pixels, attention
    without positions.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2, 3)).unflatten(2, x.shape[2:4])


class LayerNorm3d(DepthAsHeight, layers.LayerNorm2d):
    """Layer norm over the channels of each voxel."""


class RmsNorm3d(DepthAsHeight, layers.RmsNorm2d):
    """The same with the root mean square alone."""


class SimpleNorm3d(DepthAsHeight, layers.SimpleNorm2d):
    """The same with the variance alone."""


class GlobalResponseNorm3d(DepthAsHeight, GlobalResponseNorm):
    """Channels compete by their norms over all voxels (ConvNeXt V2, arXiv 2301.00808)."""


class LayerScale3d(DepthAsHeight, layers.LayerScale2d):
    """A factor for each channel."""


class FastVitLayerScale3d(DepthAsHeight, fastvit.LayerScale2d):
    """A factor for each channel."""


class Eca3d(DepthAsHeight, layers.EcaModule):
    """Efficient channel attention (arXiv 1910.03151)."""


class FastVitAttention3d(DepthAsHeight, fastvit.Attention):
    """Attention over all voxels."""


# -- gates from global pooling ---------------------------------------------------------------------


def pooled(x: Tensor, add_maxpool: bool) -> Tensor:
    """The mean over all voxels, or what lies halfway between it and the maximum."""
    mean = x.mean(SPACE, keepdim=True)
    return 0.5 * mean + 0.5 * x.amax(SPACE, keepdim=True) if add_maxpool else mean


class SEModule3d(layers.SEModule):
    """Squeeze and excitation (arXiv 1709.01507)."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.fc1(pooled(x, self.add_maxpool))))
        return x * self.gate(self.fc2(y))


class EffectiveSEModule3d(layers.EffectiveSEModule):
    """The same with one convolution (arXiv 1911.06667)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc(pooled(x, self.add_maxpool)))


class SqueezeExcite3d(_efficientnet_blocks.SqueezeExcite):
    """Squeeze and excitation, as in EfficientNets."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.conv_reduce(x.mean(SPACE, keepdim=True)))
        return x * self.gate(self.conv_expand(y))


class LegacySEModule3d(senet.SEModule):
    """Squeeze and excitation, as in SENets."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(x.mean(SPACE, keepdim=True)))))


class EseModule3d(hgnet.EseModule):
    """Squeeze and excitation with one convolution, as in HGNets."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(self.conv(x.mean(SPACE, keepdim=True)))


class GlobalContext3d(layers.GlobalContext):
    """Pooling by attention, whose result is a gate and a bias (arXiv 1904.11492)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_attn is None:
            context = x.mean(SPACE, keepdim=True)
        else:
            attention = self.conv_attn(x).flatten(2).softmax(-1)  # (N, 1, voxels)
            context = (x.flatten(2) @ attention.transpose(1, 2)).view(*x.shape[:2], 1, 1, 1)
        if self.mlp_scale is not None:
            x = x * self.gate(self.mlp_scale(context))
        if self.mlp_add is not None:
            x = x + self.mlp_add(context)
        return x


class SelectiveKernelAttn3d(SelectiveKernelAttn):
    """The weights of paths ``(N, paths, C, D, H, W)`` (arXiv 1903.06586)."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn(self.fc_reduce(x.sum(1).mean(SPACE, keepdim=True))))
        return self.fc_select(y).unflatten(1, (self.num_paths, -1)).softmax(1)


class SplitAttn3d(layers.SplitAttn):
    """Attention over the splits of a convolution (ResNeSt, arXiv 2004.08955)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act0(self.drop(self.bn0(self.conv(x))))
        paths = x.unflatten(1, (self.radix, -1))
        y = paths.sum(1).mean(SPACE, keepdim=True)
        y = self.fc2(self.act1(self.bn1(self.fc1(y))))
        weights = self.rsoftmax(y).view(len(x), self.radix, -1, 1, 1, 1)
        return (paths * weights).sum(1)


class FocalModulation3d(focalnet.FocalModulation):
    """Context from ever larger neighbourhoods, gated (FocalNet, arXiv 2203.11926)."""

    def forward(self, x: Tensor) -> Tensor:
        query, context, gates = self.f(x).split(self.input_split, 1)
        total: Any = 0
        for level, layer in enumerate(self.focal_layers):
            context = layer(context)
            total = total + context * gates[:, level:level + 1]
        everywhere = self.act(context.mean(SPACE, keepdim=True))
        total = total + everywhere * gates[:, self.focal_level:]
        if self.normalize_modulator:
            total = total / (self.focal_level + 1)
        return self.proj_drop(self.proj(self.norm(query * self.h(total))))


# -- blocks ----------------------------------------------------------------------------------------


class ConvNeXtBlock3d(convnext.ConvNeXtBlock):
    """ConvNeXt's block (arXiv 2201.03545)."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x)
        if self.use_conv_mlp:
            y = self.mlp(self.norm(y))
        else:
            y = self.mlp(self.norm(y.movedim(1, -1))).movedim(-1, 1)
        if self.gamma is not None:
            y = y * per_channel(self.gamma)
        return self.drop_path(y) + self.shortcut(x)


class MetaNeXtBlock3d(inception_next.MetaNeXtBlock):
    """InceptionNeXt's block (arXiv 2303.16900)."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.token_mixer(x)))
        if self.gamma is not None:
            y = y * per_channel(self.gamma)
        return self.drop_path(y) + x


class DenseBlock3d(rdnet.DenseBlock):
    """RDNet's block (arXiv 2403.19588)."""

    def forward(self, x: list[Tensor]) -> Tensor:
        y = self.layers(torch.cat(x, 1))
        if self.gamma is not None:
            y = y * per_channel(self.gamma)
        return F.dropout(self.drop_path(y), self.drop_rate, self.training)


class MetaFormerStage3d(metaformer.MetaFormerStage):
    """A stage whose blocks see a volume, or with attention a set of voxels (arXiv 2210.13452)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        y = x if self.use_nchw else x.flatten(2).transpose(1, 2)
        y = checkpoint_seq(self.blocks, y) if self.grad_checkpointing else self.blocks(y)
        return y if self.use_nchw else y.transpose(1, 2).unflatten(2, x.shape[2:])


class LiteMLA3d(efficientvit_mit.LiteMLA):
    """Linear attention over all voxels, at several scales (EfficientViT, arXiv 2205.14756)."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x)
        y = torch.cat([y, *(scale(y) for scale in self.aggreg)], 1)
        y = y.flatten(2).unflatten(1, (-1, 3 * self.dim)).transpose(2, 3)
        query, key, value = y.chunk(3, -1)
        query, key = self.kernel_func(query), self.kernel_func(key)
        value = F.pad(value, (0, 1), value=1.0)
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            y = self._attn(query, key, value)
        return self.proj(y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


class HGNetStem3d(hgnet.StemV2):
    """The stem of HGNetV2; its even kernels are padded at one end."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.stem1(x), (0, 1) * 3)
        y = self.stem2b(F.pad(self.stem2a(x), (0, 1) * 3))
        return self.stem4(self.stem3(torch.cat([self.pool(x), y], 1)))
