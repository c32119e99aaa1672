"""Reads and writes volumes, which have three spatial axes, in parts: NIfTI, ``.npy``, TIFF, Zarr,
and through SimpleITK NRRD, MetaImage and DICOM.

Whatever the order of axes in a NIfTI, NRRD, MetaImage or DICOM file, in memory they are D, H, W =
feet to head, back to front, left to right (nibabel's closest canonical orientation, slowest axis
first). A mask is written with the axes of the file of its volume. The axes of an ``.npy`` array are
taken as they are, and its voxels as cubes of 1 mm; those of a TIFF stack or a Zarr array are Z, Y,
X.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from nestedseg.base.errors import as_path
from nestedseg.base.extras import require
from nestedseg.data.files import STACKS, Pair, known_suffix, split_name
from nestedseg.data.medical import open_itk, open_series, write_itk
from nestedseg.data.source import Source, by, decoding, whole
from nestedseg.data.tiff import Tiff
from nestedseg.data.zarr_array import ZarrArray

MAX_VOXELS = 2 ** 31  # of a resampled volume
# formats of SimpleITK, each with the format, of one file, in which masks are written
MASK_OF = {".nrrd": ".nrrd", ".nhdr": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}
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
        windowed: whether a window is read without decoding the whole file.
        nodata: the value of voxels that were not measured; ``None`` = there are none.
    """

    path: Path
    stored: np.ndarray | OnAccess | Unpacked
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: tuple[float, float] = (1.0, 0.0)
    source: Any = None
    windowed: bool = True
    nodata: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of voxels along each axis, ``(D, H, W)``."""
        return self.stored.shape[:3]

    @property
    def channels(self) -> int:
        """How many numbers each voxel has."""
        return self.stored.shape[3] if self.stored.ndim == 4 else 1

    @property
    def mapped(self) -> bool:
        """Whether reading decodes nothing."""
        if isinstance(self.stored, OnAccess):
            return self.stored.source.mapped
        return isinstance(self.stored, np.ndarray)

    @property
    def dtype(self) -> np.dtype:
        """The type of the numbers that `read` gives."""
        return self.stored.dtype if self.scale == (1, 0) else np.dtype(np.float32)

    @property
    def affine(self) -> np.ndarray | None:
        """The 4 x 4 matrix from voxel indices in the file to mm; ``None`` for ``.npy``."""
        return None if self.source is None else self.source.affine

    def __getitem__(self, planes: slice) -> np.ndarray:
        """Reads some planes along D, as float32.

        Raises:
            ValueError: there are infinite voxels.
        """
        slope, intercept = self.scale
        values = self.stored[planes].astype(np.float32)
        values = values if self.scale == (1, 0) else values * slope + intercept
        if np.isinf(values).any():
            raise ValueError(f"{self.path} has infinite voxels; replace them")
        return np.ascontiguousarray(values, np.float32)

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window, or everything, as ``(*window, channels)``; see `Source`.

        Args:
            window: a slice with start and stop for each axis. Default: the whole volume.
        """
        values = self.stored[tuple(window or whole(self.shape))]
        if self.scale != (1, 0):
            slope, intercept = self.scale
            values = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        return np.ascontiguousarray(values.reshape(*values.shape[:3], -1), self.dtype)

    def class_indices(self) -> np.ndarray:
        """Reads all voxels of a label, ``(D, H, W)`` or ``(D, H, W, C)``, as they are stored.

        Raises:
            ValueError: there are NaN or infinite voxels.
        """
        if self.stored.dtype.kind != "f" and self.scale == (1, 0):
            return np.ascontiguousarray(self.stored[:])
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
    """Opens a NIfTI, NRRD, MetaImage or ``.npy`` file, a DICOM series, a TIFF stack or Zarr array.

    The values of a DICOM series are rescaled as its files say, so those of CT are Hounsfield units.

    Args:
        path: ends in ``.nii``, ``.nii.gz``, ``.npy``, ``.nrrd``, ``.nhdr``, ``.mha``, ``.mhd``,
            ``.tif``, ``.tiff`` or ``.zarr``; or a folder with the slices of one DICOM series.

    Raises:
        ValueError: the file is missing or damaged, or does not contain a volume.
    """
    volume = _open_header(as_path("a volume", path))
    if isinstance(volume.stored, Unpacked):
        volume.stored.keep()
    return volume


def _open_header(path: Path) -> Volume:
    """A volume of which a packed file is not unpacked yet."""
    reader = _open_series if path.is_dir() else _open_nifti
    try:
        volume = OPEN.get(known_suffix(path), reader)(path)
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


def _open_stack(path: Path) -> Volume:
    source = (ZarrArray if path.suffix.lower() == ".zarr" else Tiff)(path, dims=3)
    return Volume(path, OnAccess(source), source.spacing, windowed=source.windowed,
                  nodata=source.nodata)


def _open_itk(path: Path) -> Volume:
    return _packed(path, *open_itk(path))


def _open_series(path: Path) -> Volume:
    return _packed(path, *open_series(path))


OPEN = {".npy": _open_array, **dict.fromkeys(STACKS, _open_stack),
        **dict.fromkeys(MASK_OF, _open_itk)}


