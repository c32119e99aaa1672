"""Volumes, the files with three axes in space: NIfTI and ``.npy``, read in part, written in part.

In memory the axes of a NIfTI volume are D, H, W = feet to head, back to front, left to right
(nibabel's closest canonical orientation, slowest axis first), however its file has them; what is
written lies as the source does. The axes of an array in ``.npy`` are taken as they are, its voxels
as cubes of 1 mm.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from nestedseg.base.errors import as_path
from nestedseg.base.extras import require
from nestedseg.data.files import Pair, split_name

MAX_VOXELS = 2 ** 31  # of a resampled volume
DEFLATE = 1032  # no gzip file unpacks to more than so many times its size


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume file, opened. Voxels are read when they are asked for: ``volume[10:20]``.

    Args:
        path: of the file.
        stored: ``(D, H, W)`` or ``(D, H, W, C)`` as stored; of ``.nii`` and ``.npy`` a view of the
            file, of ``.nii.gz`` unpacked.
        spacing: of its voxels along D, H, W in mm.
        scale: slope and intercept from what is stored to what is meant.
        source: nibabel's image; ``None`` for ``.npy``.
    """

    path: Path
    stored: np.ndarray
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: tuple[float, float] = (1.0, 0.0)
    source: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """``(D, H, W)``."""
        return self.stored.shape[:3]

    @property
    def affine(self) -> np.ndarray | None:
        """From indices in the file to mm, 4 x 4; ``None`` for ``.npy``."""
        return None if self.source is None else self.source.affine

    def __getitem__(self, planes: slice) -> np.ndarray:
        """Some planes along D, float32.

        Raises:
            ValueError: NaN or infinite voxels.
        """
        slope, intercept = self.scale
        values = self.stored[planes].astype(np.float32)
        values = values if self.scale == (1, 0) else values * slope + intercept
        if not np.isfinite(values).all():
            raise ValueError(f"{self.path} holds NaN or infinite voxels")
        return np.ascontiguousarray(values, np.float32)

    def class_indices(self) -> np.ndarray:
        """All voxels of a label, ``(D, H, W)``, as whole numbers.

        Raises:
            ValueError: several channels, or fractions.
        """
        if self.stored.ndim != 3:
            raise ValueError(f"the label {self.path} has {self.stored.shape[3]} channels; expected "
                             "one whole number per voxel")
        if self.stored.dtype.kind != "f" and self.scale == (1, 0):
            return np.ascontiguousarray(self.stored)
        values = self[:]
        whole = values.astype(np.int64)
        if (whole != values).any():
            raise ValueError(f"the label {self.path} holds fractions; expected one whole number "
                             "per voxel")
        return whole

    def shape_at(self, spacing: Sequence[float]) -> tuple[int, ...]:
        """Its shape if its voxels were of another size.

        Args:
            spacing: along D, H, W in mm.

        Raises:
            ValueError: it would have more than 2^31 voxels.
        """
        shape = tuple(max(1, round(length * own / wanted)) for length, own, wanted
                      in zip(self.shape, self.spacing, spacing, strict=True))
        if np.prod(shape, dtype=float) > MAX_VOXELS:
            raise ValueError(f"{self.path}, {self.shape} voxels of {self.spacing} mm, would have "
                             f"{shape} at a spacing of {tuple(spacing)} mm")
        return shape


def open_volume(path: str | Path) -> Volume:
    """Open a NIfTI or ``.npy`` file.

    Args:
        path: ends in ``.nii``, ``.nii.gz`` or ``.npy``.

    Raises:
        ValueError: the file is missing, damaged, or holds no volume.
    """
    path = as_path("a volume", path)
    try:
        volume = _open_array(path) if split_name(path)[1].lower() == ".npy" else _open_nifti(path)
    except ImportError:
        raise
    except Exception as error:  # nibabel, NumPy and gzip raise many kinds for a damaged file
        raise ValueError(f"cannot read the volume {path}: {error}") from error
    if volume.stored.dtype.kind not in "buif":
        raise ValueError(f"{path} holds {volume.stored.dtype}; expected one number per voxel")
    return volume


def _open_array(path: Path) -> Volume:
    return Volume(path, _checked_axes(np.load(path, mmap_mode="r", allow_pickle=False)))


def _open_nifti(path: Path) -> Volume:
    source = require("nibabel", "medical").load(path)
    data = source.dataobj
    size, most = np.prod(data.shape, dtype=float) * data.dtype.itemsize, path.stat().st_size
    if size > most * (DEFLATE if path.suffix.lower() == ".gz" else 1):  # before memory is taken
        raise ValueError(f"its header says {size:.0f} bytes of voxels, the file has {most}")
    if not np.isfinite(source.affine).all() or not np.linalg.det(source.affine[:3, :3]):
        raise ValueError(f"its affine {source.affine.tolist()} has no inverse")
    stored = data.get_unscaled()
    if stored.ndim == 4 and stored.shape[3] == 1:  # one moment of a series
        stored = stored[..., 0]
    stored = _canonical(_checked_axes(stored), source.affine)
    return Volume(path, stored, _spacing(source.affine), (data.slope, data.inter), source)


