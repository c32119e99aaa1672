"""The public class: the network, and the verbs of the library on top of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub

from nestedseg.hub.hub_model import HubModel
from nestedseg.models import card, export
from nestedseg.models.network import Network
from nestedseg.models.parameter_groups import parameter_groups
from nestedseg.models.summary import Summary, summarise


class SegmentationModel(Network, HubModel):
    """A skip topology over an encoder. Made by `nestedseg.create`.

    ``model(x)`` gives logits of the size of ``x``, see `forward`. For loops of one's own
    ``model.task`` says which loss fits; `predict` gives probabilities.

    Attributes:
        encoder: the encoder module.
        decoder: the decoder; ``print(model.decoder.code)`` shows its forward pass.
    """

    def parameter_groups(self, lr: float, encoder_lr_scale: float = 1.0,
                         weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Groups for an optimiser; norms and biases do not decay, frozen weights are left out.

        Args:
            lr: learning rate of the decoder.
            encoder_lr_scale: the encoder's, as a multiple of it.
            weight_decay: of convolutions and matrices.

        Raises:
            ValueError: a number out of bounds.

        Examples:
            >>> import torch
            >>> import nestedseg
            >>> model = nestedseg.create("unetpp", "resnet18")
            >>> groups = model.parameter_groups(lr=1e-3, encoder_lr_scale=0.1, weight_decay=1e-2)
            >>> optimizer = torch.optim.AdamW(groups)
            >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
            [(0.0001, 0.01), (0.0001, 0.0), (0.001, 0.01), (0.001, 0.0)]
        """
        return parameter_groups(self, lr, encoder_lr_scale, weight_decay)

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

    def _make_card(self, repo_id: str, config: Mapping[str, Any], license: str | None,
                   pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
        return card.make_model_card(self, repo_id, config, license, pictures)
