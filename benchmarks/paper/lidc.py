"""LIDC-IDRI: scans in DICOM, and what four readers drew, in XML, to crops of 64 mm with a nodule.

Source: Armato et al., Medical Physics 38(2), 2011, doi:10.1118/1.3528204.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from nestedseg.base.extras import require

SIDE = 64  # voxels of 1 mm
READERS = 2  # of four, who must have drawn a voxel
AIR = -1000  # in Hounsfield units, beyond the scan
SMALLEST = 3  # points: nodules under 3 mm are marked by a single one


def cases(source: Path) -> Iterator[tuple[str, Any, Any]]:
    """Name, crop and label of every nodule that two readers or more have drawn.

    The annotations of a scan lie beside its slices, in one XML file.
    """
    for path in sorted(source.rglob("*.xml")):
        image, uids = read_scan(path.parent)
        drawn = sessions(path)
        if image is None or not drawn:
            continue
        votes = sum(draw(session, uids, image.GetSize()) for session in drawn)
        agreed = as_image(votes >= READERS, image)
        patient = path.relative_to(source).parts[0]
        for index, (crop, label) in enumerate(crops(resample(image, AIR), resample(agreed, 0))):
            yield f"{patient}_{index}", crop, label


def read_scan(folder: Path) -> tuple[Any, list[str]]:
    """The volume of the slices in a folder, and the identifier of each; ``None`` without any."""
    sitk = require("SimpleITK", "bench")
    reader = sitk.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder))
    if not names:
        return None, []
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = reader.Execute()
    return image, [reader.GetMetaData(index, "0008|0018").strip() for index in range(len(names))]


def sessions(path: Path) -> list[ElementTree.Element]:
    """What each reader drew; whole documents are in the namespace of the NIH."""
    try:
        return ElementTree.parse(path).getroot().findall("{*}readingSession")
    except ElementTree.ParseError as error:
        raise ValueError(f"cannot read the annotations {path}: {error}") from error


def draw(session: ElementTree.Element, uids: list[str], size: tuple[int, int, int]) -> np.ndarray:
    """The nodules of one reader, ``(slices, rows, columns)``, 0 and 1.

    An outline runs along the first pixels outside; some are of holes.
    """
    cv2 = require("cv2")
    mask = np.zeros(size[::-1], np.uint8)
    for roi in session.iterfind("{*}unblindedReadNodule/{*}roi"):
        points = np.array([[int(edge.findtext("{*}xCoord")), int(edge.findtext("{*}yCoord"))]
                           for edge in roi.iterfind("{*}edgeMap")], np.int32).reshape(-1, 2)
        uid = roi.findtext("{*}imageSOP_UID", "").strip()
        if len(points) < SMALLEST or uid not in uids:
            continue
        inside = np.zeros(mask.shape[1:], np.uint8)
        cv2.fillPoly(inside, [points], 1)
        cv2.polylines(inside, [points], True, 0)
        hole = roi.findtext("{*}inclusion", "TRUE").strip().upper() == "FALSE"
        plane = mask[uids.index(uid)]
        plane[inside > 0] = not hole
    return mask


def as_image(mask: np.ndarray, like: Any) -> Any:
    """An array as an image at the place of another."""
    image = require("SimpleITK", "bench").GetImageFromArray(mask.astype(np.uint8))
    image.CopyInformation(like)
    return image


def resample(image: Any, outside: int) -> Any:
    """To voxels of 1 mm: masks by the nearest voxel, others linearly."""
    sitk = require("SimpleITK", "bench")
    size = [max(1, round(n * spacing)) for n, spacing in zip(image.GetSize(), image.GetSpacing())]
    way = sitk.sitkNearestNeighbor if image.GetPixelID() == sitk.sitkUInt8 else sitk.sitkLinear
    return sitk.Resample(image, size, sitk.Transform(), way, image.GetOrigin(), (1.0, 1.0, 1.0),
                         image.GetDirection(), outside)


def crops(image: Any, label: Any) -> Iterator[tuple[Any, Any]]:
    """A cube around the middle of each connected nodule; only that nodule is in its label."""
    sitk = require("SimpleITK", "bench")
    parts = sitk.ConnectedComponent(label)
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(parts)
    for number in shapes.GetLabels():
        middle = image.TransformPhysicalPointToIndex(shapes.GetCentroid(number))
        corner = [centre - SIDE // 2 for centre in middle]
        yield cut(image, corner, AIR), cut(sitk.Cast(parts == number, sitk.sitkUInt8), corner, 0)


def cut(image: Any, corner: list[int], outside: int) -> Any:
    """A cube of an image, which may reach beyond its border."""
    sitk = require("SimpleITK", "bench")
    origin = image.TransformIndexToPhysicalPoint(corner)
    return sitk.Resample(image, [SIDE] * 3, sitk.Transform(), sitk.sitkNearestNeighbor, origin,
                         image.GetSpacing(), image.GetDirection(), outside)
