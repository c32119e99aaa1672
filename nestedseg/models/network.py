"""The network: an encoder, a compiled decoder, and the methods that compute with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nestedseg.decoder.compiler import Decoder, build_decoder
from nestedseg.decoder.fuse import fold_batch_norms, fuse_decoder
from nestedseg.decoder.kernels import layout_of
from nestedseg.decoder.layers import batch_norms
from nestedseg.decoder.recomputation import set_checkpointing
from nestedseg.encoders import Encoder, build_encoder, describe_encoder
from nestedseg.models.config import Config, check_output
from nestedseg.models.evaluating import eval_mode
from nestedseg.models.outputs import ensemble, probabilities
from nestedseg.models.sizes import check_sizes, crop, pad, resize_all
from nestedseg.models.targets import Task
from nestedseg.topology.graph import Graph

Kind = TypeVar("Kind", bound="Network")


class Network(nn.Module):
    """A decoder over an encoder, and everything that is computed with them.

    Saving, exporting and summaries are functions that take a network; this class does not know of
    them. `SegmentationModel` has both.
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

    @classmethod
    def from_config(cls: type[Kind], config: Config,
                    encoder_weights: str | Path | bool | None = None) -> Kind:
        """Builds the model of a configuration; weights are random, except ``encoder_weights``.

        Raises:
            ValueError: the parts of the configuration do not fit together.
        """
        body = describe_encoder(config.encoder_options)
        check_sizes(config, body)
        encoder = build_encoder(config.encoder_options, config.style, encoder_weights,
                                config.graph.levels)
        decoder = build_decoder(config.graph, body.levels, config.classes,
                                config.decoder_channels, config.style,
                                head_kernel=config.head_kernel)
        if not config.fused:
            return cls(config, encoder, decoder)
        return cls(config, *fuse_parts(cls(replace(config, fused=False), encoder, decoder).eval()))

    # -- what it is ---------------------------------------------------------------------------

    @property
    def config(self) -> dict[str, Any]:
        """Everything that is needed to rebuild the model, as JSON-able values."""
        return replace(self._config, output=self.output).to_dict()

    @property
    def graph(self) -> Graph:
        """The skip topology."""
        if torch.onnx.is_in_onnx_export():  # torch takes what has a graph for a TorchScript module
            raise AttributeError("graph")
        return self._config.graph

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that have a head, shallow -> deep."""
        return self._config.graph.depths

    @property
    def task(self) -> Task:
        """The task: "binary", "multiclass" or "multilabel"."""
        return self._config.task

    @property
    def classes(self) -> int:
        """The number of classes, which is the number of channels of the logits."""
        return self._config.classes

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `nestedseg.preprocess` does to an image for this model."""
        return self._config.preprocessing

    def set_preprocessing(self, **values: Any) -> None:
        """Changes values of the preprocessing, for example to the training set's mean and std.

        Args:
            values: the values that change. ``mean`` and ``std`` of each channel and ``input_range``
                (low, high), see `nestedseg.preprocess`; ``size``, ``(H, W)`` or ``(D, H, W)`` in
                pixels, the default size of summaries and exports; ``interpolation``, a name, only
                recorded; ``standardise``, whether each image is scaled by its own mean and std;
                ``spacing`` along D, H, W in mm, to which volumes are resampled; ``value_range``,
                pairs (low, high) of values that become 0 and 1, one for all channels or one for
                each, and ``clip``, whether values outside of it become 0 and 1 too; ``nodata``, the
                value of pixels that were not measured.

        Raises:
            ValueError: an unknown key or an impossible value.
        """
        self._config = replace(self._config, preprocessing=self.preprocessing | values)

    def set_ignore_index(self, values: int | Sequence[int] | None) -> None:
        """Records which values of the labels mean no class; `nestedseg.training.fit` does it.

        The model itself does not depend on them: they say to others how it was trained and scored.

        Args:
            values: one, several, or ``None`` = none; they become ``model.config["ignore_index"]``.

        Raises:
            ValueError: a value out of bounds.
        """
        several = (values,) if isinstance(values, int) else tuple(values or ())
        self._config = replace(self._config, ignore_index=several)

    @property
    def output(self) -> str | int:
        """What the model returns in eval mode: "deepest", "ensemble" or a depth. May be assigned.

        The probabilities of the ensemble's logits are the mean of the probabilities of all heads.

        Raises:
            ValueError: on assignment of anything else.
        """
        return self._output

    @output.setter
    def output(self, output: str | int) -> None:
        check_output(output, self.graph)
        self._output = output
        self.decoder.program(self._output_depths())  # now, so that no trace contains compiling it

    def _output_depths(self) -> tuple[int, ...]:
        if isinstance(self.output, int):
            return (self.output,)
        return self.depths if self.output == "ensemble" else self.depths[-1:]

    # -- forward ------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Computes the logits of images or volumes.

        Args:
            x: ``(N, in_channels, H, W)``, in 3-D ``(N, in_channels, D, H, W)``, floats as from
                `nestedseg.preprocess`. Any size, unless the encoder is built for one.

        Returns:
            ``(N, classes, *spatial)``, of the size of ``x``. In training mode a model with several
            heads returns a tuple of these, shallow -> deep; in eval mode `output` says which one.

        Raises:
            ValueError: ``x`` has another shape, or, in training, is so small that a batch norm
                gets a single value per channel.
            TypeError: ``x`` is not a tensor of floats.
        """
        if self.training:
            logits = self._logits(x, self.depths)
            return logits if len(logits) > 1 else logits[0]
        logits = self._logits(x, self._output_depths())
        return logits[0] if len(logits) == 1 else ensemble(logits, self.task)

    def forward_heads(self, x: Tensor) -> dict[int, Tensor]:
        """Computes the logits of every head, by depth, each ``(N, classes, *spatial)``.

        Args:
            x: see `forward`.

        Examples:
            >>> import torch
            >>> import nestedseg
            >>> model = nestedseg.create("unetpp", classes=3, depth=2, deep_supervision=True)
            >>> heads = model.forward_heads(torch.rand(2, 3, 64, 64))
            >>> {depth: tuple(logits.shape) for depth, logits in heads.items()}
            {1: (2, 3, 64, 64), 2: (2, 3, 64, 64)}
        """
        return dict(zip(self.depths, self._logits(x, self.depths)))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Computes probabilities ``(N, classes, *spatial)`` of ``model.output``, in eval mode.

        They are a sigmoid of the logits, for "multiclass" a softmax; without gradients. Several
        threads may call it at once, as long as no other thread trains the model at the time.

        Args:
            x: see `forward`.

        Examples:
            >>> import torch
            >>> import nestedseg
            >>> model = nestedseg.create("unetpp", classes=3, depth=2)
            >>> probabilities = model.predict(torch.rand(2, 3, 100, 75))
            >>> probabilities.shape, probabilities.argmax(dim=1).shape
            (torch.Size([2, 3, 100, 75]), torch.Size([2, 100, 75]))
        """
        with eval_mode(self):
            return probabilities(self(x), self.task)

    def _logits(self, x: Tensor, depths: tuple[int, ...]) -> tuple[Tensor, ...]:
        self._check_input(x)
        size = x.shape[2:]
        single = self.training and self._single_value(x)
        with self._explaining_single_values(x) if single else nullcontext():
            logits = self.decoder(self.encoder(self._pad(x)), depths)
        strides = [self.decoder.strides[self._config.graph.head(depth)] for depth in depths]
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
                f"{given[2:]}: create the model with image_size=({height}, {width}), or resize the "
                "images")

    @property
    def _deepest_stride(self) -> tuple[int, ...]:
        strides = [*(level.stride for level in self.encoder.levels), *self.decoder.strides.values()]
        return tuple(map(max, zip(*strides)))

    def _single_value(self, x: Tensor) -> bool:
        return x.shape[0] == 1 and all(n <= m for n, m in zip(x.shape[2:], self._deepest_stride))

    @contextmanager
    def _explaining_single_values(self, x: Tensor) -> Iterator[None]:
        """Says what can be done where a batch norm refuses one value per channel.

        torch knows which norm sees one, and in which mode it is. The running statistics of those
        before it are brought back.
        """
        before = [(buffer, buffer.clone()) for buffer in self.buffers()]
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            for buffer, value in before:
                buffer.data.copy_(value)
            raise ValueError(
                f"training with batch normalisation on an input of shape {tuple(x.shape)}: the "
                "deepest feature has one value per channel, which has no variance. Use a batch of "
                f"two or more, an image larger than {self._deepest_stride}, or norm='group'"
            ) from error

    # -- training aids ------------------------------------------------------------------------

    def train(self: Kind, mode: bool = True) -> Kind:
        """Training or eval mode; frozen batch norms of the encoder stay in eval mode.

        Raises:
            RuntimeError: training mode of a fused model.
        """
        if mode and self._config.fused:
            raise RuntimeError("a fused model is only for inference and cannot be trained: train "
                               "the model that it was made from, and fuse it again")
        super().train(mode)
        if self._norms_frozen:
            for norm in batch_norms(self.encoder):
                norm.eval()
        return self

    def freeze_encoder(self, bn_too: bool = True) -> None:
        """Freezes the encoder's weights: training does not change them.

        Args:
            bn_too: freeze the running statistics of its batch norms too.
        """
        self.encoder.requires_grad_(False)
        self._norms_frozen = bn_too
        self.train(self.training)

    def unfreeze_encoder(self) -> None:
        """Lets training change the encoder's weights and batch norm statistics again."""
        self.encoder.requires_grad_(True)
        self._norms_frozen = False
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True, encoder: bool = True) -> None:
        """Trades time for memory in training: maps inside nodes and blocks are computed twice.

        Args:
            enable: on or off.
            encoder: whether the encoder does so too; a timm model by timm's own checkpointing.

        Raises:
            ValueError: the timm model has no checkpointing; use ``encoder=False``.
        """
        if encoder:
            self.encoder.set_grad_checkpointing(enable)
        set_checkpointing(map(self.decoder.node, self._config.graph.nodes), enable)

    # -- other models from this one -----------------------------------------------------------

    def prune(self: Kind, depth: int) -> Kind:
        """Extracts one depth as a standalone model (the paper's L^depth), with its own weights.

        It has only the decoder nodes, the encoder stages and the head that this depth needs. In
        eval mode its output equals ``forward_heads(x)[depth]`` of this model.

        Raises:
            GraphError: there is no head at this depth; train with ``deep_supervision=True``.

        Examples:
            >>> import torch
            >>> import nestedseg
            >>> model = nestedseg.create("unetpp", deep_supervision=True).eval()
            >>> model.depths
            (1, 2, 3, 4)
            >>> small, images = model.prune(depth=2), torch.rand(1, 3, 64, 64)
            >>> torch.equal(small(images), model.forward_heads(images)[2])
            True
            >>> [sum(weight.numel() for weight in each.parameters()) for each in (model, small)]
            [9159780, 518401]
        """
        config = self._config.prune(depth)
        encoder = copy.deepcopy(self.encoder).keep(config.graph.levels)
        model = type(self)(config, encoder, self.decoder.prune(depth))
        model._norms_frozen = self._norms_frozen
        return model.train(self.training)

    def fuse(self: Kind, dtype: torch.dtype | None = None,
             memory_format: torch.memory_format | None = None,
             compile: bool = False) -> Kind:
        """Makes a copy that is faster, only for inference, and gives equal outputs up to rounding.

        Batch norms are folded into the convolutions before them, wherever autograd's graph proves
        that nothing else reads the convolution's output. The first convolution of each node is
        split by input, and composed with the up-sampling of its inputs, once and for all.

        Args:
            dtype: of the copy's weights, and so of the images it takes; default: this model's.
            memory_format: of the copy's weights; default: this model's. ``torch.channels_last``
                is faster on most devices.
            compile: compile the copy with ``torch.compile``, at the first image of each size. Run
                it under ``torch.no_grad()``: on a CPU the weights are then stored in the layout
                that its convolutions prefer.

        Examples:
            >>> import torch
            >>> import nestedseg
            >>> model = nestedseg.create("unetpp", "resnet18").eval()
            >>> fused, images = model.fuse(), torch.rand(1, 3, 100, 75)
            >>> fused(images).shape
            torch.Size([1, 1, 100, 75])
            >>> torch.allclose(fused(images), model(images), atol=1e-4)
            True
        """
        model, before = copy.deepcopy(self).eval(), next(self.parameters()).dtype
        model.set_grad_checkpointing(False)
        if not self._config.fused:
            model.to(torch.promote_types(before, torch.float32))  # composing in half loses digits
            config = replace(self._config, output=self.output, fused=True)
            model = type(self)(config, *fuse_parts(model))
        model.to(dtype=dtype or before)
        if memory_format is not None:
            model.to(memory_format=memory_format)
        if compile:
            model.compile(options={"freezing": True})
        return model


def fuse_parts(model: Network) -> tuple[Encoder, Decoder]:
    """Fuses the encoder and decoder of a model in place, and returns them."""
    config = model._config
    size = config.image_size or config.pad_multiple
    dtype = next(model.parameters()).dtype
    x = torch.empty(1, config.in_channels, *size, dtype=dtype, device="meta")
    fold_batch_norms(model.encoder, lambda encoder: encoder(model._pad(x)),
                     f"encoder {config.encoder!r}")
    fuse_decoder(model.decoder)
    return model.encoder, model.decoder
