"""Opens NRRD and MetaImage files and DICOM series through SimpleITK, as nibabel's images.

SimpleITK's axes run to the left, back and head, nibabel's to the right, front and head. As an image
of nibabel's such a volume is turned, resampled and compared like one from a NIfTI file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nestedseg.base.errors import show
from nestedseg.base.extras import require
from nestedseg.data.source import check_size

DETACHED = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.*?)\s*$", re.I | re.M)
BLANK = re.compile(rb"\r?\n\r?\n")  # ends the header of a NRRD file
HEADER = 2**16  # bytes in which a header says where its voxels are
UNEVEN = 0.01  # of the distance of slices: a larger difference is an error
TURN = np.diag([-1.0, -1.0, 1.0, 1.0])  # from SimpleITK's axes to nibabel's
POSITION, ORIENTATION, SLOPE, INTERCEPT = "0020|0032", "0020|0037", "0028|1053", "0028|1052"
DESCRIPTION = "0008|103e"


class Opened(NamedTuple):
    """A volume whose header was read.

    Attributes:
        image: nibabel's, with zeros in the place of voxels, which take no memory.
        read: gives the voxels, with the axes of the image.
    """

    image: Any
    read: Callable[[], np.ndarray]


def open_itk(path: Path) -> Opened:
    """Opens a NRRD or MetaImage file.

    Raises:
        ValueError: it is no volume, or its voxels are in a file of another folder.
    """
    _check_detached(path)
    header = _header(path)
    if header.GetDimension() != 3:
        raise ValueError(f"it has {header.GetDimension()} axes; expected three")
    return _opened(str(path), header.GetPixelID(), header.GetNumberOfComponents(),
                   header.GetSize(), header.GetSpacing(), header.GetOrigin(),
                   np.reshape(header.GetDirection(), (3, 3)))


def open_series(folder: Path) -> Opened:
    """Opens the DICOM series in a folder; its voxels will be rescaled as the files say.

    Raises:
        ValueError: there are several series, or slices are missing, doubled, of unlike size or
            orientation, or not at even distances.
    """
    sitk = require("SimpleITK", "medical")
    reader = sitk.ImageSeriesReader()
    ids = reader.GetGDCMSeriesIDs(str(folder))
    if len(ids) != 1:
        series = (_describe(reader.GetGDCMSeriesFileNames(str(folder), each)) for each in ids)
        raise ValueError(f"it contains {len(ids)} DICOM series, and expected is one; put each into "
                         f"a folder of its own: {'; '.join(series)}" if ids else
                         "it contains no DICOM images")
    slices = sorted((_read_slice(Path(name)) for name
                     in reader.GetGDCMSeriesFileNames(str(folder), ids[0])),
                    key=lambda each: each.place)
    _check_slices(slices)
    first, last = slices[0], slices[-1]
    step = (last.place - first.place) / (len(slices) - 1) if last is not first else first.thickness
    # slices may be rescaled unlike each other, which the type of the first need not hold
    fractions = any(each.scale != (1, round(each.scale[1])) for each in slices)
    kind = sitk.sitkFloat32 if fractions and first.components == 1 else first.kind
    return _opened([str(each.path) for each in slices], kind, first.components,
                   (*first.size[::-1], len(slices)), (*first.spacing, step), first.position,
                   np.stack([*first.axes, first.normal], 1))


def _opened(names: str | list[str], kind: int, components: int, size: Sequence[int],
            spacing: Sequence[float], origin: Sequence[float] | np.ndarray,
            direction: np.ndarray) -> Opened:
    """The volume of a file, or of slices, with SimpleITK's facts about it."""
    nibabel, sitk = require("nibabel", "medical"), require("SimpleITK", "medical")
    voxel = sitk.GetArrayFromImage(sitk.Image([1, 1, 1], kind, components)).ravel()
    if voxel.dtype.kind not in "buif":
        raise ValueError(f"its voxels are of type {voxel.dtype}; expected numbers")
    shape = (*size, components) if components > 1 else tuple(size)
    check_size(shape, 1, voxel.dtype)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    header = nibabel.Nifti1Header()
    header.set_data_dtype(voxel.dtype)
    header.set_xyzt_units("mm")
    plan = np.broadcast_to(np.zeros((), voxel.dtype), shape)
    image = nibabel.Nifti1Image(plan, TURN @ affine, header, dtype=voxel.dtype)
    return Opened(image, partial(_read_voxels, names, kind))


def _read_voxels(names: str | list[str], kind: int) -> np.ndarray:
    """The voxels of a file, or of slices, the fastest axis first and channels last."""
    sitk = require("SimpleITK", "medical")
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(names, kind))
    return voxels.transpose(2, 1, 0, *range(3, voxels.ndim))


def _header(path: Path) -> Any:
    """SimpleITK's reader of a file, whose header it has read."""
    reader = require("SimpleITK", "medical").ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def write_itk(path: Path, mask: np.ndarray, like: Path) -> None:
    """Writes a mask in the format of its name, on the grid of the file of a volume.

    Args:
        path: ends in ``.nrrd``, ``.mha`` and so on.
        mask: with the axes of the file, the fastest first.
        like: the file of the volume.
    """
    sitk = require("SimpleITK", "medical")
    header = _header(like)
    image = sitk.GetImageFromArray(mask.transpose(2, 1, 0))
    image.SetSpacing(header.GetSpacing())
    image.SetOrigin(header.GetOrigin())
    image.SetDirection(header.GetDirection())
    sitk.WriteImage(image, str(path), useCompression=True)