class OnAccess:
    """A source of volumes as an array of which only what is asked for is read.

    Args:
        source: an opened file with three spatial axes.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.dtype = source, source.dtype
        self.shape = (*source.shape, *([source.channels] if source.channels > 1 else []))
        self.ndim = len(self.shape)

    def __getitem__(self, window: slice | Sequence[slice]) -> np.ndarray:
        given = [window] if isinstance(window, slice) else list(window)
        given += [slice(None)] * (3 - len(given))
        ends = [side.indices(length) for side, length in zip(given, self.shape)]
        values = self.source.read([slice(start, stop) for start, stop, _ in ends])
        return values[..., 0] if self.ndim == 3 else values


def _open_nifti(path: Path) -> Volume:
    source = require("nibabel", "medical").load(path)
    data = source.dataobj
    size, most = np.prod(data.shape, dtype=float) * data.dtype.itemsize, path.stat().st_size
    if size > most * (DEFLATE if path.suffix.lower() == ".gz" else 1):  # before memory is allocated
        raise ValueError(f"its header says {size:.0f} bytes of voxels, but the file has only "
                         f"{most} bytes")
    if path.suffix.lower() == ".gz":
        return _packed(path, source, data.get_unscaled, (data.slope, data.inter))
    return _of_nibabel(path, source, data.get_unscaled(), (data.slope, data.inter))


def _packed(path: Path, source: Any, read: Callable[[], np.ndarray],
            scale: tuple[float, float] = (1.0, 0.0)) -> Volume:
    """A volume that is unpacked when its voxels are asked for."""
    data = source.dataobj
    plan = np.broadcast_to(np.zeros((), data.dtype), data.shape)  # takes no memory
    volume = _of_nibabel(path, source, plan, scale)
    return replace(volume, stored=Unpacked(volume, read), windowed=False)


class Unpacked:
    """The voxels of a packed file as an array; they stay in memory only after `keep`.

    Args:
        volume: with an array of the same shape and type in their place.
        read: gives them, with the axes of the file.
    """

    def __init__(self, volume: Volume, read: Callable[[], np.ndarray]) -> None:
        plan: Any = volume.stored
        self.path, self.source, self.read = volume.path, volume.source, read
        self.shape, self.dtype, self.ndim = plan.shape, plan.dtype, plan.ndim
        self.kept: np.ndarray | None = None

    def unpack(self) -> np.ndarray:
        """Reads the voxels.

        Raises:
            ValueError: the file is damaged.
        """
        with decoding(f"the volume {self.path}"):
            stored = self.read()
        return _canonical(_one_time(stored), self.source.affine)

    def keep(self) -> None:
        """Unpacks the voxels, and keeps them in memory."""
        self.kept = self.unpack()

    def __getitem__(self, window: slice | Sequence[slice]) -> np.ndarray:
        array = self.unpack() if self.kept is None else self.kept
        return array[window if isinstance(window, slice) else tuple(window)]


def _of_nibabel(path: Path, source: Any, stored: np.ndarray,
                scale: tuple[float, float]) -> Volume:
    """The volume of nibabel's image and its stored numbers, with the axes of the file."""
    if not np.isfinite(source.affine).all() or not np.linalg.det(source.affine[:3, :3]):
        raise ValueError(f"its affine is not invertible: {source.affine.tolist()}")
    stored = _canonical(_checked_axes(_one_time(stored)), source.affine)
    return Volume(path, stored, _spacing(source.affine), scale, source)


def _one_time(stored: np.ndarray) -> np.ndarray:
    """Without the axis of a time series of length 1."""
    return stored[..., 0] if stored.ndim == 4 and stored.shape[3] == 1 else stored


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


def open_volume_pair(pair: Pair, spacing: Sequence[float] | None = None
                     ) -> tuple[Source, Source, tuple[float, ...]]:
    """Opens a volume and its label; returns both with the spacing of their voxels.

    Args:
        pair: the files.
        spacing: along D, H, W in mm, to which the image is resampled; default: it is not.

    Raises:
        ValueError: a file cannot be opened, or the label has several channels, or another shape or
            affine than the image.
    """
    image, label = _open_header(pair.image), _open_header(pair.label_file)
    _check_grids(image, label)
    if spacing is None:
        return _forgetting(image), _forgetting(label), image.spacing
    shape = image.shape_at(spacing)
    spacing = tuple(own * length / new for own, length, new
                    in zip(image.spacing, image.shape, shape))
    return (Resampled(_forgetting(image), shape),
            Resampled(_forgetting(label), shape, nearest=True), spacing)


def _forgetting(volume: Volume) -> Source:
    """The volume, but one whose voxels are in memory is read again when they are asked for."""
    in_memory = isinstance(volume.stored, np.ndarray) and _owner(volume.stored) is None
    return Reread(volume) if in_memory else volume


