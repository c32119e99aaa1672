"""segmentation_models.pytorch's ``Unet`` and ``UnetPlusPlus`` as nestedseg models.

Read off their configuration and tensors: the package itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nestedseg.base.errors import blamed, show
from nestedseg.convert.smp_encoders import match, pair_encoder
from nestedseg.convert.smp_graph import smp_to_config
from nestedseg.convert.smp_options import ARCHITECTURES, SmpConfig
from nestedseg.convert.weights import (
    State,
    check_source_shapes,
    check_state,
    leaves,
    load_weights,
    meta_model,
    pair_tensors,
    read_state,
    refuse,
    refuse_leftovers,
)
from nestedseg.decoder.meta import own_tensors
from nestedseg.hub import storage
from nestedseg.hub.checkpoint import Source
from nestedseg.hub.sources import open_source
from nestedseg.models.model import SegmentationModel

LAST = {"Identity": None, "Sigmoid": "sigmoid", "Softmax": "softmax2d"}  # layers, by activation
# The kinds of layers outside of the encoder, by the name of their class; a block without layers is
# where the encoder has no feature.
KNOWN = {"AdaptiveAvgPool2d", "BatchNorm2d", "Conv2d", "DecoderBlock", "Identity", "InstanceNorm2d",
         "ReLU", *LAST}


def from_smp(source: nn.Module | Mapping[str, Tensor] | str | Path, *,
             config: Mapping[str, Any] | None = None, task: str | None = None,
             revision: str | None = None, token: str | bool | None = None,
             cache_dir: str | Path | None = None,
             local_files_only: bool = False) -> SegmentationModel:
    """A ``Unet`` or ``UnetPlusPlus`` of segmentation_models.pytorch as a nestedseg model.

    In eval mode it gives the same logits, for images whose sides are multiples of the model's
    stride; others are padded here. A final sigmoid or softmax is what `predict` applies.

    Args:
        source: a live model; the folder that its ``save_pretrained`` wrote; a repository on the
            Hub, "user/name"; or, with ``config``, a state dict or the path of one (.safetensors,
            .pth).
        config: what the model was created with, and its class as "_model_class", say
            ``{"_model_class": "Unet", "encoder_name": "resnet34", "classes": 2}``.
        task: "binary", "multiclass" or "multilabel". Default: that of its activation, else binary
            if it has one class, else multiclass.
        revision: branch, tag or commit of a repository. This and the following are
            huggingface_hub's.
        token: for a private repository.
        cache_dir: where downloads are kept.
        local_files_only: use these alone.

    Raises:
        ValueError: a layer or option that has no counterpart, or weights that do not fit.
        FileNotFoundError: no such file.
        HubError: a file cannot be downloaded.
    """
    if isinstance(source, nn.Module):
        state = check_state(source.state_dict(), "the model")
        return convert_smp(live_config(source, config), state, "the model", task)
    if isinstance(source, Mapping) or Path(source).is_file():
        if config is None:
            raise TypeError("a state dict does not say what it belongs to: also give config="
                            "{'_model_class': 'Unet', 'encoder_name': ..., ...}")
        if not isinstance(source, Mapping) and Path(source).suffix == ".safetensors":
            return from_files(config, Path(source), task)
        where = "the state dict" if isinstance(source, Mapping) else repr(str(source))
        return convert_smp(config, read_state(source), where, task)
    files = open_source(source, revision=revision, token=token, cache_dir=cache_dir,
                        local_files_only=local_files_only)
    if config is None:
        with blamed(files.where(storage.CONFIG)):
            config = check_config(storage.read_json(files.get(storage.CONFIG)))
    return convert_smp(config, files.get(storage.WEIGHTS), files.where(storage.WEIGHTS), task)


def recognises(config: Any) -> bool:
    """Whether it is the configuration of a model that segmentation_models.pytorch saved.

    `from_files` may still refuse it, say for its class: an FPN has no counterpart.
    """
    return isinstance(config, Mapping) and all(isinstance(config.get(key), str)
                                               for key in ("_model_class", "encoder_name"))


def load_smp(source: Source, config: Mapping[str, Any], depth: int | None) -> SegmentationModel:
    """The model in a folder or repo that they wrote, pruned to a depth where one is given."""
    model = convert_smp(config, source.get(storage.WEIGHTS), source.where(storage.WEIGHTS))
    return model if depth is None else model.prune(depth)


def from_files(config: Mapping[str, Any], weights: Path,
               task: str | None = None) -> SegmentationModel:
    """The model of a configuration and a .safetensors file that ``save_pretrained`` wrote.

    Raises:
        ValueError: a layer or option that has no counterpart, or weights that do not fit.
    """
    return convert_smp(config, weights, repr(str(weights)), task)


def check_config(data: dict[str, Any]) -> dict[str, Any]:
    """The object in a ``save_pretrained`` folder's config.json, if it is one of theirs."""
    if not recognises(data):
        raise ValueError("not written by segmentation_models.pytorch: '_model_class' or "
                         f"'encoder_name' is missing; it has {show([*data])}")
    return data


def convert_smp(config: Mapping[str, Any], weights: State | Path, where: str,
                task: str | None = None) -> SegmentationModel:
    """The model of a configuration and its tensors, or the file that holds them."""
    theirs = SmpConfig.parse(config)
    encoder = match(theirs.encoder_name)
    ours, modules = smp_to_config(theirs, encoder, task)
    model = meta_model(ours)
    needed = own_tensors(model)
    with blamed(where):
        shapes = (storage.read_shapes(weights) if isinstance(weights, Path) else
                  {name: tuple(tensor.shape) for name, tensor in weights.items()})
    names, unknown = pair_encoder(encoder, needed, shapes)
    others, left = pair_tensors(modules, needed, shapes.keys() - set(names.values()))
    left = {name for name in left if not name.startswith("encoder.")}  # they reach no feature
    refuse_leftovers(left | unknown, "segmentation_models.pytorch")
    names |= others
    # before any is read: a stranger's may be huge
    check_source_shapes(needed, names, shapes, where)
    state = (storage.read_tensors(weights, names.values()) if isinstance(weights, Path)
             else weights)
    return load_weights(model, {own: state[name] for own, name in names.items()}, where)


def live_config(model: nn.Module, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a live model was created with; its layers outside of the encoder must be of known kinds.

    Raises:
        ValueError: naming a layer that has no counterpart.
    """
    name = type(model).__name__
    if name not in ARCHITECTURES:
        raise refuse(name, f"only {' and '.join(ARCHITECTURES)} of segmentation_models.pytorch")
    config = getattr(model, "config", None) if config is None else config
    if not isinstance(config, Mapping):
        raise ValueError(f"this {name} does not know what it was created with; give config=")
    config = {**config, "_model_class": name}
    if getattr(model, "classification_head", None) is not None:
        return config | {"aux_params": {}}
    layers = leaves(model)
    for path, layer in layers.items():
        if not path.startswith("encoder.") and type(layer).__name__ not in KNOWN:
            raise refuse(path, f"a {type(layer).__name__}")
    last = layers["segmentation_head.2.activation"]  # a class given as activation is not recorded
    if getattr(last, "dim", None) not in (None, 1):
        raise refuse("segmentation_head.2.activation", f"a {last}")
    return config | {"activation": LAST.get(type(last).__name__, type(last).__name__)}
