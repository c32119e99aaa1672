"""The public class `SegmentationModel`: the network, with saving, export and summaries."""

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
    """A segmentation model: a skip topology over an encoder. Made by `nestedseg.create`.

    ``model(x)`` returns logits of the size of ``x``, see `forward`; `predict` returns
    probabilities. ``model.task`` is what the losses and scores of the library need to know.

    Attributes:
        encoder: the encoder module.
        decoder: the decoder; ``print(model.decoder.code)`` shows its forward pass.
    """

    def parameter_groups(self, lr: float, encoder_lr_scale: float = 1.0,
                         weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser. Norms and biases have no weight decay; frozen weights
        are left out.

        Args:
            lr: learning rate of the decoder.
            encoder_lr_scale: learning rate of the encoder, as a multiple of ``lr``.
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

        The exported model takes a float32 ``image`` ``(N, in_channels, *spatial)``, pads it inside
        as needed, and returns float32 ``logits`` or ``probabilities`` of the image's size. It is
        the fused form (see `fuse`) in eval mode. The file's metadata contain the preprocessing and
        the class names. The file appears only when it is complete.

        Args:
            path: ends in .onnx or .pt2, according to the format.
            format: "onnx", or "torch", a program for `torch.export.load`.
            depth: the depth whose head is exported; default: `output`.
            ensemble: export the mean of all heads instead.
            dynamic: which axes may have any length: "batch", "height", "width", and "depth" in
                3-D. Default: all; only "batch" if the encoder is built for one size. The other
                axes have the fixed length 1 (batch), or that of ``preprocessing["size"]``, else
                256 (2-D) or 64 (3-D).
            probabilities: apply a softmax or sigmoid to the logits.
            half: weights and arithmetic in float16.

        Raises:
            ValueError: an unknown name, or a model that the format cannot hold.
            GraphError: there is no head at this depth.
            ImportError: the extra "export" is not installed.
        """
        export.write(self, Path(path), format, depth, ensemble, dynamic, probabilities, half)

    def _make_card(self, repo_id: str, config: Mapping[str, Any], license: str | None,
                   pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
        return card.make_model_card(self, repo_id, config, license, pictures)