def _owner(array: Any) -> np.memmap | None:
    """The memory-mapped file that an array is a view of."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array


class Reread:
    """A volume of which only the header stays in memory; a `Source`.

    Args:
        volume: as it was opened.
    """

    windowed = mapped = False

    def __init__(self, volume: Volume) -> None:
        self.path, self.shape, self.channels = volume.path, volume.shape, volume.channels
        self.dtype, self.nodata = volume.dtype, volume.nodata

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window; see `Source`."""
        return open_volume(self.path).read(window)


class Resampled:
    """A volume at another spacing; a `Source`.

    Args:
        volume: as it was opened.
        shape: ``(D, H, W)`` that it gets.
        nearest: each voxel has the number of the nearest one, as labels need; otherwise the numbers
            are interpolated linearly.
    """

    windowed = mapped = False

    def __init__(self, volume: Source, shape: tuple[int, ...], nearest: bool = False) -> None:
        self.volume, self.shape, self.nearest = volume, shape, nearest
        self.path, self.channels, self.nodata = volume.path, volume.channels, volume.nodata
        self.dtype = volume.dtype if nearest else np.dtype(np.float32)

    def read(self, window: Sequence[slice] | None = None) -> np.ndarray:
        """Reads a window; see `Source`."""
        if self.nearest:
            values = resize_label(self.volume.read(), self.shape)
        else:
            values = resize(self.volume.read().astype(np.float32), self.shape)
        return values[tuple(window or whole(self.shape))]


def _check_grids(image: Volume, label: Volume) -> None:
    if (image.source is None) != (label.source is None):
        raise ValueError(f"{image.path} and its label {label.path} must both have an affine, as "
                         "NIfTI, NRRD, MetaImage and DICOM files do, or neither; otherwise their "
                         "axes may differ")
    if image.shape != label.shape:
        raise ValueError(f"{image.path} is {by(image.shape)} voxels, but its label {label.path} "
                         f"is {by(label.shape)}")
    first, second = image.affine, label.affine
    if first is not None and second is not None and not np.allclose(first, second, atol=1e-3):
        raise ValueError(f"{image.path} and its label {label.path} are at different places: their "
                         f"affines {first.tolist()} and {second.tolist()} differ")


def resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples ``(D, H, W)`` or ``(D, H, W, C)`` to another shape, by linear interpolation."""
    channels = torch.from_numpy(values.reshape(*values.shape[:3], -1)).movedim(-1, 0)
    resized = F.interpolate(channels[None], tuple(shape), mode="trilinear")[0]
    return resized.movedim(0, -1).reshape(*shape, *values.shape[3:]).numpy()


def resize_label(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples ``(D, H, W)`` or ``(D, H, W, C)`` with the numbers of the nearest voxels."""
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
        path: ``.nii`` or ``.nii.gz``; ``.nrrd`` or ``.mha`` too, if ``like`` has this format or the
            one of two files, ``.nhdr`` or ``.mhd``; if it is an ``.npy`` file, ``.npy``; if it is a
            TIFF stack or Zarr array, ``.tif``.
        like: the volume that was segmented.

    Raises:
        ValueError: ``path`` has another suffix.
    """
    path = Path(path)
    name, suffix = split_name(path)
    allowed = _mask_suffixes(like)
    if suffix.lower() not in allowed:
        raise ValueError(f"the mask of {like.path} must be a {' or '.join(allowed)} file, got "
                         f"{path}")
    draft = path.with_name(f".{name}.{os.getpid()}{'.npy' if like.source is None else '.nii'}")
    packed = draft.with_name(draft.name + suffix)
    try:
        mask = _create_file(draft, like)
        affine = like.affine
        yield mask if affine is None else _canonical(mask, affine)
        mask.flush()
        if suffix.lower() == ".nii.gz":
            _pack(draft, packed)
            os.replace(packed, path)
        elif suffix.lower() in (".tif", ".tiff"):
            _write_stack(packed, mask, like.spacing)
            os.replace(packed, path)
        elif suffix.lower() in MASK_OF.values():
            write_itk(packed, mask, like.path)
            os.replace(packed, path)
        else:
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)


def mask_name(like: Volume) -> str:
    """The name of a volume's mask: as the volume's own, where `new_mask` can write its format.

    Args:
        like: the volume. The mask of a DICOM series is a ``.nii.gz`` file.
    """
    name, suffix = split_name(like.path)
    allowed = _mask_suffixes(like)
    return like.path.name if suffix.lower() in allowed else name + allowed[0]


def _mask_suffixes(like: Volume) -> tuple[str, ...]:
    """The suffixes that a mask may have, the most natural first."""
    own = MASK_OF.get(known_suffix(like.path))
    if like.source is not None:
        return (*([own] if own else []), ".nii.gz", ".nii")
    return (".tif", ".tiff") if isinstance(like.stored, OnAccess) else (".npy",)


def _write_stack(path: Path, mask: np.ndarray, spacing: Sequence[float]) -> None:
    """Writes a mask as a TIFF stack that ImageJ reads, with the size of its voxels."""
    depth, height, width = spacing
    require("tifffile").imwrite(
        path, mask, imagej=mask.nbytes < 2**32, photometric="minisblack",
        resolution=(1 / width, 1 / height),
        metadata={"axes": "ZYX", "spacing": depth, "unit": "mm"})


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
