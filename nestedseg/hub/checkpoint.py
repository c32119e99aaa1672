"""Weights in files, one for each depth, so that a shallow model is had without the rest.

L^1 lies within L^2, and so on: file k holds what the k-th depth needs beyond the depths before it.
An index, in the form that transformers and accelerate read too, says which tensor is in which file,
and the checksum of each. A model of one head is one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from nestedseg.base.errors import blamed, show
from nestedseg.base.version import __version__
from nestedseg.decoder.meta import meta_copy, own_tensors
from nestedseg.hub import storage
from nestedseg.hub.contract import Saved
from nestedseg.hub.rebuilt import check_rebuilt

CHECKSUM = "sha256"  # in the config, of the one file; in the index, before the name of each
STATISTICS = ("running_mean", "running_var")  # other buffers may be bounds, at infinity
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Source(Protocol):
    """Where a model's files are: a folder, or a repo on the Hub."""

    name: str

    def find(self, file: str) -> Path | None: ...

    def get(self, file: str) -> Path: ...

    def where(self, file: str) -> str: ...

    def damage(self, file: str, reason: str) -> Exception: ...


# -- writing ---------------------------------------------------------------------------------------


def save(directory: Path, config: Mapping[str, Any], model: Saved) -> None:
    """Writes config, weights and, of several heads, the index, in place of an earlier model's.

    Raises:
        ValueError: it is not the model that its config builds, or its weights are not finite.
    """
    rebuilt = model._rebuild()
    check_rebuilt(model, rebuilt)
    with blamed("cannot save the model"):
        check_values(own_tensors(rebuilt), own_tensors(model))
    files = split_by_depth(model)
    writers: dict[str, storage.Writer] = {file: _weights_writer(model, names)
                                          for file, names in files.items()}
    if len(files) > 1:
        writers[storage.INDEX] = lambda path: _write_json(path, make_index(
            path.parent, files, model.state_dict()))
    writers[storage.CONFIG] = lambda path: _write_json(path, {
        "nestedseg_version": __version__, **config, **_own_checksum(path.parent, files)})
    storage.replace_files(directory, writers)


def _own_checksum(directory: Path, files: Mapping[str, list[str]]) -> dict[str, str]:
    """Of the one file; without an index, the config has it."""
    return {CHECKSUM: storage.sha256(directory / storage.WEIGHTS)} if len(files) == 1 else {}


def split_by_depth(model: Saved) -> dict[str, list[str]]:
    """The names of the tensors in each file, shallow -> deep.

    A tensor that the model has under several names is written under one, unless its pruned form
    knows it under another.
    """
    whole = list(own_tensors(model))
    count = len(model.depths)
    if count <= 1:
        return {storage.WEIGHTS: whole}
    ghost: Any = meta_copy(model)  # of several depths, so that it can be pruned
    needed = [list(own_tensors(ghost.prune(depth))) for depth in model.depths]
    needed[-1] += whole  # were there tensors that no depth needs
    placed: set[str] = set()
    files = {}
    for number, names in enumerate(needed, 1):
        files[f"model-{number:05}-of-{count:05}.safetensors"] = [
            name for name in dict.fromkeys(names) if name not in placed]
        placed.update(names)
    return files


