"""Models from where they were saved: a folder, or a repo on the Hugging Face Hub."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nestedseg import shards, storage
from nestedseg.config import Config
from nestedseg.convert import smp
from nestedseg.errors import blamed
from nestedseg.meta import fill
from nestedseg.model import SegmentationModel, build
from nestedseg.sources import open_source

if TYPE_CHECKING:
    from nestedseg.detection import Detector


def from_pretrained(
    repo_or_dir: str | Path,
    depth: int | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> SegmentationModel | Any:
    """The model that `save_pretrained` or `push_to_hub` wrote, in eval mode.

    Folders and repos that segmentation_models.pytorch wrote are recognised, and converted as by
    `nestedseg.convert.from_smp`.

    Where a folder of that name exists, it is meant; else a string like ``"user/name"`` is a repo
    on the Hugging Face Hub. Of a model with several heads, one depth is downloaded, read and built
    without what only deeper ones need.

    Encoder weights are never fetched again, nothing is unpickled, and every tensor must be there,
    finite and of its shape: a model is whole, or there is an error.

    Args:
        repo_or_dir: a folder with ``config.json`` and weights, or the id of a repo.
        depth: prune to this depth; default: the whole model.
        revision: branch, tag or commit of the repo. With a commit's full name, nothing that is
            in the cache is asked for; otherwise one request finds out which commit is meant.
        cache_dir: where downloads are kept; default: the Hub client's.
        token: for a private repo; default: the one that was stored by ``hf auth login``.
        local_files_only: make no request; what is not in the cache is an error.
        force_download: replace what is in the cache.
        device: of the weights.
        dtype: of the weights; default: that in which they were saved.

    Raises:
        HubError: a file cannot be downloaded, or came damaged (an `OSError`).
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: a file is damaged, or its content is not what it should be.
    """
    source = open_source(repo_or_dir, revision=revision, cache_dir=cache_dir, token=token,
                         local_files_only=local_files_only, force_download=force_download)
    with blamed(source.where(storage.CONFIG)):
        data = storage.read_json(source.get(storage.CONFIG))
    model: SegmentationModel | Detector
    if smp.recognises(data):
        model = smp.from_files(data, source.get(storage.WEIGHTS))
        model = model if depth is None else model.prune(depth)
    elif "detector" in data:
        model = load_detector(source, data, depth)
    else:
        model = load(source, data, depth)
    return model.to(device=device, dtype=dtype).eval()


def load(source: shards.Source, data: dict[str, object], depth: int | None) -> SegmentationModel:
    """The model of a config that `shards.save` wrote, and of the weights beside it."""
    checksum = data.pop(shards.CHECKSUM, None)
    with blamed(source.where(storage.CONFIG)):
        whole = Config.from_dict(data)
    config = whole if depth is None else whole.prune(depth)
    layout = shards.find_layout(source, len(whole.graph.heads) > 1, checksum)
    with blamed(source.where(layout.file)):
        shards.check_nodes(config.graph, layout)
    with blamed(source.where(storage.CONFIG)), torch.device("meta"):
        model = build(config)  # takes no memory yet: a stranger's config may ask for any size
    known = model.state_dict().keys() if config == whole else None
    fill(model, shards.read(source, layout, storage.own_tensors(model), known))
    return model


def load_detector(source: shards.Source, data: dict[str, object], depth: int | None) -> Detector:
    """The same of a detector's config, which says which one in "detector"."""
    if depth is not None:
        raise ValueError(f"{source.name!r} holds a detector, which has no depths; got {depth}")
    detection = import_module("nestedseg.detection")  # needs torchvision
    checksum = data.pop(shards.CHECKSUM, None)
    with blamed(source.where(storage.CONFIG)), torch.device("meta"):
        model = detection.build(detection.DetectorConfig.from_dict(data))
    layout = shards.find_layout(source, False, checksum)
    fill(model, shards.read(source, layout, storage.own_tensors(model),
                            model.state_dict().keys()))
    return model
