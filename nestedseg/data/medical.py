"""Reads NRRD and MetaImage files and DICOM series through SimpleITK, as nibabel's images.

SimpleITK's axes run to the left, back and head, nibabel's to the right, front and head. As an image
of nibabel's such a volume is turned, resampled and compared like one from a NIfTI file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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


def read_itk(path: Path) -> Any:
    """A NRRD or MetaImage file as nibabel's image, with its voxels in memory.

    Raises:
        ValueError: it is no volume, or its voxels are in a file of another folder.
    """
    _check_detached(path)
    sitk = require("SimpleITK", "medical")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetDimension() != 3:
        raise ValueError(f"it has {reader.GetDimension()} axes; expected three")
    check_size(reader.GetSize(), reader.GetNumberOfComponents(), np.dtype(np.float32))
    return as_nibabel(reader.Execute())


def read_series(folder: Path) -> Any:
    """The DICOM series in a folder as nibabel's image, with rescaled voxels in memory.

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
    first = slices[0]
    check_size((len(slices), *first.size), first.components, np.dtype(np.float32))
    names = [str(each.path) for each in slices]
    # slices may be rescaled unlike each other, which the type of the first need not hold
    fractions = any(each.scale != (1, round(each.scale[1])) for each in slices)
    kind = sitk.sitkFloat32 if fractions and first.components == 1 else sitk.sitkUnknown
    image = sitk.ReadImage(names, kind)
    if len(slices) > 1:
        step = (slices[-1].place - first.place) / (len(slices) - 1)
        image.SetSpacing((*image.GetSpacing()[:2], step))
        image.SetOrigin(first.position.tolist())
        image.SetDirection(np.stack([*first.axes, first.normal], 1).ravel().tolist())
    return as_nibabel(image)


def as_nibabel(image: Any) -> Any:
    """SimpleITK's image as nibabel's: the same voxels at the same places."""
    nibabel = require("nibabel", "medical")
    voxels = require("SimpleITK", "medical").GetArrayFromImage(image)  # slowest axis first
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    if voxels.dtype.kind not in "buif":
        raise ValueError(f"its voxels are of type {voxels.dtype}; expected numbers")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_xyzt_units("mm")
    return nibabel.Nifti1Image(voxels.transpose(2, 1, 0, *range(3, voxels.ndim)), TURN @ affine,
                               header, dtype=voxels.dtype)


def write_itk(path: Path, mask: np.ndarray, like: Path) -> None:
    """Writes a mask in the format of its name, on the grid of the file of a volume.

    Args:
        path: ends in ``.nrrd``, ``.mha`` and so on.
        mask: with the axes of the file, the fastest first.
        like: the file of the volume.
    """
    sitk = require("SimpleITK", "medical")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(like))
    reader.ReadImageInformation()
    image = sitk.GetImageFromArray(mask.transpose(2, 1, 0))
    image.SetSpacing(reader.GetSpacing())
    image.SetOrigin(reader.GetOrigin())
    image.SetDirection(reader.GetDirection())
    sitk.WriteImage(image, str(path), useCompression=True)


def _check_detached(path: Path) -> None:
    """Checks that a header leads to no file outside of its folder."""
    with path.open("rb") as file:
        found = DETACHED.search(BLANK.split(file.read(HEADER))[0])
    name = found.group(1).decode("utf-8", "replace") if found else "LOCAL"
    if name.upper().startswith("LIST") or set(name) & set("/\\%") or name.startswith(".."):
        raise ValueError(f"its voxels are in {show(name)}; expected one file in the same folder")


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
        scale: slope and intercept of its values.
        components: numbers in a pixel.
    """

    path: Path
    place: float
    position: np.ndarray
    axes: np.ndarray
    normal: np.ndarray
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    scale: tuple[float, float]
    components: int


def _read_slice(path: Path) -> Slice:
    reader = require("SimpleITK", "medical").ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
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
                 tuple(reader.GetSpacing()[:2]), (float(slope), float(intercept)),
                 reader.GetNumberOfComponents())


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
    reader = require("SimpleITK", "medical").ImageFileReader()
    reader.SetFileName(names[0])
    reader.ReadImageInformation()
    text = reader.GetMetaData(DESCRIPTION).strip() if reader.HasMetaDataKey(DESCRIPTION) else ""
    what = f" ({show(text)})" if text else ""
    return f"{len(names)} files from {Path(names[0]).name} on{what}"