def _checked_axes(stored: np.ndarray) -> np.ndarray:
    if stored.ndim not in (3, 4) or 0 in stored.shape:
        raise ValueError(f"its shape is {stored.shape}; expected three axes, or a fourth for the "
                         "channels")
    return stored


def _canonical(stored: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view ``(D, H, W)`` or ``(D, H, W, C)`` of an array in the axes of its file."""
    turn = require("nibabel.orientations", "medical")
    turned = turn.apply_orientation(stored, turn.io_orientation(affine))
    return turned.transpose(2, 1, 0, *range(3, turned.ndim))


def _spacing(affine: np.ndarray) -> tuple[float, ...]:
    axes = require("nibabel.orientations", "medical").io_orientation(affine)[:, 0]
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(sizes[np.argsort(axes)][::-1].tolist())


# -- image and label ------------------------------------------------------------------------------


def read_volume_pair(pair: Pair, spacing: Sequence[float] | None = None
              ) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """An image ``(D, H, W)`` or ``(D, H, W, C)``, float32, its label ``(D, H, W)``, the spacing.

    Args:
        pair: the files.
        spacing: along D, H, W in mm, that both are resampled to; default: their own.

    Raises:
        ValueError: a file that cannot be read, NaN or infinite voxels, or a label of another shape
            or affine than its image.
    """
    image, label = open_volume(pair.image), open_volume(pair.label)
    _check_grids(image, label)
    if spacing is None:
        return image[:], label.class_indices(), image.spacing
    shape = image.shape_at(spacing)
    spacing = tuple(own * length / new for own, length, new
                    in zip(image.spacing, image.shape, shape))
    return resize(image[:], shape), resize_label(label.class_indices(), shape), spacing


def _check_grids(image: Volume, label: Volume) -> None:
    if (image.source is None) != (label.source is None):
        raise ValueError(f"{image.path} and its label {label.path} must both be NIfTI or both "
                         ".npy, or nothing says that their axes are the same")
    if image.shape != label.shape:
        raise ValueError(f"{image.path} is {_by(image.shape)} voxels, its label {label.path} "
                         f"{_by(label.shape)}")
    ours, theirs = image.affine, label.affine
    if ours is not None and theirs is not None and not np.allclose(ours, theirs, atol=1e-3):
        raise ValueError(f"{image.path} and its label {label.path} lie elsewhere: their affines "
                         f"{ours.tolist()} and {theirs.tolist()} differ")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Linear interpolation of ``(D, H, W)`` or ``(D, H, W, C)`` over the same extent in space."""
    channels = torch.from_numpy(values.reshape(*values.shape[:3], -1)).movedim(-1, 0)
    resized = F.interpolate(channels[None], tuple(shape), mode="trilinear")[0]
    return resized.movedim(0, -1).reshape(*shape, *values.shape[3:]).numpy()


def resize_label(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The nearest voxel's class, over the same extent in space."""
    nearest = [((np.arange(new) + 0.5) * old / new).astype(int)
               for old, new in zip(label.shape, shape)]
    return label[np.ix_(*nearest)]


# -- writing --------------------------------------------------------------------------------------


@contextmanager
def new_mask(path: str | Path, like: Volume) -> Iterator[np.ndarray]:
    """An array ``(D, H, W)`` of uint8 to fill; then it is a file on the grid of another volume.

    The array is a view of the disk, so that it may be larger than memory. The file has the header
    and affine of ``like``, and appears when it is complete.

    Args:
        path: ``.nii`` or ``.nii.gz``, or ``.npy`` where ``like`` is that.
        like: the volume that was segmented.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    name, suffix = split_name(path)
    allowed = (".npy",) if like.source is None else (".nii", ".nii.gz")
    if suffix.lower() not in allowed:
        raise ValueError(f"the mask of {like.path} must be {' or '.join(allowed)}, got {path}")
    draft = path.with_name(f".{name}.{os.getpid()}{'.npy' if like.source is None else '.nii'}")
    packed = draft.with_suffix(".gz")
    try:
        mask = _create_file(draft, like)
        affine = like.affine
        yield mask if affine is None else _canonical(mask, affine)
        mask.flush()
        if suffix.lower() == ".nii.gz":
            _pack(draft, packed)
            os.replace(packed, path)
        else:
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)


def _create_file(path: Path, like: Volume) -> np.memmap:
    """An empty mask on disk, in the axes of the file of ``like``."""
    if like.source is None:
        return np.lib.format.open_memmap(path, "w+", np.uint8, like.shape)
    header = like.source.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0  # the grey values that viewers show
    shape = like.source.shape[:3]
    empty = type(like.source)(np.broadcast_to(np.uint8(0), shape), like.affine, header)
    empty.to_filename(path)
    start = require("nibabel", "medical").load(path).dataobj.offset
    return np.memmap(path, np.uint8, "r+", start, shape, order="F")


def _pack(source: Path, target: Path) -> None:
    # no time in the header: the same voxels give the same file
    with source.open("rb") as raw, target.open("wb") as file, \
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed:
        shutil.copyfileobj(raw, packed, 2 ** 20)
