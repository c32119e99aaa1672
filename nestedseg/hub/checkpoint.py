"""Weights in several files, so that a shallow depth can be loaded without the rest.

The tensors of L^1 are among those of L^2, and so on: file k has what the k-th depth needs beyond
the depths before it. An index, in a form that transformers and accelerate read too, has the file of
each tensor and the checksum of each file. A model with one head is a single file.
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

CHECKSUM = "sha256"  # key in the config, for a single file; prefix of keys in the index
STATISTICS = ("running_mean", "running_var")  # must be finite; other buffers may be infinite bounds
Shapes = Mapping[str, tuple[int, ...]]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Source(Protocol):
    """Where the files of a model are: a folder, or a repo on the Hub."""

    name: str

    def find(self, file: str) -> Path | None: ...

    def get(self, file: str) -> Path: ...

    def where(self, file: str) -> str: ...

    def damage(self, file: str, reason: str) -> Exception: ...


# -- writing ---------------------------------------------------------------------------------------


def save(directory: Path, config: Mapping[str, Any], model: Saved) -> None:
    """Saves a model: config, weights and, with several heads, an index; replaces an earlier one.

    Raises:
        ValueError: the model is not what its config builds, or its weights are not finite.
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
    """The checksum that goes into the config: of a single weights file, which has no index."""
    return {CHECKSUM: storage.sha256(directory / storage.WEIGHTS)} if len(files) == 1 else {}


def split_by_depth(model: Saved) -> dict[str, list[str]]:
    """The names of the tensors in each file, shallow -> deep.

    A tensor that the model has under several names is written under one of them, or under several
    if pruned models know it by different ones.
    """
    whole = list(own_tensors(model))
    count = len(model.depths)
    if count <= 1:
        return {storage.WEIGHTS: whole}
    copy: Any = meta_copy(model)  # any model with several depths has `prune`
    needed = [list(own_tensors(copy.prune(depth))) for depth in model.depths]
    needed[-1] += whole  # tensors that no depth needs, if there are any
    placed: set[str] = set()
    files = {}
    for number, names in enumerate(needed, 1):
        files[f"model-{number:05}-of-{count:05}.safetensors"] = [
            name for name in dict.fromkeys(names) if name not in placed]
        placed.update(names)
    return files


