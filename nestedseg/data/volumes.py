"""Reads and writes volumes, which have three spatial axes, in parts: NIfTI and ``.npy`` files.

Whatever the order of axes in a NIfTI file, in memory they are D, H, W = feet to head, back to
front, left to right (nibabel's closest canonical orientation, slowest axis first). A mask is
written with the axes of the file of its volume. The axes of an ``.npy`` array are taken as they
are, and its voxels as cubes of 1 mm.
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
DEFLATE = 1032  # a gzip file unpacks to at most this many times its size


@dataclass(frozen=True, eq=False)
class Volume:
    """An opened volume file. Voxels are read on access: ``volume[10:20]``.

    Args:
        path: of the file.
        stored: the stored values, ``(D, H, W)`` or ``(D, H, W, C)``: a view of a ``.nii`` or
            ``.npy`` file; for ``.nii.gz`` unpacked in memory.
        spacing: size of a voxel along D, H, W in mm.
        scale: slope and intercept that turn stored values into real ones.
        source: nibabel's image; ``None`` for ``.npy``.
    """

    path: Path
    stored: np.ndarray
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: tuple[float, float] = (1.0, 0.0)
    source: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of voxels along each axis, ``(D, H, W)``."""
        return self.stored.shape[:3]

    @property
    def affine(self) -> np.ndarray | None:
        """The 4 x 4 matrix from voxel indices in the file to mm; ``None`` for ``.npy``."""
        return None if self.source is None else self.source.affine

    def __getitem__(self, planes: slice) -> np.ndarray:
        """Reads some planes along D, as float32.

        Raises:
            ValueError: there are NaN or infinite voxels.
        """
        slope, intercept = self.scale
        values = self.stored[planes].astype(np.float32)
        values = values if self.scale == (1, 0) else values * slope + intercept
        if not np.isfinite(values).all():
            raise ValueError(f"{self.path} has NaN or infinite voxels; replace them")
        return np.ascontiguousarray(values, np.float32)

    def class_indices(self) -> np.ndarray:
        """Reads all voxels of a label, ``(D, H, W)`` or ``(D, H, W, C)``, as they are stored.

        Raises:
            ValueError: there are NaN or infinite voxels.
        """
        if self.stored.dtype.kind != "f" and self.scale == (1, 0):
            return np.ascontiguousarray(self.stored)
        return self[:]

    def shape_at(self, spacing: Sequence[float]) -> tuple[int, ...]:
        """The shape that the volume has when it is resampled to another spacing.

        Args:
            spacing: along D, H, W in mm.

        Raises:
            ValueError: it would have more than 2^31 voxels.
        """
        shape = tuple(max(1, round(length * own / wanted)) for length, own, wanted
                      in zip(self.shape, self.spacing, spacing, strict=True))
        if np.prod(shape, dtype=float) > MAX_VOXELS:
            raise ValueError(f"{self.path} has {self.shape} voxels of {self.spacing} mm; at a "
                             f"spacing of {tuple(spacing)} mm it would have {shape}, more than the "
                             f"{MAX_VOXELS} allowed; use a larger spacing")
        return shape


def open_volume(path: str | Path) -> Volume:
    """Opens a NIfTI or ``.npy`` file.

    Args:
        path: ends in ``.nii``, ``.nii.gz`` or ``.npy``.

    Raises:
        ValueError: the file is missing or damaged, or does not contain a volume.
    """
    path = as_path("a volume", path)
    try:
        volume = _open_array(path) if split_name(path)[1].lower() == ".npy" else _open_nifti(path)
    except ImportError:
        raise
    except Exception as error:  # nibabel, NumPy and gzip raise many kinds for a damaged file
        raise ValueError(f"cannot read the volume {path}: {error}") from error
    if volume.stored.dtype.kind not in "buif":
        raise ValueError(f"unsupported dtype {volume.stored.dtype} of {path}; expected one number "
                         "per voxel")
    return volume


def _open_array(path: Path) -> Volume:
    return Volume(path, _checked_axes(np.load(path, mmap_mode="r", allow_pickle=False)))


def _open_nifti(path: Path) -> Volume:
    source = require("nibabel", "medical").load(path)
    data = source.dataobj
    size, most = np.prod(data.shape, dtype=float) * data.dtype.itemsize, path.stat().st_size
    if size > most * (DEFLATE if path.suffix.lower() == ".gz" else 1):  # before memory is allocated
        raise ValueError(f"its header says {size:.0f} bytes of voxels, but the file has only "
                         f"{most} bytes")
    if not np.isfinite(source.affine).all() or not np.linalg.det(source.affine[:3, :3]):
        raise ValueError(f"its affine is not invertible: {source.affine.tolist()}")
    stored = data.get_unscaled()
    if stored.ndim == 4 and stored.shape[3] == 1:  # a time series of length 1
        stored = stored[..., 0]
    stored = _canonical(_checked_axes(stored), source.affine)
    return Volume(path, stored, _spacing(source.affine), (data.slope, data.inter), source)


