"""The network: an encoder, a compiled decoder, and what is done with their logits."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    """A decoder over an encoder, and all that is computed with them.

    What is done with a model besides (saving, exporting, summaries) takes a network, and is not
    known here. `SegmentationModel` joins both.
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
        """The model of a configuration, with random weights but for the encoder's.

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
        """All that is needed to rebuild the model, as JSON-able values."""
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

        A sigmoid or, of "multiclass", a softmax of the logits; without gradients. Several threads
        may call it at once, as long as no other one trains the model meanwhile.

        Args:
            x: as of `forward`.
        """
        with eval_mode(self):
            return probabilities(self(x), self.task)

    def _logits(self, x: Tensor, depths: tuple[int, ...]) -> tuple[Tensor, ...]:
        self._check_input(x)
        size = x.shape[2:]
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
        return any(isinstance(module, _BatchNorm) and module.training
                   for module in self.modules())

    # -- training aids ------------------------------------------------------------------------

    def train(self: Kind, mode: bool = True) -> Kind:
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
        set_checkpointing(map(self.decoder.node, self._config.graph.nodes), enable)

    # -- other models from this one -----------------------------------------------------------

    def prune(self: Kind, depth: int) -> Kind:
        """The model that ends in the head of this depth (the paper's L^depth), with own weights.

        Every decoder node, head and encoder stage that the head does not need is gone. In eval
        mode its output equals ``forward_heads(x)[depth]`` of this model.

        Raises:
            GraphError: there is no head at this depth; train with ``deep_supervision=True``.
        """
        config = self._config.prune(depth)
        encoder = copy.deepcopy(self.encoder).keep(config.graph.levels)
        model = type(self)(config, encoder, self.decoder.prune(depth))
        model._norms_frozen = self._norms_frozen
        return model.train(self.training)

    def fuse(self: Kind, dtype: torch.dtype | None = None,
             memory_format: torch.memory_format | None = None,
             compile: bool = False) -> Kind:
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
        model.set_grad_checkpointing(False)
        if not self._config.fused:
            model.to(torch.promote_types(before, torch.float32))  # halves would lose digits
            config = replace(self._config, output=self.output, fused=True)
            model = type(self)(config, *fuse_parts(model))
        model.to(dtype=dtype or before)
        if memory_format is not None:
            model.to(memory_format=memory_format)
        if compile:
            model.compile(options={"freezing": True})
        return model


def fuse_parts(model: Network) -> tuple[Encoder, Decoder]:
    """The encoder and decoder of a model, fused in place."""
    config = model._config
    size = config.image_size or config.pad_multiple
    dtype = next(model.parameters()).dtype
    x = torch.empty(1, config.in_channels, *size, dtype=dtype, device="meta")
    fold_batch_norms(model.encoder, lambda encoder: encoder(model._pad(x)),
                     f"the encoder {config.encoder!r}")
    fuse_decoder(model.decoder)
    return model.encoder, model.decoder
