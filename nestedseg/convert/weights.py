"""Another library's tensors in a model of ours: read, renamed, compared, then loaded."""

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

    Pickles go through torch's restricted unpickler alone, which makes tensors and runs no code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no state dict.
    """
    if isinstance(source, Mapping):
        return check_state(source, "the state dict")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    if path.suffix == ".safetensors":
        with blamed(repr(str(path))):
            return storage.read_tensors(path, storage.read_shapes(path))
    if path.suffix not in PICKLED:
        raise ValueError(f"{str(path)!r}: weights are read from .safetensors, or as a state dict "
                         f"from {', '.join(PICKLED)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} holds more than tensors, or is damaged; it is not "
                         f"unpickled: {show(str(error))}") from error
    return check_state(state, repr(str(path)))


def check_state(state: Any, where: str) -> State:
    """``state``, if it maps names to tensors."""
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{where} is no state dict but a {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{where} is no state dict: {show(name)} is a "
                             f"{type(tensor).__name__}, not a tensor")
    return dict(state)


def pair_tensors(modules: Mapping[str, str | None], needed: Iterable[str],
                 given: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """The name there of each tensor here, and those there that have no place here.

    Args:
        modules: ours by theirs; ``None`` = it is built there and never called.
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
    """The model of a configuration on the meta device: it takes no memory yet."""
    with torch.device("meta"):
        return SegmentationModel.from_config(config)


def load_weights(model: SegmentationModel, state: Mapping[str, Tensor],
                 where: str) -> SegmentationModel:
    """The planned model with these weights, in eval mode, in their dtype and on their device.

    Raises:
        ValueError: a tensor that is missing, or of another shape or kind.
    """
    needed = meta.own_tensors(model)
    check_source_shapes(needed, {name: name for name in state},
                        {name: tuple(tensor.shape) for name, tensor in state.items()}, where)
    for name, tensor in needed.items():
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{where}: what becomes {name!r} is of {state[name].dtype}")
    floating = [state[name] for name, tensor in needed.items() if tensor.is_floating_point()]
    dtypes = {tensor.dtype for tensor in floating}
    if len(dtypes) != 1:
        raise ValueError(f"{where} mixes {sorted(map(str, dtypes))}; expected one dtype")
    meta.fill_weights(model, {name: state[name].detach().clone() for name in needed})
    return model.to(device=floating[0].device, dtype=dtypes.pop()).eval()


def refuse(layer: str, reason: str) -> ValueError:
    """The error for a layer that has no counterpart."""
    return ValueError(f"cannot convert the layer {layer!r}: {reason}")


def refuse_leftovers(left: set[str], where: str) -> None:
    """Raises if tensors of the source would be dropped without anyone knowing why.

    Raises:
        ValueError: naming the layer of one of them.
    """
    if left:
        layer = min(left).rpartition(".")[0]
        raise refuse(layer, f"{where} has it, nestedseg has no layer of the kind "
                            f"({len(left)} tensors in all: {show(sorted(left))})")


def leaves(module: nn.Module) -> dict[str, nn.Module]:
    """The modules without children, by path."""
    return {path: child for path, child in module.named_modules()
            if next(child.children(), None) is None}


def untrained(kinds: Iterable[str], needed: Mapping[str, Tensor],
              state: Mapping[str, Tensor]) -> State:
    """Weights 1 and biases 0 for layers that have none in the source.

    Args:
        kinds: which of them, of "norm" and "conv" (whose biases these are).
    """
    layer = re.compile(rf"\.({'|'.join(kinds) or 'none'})\d\.(weight|bias)$")
    some = next(iter(state.values()), torch.empty(0))
    found = {name: layer.search(name) for name in needed.keys() - state.keys()}
    return {name: torch.full(needed[name].shape, float(match[0].endswith("weight")),
                             dtype=some.dtype, device=some.device)
            for name, match in found.items() if match and match.groups() != ("conv", "weight")}


def check_source_shapes(needed: Mapping[str, Tensor], names: Mapping[str, str],
                        shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses tensors unless each that is needed is there, with its shape.

    Args:
        names: theirs of ours.
        shapes: by their names.

    Raises:
        ValueError: naming the first that is not.
    """
    for own, tensor in needed.items():
        if own not in names:
            raise ValueError(f"{where} holds nothing for {own!r}, which its configuration needs")
        if shapes[names[own]] != tuple(tensor.shape):
            raise ValueError(f"{where}: {names[own]!r} has shape {shapes[names[own]]}, its "
                             f"configuration says {tuple(tensor.shape)}")
