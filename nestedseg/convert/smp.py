"""segmentation_models.pytorch's ``Unet`` and ``UnetPlusPlus`` as nestedseg models.

They are converted from their configuration and tensors; the package itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nestedseg.base.errors import as_path, blamed, show
from nestedseg.convert.smp_encoders import match, pair_encoder
from nestedseg.convert.smp_graph import smp_to_config
from nestedseg.convert.smp_options import SmpConfig, check_architecture
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

LAST = {"Identity": None, "Sigmoid": "sigmoid", "Softmax": "softmax2d"}  # activations, by class
# The classes of layers outside of the encoder that can be converted, by name. (A DecoderBlock is a
# leaf, that is without layers, where the encoder has no feature.)
KNOWN = {"AdaptiveAvgPool2d", "BatchNorm2d", "Conv2d", "DecoderBlock", "Identity", "InstanceNorm2d",
         "ReLU", *LAST}


def from_smp(source: nn.Module | Mapping[str, Tensor] | str | Path, *,
             config: Mapping[str, Any] | None = None, task: str | None = None,
             revision: str | None = None, token: str | bool | None = None,
             cache_dir: str | Path | None = None,
             local_files_only: bool = False) -> SegmentationModel:
    """Converts a ``Unet`` or ``UnetPlusPlus`` of segmentation_models.pytorch to a nestedseg model.

    In eval mode it gives the same logits for images whose sides are multiples of the model's
    stride; images of other sizes are padded. `predict` applies the model's final sigmoid or
    softmax.

    Args:
        source: a live model; the folder that its ``save_pretrained`` wrote; a repository on the
            Hub, "user/name"; or, with ``config``, a state dict or the path of one (.safetensors,
            .pth).
        config: the arguments that the model was created with, and its class as "_model_class", for
            example ``{"_model_class": "Unet", "encoder_name": "resnet34", "classes": 2}``.
        task: "binary", "multiclass" or "multilabel". Default: the task of its activation, else
            binary if it has one class, else multiclass.
        revision: branch, tag or commit of a repository; see `nestedseg.from_pretrained`.
        token: for a private repository.
        cache_dir: the folder of downloads.
        local_files_only: use only files in that folder, without requests.

    Raises:
        ValueError: a layer or option without a counterpart here, or weights that do not fit.
        TypeError: a state dict without ``config``.
        FileNotFoundError: no such file.
        HubError: a file cannot be downloaded.
    """
    if isinstance(source, nn.Module):
        state = check_state(source.state_dict(), "the model")
        return convert_smp(live_config(source, config), state, "the model", task)
    if isinstance(source, Mapping) or as_path("source", source).is_file():
        if config is None:
            raise TypeError("a state dict does not say which model it belongs to: also give config="
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
    """Whether a config is that of a model that segmentation_models.pytorch saved.

    `from_files` may still reject it: an FPN, for example, has no counterpart here.
    """
    return isinstance(config, Mapping) and all(isinstance(config.get(key), str)
                                               for key in ("_model_class", "encoder_name"))


def load_smp(source: Source, config: Mapping[str, Any], depth: int | None) -> SegmentationModel:
    """Loads a model that segmentation_models.pytorch saved, pruned to ``depth`` if that is given.
    """
    model = convert_smp(config, source.get(storage.WEIGHTS), source.where(storage.WEIGHTS))
    return model if depth is None else model.prune(depth)


def from_files(config: Mapping[str, Any], weights: Path,
               task: str | None = None) -> SegmentationModel:
    """Converts a configuration and a .safetensors file that ``save_pretrained`` wrote.

    Raises:
        ValueError: a layer or option without a counterpart here, or weights that do not fit.
    """
    return convert_smp(config, weights, repr(str(weights)), task)


def check_config(data: dict[str, Any]) -> dict[str, Any]:
    """Checks that a config.json was written by segmentation_models.pytorch.

    Raises:
        ValueError: it was not.
    """
    if not recognises(data):
        raise ValueError("not written by segmentation_models.pytorch: '_model_class' or "
                         f"'encoder_name' is missing; the keys are {show([*data])}")
    return data


def convert_smp(config: Mapping[str, Any], weights: State | Path, where: str,
                task: str | None = None) -> SegmentationModel:
    """Converts a configuration and its tensors, or the file that contains them.

    Args:
        config: of segmentation_models.pytorch.
        weights: the tensors, or the path of a .safetensors file.
        where: where the weights come from, for messages.
        task: see `from_smp`.
    """
    original = SmpConfig.parse(config)
    encoder = match(original.encoder_name)
    converted, modules = smp_to_config(original, encoder, task)
    model = meta_model(converted)
    needed = own_tensors(model)
    with blamed(where):
        shapes = (storage.read_shapes(weights) if isinstance(weights, Path) else
                  {name: tuple(tensor.shape) for name, tensor in weights.items()})
    names, unknown = pair_encoder(encoder, needed, shapes)
    others, left = pair_tensors(modules, needed, shapes.keys() - set(names.values()))
    left = {name for name in left if not name.startswith("encoder.")}  # no feature needs those
    refuse_leftovers(left | unknown, "segmentation_models.pytorch")
    names |= others
    # before any tensor is read: a stranger's may be huge
    check_source_shapes(needed, names, shapes, where)
    state = (storage.read_tensors(weights, names.values()) if isinstance(weights, Path)
             else weights)
    return load_weights(model, {own: state[name] for own, name in names.items()}, where)


def live_config(model: nn.Module, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a live model. Its layers outside of the encoder are checked, too.

    Raises:
        ValueError: a layer has no counterpart here; the message names it.
    """
    name = check_architecture(type(model).__name__)
    config = getattr(model, "config", None) if config is None else config
    if not isinstance(config, Mapping):
        raise ValueError(f"this {name} has no record of the arguments that it was created with; "
                         "give config=")
    config = {**config, "_model_class": name}
    if getattr(model, "classification_head", None) is not None:
        return config | {"aux_params": {}}
    layers = leaves(model)
    for path, layer in layers.items():
        if not path.startswith("encoder.") and type(layer).__name__ not in KNOWN:
            raise refuse(path, f"it is a {type(layer).__name__}, which has no counterpart here")
    last = layers["segmentation_head.2.activation"]  # a class given as activation is not recorded
    if getattr(last, "dim", None) not in (None, 1):
        raise refuse("segmentation_head.2.activation", f"it is a {last}, not over the classes")
    return config | {"activation": LAST.get(type(last).__name__, type(last).__name__)}
