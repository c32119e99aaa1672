"""Makes a small data set in the layout of its kind: python docs/journeys/make_data.py KIND FOLDER

The pictures are made, not anybody's: they are as small as a test needs, and easy to learn.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
          "pedestrian", "cyclist")
VOID = 11


def blobs(rng: np.random.Generator, shape: tuple[int, ...], count: int,
          radius: tuple[float, float]) -> np.ndarray:
    """Round objects, numbered from 1; later ones lie over earlier ones."""
    label = np.zeros(shape, np.int32)
    axes = np.indices(shape)
    for number in range(1, count + 1):
        centre = [rng.uniform(0, length) for length in shape]
        distance = sum((axis - at) ** 2 for axis, at in zip(axes, centre))
        label[distance < rng.uniform(*radius) ** 2] = number
    return label


def two_parts(folder: Path, train: int, test: int
              ) -> Iterator[tuple[Path, int, np.random.Generator]]:
    """The folder, the number and the chance of each case of train/ and test/, with their folders
    images/ and labels/."""
    for part, count in (("train", train), ("test", test)):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
        for number in range(count):
            yield folder / part, number, np.random.default_rng(number + 100 * (part == "test"))


def street(folder: Path) -> None:
    """CamVid's: a folder for each part, 11 classes, and void as class 11."""
    colours = np.random.default_rng(1).integers(40, 220, (12, 3))
    number = 0
    for part, count in (("train", 8), ("val", 3), ("test", 3)):
        for name in (part, f"{part}annot"):
            (folder / name).mkdir(parents=True)
        for _ in range(count):
            rng = np.random.default_rng(number)
            rows = np.linspace(0, 1, 90)[:, None] + rng.normal(0, 0.02, (1, 120))
            label = np.select([rows < 0.35, rows < 0.55, rows > 0.8], [0, 1, 3], 4)
            objects = blobs(rng, (90, 120), 14, (4, 12))
            label = np.where(objects > 0, 2 + objects % 9, label)
            image = colours[label] + rng.normal(0, 12, (90, 120, 3))
            edge = np.abs(np.diff(label, axis=0, prepend=label[:1])) > 0
            label = np.where(edge & (rng.random(label.shape) < 0.7), VOID, label)
            name = f"0001TP_{number:06d}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / part / name)
            Image.fromarray(label.astype(np.uint8)).save(folder / f"{part}annot" / name)
            number += 1


def satellite(folder: Path) -> None:
    """Tiles of four bands of 12 bits in 16, with a place on the Earth and a margin of nodata."""
    import rasterio

    for part, number, rng in two_parts(folder, 6, 2):
        objects = blobs(rng, (160, 200), 12, (8, 26))
        label = np.where(objects > 0, 1 + objects % 2, 0).astype(np.uint8)
        light = np.array([[400, 500, 600, 700], [300, 700, 400, 2600],
                          [1500, 1500, 1600, 1700]])
        image = light[label] + rng.normal(0, 120, (160, 200, 4))
        image = image.clip(1, 4095).astype(np.uint16)
        image[:, :12] = 0  # not seen by the satellite
        grid = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(
            500_000 + 2_000 * number, 5_400_000, 10, 10)}
        for kind, bands in (("images", image.transpose(2, 0, 1)), ("labels", label[None])):
            with rasterio.open(part / kind / f"tile_{number}.tif", "w", "GTiff", 200,
                               160, len(bands), dtype=bands.dtype, tiled=True, blockxsize=64,
                               blockysize=64, compress="deflate", **grid,
                               nodata=0 if kind == "images" else None) as file:
                file.write(bands)


def microscopy(folder: Path) -> None:
    """OME-TIFF with two channels, the first with nuclei; labels are instance numbers."""
    import tifffile

    for part, number, rng in two_parts(folder, 6, 2):
        label = blobs(rng, (128, 144), 16, (6, 11))
        nuclei = 300 + 1200 * (label > 0) + rng.normal(0, 90, label.shape)
        cells = 400 + 300 * (label > 0) + rng.normal(0, 150, label.shape)
        image = np.stack([nuclei, cells]).clip(0, 4095).astype(np.uint16)
        tifffile.imwrite(part / "images" / f"field_{number}.ome.tif", image,
                         photometric="minisblack", metadata={"axes": "CYX"})
        tifffile.imwrite(part / "labels" / f"field_{number}.tif",
                         label.astype(np.uint16))


def radiology(folder: Path) -> None:
    """CT volumes in Hounsfield units, NIfTI, with an organ and a lesion in it."""
    import nibabel

    for part, number, rng in two_parts(folder, 4, 1):
        axes = np.indices((40, 36, 24)) - np.array([20, 18, 12]).reshape(3, 1, 1, 1)
        organ = sum((axis / side) ** 2 for axis, side in zip(axes, (15, 12, 9))) < 1
        shift = rng.uniform(-4, 4, 3).reshape(3, 1, 1, 1)
        lesion = (((axes - shift) ** 2).sum(0) < rng.uniform(3, 5) ** 2) & organ
        label = organ.astype(np.uint8) + lesion
        image = np.array([-900, 60, 140])[label] + rng.normal(0, 25, label.shape)
        affine = np.diag([-1.5, -1.5, 2.0, 1.0])
        for kind, voxels in (("images", image.astype(np.int16)), ("labels", label)):
            nibabel.Nifti1Image(voxels, affine).to_filename(
                part / kind / f"case_{number}.nii.gz")


def competition(folder: Path) -> None:
    """Photographs with masks beside them, a table of patients, and images to hand in."""
    (folder / "data").mkdir(parents=True)
    (folder / "test").mkdir()
    rows = []
    for number in range(12):
        rng = np.random.default_rng(number)
        mask = blobs(rng, (96, 96), 3, (8, 20)) > 0
        image = np.where(mask[..., None], (180, 90, 90), (200, 170, 150))
        image = (image + rng.normal(0, 14, (96, 96, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / ("data" if number < 9 else "test")
                                    / f"img_{number:03d}.jpg", quality=92)
        if number < 9:
            Image.fromarray((255 * mask).astype(np.uint8)).save(
                folder / "data" / f"img_{number:03d}_mask.png")
            rows.append((f"data/img_{number:03d}.jpg", f"data/img_{number:03d}_mask.png",
                         f"patient_{number // 2}"))
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "group"), *rows])


KINDS: dict[str, Callable[[Path], None]] = {
    make.__name__: make for make in (street, satellite, microscopy, radiology, competition)}

if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]))
