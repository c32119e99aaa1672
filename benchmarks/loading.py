"""How fast patches come from files, and how much memory a prediction takes.

    python benchmarks/loading.py patches     patches per second of processor time
    python benchmarks/loading.py memory      peak memory of predict against the size of the picture

Files are made here: photographs of a street's size (PNG), large ones, and a tiled GeoTIFF of four
bands. The peers are a plain `Dataset` with OpenCV and albumentations, and torchgeo's windowed
sampler; without them their rows are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from torch.utils.data import Dataset

import nestedseg
from nestedseg.data import LabelledImages, Pair, Patches, labelled, preprocess

RESULT = Path(__file__).parent / "results" / "loading.json"
SIDE, COUNT, ROUNDS = 256, 100, 7  # of a patch; patches that are timed at once; how often
SETS = {  # files, their size, bands, type, suffix
    "100 PNG, 360 x 480, RGB": (100, (360, 480), 3, np.uint8, ".png"),
    "6 PNG, 2048 x 4096, RGB": (6, (2048, 4096), 3, np.uint8, ".png"),
    "2 GeoTIFF, 4096 x 4096, 4 bands of 16 bits": (2, (4096, 4096), 4, np.uint16, ".tif"),
}
MODEL = {"encoder_channels": (8, 16), "classes": 1}


def make_files(folder: Path, count: int, size: tuple[int, int], bands: int, dtype: Any,
               suffix: str) -> list[Pair]:
    """Smooth pictures with some noise, as photographs have, so that they compress like those."""
    import cv2
    import rasterio

    pairs = []
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.random((size[0] // 16, size[1] // 16, bands)).astype(np.float32)
        values = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        values = np.clip(values + rng.normal(0, 0.01, values.shape), 0, 1)
        high = 255 if dtype == np.uint8 else 4095
        image, label = (values * high).astype(dtype), (values[..., 0] > 0.6).astype(np.uint8)
        pair = Pair(folder / f"images/{number}{suffix}", folder / f"labels/{number}{suffix}")
        if suffix == ".png":
            cv2.imwrite(str(pair.image), image[..., ::-1])
            cv2.imwrite(str(pair.label), label)
        else:
            for path, array in ((pair.image, image), (pair.label, label[..., None])):
                with rasterio.open(
                        path, "w", "GTiff", size[1], size[0], array.shape[2], dtype=array.dtype,
                        crs="EPSG:32633", tiled=True, blockxsize=256, blockysize=256,
                        compress="deflate", predictor=2, transform=rasterio.transform.from_origin(
                            5e5 + 1e6 * number, 5e6, 1, 1)) as file:
                    file.write(array.transpose(2, 0, 1))
        pairs.append(pair)
    return pairs


# -- ours ------------------------------------------------------------------------------------------


def ours(pairs: list[Pair], folder: Path) -> Iterator[tuple[str, Callable[[int], Any]]]:
    """Patches of images that are kept in memory, mapped from the cache, or read by window."""
    yield "kept in memory", _patches(LabelledImages(pairs)).__getitem__
    cached = LabelledImages(pairs, cache=folder / "cache")
    yield "memory-mapped", _patches(cached).__getitem__
    keep, labelled.KEEP_BYTES = labelled.KEEP_BYTES, 0
    whole = pairs[0].image.suffix == ".png"
    yield ("decoded for each patch" if whole else "windows of the files"), \
        _patches(LabelledImages(pairs)).__getitem__
    labelled.KEEP_BYTES = keep


def _patches(images: LabelledImages) -> Patches:
    model = nestedseg.create("unet", in_channels=images.in_channels, **MODEL)
    model.set_preprocessing(**images.preprocessing())
    return Patches(images, SIDE, lambda raw, **more: preprocess(raw, model, **more))


# -- peers -----------------------------------------------------------------------------------------


class Plain(Dataset):
    """What people write by hand: OpenCV decodes, albumentations crops and changes."""

    def __init__(self, pairs: list[Pair]) -> None:
        import albumentations as A

        self.pairs = pairs
        self.change = A.Compose([A.RandomCrop(SIDE, SIDE), A.HorizontalFlip(), A.VerticalFlip(),
                                 A.RandomRotate90(), A.RandomBrightnessContrast(), A.Normalize(
                                     (0.5,) * 3, (0.25,) * 3)])

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        import cv2

        pair = self.pairs[number % len(self.pairs)]
        image = cv2.cvtColor(cv2.imread(str(pair.image)), cv2.COLOR_BGR2RGB)
        label = cv2.imread(str(pair.label), cv2.IMREAD_UNCHANGED)
        done = self.change(image=image, mask=label)
        return (torch.from_numpy(done["image"]).permute(2, 0, 1).contiguous(),
                torch.from_numpy(done["mask"]).long())


def torchgeo(pairs: list[Pair]) -> Callable[[int], Any]:
    """torchgeo's sampler of random windows of the same GeoTIFFs, flipped and scaled alike."""
    from torchgeo.datasets import RasterDataset
    from torchgeo.samplers import RandomGeoSampler

    images = RasterDataset(str(pairs[0].image.parent))
    labels = RasterDataset(str(pairs[0].label.parent))
    labels.is_image = False
    both = images & labels
    queries = iter(RandomGeoSampler(both, size=SIDE, length=10**6))

    def patch(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = both[next(queries)]
        image = (sample["image"] - 2000) / 800
        flips = [axis for axis in (-2, -1) if torch.rand(()) < 0.5]
        image = image.flip(flips) * torch.empty(()).uniform_(0.8, 1.25)
        return image.contiguous(), sample["mask"].flip(flips).long()

    return patch


def peers(pairs: list[Pair]) -> Iterator[tuple[str, Callable[[int], Any]]]:
    try:
        if pairs[0].image.suffix == ".png":
            yield "OpenCV and albumentations", Plain(pairs).__getitem__
        else:
            yield "torchgeo's RandomGeoSampler", torchgeo(pairs)
    except ImportError as error:
        print(f"left out: {error}")


# -- patches ---------------------------------------------------------------------------------------


def measure_patches() -> dict[str, Any]:
    """Patches per second of processor time; the ways take turns, and medians are kept."""
    torch.set_num_threads(1)
    results = {}
    for name, facts in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            pairs = make_files(Path(folder), *facts)
            ways = dict([*ours(pairs, Path(folder)), *peers(pairs)])
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(ROUNDS + 1):
                for way, patch in ways.items():
                    count = COUNT if "each" not in way and "OpenCV" not in way else COUNT // 5
                    start = time.process_time()
                    for number in range(turn * count, (turn + 1) * count):
                        image, _ = patch(number)
                    assert image.shape[-2:] == (SIDE, SIDE)
                    rates[way].append(count / (time.process_time() - start))
            results[name] = {way: round(statistics.median(values[1:]), 1)
                             for way, values in rates.items()}
            print(name, results[name])
    return results


# -- memory ----------------------------------------------------------------------------------------

SIZES = (1000, 4000, 8000, 20000)  # rows of a picture of 20,000 columns, 4 bands of 16 bits
COLUMNS = 20_000


def measure_memory(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """The peak memory of a process that predicts a picture, against its size."""
    rows = []
    for height in sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_large(Path(folder), height)
            code = subprocess.run([sys.executable, __file__, "predict", folder],
                                  capture_output=True, text=True, check=True)
            rows.append({"height": height, "width": COLUMNS} | json.loads(
                code.stdout.splitlines()[-1]))
            print(rows[-1])
    return rows


def make_large(folder: Path, height: int) -> None:
    import rasterio

    model = nestedseg.create("unet", encoder_channels=(4, 8), classes=2, in_channels=4)
    model.save_pretrained(folder / "model")
    with rasterio.open(folder / "a.tif", "w", "GTiff", COLUMNS, height, 4, dtype=np.uint16,
                       crs="EPSG:32633", tiled=True, blockxsize=512, blockysize=512,
                       compress="deflate", BIGTIFF="YES",
                       transform=rasterio.transform.from_origin(5e5, 5e6, 1, 1)) as file:
        rng = np.random.default_rng(0)
        for top in range(0, height, 512):
            rows = min(512, height - top)
            band = np.repeat(rng.integers(0, 4096, (4, rows, COLUMNS // 16), np.uint16), 16, 2)
            file.write(band, window=rasterio.windows.Window(0, top, COLUMNS, rows))


def predict_once(folder: str) -> None:
    from nestedseg.cli import main

    before = peak_memory()
    start = time.perf_counter()
    assert main(["predict", f"{folder}/model", f"{folder}/a.tif", "--out", f"{folder}/out"]) == 0
    print(json.dumps({"imported_mib": before, "peak_mib": peak_memory(),
                      "seconds": round(time.perf_counter() - start, 1)}))


def peak_memory() -> int:
    """The largest memory of this process so far in MiB, as Linux counts it since it was started."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("patches", "memory", "predict"))
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args()
    if args.what == "predict":
        return predict_once(args.folder)
    found = measure_patches() if args.what == "patches" else measure_memory(tuple(args.sizes))
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    known[args.what] = {"results": found, "machine": describe_machine(), "patch": SIDE}
    RESULT.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
