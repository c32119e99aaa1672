"""Loads another library's tensors into a model: reads, renames, checks and copies them."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nestedseg.base.errors import blamed, show
from nestedseg.decoder import meta
from nestedseg.hub import storage
from nestedseg.models.config import Config
from nestedseg.models.model import SegmentationModel

PICKLED = (".pth", ".pt", ".bin")
State = dict[str, Tensor]


def read_state(source: Mapping[str, Any] | str | Path) -> State:
    """The state dict in a mapping or a file.

    Pickles are only read by torch's restricted unpickler, which makes tensors and runs no code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a state dict.
    """
    if isinstance(source, Mapping):
        return check_state(source, "the state dict")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {str(path)!r}")
    if path.suffix == ".safetensors":
        with blamed(repr(str(path))):
            return storage.read_tensors(path, storage.read_shapes(path))
    if path.suffix not in PICKLED:
        raise ValueError(f"unsupported format of weights: {str(path)!r}; allowed are .safetensors, "
                         f"and for a state dict {', '.join(PICKLED)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} was not unpickled, because it contains more than tensors, "
                         f"or is damaged: {show(str(error))}; save model.state_dict()") from error
    return check_state(state, repr(str(path)))


def check_state(state: Any, where: str) -> State:
    """``state``, if it maps names to tensors.

    Raises:
        ValueError: it does not, or is empty.
    """
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{where} is not a state dict, names and their tensors, but "
                         f"{'empty' if state == {} else f'a {type(state).__name__}'}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{where} is not a state dict: {show(name)} is a "
                             f"{type(tensor).__name__}, not a tensor")
    return dict(state)


def pair_tensors(modules: Mapping[str, str | None], needed: Iterable[str],
                 given: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """The source's name for each tensor here, and the source's tensors without a place here.

    Args:
        modules: the module here for each module of the source; ``None`` = the source builds the
            module but never calls it.
        needed: the names of the tensors here.
        given: the names of the source's tensors.
    """
    names, left, needed = {}, set(), set(needed)
    for name in given:
        module, _, leaf = name.rpartition(".")
        own = modules.get(module, "")
        if own and f"{own}.{leaf}" in needed:
            names[f"{own}.{leaf}"] = name
        elif own is not None:
            left.add(name)
    return names, left


def meta_model(config: Config) -> SegmentationModel:
    """Builds a model on the meta device, where it takes no memory yet."""
    with torch.device("meta"):
        return SegmentationModel.from_config(config)


def load_weights(model: SegmentationModel, state: Mapping[str, Tensor],
                 where: str) -> SegmentationModel:
    """Gives a model on the meta device its weights; it gets their dtype and device, in eval mode.

    Raises:
        ValueError: a tensor that is missing, or of another shape or kind of dtype.
    """
    needed = meta.own_tensors(model)
    check_source_shapes(needed, {name: name for name in state},
                        {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
    for name, tensor in needed.items():
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{where}: unsupported dtype {state[name].dtype} for the tensor that "
                             f"becomes {name!r}, which is {tensor.dtype}")
    floating = [state[name] for name, tensor in needed.items() if tensor.is_floating_point()]
    dtypes = {tensor.dtype for tensor in floating}
    if len(dtypes) != 1:
        raise ValueError(f"{where} mixes the dtypes {sorted(map(str, dtypes))}; expected one dtype")
    meta.fill_weights(model, {name: state[name].detach().clone() for name in needed})
    return model.to(device=floating[0].device, dtype=dtypes.pop()).eval()


def refuse(layer: str, reason: str) -> ValueError:
    """Makes the error for a layer without a counterpart here."""
    return ValueError(f"cannot convert the layer {layer!r}: {reason}")


def refuse_leftovers(left: set[str], where: str) -> None:
    """Checks that no tensor of the source is left without a place here.

    Raises:
        ValueError: there are such tensors; the message names the layer of the first.
    """
    if left:
        layer = min(left).rpartition(".")[0]
        raise refuse(layer, f"{where} has it, nestedseg has no such layer ({len(left)} tensors "
                            f"without a counterpart: {show(sorted(left))})")


def leaves(module: nn.Module) -> dict[str, nn.Module]:
    """All modules without children, by path."""
    return {path: child for path, child in module.named_modules()
            if next(child.children(), None) is None}


def untrained(kinds: Iterable[str], needed: Mapping[str, Tensor],
              state: Mapping[str, Tensor]) -> State:
    """Weights 1 and biases 0 for the layers here that have no weights or biases in the source.

    Args:
        kinds: which layers: "norm" (weights and biases), "conv" (only biases).
        needed: the tensors here.
        state: the tensors that the source has, by the names here.
    """
    layer = re.compile(rf"\.({'|'.join(kinds) or 'none'})\d\.(weight|bias)$")
    some = next(iter(state.values()), torch.empty(0))
    found = {name: layer.search(name) for name in needed.keys() - state.keys()}
    return {name: torch.full(needed[name].shape, float(match[0].endswith("weight")),
                             dtype=some.dtype, device=some.device)
            for name, match in found.items() if match and match.groups() != ("conv", "weight")}


def check_source_shapes(needed: Mapping[str, Tensor], names: Mapping[str, str],
                        shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Checks that the source has every needed tensor, with its shape.

    Args:
        needed: the tensors here.
        names: the source's name for each tensor here.
        shapes: the shapes of the source's tensors, by the source's names.
        where: where the tensors come from, for messages.

    Raises:
        ValueError: one is missing or has another shape; the message names the first.
    """
    for own, tensor in needed.items():
        if own not in names:
            raise ValueError(f"{where} has no tensor for {own!r}, which its configuration needs")
        if shapes[names[own]] != tuple(tensor.shape):
            raise ValueError(f"{where}: {names[own]!r} has shape {shapes[names[own]]}, its "
                             f"configuration says {tuple(tensor.shape)}")