def make_index(directory: Path, files: Mapping[str, list[str]],
               tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The index of files that have been written; its metadata are strings, as others expect."""
    size = sum(tensors[name].nbytes for names in files.values() for name in names)
    checksums = {f"{CHECKSUM}.{file}": storage.sha256(directory / file) for file in files}
    return {"metadata": {"format": "pt", "total_size": str(size), **checksums},
            "weight_map": {name: file for file, names in files.items() for name in names}}


def _weights_writer(model: nn.Module, names: list[str]) -> storage.Writer:
    def write(path: Path) -> None:
        state = model.state_dict()  # cloned, because safetensors refuses tensors that share memory
        tensors = {name: state[name].clone(memory_format=torch.contiguous_format)
                   for name in names}
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return write


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Which tensor is in which of a source's files.

    Args:
        file: that says so: the index, or the one with all tensors.
        places: the file of each tensor.
        checksums: of the files that are still to be verified.
    """

    file: str
    places: dict[str, str]
    checksums: dict[str, Any]

    def names_in(self, file: str) -> set[str]:
        return {name for name, place in self.places.items() if place == file}


def read_weights(source: Source, layout: Layout, expected: Mapping[str, Tensor],
                 known: Set[str] | None) -> dict[str, Tensor]:
    """The weights of a model, from the files that hold any of them; all of one dtype, finite.

    Nothing is read before the names and shapes in all those files are what they should be.

    Args:
        expected: the tensors of the model, on the meta device.
        known: all names that the source may have; ``None`` = any, of a model that was pruned.

    Raises:
        ValueError: a file is damaged, or its content is not what it should be.
        OSError: a file is missing or cannot be downloaded.
    """
    with blamed(source.where(layout.file)):
        check_names(expected.keys(), layout.places.keys(), known, "its config")
    paths: dict[str, Path] = {}
    for file in sorted({layout.places[name] for name in expected}):
        paths[file] = source.get(file)
        shapes = read_header(source, file, paths[file], layout.checksums.get(file))
        with blamed(source.where(file)):
            check_shapes(expected, shapes, layout.names_in(file))
    for file, path in paths.items():  # now that they are known to be no larger than they should be
        verify(source, file, path, layout.checksums.get(file))
    tensors: dict[str, Tensor] = {}
    for file, path in paths.items():
        with blamed(source.where(file)):
            tensors |= storage.read_tensors(path, sorted(layout.names_in(file) & expected.keys()))
    with blamed(source.where(layout.file)):
        check_values(expected, tensors)
    return tensors


def find_layout(source: Source, sharded: bool, checksum: Any) -> Layout:
    """The index, or the names in the single file.

    Args:
        sharded: whether to look for the index first.
        checksum: of the single file, if the config has it.

    Raises:
        FileNotFoundError: there is neither.
    """
    for file in (storage.INDEX, storage.WEIGHTS) if sharded else (storage.WEIGHTS, storage.INDEX):
        path = source.find(file)
        if path is not None:
            break
    else:
        raise FileNotFoundError(
            f"{source.name!r} holds no weights that can be loaded: {storage.WEIGHTS} is missing, "
            f"and {storage.INDEX} too. A pickle, such as pytorch_model.bin, is never read: it may "
            "run any code")
    if file == storage.WEIGHTS:
        names = read_header(source, file, path, checksum)
        return Layout(file, dict.fromkeys(names, file), {file: checksum})
    with blamed(source.where(file)):
        return parse_index(storage.read_json(path))


def read_header(source: Source, file: str, path: Path,
                checksum: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file.

    Raises:
        ValueError, HubError: it has no such header, or another size than that says.
    """
    try:
        return storage.read_shapes(path)
    except ValueError as error:
        if checksum is None:
            raise ValueError(f"{source.where(file)}: {error}") from error
        raise source.damage(file, str(error)) from error


def verify(source: Source, file: str, path: Path, checksum: Any) -> None:
    """Refuses a file that is not the one that was saved. Files by others have no checksum.

    Raises:
        ValueError, HubError: as the source says it.
    """
    if checksum is not None and checksum != (found := storage.sha256(path)):
        raise source.damage(file, f"its {CHECKSUM} is {found}, expected {show(checksum)}")


def parse_index(data: Mapping[str, Any]) -> Layout:
    """The checked content of an index: its files lie beside it, and are safetensors.

    Raises:
        ValueError: it is no index, or names another file.
    """
    places, metadata = data.get("weight_map"), data.get("metadata", {})
    if not isinstance(places, dict) or not places or not isinstance(metadata, dict):
        raise ValueError("no index of weights: expected 'weight_map', from tensors to files")
    for file in places.values():
        if not isinstance(file, str) or not storage.is_weights(file) or file == storage.INDEX:
            raise ValueError(f"the index leads to {show(file)}; allowed are {storage.WEIGHTS} and "
                             "names like model-00001-of-00004.safetensors in the same folder")
    checksums = {file: metadata.get(f"{CHECKSUM}.{file}") for file in set(places.values())}
    return Layout(storage.INDEX, places, checksums)


def check_needed(needed: Iterable[str], layout: Layout, prefix: str) -> None:
    """Refuses a config that needs other tensors than there are, before anything is built from it.

    Args:
        needed: the names of some tensors of the model's decoder.
        prefix: what these names follow in the model.

    Raises:
        ValueError: naming some.
    """
    check_names({f"{prefix}{name}" for name in needed}, layout.places.keys(), None, "its config")


def check_encoder(source: Source, layout: Layout, known: Mapping[str, tuple[int, ...]],
                  prefix: str) -> None:
    """Refuses weights that hold no tensor of the encoder, before that is tried and built.

    Args:
        known: names and shapes of the encoder's tensors, of which a model may have less.
        prefix: what these names follow in the model, say ``"encoder."``.

    Raises:
        ValueError: there is none.
    """
    files = {layout.places[f"{prefix}{name}"] for name in known
             if f"{prefix}{name}" in layout.places}
    for file in sorted(files):
        shapes = read_header(source, file, source.get(file), layout.checksums.get(file))
        if any(shapes.get(f"{prefix}{name}") == shape for name, shape in known.items()):
            return
    raise ValueError(f"{source.where(layout.file)}: its tensors are not those of its config: none "
                     "has the name and shape of a tensor of its encoder")


def check_names(wanted: Set[str], found: Set[str], known: Set[str] | None, by: str) -> None:
    """Refuses weights unless all tensors that are wanted are there, and no unknown one.

    Raises:
        ValueError: naming those that differ.
    """
    missing, surplus = wanted - found, set() if known is None else found - known
    if missing or surplus:
        raise ValueError(f"its tensors are not those of {by}: {len(missing)} are missing "
                         f"{show(sorted(missing))}, {len(surplus)} unknown {show(sorted(surplus))}")


def check_shapes(expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]],
                 names: Set[str]) -> None:
    """Refuses a file unless it holds these tensors alone, those expected in their shape.

    Raises:
        ValueError: naming what differs.
    """
    check_names(names, shapes.keys(), names, "its index")
    for name in sorted(names & expected.keys()):
        if shapes[name] != (wanted := tuple(expected[name].shape)):
            raise ValueError(f"{name!r} has shape {shapes[name]}, its config says {wanted}")


def check_values(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights of a type that no model has, or of several, or that are no numbers.

    Raises:
        ValueError: naming a tensor.
    """
    dtypes = {}
    for name, tensor in tensors.items():
        floating = expected[name].is_floating_point()
        if tensor.dtype not in (DTYPES if floating else (expected[name].dtype,)):
            raise ValueError(f"{name!r} is of {tensor.dtype}; it cannot be")
        if floating:
            dtypes[tensor.dtype] = name
            learned = isinstance(expected[name], nn.Parameter) or name.endswith(STATISTICS)
            if tensor.isnan().any() or (learned and tensor.isinf().any()):
                raise ValueError(f"{name!r} holds values that are not finite: the model diverged "
                                 "in training, or the file is damaged")
    if len(dtypes) > 1:
        raise ValueError(f"it mixes {sorted(map(str, dtypes))}, say in "
                         f"{show(sorted(dtypes.values()))}; expected one dtype")
