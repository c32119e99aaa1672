"""`create` and the model: encoder, compiled decoder, and what is done with their logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg import export, shards
from nestedseg.checkpointing import set_checkpointing
from nestedseg.compiler import Decoder, build_decoder, infer_levels
from nestedseg.config import Config, check_output
from nestedseg.encoders import Description, Encoder, Options, build_encoder, describe_encoder
from nestedseg.errors import wholes
from nestedseg.finetune import batch_norms, parameter_groups
from nestedseg.fuse import fold_batch_norms, fuse_decoder
from nestedseg.graph import MAX_CHANNELS, Graph, position
from nestedseg.kernels import layout_of
from nestedseg.layers import Choice, resize_logits, split_choice
from nestedseg.publish import push
from nestedseg.summary import Summary, summarise
from nestedseg.targets import Task, choose_task
from nestedseg.topologies import resolve

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

MAX_PAD = 4096  # pixels, for models that others made
SUM_WIDTH = 128  # that of the branch that merges a feature pyramid: Kirillov et al., 2019


class SegmentationModel(nn.Module):
    """A skip topology over an encoder. Made by `nestedseg.create`.

    ``model(x)`` gives logits of the size of ``x``, see `forward`. For loops of one's own
    ``model.task`` says which loss fits; `predict` gives probabilities.

    Attributes:
        encoder: the encoder module.
        decoder: the decoder; ``print(model.decoder.code)`` shows its forward pass.
    """

    def __init__(self, config: Config, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self._config = config
        self.encoder = encoder
        self.decoder = decoder
        self.output = config.output
        self._norms_frozen = False
        if config.fused:
            self.requires_grad_(False).eval()

    # -- what it is ---------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """All that is needed to rebuild the model, as JSON-able values."""
        return replace(self._config, output=self.output).to_dict()

    @property
    def graph(self) -> Graph:
        """The skip topology."""
        return self._config.graph

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that have a head, shallow -> deep."""
        return self.graph.depths

    @property
    def task(self) -> Task:
        """ "binary", "multiclass" or "multilabel"."""
        return self._config.task

    @property
    def classes(self) -> int:
        """Channels of the logits."""
        return self._config.classes

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `nestedseg.preprocess` does to an image for this model."""
        return self._config.preprocessing

    def set_preprocessing(self, **values: Any) -> None:
        """Records other preprocessing, say the training set's ``mean`` and ``std``.

        Args:
            values: those that change. ``mean`` and ``std`` of each channel and ``input_range``
                (low, high), see `nestedseg.preprocess`; ``size`` ``(H, W)`` or ``(D, H, W)`` in
                pixels, that summaries and exports take; ``interpolation``, a word for who resizes;
                ``standardise``, by each image's own mean and std; ``spacing`` along D, H, W in mm,
                that volumes are resampled to.

        Raises:
            ValueError: an unknown key or an impossible value.
        """
        self._config = replace(self._config, preprocessing=self.preprocessing | values)

    @property
    def output(self) -> str | int:
        """What eval mode returns: "deepest", "ensemble" or a depth. May be assigned.

        The ensemble's logits are those whose probabilities are the mean of all heads'.

        Raises:
            ValueError: on assignment, none of these.
        """
        return self._output

    @output.setter
    def output(self, output: str | int) -> None:
        check_output(output, self.graph)
        self._output = output
        self.decoder.program(self._output_depths())  # compiled now, not in somebody's first trace

    def _output_depths(self) -> tuple[int, ...]:
        if isinstance(self.output, int):
            return (self.output,)
        return self.depths if self.output == "ensemble" else self.depths[-1:]

    # -- forward ------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The logits.

        Args:
            x: ``(N, in_channels, H, W)``, in 3-D ``(N, in_channels, D, H, W)``, of floats as
                `nestedseg.preprocess` gives them. Any size, unless the encoder is built for one.

        Returns:
            ``(N, classes, *spatial)``, of the size of ``x``. In training mode a model with several
            heads gives a tuple of them, shallow -> deep; in eval mode `output` says which one.

        Raises:
            ValueError: another shape, or a batch in training with one value for a batch norm.
            TypeError: no tensor of floats.
        """
        if self.training:
            logits = self._logits(x, self.depths)
            return logits if len(logits) > 1 else logits[0]
        logits = self._logits(x, self._output_depths())
        return logits[0] if len(logits) == 1 else ensemble(logits, self.task)

    def forward_heads(self, x: Tensor) -> dict[int, Tensor]:
        """The logits of every head, by depth, each ``(N, classes, *spatial)``.

        Args:
            x: as of `forward`.
        """
        return dict(zip(self.depths, self._logits(x, self.depths)))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Probabilities ``(N, classes, *spatial)`` of ``model.output``, computed in eval mode.

        A sigmoid or, of "multiclass", a softmax of the logits; without gradients.

        Args:
            x: as of `forward`.
        """
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            return probabilities(self(x), self.task)
        finally:  # each module as it was: parts of the model may be frozen
            for module in training:
                module.training = True

    def _logits(self, x: Tensor, depths: tuple[int, ...]) -> tuple[Tensor, ...]:
        self._check_input(x)
        size = x.shape[2:]
        logits = self.decoder(self.encoder(self._pad(x)), depths)
        strides = [self.decoder.strides[self.graph.head(depth)] for depth in depths]
        return layout_of(x, (crop(y, size) for y in resize_all(logits, strides)))

    def _pad(self, x: Tensor) -> Tensor:
        return pad(x, self._config.pad_multiple, self._config.pad_smallest)

    def _check_input(self, x: Tensor) -> None:
        config = self._config
        axes = ("N", str(config.in_channels), "D", "H", "W")[:2] + ("D", "H", "W")[-config.dims:]
        expected = f"({', '.join(axes)})"
        if not isinstance(x, Tensor):
            raise TypeError(f"expected a float tensor {expected}, got {type(x).__name__}")
        given = tuple(x.shape)
        if x.dim() != config.dims + 2 or x.shape[1] != config.in_channels:
            raise ValueError(f"expected an input of shape {expected}, got {given}")
        if not x.is_floating_point():
            raise TypeError(f"expected a float tensor {expected}, got {x.dtype}; "
                            "nestedseg.preprocess makes one from an image")
        if any(n < 1 for n in given):
            raise ValueError(f"expected an input of shape {expected}, each axis >= 1, got {given}")
        if config.image_size is not None and given[2:] != config.image_size:
            height, width = given[2:]
            raise ValueError(
                f"encoder {config.encoder!r} is built for images of {config.image_size}, got "
                f"{given[2:]}: create the model with image_size=({height}, {width}), or resize")
        if self.training and self._has_batch_norm() and self._single_value(x):
            raise ValueError(
                f"training with batch normalisation on an input of shape {given}: the deepest "
                "feature has one value per channel, which has no variance. Use a batch of two or "
                f"more, an image larger than {self._deepest_stride}, or norm='group'")

    @property
    def _deepest_stride(self) -> tuple[int, ...]:
        strides = [*(level.stride for level in self.encoder.levels), *self.decoder.strides.values()]
        return tuple(map(max, zip(*strides)))

    def _single_value(self, x: Tensor) -> bool:
        return x.shape[0] == 1 and all(n <= m for n, m in zip(x.shape[2:], self._deepest_stride))

    def _has_batch_norm(self) -> bool:
        return any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
                   for module in self.modules())

    # -- training aids ------------------------------------------------------------------------

    def train(self, mode: bool = True) -> SegmentationModel:
        """Training or eval mode; frozen batch norms of the encoder stay in eval mode.

        Raises:
            RuntimeError: training of a fused model.
        """
        if mode and self._config.fused:
            raise RuntimeError("a fused model is for inference alone: train the model that it was "
                               "made from, and fuse that again")
        super().train(mode)
        if self._norms_frozen:
            for norm in batch_norms(self.encoder):
                norm.eval()
        return self

    def freeze_encoder(self, bn_too: bool = True) -> None:
        """Keeps the encoder's weights as they are in training.

        Args:
            bn_too: also keep the running statistics of its batch norms.
        """
        self.encoder.requires_grad_(False)
        self._norms_frozen = bn_too
        self.train(self.training)

    def unfreeze_encoder(self) -> None:
        """Trains the encoder again, its batch norms included."""
        self.encoder.requires_grad_(True)
        self._norms_frozen = False
        self.train(self.training)

    def parameter_groups(self, lr: float, encoder_lr_scale: float = 1.0,
                         weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for an optimiser; norms and biases do not decay, frozen weights are left out.

        Args:
            lr: learning rate of the decoder.
            encoder_lr_scale: the encoder's, as a multiple of it.
            weight_decay: of convolutions and matrices.

        Raises:
            ValueError: a number out of bounds.
        """
        return parameter_groups(self, lr, encoder_lr_scale, weight_decay)

    def set_grad_checkpointing(self, enable: bool = True, encoder: bool = True) -> None:
        """Trades time for memory in training: maps inside nodes and blocks are computed twice.

        Args:
            enable: on or off.
            encoder: the encoder too, by timm's own means where it is a timm model.

        Raises:
            ValueError: the timm model has none; say ``encoder=False``.
        """
        if encoder:
            self.encoder.set_grad_checkpointing(enable)
        set_checkpointing(map(self.decoder.node, self.graph.nodes), enable)

    # -- other models from this one -----------------------------------------------------------

    def prune(self, depth: int) -> SegmentationModel:
        """The model that ends in the head of this depth (the paper's L^depth), with own weights.

        Every decoder node, head and encoder stage that the head does not need is gone. In eval
        mode its output equals ``forward_heads(x)[depth]`` of this model.

        Raises:
            GraphError: there is no head at this depth; train with ``deep_supervision=True``.
        """
        config = self._config.prune(depth)
        encoder = copy.deepcopy(self.encoder).keep(config.graph.levels)
        model = SegmentationModel(config, encoder, self.decoder.prune(depth))
        model._norms_frozen = self._norms_frozen
        return model.train(self.training)

    def fuse(self, dtype: torch.dtype | None = None,
             memory_format: torch.memory_format | None = None,
             compile: bool = False) -> SegmentationModel:
        """A copy for inference alone, with the same outputs up to rounding.

        Batch norms are folded into the convolutions before them (in the encoder: where autograd's
        graph proves that nothing else reads those), and each node's first convolution is taken
        apart and composed with the up-sampling of its inputs, once and for all.

        Args:
            dtype: of its weights, and so of the images it takes; default: as they are.
            memory_format: of its weights; default: as they are. ``torch.channels_last`` is the
                faster one on most devices.
            compile: also by ``torch.compile``, on the first image of each size. Call it within
                ``torch.no_grad()``: on a CPU the weights are then laid out for its convolutions.
        """
        model, before = copy.deepcopy(self).eval(), next(self.parameters()).dtype
        if not self._config.fused:
            model.to(torch.promote_types(before, torch.float32))  # halves would lose digits
            config = replace(self._config, output=self.output, fused=True)
            model = SegmentationModel(config, *fuse_parts(model))
        model.to(dtype=dtype or before)
        if memory_format is not None:
            model.to(memory_format=memory_format)
        if compile:
            model.compile(options={"freezing": True})
        return model

    def summary(self, size: int | Sequence[int] | None = None) -> Summary:
        """Parameters, MACs and output stride of the model pruned to each depth.

        Args:
            size: ``(H, W)`` or ``(D, H, W)`` in pixels, or one number for all axes; default: the
                preprocessing's size, else 256 (2-D) or 64 (3-D).
        """
        return summarise(self, size)

    def export(
        self,
        path: str | Path,
        format: str = "onnx",
        depth: int | None = None,
        ensemble: bool = False,
        dynamic: Sequence[str] | None = None,
        probabilities: bool = False,
        half: bool = False,
    ) -> None:
        """Writes the model as one file that runs without this library.

        It takes float32 ``image`` ``(N, in_channels, *spatial)``, padded inside to what the encoder
        divides, and gives float32 ``logits`` or ``probabilities`` of its size. What is written is
        the fused form (see `fuse`) in eval mode, of the head that is asked for. The file says how
        the image must be scaled, and what the classes are called. It appears when it is complete.

        Args:
            path: ends in .onnx or .pt2, as the format is.
            format: "onnx", or "torch", a program for `torch.export.load`.
            depth: which head's; default: what `output` says.
            ensemble: the mean of all heads instead.
            dynamic: which axes may have any length: "batch", "height", "width", and "depth" in
                3-D. Default: all; "batch" alone where the encoder is built for one size. The others
                keep one image, of ``preprocessing["size"]``, else of 256 (2-D) or 64 (3-D).
            probabilities: a softmax or sigmoid after the logits.
            half: weights and arithmetic in float16.

        Raises:
            ValueError: an unknown name, or what a file of this format cannot be.
            GraphError: there is no head at this depth.
            ImportError: the extra "export" is not installed.
        """
        export.write(self, Path(path), format, depth, ensemble, dynamic, probabilities, half)

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes ``config.json`` and the weights, which `from_pretrained` reads.

        The weights are ``model.safetensors``; of several heads, one file for each depth and their
        index. They replace an earlier model's, all at once: killed at any moment, the folder holds
        the old model or the new one.

        Args:
            directory: made where it is not there.
        """
        shards.save(Path(directory), self.config, self)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        metrics: Mapping[int, Mapping[str, float]] | None = None,
        dataset: str | None = None,
        license: str | None = None,
        training: Mapping[str, Any] | None = None,
        pictures: Mapping[str, Path] | None = None,
    ) -> CommitInfo:
        """Pushes the model and its card to a repo on the Hugging Face Hub, in one commit.

        Files of an earlier model go; others stay, and so does a card that somebody has made their
        own: the library writes anew only those with its mark.

        Args:
            repo_id: ``"user/name"``; made where it is not there.
            private: whether a repo that is made is private; default: as the account says.
            token: with the right to write; default: the one stored by ``hf auth login``.
            revision: branch, made where it is not there; default: the main one.
            commit_message: default: topology and version.
            metrics: scores by depth and name, ``{2: {"iou": 0.88, "dice": 0.94}}``, as fractions.
            dataset: what it was trained and scored on: a name, or the id of a data set on the Hub.
            license: as the Hub names it, ``"mit"`` or ``"cc-by-4.0"``.
            training: what else is to be known of the training: short texts and numbers.
            pictures: files for the card, by what they show.

        Returns:
            The client's account of the commit; ``.oid`` is its name, ``.commit_url`` its address.

        Raises:
            HubError: the Hub refuses, or is out of reach (an `OSError`).
            ValueError: facts that cannot be, or a public repo where a private one was asked for.
        """
        return push(self, repo_id, private, token, revision, commit_message, metrics=metrics,
                    dataset=dataset, license=license, training=training, pictures=pictures)


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
            dict, or the path of a .json file that holds it.
        encoder: "plain" (the paper's) or any timm model name, tags allowed
            ("resnet152.a1_in1k"); see `nestedseg.list_encoders`.
        classes: channels of the logits.
        in_channels: channels of the images.
        task: "binary" (one class, sigmoid), "multiclass" (softmax; class 0 is usually the
            background) or "multilabel" (sigmoids). Default: binary if ``classes == 1``, else
            multiclass.
        encoder_weights: ``None`` = random; "imagenet" = timm's weights of the name's tag, else of
            its default tag; or the path of a .safetensors file with the timm model's state dict.
        depth: L. Default: every level the encoder offers (plain: 4). With a graph: the head to
            prune it to.
        encoder_channels: widths of the plain encoder, finest first.
        decoder_channels: widths of the decoder's rows, finest first. Default: 32, 64, 128, ...;
            over the plain encoder, the encoder's own; of a feature pyramid, 128 throughout.
        deep_supervision: ``True``: every head the topology offers; ``False``: the deepest alone.
            Default: the topology's own (U-Net^e needs it, the other names do without; a graph
            keeps the heads it lists).
        upsample: "nearest", "bilinear", "bilinear_corners" (torch's ``align_corners``: the corner
            pixels stay where they are), "bicubic", or "transpose" (a 2x2 transposed convolution,
            the paper's).
        norm: "batch", "instance", "group" (8 groups) or ``None``; or with options, like
            ``{"name": "group", "groups": 4, "eps": 1e-6}`` (batch: ``eps``, ``momentum``).
        activation: "relu", "leaky_relu", "elu", "silu", "mish", "gelu" or "prelu"; or with options,
            like ``{"name": "leaky_relu", "negative_slope": 0.1}`` (elu: ``alpha``).
        bias: whether convolutions before a norm have a bias too; those without a norm have one.
        dropout: probability after each activation of the decoder and the plain encoder.
        dims: 2 for images, 3 for volumes. A timm encoder is then made volumetric: its pretrained
            kernels are repeated along depth and divided by how often (Carreira & Zisserman, 2017,
            arXiv 1705.07750). `nestedseg.encoder_info` tries whether it can be.
        head_kernel: side of the heads' convolutions, odd.
        output: what eval mode returns: "deepest", "ensemble" (logits whose probabilities are the
            mean of all heads') or a depth.
        image_size: (H, W) in pixels, for encoders that are built for one size; those that take
            any size (see `nestedseg.encoder_info`) need none. Default: the encoder's own.
        stem: adds plain convolutional levels at strides 1, 2, ... above an encoder's finest, so
            that the finest row lives at full resolution: ``True`` = 32, 64, ... channels, a
            number = the finest level's, doubling, or the channels of each. Default: ``False``,
            logits are up-sampled from the encoder's finest stride.
        encoder_taps: which of timm's features become levels; or the names of the timm model's
            modules that give them, ``(N, C, h, w)``. Default: the deepest of each stride; of
            encoders with one stride throughout, four evenly spaced.
        pyramid_channels: of the levels (strides 4, 8, 16, 32) that are made from an encoder with
            one stride throughout, by a simple feature pyramid (Li et al., ViTDet, 2022,
            arXiv 2203.16527). Default: the encoder's, halved at each doubling of resolution.
        strides: of the plain encoder, from each level to the next, a number an axis, for volumes
            of thick slices ``((1, 2, 2), (2, 2, 2), ...)``. Default: 2 throughout.
        depth_strides: of a timm encoder in 3-D: 1 or 2 for each halving of height and width,
            finest first. ``(1, 1)`` keeps the depth at the first two. Default: 2 throughout.
        execution: how the decoder's nodes are computed: "fast", or "reference" (obvious, slower,
            the same up to rounding); see `nestedseg.execution`.
        class_names: what the classes are called, for those who get the model.

    Raises:
        ValueError: an unknown name, or numbers that do not fit together.
        GraphError: a malformed topology.
        OSError: encoder weights that cannot be fetched or read.
    """
    sequences: dict[str, Any] = {  # which `Options` makes tuples of
        "encoder_channels": encoder_channels if encoder == "plain" else None,
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
    return build(config, encoder_weights)


def padding(graph: Graph, body: Description, channels: Sequence[int],
            norm: Choice | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What images are padded to a multiple of, and to no less than what, along each axis."""
    strides = [shape.stride for shape in infer_levels(graph, body.levels, channels).values()]
    multiple = tuple(math.lcm(*axis) for axis in zip(body.multiples[graph.levels - 1], *strides))
    if norm and split_choice(norm)[0] in ("instance", "group"):
        # one pixel at the deepest level would have no variance
        return multiple, tuple(max(n, *(2 * stride for stride in axis))
                               for n, axis in zip(body.smallest, zip(*strides)))
    return multiple, body.smallest


def build(config: Config, encoder_weights: str | Path | bool | None = None) -> SegmentationModel:
    """The model of a configuration, with random weights but for the encoder's.

    Raises:
        ValueError: the parts of the configuration do not fit together.
    """
    body = describe_encoder(config.encoder_options)
    needed, _ = padding(config.graph, body, config.decoder_channels, config.norm)
    if any(m % n or m > max(n, MAX_PAD) for m, n in zip(config.pad_multiple, needed)):
        raise ValueError(f"pad_multiple {config.pad_multiple} is no multiple of {needed}")
    encoder = build_encoder(config.encoder_options, config.style, encoder_weights,
                            config.graph.levels)
    decoder = build_decoder(config.graph, body.levels, config.classes, config.decoder_channels,
                            config.style, head_kernel=config.head_kernel)
    if not config.fused:
        return SegmentationModel(config, encoder, decoder)
    model = SegmentationModel(replace(config, fused=False), encoder, decoder)
    return SegmentationModel(config, *fuse_parts(model.eval()))


def fuse_parts(model: SegmentationModel) -> tuple[Encoder, Decoder]:
    """The encoder and decoder of a model, fused in place."""
    config = model._config
    size = config.image_size or config.pad_multiple
    dtype = next(model.parameters()).dtype
    x = torch.empty(1, config.in_channels, *size, dtype=dtype, device="meta")
    fold_batch_norms(model.encoder, lambda encoder: encoder(model._pad(x)))
    fuse_decoder(model.decoder)
    return model.encoder, model.decoder


def default_widths(graph: Graph, encoder_channels: Sequence[int] | None) -> tuple[int, ...]:
    """The decoder's widths, finest first: the plain encoder's, else 32, 64, 128, ...

    Where nodes of several rows are only ever added up, they have one width, 128.
    """
    rows = 1 + max(position(name)[0] for name in graph.nodes)
    joins = [node.fuse for node in graph.nodes.values() if len(node.inputs) > 1]
    if set(joins) == {"sum"}:
        return (SUM_WIDTH,) * rows
    default = [32 * 2 ** row for row in range(rows)]
    return tuple([*(encoder_channels or ()), *default[len(encoder_channels or ()):]][:rows])


def ensemble(logits: Sequence[Tensor], task: str) -> Tensor:
    """Logits whose probabilities are the mean of the heads' probabilities, without rounding to 0.

    log of a mean = logsumexp of the logs - log n. For a softmax that is a logit already; for a
    sigmoid, the logit is the log-odds: log p - log(1 - p), in which log n cancels.
    """
    stacked = torch.stack(tuple(logits))
    if task == "multiclass":
        return F.log_softmax(stacked, dim=2).logsumexp(dim=0) - math.log(len(logits))
    return F.logsigmoid(stacked).logsumexp(dim=0) - F.logsigmoid(-stacked).logsumexp(dim=0)


def probabilities(logits: Tensor, task: str) -> Tensor:
    """Softmax over the classes for "multiclass", else a sigmoid for each."""
    return logits.softmax(dim=1) if task == "multiclass" else logits.sigmoid()


def resize_all(logits: Sequence[Tensor], strides: Sequence[tuple[int, ...]]) -> Sequence[Tensor]:
    """Logits at their strides brought to the input's size; those of one stride as one batch."""
    if len(logits) > 1 and len(set(strides)) == 1:
        stacked = torch.stack(tuple(logits))
        resized = resize_logits(stacked.flatten(0, 1), strides[0])
        return resized.unflatten(0, stacked.shape[:2]).unbind()
    return [resize_logits(y, stride) for y, stride in zip(logits, strides)]


def pad(x: Tensor, multiple: Sequence[int], smallest: Sequence[int]) -> Tensor:
    """Pads at the far end of each axis, repeating the border, to what the encoder divides."""
    sizes = [(at_least(n, least) + m - 1) // m * m
             for n, least, m in zip(x.shape[2:], smallest, multiple)]
    missing: list[Any] = [target - n for target, n in zip(sizes, x.shape[2:])]
    if not any(isinstance(n, torch.SymInt) or n for n in missing):  # a SymInt may be 0 or not
        return x
    return F.pad(x, [side for n in reversed(missing) for side in (0, n)], mode="replicate")


def at_least(n: int | torch.SymInt, least: int) -> Any:
    """The larger of two: of a symbol as a symbol, for ``max`` would settle which one is."""
    return torch.sym_max(n, least) if isinstance(n, torch.SymInt) else max(n, least)


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first ``size`` pixels along each spatial axis."""
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x


def choose_depth(scores: Mapping[int, float], tolerance: float = 0.0) -> int:
    """The shallowest depth whose score lies within ``tolerance`` of the best.

    The paper chooses the level of pruning so, on the validation set (section IV-C).

    Args:
        scores: a score for each depth, higher is better, say ``{1: 0.81, 2: 0.88, 3: 0.89}``.
        tolerance: in the unit of the scores, >= 0.

    Raises:
        ValueError: no scores, a score that is no number, or a negative tolerance.
    """
    if not scores or not all(math.isfinite(score) for score in scores.values()):
        raise ValueError(f"expected a finite score for each depth, got {dict(scores)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be >= 0, got {tolerance}")
    best = max(scores.values())
    return min(depth for depth, score in scores.items() if score >= best - tolerance)