def _check_detached(path: Path) -> None:
    """Checks that a header leads to no file outside of its folder."""
    name = _detached_name(path)
    if name.upper().startswith("LIST") or set(name) & set("/\\%") or name.startswith(".."):
        raise ValueError(f"its voxels are in {show(name)}; expected one file in the same folder")


def detached(path: Path) -> Path | None:
    """The file of the voxels that a header leads to; ``None`` = they follow the header."""
    name = _detached_name(path)
    return None if name.upper() == "LOCAL" else path.with_name(Path(name).name)


def _detached_name(path: Path) -> str:
    with path.open("rb") as file:
        found = DETACHED.search(BLANK.split(file.read(HEADER))[0])
    return found.group(1).decode("utf-8", "replace") if found else "LOCAL"


# -- slices ---------------------------------------------------------------------------------------


class Slice(NamedTuple):
    """What the header of a DICOM file says.

    Attributes:
        path: of the file.
        place: along the normal, in mm.
        position: of the centre of the first pixel.
        axes: of its rows and columns, two unit vectors.
        normal: to the plane.
        size: ``(H, W)``.
        spacing: of its pixels.
        thickness: of the slice.
        scale: slope and intercept of its values.
        components: numbers in a pixel.
        kind: SimpleITK's type of these numbers.
    """

    path: Path
    place: float
    position: np.ndarray
    axes: np.ndarray
    normal: np.ndarray
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    thickness: float
    scale: tuple[float, float]
    components: int
    kind: int


def _read_slice(path: Path) -> Slice:
    reader = _header(path)
    known = {*reader.GetMetaDataKeys()}

    def numbers(tag: str, count: int, default: Sequence[float] | None = None) -> np.ndarray:
        try:
            values = [float(each) for each in reader.GetMetaData(tag).split("\\")] \
                if tag in known or default is None else default
        except (ValueError, RuntimeError):
            values = []
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError(f"{path.name} does not say where it lies or how its values are scaled "
                             f"(DICOM tag {tag})")
        return np.array(values, float)

    size = reader.GetSize()
    if len(size) > 2 and size[2] > 1:
        raise ValueError(f"{path.name} has {size[2]} frames; expected one slice in each file. "
                         "Convert it to NIfTI, for example with dcm2niix")
    position, axes = numbers(POSITION, 3), numbers(ORIENTATION, 6).reshape(2, 3)
    normal = np.cross(*axes)
    slope, intercept = numbers(SLOPE, 1, [1.0])[0], numbers(INTERCEPT, 1, [0.0])[0]
    return Slice(path, float(normal @ position), position, axes, normal, size[1::-1],
                 tuple(reader.GetSpacing()[:2]), float((*reader.GetSpacing(), 1.0)[2]),
                 (float(slope), float(intercept)), reader.GetNumberOfComponents(),
                 reader.GetPixelID())


def _check_slices(slices: Sequence[Slice]) -> None:
    """Checks that slices, in their order, are the planes of one volume."""
    first = slices[0]
    for each in slices:
        for kind, one, other in (("size", first.size, each.size),
                                 ("spacing", first.spacing, each.spacing),
                                 ("orientation", first.axes, each.axes)):
            if not np.allclose(one, other, atol=1e-4):
                raise ValueError(f"its slices {first.path.name} and {each.path.name} differ in "
                                 f"{kind}: {np.round(one, 4).tolist()} and "
                                 f"{np.round(other, 4).tolist()}")
        aside = each.position - first.position - (each.place - first.place) * first.normal
        if np.linalg.norm(aside) > 0.1:
            raise ValueError(f"its slices {first.path.name} and {each.path.name} are shifted "
                             f"against each other by {np.linalg.norm(aside):.2f} mm within their "
                             "plane, as by a tilted gantry; resample the series first")
    gaps = np.diff([each.place for each in slices])
    if not len(gaps):
        return
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    before, after = slices[worst], slices[worst + 1]
    between = f"{before.path.name} and {after.path.name}"
    if gaps.min() < UNEVEN * max(usual, 1e-6):
        worst = int(np.argmin(gaps))
        raise ValueError(f"its slices {slices[worst].path.name} and {slices[worst + 1].path.name} "
                         "are at the same place; put each series, moment and echo into a folder of "
                         "its own")
    if abs(gaps[worst] - usual) > UNEVEN * usual:
        missing = round(gaps[worst] / usual) - 1
        what = f"{missing} slices seem to be missing" if missing > 0 else "slices are uneven"
        raise ValueError(f"{what} between {between}: they are {gaps[worst]:.3f} mm apart, others "
                         f"{usual:.3f} mm")


def _describe(names: Sequence[str]) -> str:
    """A series, for a message: how many files, the first, and its description."""
    reader = _header(Path(names[0]))
    text = reader.GetMetaData(DESCRIPTION).strip() if reader.HasMetaDataKey(DESCRIPTION) else ""
    what = f" ({show(text)})" if text else ""
    return f"{len(names)} files from {Path(names[0]).name} on{what}"
