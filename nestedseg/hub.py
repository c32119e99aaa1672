"""Models from where they were saved."""

from __future__ import annotations

from pathlib import Path

from nestedseg import storage
from nestedseg.config import Config
from nestedseg.errors import show
from nestedseg.model import SegmentationModel, build


def from_pretrained(directory: str | Path, depth: int | None = None) -> SegmentationModel:
    """The model that `SegmentationModel.save_pretrained` wrote, in eval mode.

    Encoder weights are never fetched again, nothing is unpickled, and every tensor must match.

    Args:
        directory: the folder with ``config.json`` and ``model.safetensors``.
        depth: prune to this depth; default: the whole model.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or its content is not what it should be.
    """
    directory = Path(directory)
    data = storage.read_config(directory)
    try:
        config = Config.from_dict(data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(directory / storage.CONFIG)!r}: {error}") from error
    model = build(config)
    load_strictly(model, directory)
    return (model if depth is None else model.prune(depth)).eval()


def load_strictly(model: SegmentationModel, directory: Path) -> None:
    """Loads the folder's weights; every tensor must be there, with its shape, and no other."""
    tensors = storage.read_weights(directory)
    expected = model.state_dict()
    where = repr(str(directory / storage.WEIGHTS))
    missing, surplus = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or surplus:
        raise ValueError(f"{where} does not fit its config: {len(missing)} tensors are missing "
                         f"{show(sorted(missing))}, {len(surplus)} unknown {show(sorted(surplus))}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{where}: {name!r} has shape {tuple(tensor.shape)}, its config "
                             f"says {tuple(expected[name].shape)}")
    model.load_state_dict(tensors)
