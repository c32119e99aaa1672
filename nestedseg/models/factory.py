"""`create`: turns its arguments into a checked configuration, and that into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestedseg.base.errors import text, whole, wholes
from nestedseg.encoders import Options, describe_encoder
from nestedseg.models.config import Config
from nestedseg.models.model import SegmentationModel
from nestedseg.models.sizes import padding
from nestedseg.models.targets import choose_task
from nestedseg.topology.graph import MAX_CHANNELS, Graph, position
from nestedseg.topology.rules import resolve

SUM_WIDTH = 128  # channels of the branch that merges a feature pyramid: Kirillov et al., 2019


def create(
    topology: str | Path | Mapping[str, Any] | Graph,
    encoder: str = "plain",
    *,
    classes: int = 1,
    in_channels: int = 3,
    task: str | None = None,
    encoder_weights: str | Path | bool | None = None,
    depth: int | None = None,
    encoder_channels: Sequence[int] = (32, 64, 128, 256, 512),
    decoder_channels: Sequence[int] | None = None,
    deep_supervision: bool | None = None,
    upsample: str = "nearest",
    norm: str | Mapping[str, Any] | None = "batch",
    activation: str | Mapping[str, Any] = "relu",
    bias: bool = False,
    dropout: float = 0.0,
    dims: int = 2,
    head_kernel: int = 1,
    output: str | int = "deepest",
    image_size: Sequence[int] | None = None,
    stem: bool | int | Sequence[int] = False,
    encoder_taps: Sequence[int] | Sequence[str] | None = None,
    pyramid_channels: Sequence[int] | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    depth_strides: Sequence[int] | None = None,
    execution: str = "fast",
    class_names: Sequence[str] | None = None,
) -> SegmentationModel:
    """A segmentation model: a skip topology compiled over an encoder.

    Source: Zhou et al., UNet++, IEEE TMI 2020, doi:10.1109/TMI.2019.2959609.

    Args:
        topology: "unet", "unet_e", "unet_plus", "unetpp" (or "unet^e", "unet+", "dla", "unet++"),
            "fpn", "fpn_plus", "fpnpp" (feature pyramids, their levels merged), a `Graph`, its
            dict, or the path of a .json file with it.
        encoder: "plain" (the paper's) or any timm model name, tags allowed
            ("resnet152.a1_in1k"); see `nestedseg.list_encoders`.
        classes: channels of the logits.
        in_channels: channels of the images.
        task: "binary" (one class, sigmoid), "multiclass" (softmax; class 0 is usually the
            background) or "multilabel" (sigmoids). Default: binary if ``classes == 1``, else
            multiclass.
        encoder_weights: ``None`` = random; "pretrained" or ``True`` = timm's weights of the name's
            tag, else of its default tag, whatever they were trained on ("imagenet" means the same,
            also where they come from CLIP, DINO or SAM); or the path of a .safetensors file with
            the timm model's state dict.
        depth: L, at most the number of the encoder's levels minus 1, which is the default (plain:
            4). With a graph: the head to prune it to.
        encoder_channels: widths of the plain encoder, finest first.
        decoder_channels: widths of the decoder's rows, finest first. Default: 32, 64, 128, ...;
            over the plain encoder, the encoder's own; for a feature pyramid, 128 throughout.
        deep_supervision: ``True``: all heads of the topology; ``False``: only the deepest.
            Default: only the deepest, except that U-Net^e keeps all, which it needs, and a graph
            keeps the heads it lists.
        upsample: "nearest", "bilinear", "bilinear_corners" (torch's ``align_corners``: the corner
            pixels stay where they are), "bicubic", or "transpose" (a 2x2 transposed convolution,
            the paper's).
        norm: "batch", "instance", "group" (8 groups) or ``None``; or with options, like
            ``{"name": "group", "groups": 4, "eps": 1e-6}`` (batch: ``eps``, ``momentum``).
        activation: "relu", "leaky_relu", "elu", "silu", "mish", "gelu" or "prelu"; or with options,
            like ``{"name": "leaky_relu", "negative_slope": 0.1}`` (elu: ``alpha``).
        bias: whether convolutions before a norm have a bias; convolutions without a norm always
            have one.
        dropout: probability after each activation of the decoder and the plain encoder.
        dims: 2 for images, 3 for volumes. With 3, a timm encoder is made volumetric: its pretrained
            kernels are repeated along depth and divided by the number of repeats (Carreira &
            Zisserman, 2017, arXiv 1705.07750). ``nestedseg.encoder_info(name, dims=3)`` tells
            whether that is possible for an encoder.
        head_kernel: side of the heads' convolutions, odd.
        output: what eval mode returns: "deepest", "ensemble" (logits whose probabilities are the
            mean of all heads') or a depth.
        image_size: (H, W) in pixels, only for encoders that are built for one size (see
            ``any_size`` of `nestedseg.encoder_info`). Default: the encoder's own.
        stem: adds plain convolutional levels at strides 1, 2, ... above the encoder's finest
            level, so that row 0 is at full resolution: ``True`` = 32, 64, ... channels; a number =
            the channels of the finest, doubled at each next one; or the channels of each. Default:
            ``False``: logits are up-sampled from the encoder's finest stride.
        encoder_taps: which of timm's features become levels, by index; or the names of modules of
            the timm model whose outputs ``(N, C, h, w)`` become levels. Default: the deepest
            feature of each stride; for encoders with a single stride, four evenly spaced ones.
        pyramid_channels: channels of the levels (strides 4, 8, 16, 32) that a simple feature
            pyramid makes from an encoder with a single stride (Li et al., ViTDet, 2022,
            arXiv 2203.16527). Default: the encoder's, halved at each doubling of resolution.
        strides: of the plain encoder: the step from each level to the next, one number for each
            axis; for volumes of thick slices ``((1, 2, 2), (2, 2, 2), ...)``. Default: all 2.
        depth_strides: of a timm encoder in 3-D: 1 or 2 for each halving of height and width,
            finest first. ``(1, 1)`` keeps the depth at the first two. Default: 2 throughout.
        execution: how the decoder's nodes are computed: "fast", or "reference" (literal and slower;
            equal up to rounding); see `nestedseg.execution`.
        class_names: the names of the classes; saved with the model.

    Raises:
        ValueError: an unknown name, or numbers that do not fit together.
        GraphError: a malformed topology.
        OSError: encoder weights that cannot be fetched or read.

    Examples:
        >>> import torch
        >>> import nestedseg
        >>> model = nestedseg.create("unetpp", "resnet18", classes=3, in_channels=1)
        >>> model.eval()(torch.rand(2, 1, 100, 75)).shape  # any height and width
        torch.Size([2, 3, 100, 75])

        With deep supervision, training mode gives the logits of every head, shallow -> deep:

        >>> model = nestedseg.create("unetpp", deep_supervision=True)
        >>> [tuple(logits.shape) for logits in model(torch.rand(2, 3, 64, 64))]
        [(2, 1, 64, 64), (2, 1, 64, 64), (2, 1, 64, 64), (2, 1, 64, 64)]
    """
    whole("classes", classes, 1, MAX_CHANNELS)
    sequences: dict[str, Any] = {  # `Options` makes tuples of them
        "encoder_channels": encoder_channels if text("encoder", encoder) == "plain" else None,
        "image_size": image_size, "stem": stem, "encoder_taps": encoder_taps,
        "pyramid_channels": pyramid_channels, "strides": strides, "depth_strides": depth_strides}
    options = Options(encoder, in_channels, dims, **sequences)
    widths = None if decoder_channels is None else wholes(
        "decoder_channels", decoder_channels, 1, MAX_CHANNELS)
    body = describe_encoder(options)
    graph = resolve(topology, depth, len(body.levels) - 1, deep_supervision)
    widths = widths or default_widths(graph, options.encoder_channels)
    multiple, smallest = padding(graph, body, widths, norm)
    config = Config(
        graph=graph, decoder_channels=widths, classes=classes, upsample=upsample, norm=norm,
        activation=activation, bias=bias, dropout=dropout, head_kernel=head_kernel,
        output=output, execution=execution, task=choose_task(task, classes),
        pad_multiple=multiple, pad_smallest=smallest,
        preprocessing=body.preprocessing,
        **vars(options) | {"image_size": body.fixed_size, "class_names": class_names})
    return SegmentationModel.from_config(config, encoder_weights)


def default_widths(graph: Graph, encoder_channels: Sequence[int] | None) -> tuple[int, ...]:
    """The default widths of the decoder's rows, finest first: the plain encoder's, else 32, 64, ...

    In graphs that only add maps up, and never concatenate them, all rows are 128 wide.
    """
    rows = 1 + max(position(name)[0] for name in graph.nodes)
    joins = [node.fuse for node in graph.nodes.values() if len(node.inputs) > 1]
    if set(joins) == {"sum"}:
        return (SUM_WIDTH,) * rows
    default = [32 * 2 ** row for row in range(rows)]
    return tuple([*(encoder_channels or ()), *default[len(encoder_channels or ()):]][:rows])