def _checked_axes(stored: np.ndarray) -> np.ndarray:
    if stored.ndim not in (3, 4) or 0 in stored.shape:
        raise ValueError(f"its shape is {stored.shape}; expected three axes, or four with the "
                         "channels last, all of length 1 or more")
    return stored


def _canonical(stored: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view ``(D, H, W)`` or ``(D, H, W, C)`` of an array that has the axes of its file."""
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
    """Reads a volume and its label; returns both with the spacing of their voxels.

    Args:
        pair: the files.
        spacing: along D, H, W in mm, to which the image is resampled; default: it is not.

    Returns:
        The image, ``(D, H, W)`` or ``(D, H, W, C)``, float32; the label as it is stored, on its own
        grid; the spacing of the image along D, H, W in mm.

    Raises:
        ValueError: a file cannot be read, the image has NaN or infinite voxels, or the label has
            another shape or affine than the image.
    """
    image, label = open_volume(pair.image), open_volume(pair.label)
    _check_grids(image, label)
    if spacing is None:
        return image[:], label.class_indices(), image.spacing
    shape = image.shape_at(spacing)
    spacing = tuple(own * length / new for own, length, new
                    in zip(image.spacing, image.shape, shape))
    return resize(image[:], shape), label.class_indices(), spacing


def _check_grids(image: Volume, label: Volume) -> None:
    if (image.source is None) != (label.source is None):
        raise ValueError(f"{image.path} and its label {label.path} must both be NIfTI or both "
                         ".npy; otherwise their axes may differ")
    if image.shape != label.shape:
        raise ValueError(f"{image.path} is {_by(image.shape)} voxels, but its label {label.path} "
                         f"is {_by(label.shape)}")
    first, second = image.affine, label.affine
    if first is not None and second is not None and not np.allclose(first, second, atol=1e-3):
        raise ValueError(f"{image.path} and its label {label.path} are at different places: their "
                         f"affines {first.tolist()} and {second.tolist()} differ")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples ``(D, H, W)`` or ``(D, H, W, C)`` to another shape, by linear interpolation."""
    channels = torch.from_numpy(values.reshape(*values.shape[:3], -1)).movedim(-1, 0)
    resized = F.interpolate(channels[None], tuple(shape), mode="trilinear")[0]
    return resized.movedim(0, -1).reshape(*shape, *values.shape[3:]).numpy()


def resize_label(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples a label to another shape, with the class of the nearest voxel; channels are last.
    """
    nearest = [((np.arange(new) + 0.5) * old / new).astype(int)
               for old, new in zip(label.shape, shape)]  # zip: without the channels
    return label[np.ix_(*nearest)]


# -- writing --------------------------------------------------------------------------------------


@contextmanager
def new_mask(path: str | Path, like: Volume) -> Iterator[np.ndarray]:
    """A context with an array ``(D, H, W)`` of uint8 to fill, which becomes the file of a mask.

    The array is a view of a file on disk, so it may be larger than memory. The file has the grid,
    header and affine of ``like``. It appears at ``path`` when it is complete.

    Args:
        path: ``.nii`` or ``.nii.gz``; if ``like`` is an ``.npy`` file, ``.npy``.
        like: the volume that was segmented.

    Raises:
        ValueError: ``path`` has another suffix.
    """
    path = Path(path)
    name, suffix = split_name(path)
    allowed = (".npy",) if like.source is None else (".nii", ".nii.gz")
    if suffix.lower() not in allowed:
        raise ValueError(f"the mask of {like.path} must be a {' or '.join(allowed)} file, got "
                         f"{path}")
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
    """Makes an empty mask on disk, with the axes of the file of ``like``."""
    if like.source is None:
        return np.lib.format.open_memmap(path, "w+", np.uint8, like.shape)
    header = like.source.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0  # the display range, which viewers then choose
    shape = like.source.shape[:3]
    empty = type(like.source)(np.broadcast_to(np.uint8(0), shape), like.affine, header)
    empty.to_filename(path)
    start = require("nibabel", "medical").load(path).dataobj.offset
    return np.memmap(path, np.uint8, "r+", start, shape, order="F")


def _pack(source: Path, target: Path) -> None:
    # without a time in the header, so that the same voxels give the same file
    with source.open("rb") as raw, target.open("wb") as file, \
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed:
        shutil.copyfileobj(raw, packed, 2 ** 20)
