"""The mean feature map of each node along the top row, for Fig. 8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nestedseg.base.extras import require
from nestedseg.data import LabelledImages
from nestedseg.data.preprocessing import preprocess
from nestedseg.models.model import SegmentationModel
from nestedseg.topology.graph import position

SIDE = 128  # pixels, from the middle of the first test image


def top_row(model: SegmentationModel, images: LabelledImages) -> dict[str, np.ndarray]:
    """The mean over the channels of X^{0,0} and each X^{0,j} that there is, by name."""
    image, target = images[0]
    middle = tuple(slice((length - min(length, SIDE)) // 2, (length + min(length, SIDE)) // 2)
                   for length in target.shape)
    x = preprocess(image[middle], model, images.moments[0])
    return {name: each[0].mean(0).cpu().numpy()
            for name, each in features(model, x.to(next(model.parameters()).device)).items()}


@torch.no_grad()
def features(model: SegmentationModel, x: Tensor) -> dict[str, Tensor]:
    """What the nodes of the top row give for a batch, the encoder's first."""
    found: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, inputs, output: found.update({name: output})

    nodes = [name for name in model.graph.nodes if position(name)[0] == 0]
    hooks = [model.encoder.register_forward_hook(keep("x0_0")),
             *(model.decoder.get_submodule(name).register_forward_hook(keep(name))
               for name in nodes)]
    try:
        model.forward_heads(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found | {"x0_0": found["x0_0"][0]}


def save(maps: dict[str, np.ndarray], path: Path) -> None:
    """The maps side by side as a grey picture, each from its darkest to its brightest pixel."""
    grey = [(255 * (each - each.min()) / max(np.ptp(each), 1e-12)).astype(np.uint8)
            for each in maps.values()]
    require("PIL.Image").fromarray(np.hstack(grey)).save(path, optimize=True)
