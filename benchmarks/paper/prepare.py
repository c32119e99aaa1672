"""Turn the original downloads of the paper's data sets into folders images/ and labels/.

    python -m benchmarks.paper.prepare isbi2012 DOWNLOAD em
    python -m benchmarks.paper.prepare dsb2018 stage1_train nuclei
    python -m benchmarks.paper.prepare brats2013 Image_Data brats
    python -m benchmarks.paper.prepare lits DOWNLOAD lits
    python -m benchmarks.paper.prepare lidc LIDC-IDRI lidc

Cell-CT, the sixth, is not public. BraTS and LiTS, of which the paper takes slices, become volumes:
BraTS has four channels, and a picture at most three. An archive is to be unpacked first.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper import lidc
from nestedseg.base.errors import show
from nestedseg.base.extras import require
from nestedseg.data import read_image

MODALITIES = ("Flair", "T1", "T1c", "T2")  # the channels of BraTS, in this order
LIVER = 1  # in LiTS; 2 = lesion, which the paper takes for background

Case = tuple[str, Any, Any]  # name, image and label, as arrays or as SimpleITK's images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=READERS)
    parser.add_argument("source", type=Path, help="the folder of the download")
    parser.add_argument("out", type=Path, help="folder for images/ and labels/")
    args = parser.parse_args()
    try:
        print(f"{prepare(args.data, args.source, args.out)} images in {args.out}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from error


def prepare(data: str, source: Path, out: Path) -> int:
    """Writes the images and labels of a download; returns how many.

    Raises:
        ValueError: the folder does not hold the data set.
    """
    count = 0
    for name, *parts in READERS[data](source):
        for kind, part in zip(("images", "labels"), parts):
            (out / kind).mkdir(parents=True, exist_ok=True)
            if isinstance(part, np.ndarray):
                require("PIL.Image").fromarray(part).save(out / kind / f"{name}.png")
            else:
                sitk().WriteImage(part, str(out / kind / f"{name}.nii.gz"))
        count += 1
    if not count:
        raise ValueError(f"{show(str(source))} holds nothing of {data}")
    return count


def sitk() -> Any:
    return require("SimpleITK", "bench")


# -- pictures --------------------------------------------------------------------------------------


def isbi2012(source: Path) -> Iterator[Case]:
    """Two stacks, ``train-volume.tif`` and ``train-labels.tif``: white = cell, black = membrane."""
    stacks = [list(_pages(source / f"train-{kind}.tif")) for kind in ("volume", "labels")]
    if len(stacks[0]) != len(stacks[1]):
        raise ValueError(f"{source}: {len(stacks[0])} slices, {len(stacks[1])} labels")
    for index, (image, label) in enumerate(zip(*stacks)):
        yield f"{index:02}", image, label > 0


def _pages(path: Path) -> Iterator[np.ndarray]:
    with require("PIL.Image").open(path) as stack:
        for page in range(stack.n_frames):
            stack.seek(page)
            yield np.asarray(stack)


def dsb2018(source: Path) -> Iterator[Case]:
    """A folder for each image: ``ID/images/ID.png``, and ``ID/masks/*.png``, one a nucleus."""
    for folder in sorted(each.parent for each in source.glob("*/masks")):
        image = read_image(folder / "images" / f"{folder.name}.png")
        label = np.zeros(image.shape[:2], np.uint16)
        for number, path in enumerate(sorted(folder.glob("masks/*.png")), 1):
            mask = read_image(path)
            if mask.shape[:2] != label.shape:
                raise ValueError(f"{path} is of another size than its image")
            label[mask.reshape(*label.shape, -1).any(2)] = number
        grey = image.ndim == 2 or (image == image[..., :1]).all()
        yield folder.name, image[..., 0] if grey and image.ndim == 3 else image, label


# -- volumes ---------------------------------------------------------------------------------------


def brats2013(source: Path) -> Iterator[Case]:
    """MetaImage files, a folder each, in a folder for each patient: ``HG/0001/*MR_Flair*/*.mha``.

    The label is the "complete" tumour: all four classes together.
    """
    patients = defaultdict(dict)
    for path in sorted(source.rglob("*.mha")):
        found = re.search(r"\.(?:MR_(\w+)|(OT))\.", path.name)
        if found:
            patients[path.parent.parent][found[1] or found[2]] = path
    for folder, files in patients.items():
        missing = {*MODALITIES, "OT"} - files.keys()
        if missing:
            raise ValueError(f"{folder} has no volume {', '.join(sorted(missing))}")
        volumes = [_read(files[each]) for each in MODALITIES]
        label = sitk().Cast(_read(files["OT"]) > 0, sitk().sitkUInt8)
        yield "_".join(folder.relative_to(source).parts), sitk().JoinSeries(volumes), label


def lits(source: Path) -> Iterator[Case]:
    """``volume-N.nii`` beside ``segmentation-N.nii``, in one folder or several."""
    for path in sorted(source.rglob("volume-*.nii*")):
        partner = path.with_name(path.name.replace("volume", "segmentation", 1))
        image, label = _read(path), sitk().Cast(_read(partner) == LIVER, sitk().sitkUInt8)
        if image.GetSize() != label.GetSize():
            raise ValueError(f"{path} and {partner} differ in size")
        label.CopyInformation(image)  # a few headers differ; the voxels lie the same
        yield f"{int(re.findall(r'[0-9]+', path.name)[0]):03}", image, label


def _read(path: Path) -> Any:
    try:
        return sitk().ReadImage(str(path))
    except RuntimeError as error:
        raise ValueError(f"cannot read the volume {path}: {error}") from error


READERS = {"isbi2012": isbi2012, "dsb2018": dsb2018, "brats2013": brats2013, "lits": lits,
           "lidc": lidc.cases}

if __name__ == "__main__":
    main()
