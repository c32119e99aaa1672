"""`from_pretrained`: loads a model of any known format, from a folder or from the Hub.

A new importer is entered in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nestedseg.base.errors import blamed
from nestedseg.convert import smp
from nestedseg.hub import storage
from nestedseg.hub.checkpoint import Source
from nestedseg.hub.sources import open_source
from nestedseg.models import pretrained
from nestedseg.models.model import SegmentationModel


class Format(NamedTuple):
    """A format of saved models that have a config.json.

    Args:
        recognises: whether a config is of this format. The first format that recognises it is used.
        load: makes the model, given the source of its files, its config and the depth to prune it
            to (``None`` = the whole model).
    """

    recognises: Callable[[Mapping[str, Any]], bool]
    load: Callable[[Source, dict[str, Any], int | None], Any]


def load_detector(source: Source, config: dict[str, Any], depth: int | None) -> Any:
    """Loads a detector. `nestedseg.instances` is imported only here, because it needs torchvision.
    """
    return import_module("nestedseg.instances.pretrained").load_detector(source, config, depth)


FORMATS = (
    Format(smp.recognises, smp.load_smp),
    Format(lambda config: "detector" in config, load_detector),
    Format(lambda config: True, pretrained.load_model),
)


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
    """Loads a model that `save_pretrained` or `push_to_hub` wrote, in eval mode.

    Folders and repos that segmentation_models.pytorch wrote are recognised, and converted as by
    `nestedseg.convert.from_smp`.

    If a folder of this name exists, it is loaded; otherwise a string like ``"user/name"`` is the id
    of a repo on the Hugging Face Hub. With ``depth``, only the files of that depth are downloaded
    and read.

    Loading is all or nothing: a tensor that is missing, not finite or of another shape is an error;
    there are never random weights in its place. Encoder weights are not fetched again, and nothing
    is unpickled.

    Args:
        repo_or_dir: a folder with ``config.json`` and weights, or the id of a repo.
        depth: prune to this depth; default: the whole model.
        revision: branch, tag or commit of the repo. With the full hash of a commit, files in the
            cache are used without a request; otherwise one request finds out the commit.
        cache_dir: the folder of downloads; default: the Hub client's.
        token: for a private repo; default: the one stored by ``hf auth login``.
        local_files_only: make no requests; a file that is not in the cache is an error.
        force_download: download again, and replace files in the cache.
        device: device of the weights.
        dtype: dtype of the weights; default: the one in which they were saved.

    Raises:
        HubError: a file cannot be downloaded, or arrived damaged (an `OSError`).
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: a file is damaged, or its content does not fit the model.

    Examples:
        >>> import torch
        >>> import nestedseg
        >>> nestedseg.create("unetpp", deep_supervision=True).save_pretrained("nuclei")
        >>> model = nestedseg.from_pretrained("nuclei")
        >>> model.depths, model.predict(torch.rand(1, 3, 100, 75)).shape
        ((1, 2, 3, 4), torch.Size([1, 1, 100, 75]))
        >>> nestedseg.from_pretrained("nuclei", depth=2).depths  # reads what depth 2 needs
        (2,)
    """
    source = open_source(repo_or_dir, revision=revision, cache_dir=cache_dir, token=token,
                         local_files_only=local_files_only, force_download=force_download)
    with blamed(source.where(storage.CONFIG)):
        data = storage.read_json(source.get(storage.CONFIG))
    model = next(each for each in FORMATS if each.recognises(data)).load(source, data, depth)
    return model.to(device=device, dtype=dtype).eval()