def make_index(directory: Path, files: Mapping[str, list[str]],
               tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The index of files that have been written. Its metadata are strings, as transformers expects.
    """
    size = sum(tensors[name].nbytes for names in files.values() for name in names)
    checksums = {f"{CHECKSUM}.{file}": storage.sha256(directory / file) for file in files}
    return {"metadata": {"format": "pt", "total_size": str(size), **checksums},
            "weight_map": {name: file for file, names in files.items() for name in names}}


def _weights_writer(model: nn.Module, names: list[str]) -> storage.Writer:
    def write(path: Path) -> None:
        state = model.state_dict()  # cloned below: safetensors rejects tensors that share memory
        tensors = {name: state[name].clone(memory_format=torch.contiguous_format)
                   for name in names}
        safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return write


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Which tensor is in which file.

    Args:
        file: where this is written: the index, or the single file with all tensors.
        places: the file of each tensor.
        checksums: of the files that have not been verified yet.
    """

    file: str
    places: dict[str, str]
    checksums: dict[str, Any]

    def names_in(self, file: str) -> set[str]:
        return {name for name, place in self.places.items() if place == file}


def read_weights(source: Source, layout: Layout, expected: Mapping[str, Tensor],
                 known: Set[str] | None) -> dict[str, Tensor]:
    """Reads the weights of a model from those files that contain any of them.

    Names and shapes in all these files are checked before any tensor is read. All weights must be
    finite and of one dtype.

    Args:
        source: where the files are.
        layout: which tensor is in which file.
        expected: the tensors of the model, on the meta device.
        known: all names that the source may have; ``None`` = any, because only one depth is read.

    Raises:
        ValueError: a file is damaged, or its tensors are not those of the model.
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
    """The layout of a source's weights: from its index, or from the names in the single file.

    Args:
        source: where the files are.
        sharded: whether to look for the index first.
        checksum: of the single file, if the config has it.

    Raises:
        FileNotFoundError: there is neither an index nor a single file.
    """
    for file in (storage.INDEX, storage.WEIGHTS) if sharded else (storage.WEIGHTS, storage.INDEX):
        path = source.find(file)
        if path is not None:
            break
    else:
        raise FileNotFoundError(
            f"no weights to load in {source.name!r}: neither {storage.WEIGHTS} nor "
            f"{storage.INDEX} is there. Pickles, such as pytorch_model.bin, are never read, "
            "because they may run any code")
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
    """Checks that a file is the one that was saved. Files of other libraries have no checksum.

    Raises:
        ValueError: it is not, and the source is a folder.
        HubError: it is not, and the source is a repo.
    """
    if checksum is not None and checksum != (found := storage.sha256(path)):
        raise source.damage(file, f"its {CHECKSUM} is {found}, expected {show(checksum)}")


def parse_index(data: Mapping[str, Any]) -> Layout:
    """Checks an index: all of its files must be safetensors files in the same folder.

    Raises:
        ValueError: it is not an index, or names another file.
    """
    places, metadata = data.get("weight_map"), data.get("metadata", {})
    if not isinstance(places, dict) or not places or not isinstance(metadata, dict):
        raise ValueError("not an index of weights: expected a 'weight_map' from the names of "
                         f"tensors to files, got {show(places)}")
    for file in places.values():
        if not isinstance(file, str) or not storage.is_weights(file) or file == storage.INDEX:
            raise ValueError(f"the index names the file {show(file)}; allowed are "
                             f"{storage.WEIGHTS} and names like "
                             "model-00001-of-00004.safetensors, in the same folder")
    checksums = {file: metadata.get(f"{CHECKSUM}.{file}") for file in set(places.values())}
    return Layout(storage.INDEX, places, checksums)


def check_parts(source: Source, layout: Layout, needed: Iterable[str], certain: Shapes,
                known: Shapes, whole: bool) -> None:
    """Refuses weights that cannot be those of the config, before anything is built from it.

    Args:
        needed: names that must be there.
        certain: shapes of some tensors, which the weights need not have.
        known: names and shapes, of which the weights must have one; none = they need not.
        whole: whether all files will be read, or only those that hold what is needed.

    Raises:
        ValueError: naming what is missing, or of another shape.
    """
    names = set(needed)
    with blamed(source.where(layout.file)):
        check_names(names, layout.places.keys(), None, "its config")
    places = layout.places.values() if whole else map(layout.places.__getitem__, names)
    found = False
    for file in sorted(set(places)):
        shapes = read_header(source, file, source.get(file), layout.checksums.get(file))
        with blamed(source.where(file)):
            for name in certain.keys() & shapes.keys():
                check_shape(name, shapes[name], certain[name])
        found = found or any(shapes.get(name) == shape for name, shape in known.items())
    if known and not found:
        raise ValueError(f"{source.where(layout.file)}: its tensors are not those of its config: "
                         "none has the name and shape of a tensor of its encoder")


def check_names(wanted: Set[str], found: Set[str], known: Set[str] | None, by: str) -> None:
    """Checks that all wanted tensors were found, and none that is not known.

    Args:
        wanted: names that must be there.
        found: names that are there.
        known: names that may be there; ``None`` = any.
        by: where the wanted names come from, for the message.

    Raises:
        ValueError: the names differ; the message lists them.
    """
    missing, surplus = wanted - found, set() if known is None else found - known
    if missing or surplus:
        raise ValueError(f"its tensors are not those of {by}: {len(missing)} are missing "
                         f"{show(sorted(missing))}, {len(surplus)} unknown {show(sorted(surplus))}")


def check_shapes(expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]],
                 names: Set[str]) -> None:
    """Checks that a file contains exactly these tensors, and that their shapes are as expected.

    Raises:
        ValueError: a name or shape differs; the message names the tensor.
    """
    check_names(names, shapes.keys(), names, "its index")
    for name in sorted(names & expected.keys()):
        check_shape(name, shapes[name], tuple(expected[name].shape))


def check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Checks that a tensor has the shape that it should have.

    Raises:
        ValueError: it has not; the message names the tensor.
    """
    if found != wanted:
        raise ValueError(f"{name!r} has shape {found}, its config says {wanted}")


def check_values(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Checks that all weights have one supported dtype and are finite.

    Raises:
        ValueError: they do not; the message names a tensor.
    """
    dtypes = {}
    for name, tensor in tensors.items():
        floating = expected[name].is_floating_point()
        allowed = DTYPES if floating else (expected[name].dtype,)
        if tensor.dtype not in allowed:
            raise ValueError(f"unsupported dtype {tensor.dtype} for tensor {name!r}; allowed: "
                             f"{', '.join(map(str, allowed))}")
        if floating:
            dtypes[tensor.dtype] = name
            learned = isinstance(expected[name], nn.Parameter) or name.endswith(STATISTICS)
            if tensor.isnan().any() or (learned and tensor.isinf().any()):
                raise ValueError(f"tensor {name!r} has values that are not finite: the model "
                                 "diverged in training, or the file is damaged")
    if len(dtypes) > 1:
        raise ValueError(f"the tensors mix the dtypes {sorted(map(str, dtypes))}, for example in "
                         f"{show(sorted(dtypes.values()))}; expected one dtype")
