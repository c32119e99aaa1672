"""``nestedseg predict``: masks or instance maps of images and volumes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import nestedseg
from nestedseg.base.extras import require
from nestedseg.cli.arguments import MODEL_HELP, device, one_or_all
from nestedseg.cli.files import add_image_options, find_images
from nestedseg.data import new_mask, open_volume, read_image, spatial_axes
from nestedseg.data.files import split_name
from nestedseg.data.volumes import mask_name
from nestedseg.evaluation.visualise_masks import paint_classes, paint_instances, to_rgb
from nestedseg.evaluation.visualise_volumes import Case, draw_slices
from nestedseg.hub.storage import drafted, writing
from nestedseg.instances.prediction import SCORE, check_finds_instances, predict_instances
from nestedseg.models.model import SegmentationModel
from nestedseg.prediction import predict_image, predict_volume, to_mask
from nestedseg.prediction.sliding_window import OVERLAP, WINDOW, window_sides

if TYPE_CHECKING:
    from nestedseg.instances.detectors import Detector

MAX_INSTANCES = 65_535  # that a 16-bit map can number


def predict(args: argparse.Namespace) -> int:
    """Write a mask, or an instance map, and an overlay for each image."""
    paths = find_images(args)
    model = nestedseg.from_pretrained(args.model, args.depth).to(device())
    wanted = model.config.get("dims", 2)
    dims = spatial_axes(paths, wanted)
    if dims != wanted:
        raise ValueError(f"{paths[0]} has {dims} spatial axes, but the model takes {wanted}")
    kind, write = _choose_output(args, model, dims)
    # a wrong option is no fault of the images
    window_sides(one_or_all(args.window), args.overlap, (1,) * dims)
    results, overlays = args.out / kind, args.out / "overlays"
    for folder in (results, overlays):
        folder.mkdir(parents=True, exist_ok=True)
    failures: list[ValueError] = []
    for path in require("tqdm").tqdm(paths, unit="image", disable=None):
        try:
            write(args, model, path, results, overlays)
        except ValueError as error:  # the image's fault: the others may be good
            if paths == [args.images]:
                raise
            failures.append(error)
    print(f"{len(paths) - len(failures)} images: {kind} are in {results}, overlays in {overlays}")
    return _list_failures(failures, len(paths))


def _list_failures(failures: Sequence[ValueError], count: int) -> int:
    """Prints why some of so many images have no result; the exit status."""
    if not failures:
        return 0
    lines = [f"nestedseg: {len(failures)} of {count} images failed:",
             *(" ".join(str(error).split()) for error in failures)]
    print("\n  ".join(lines), file=sys.stderr)
    return 1


def _choose_output(args: argparse.Namespace, model: SegmentationModel | Detector,
                   dims: int) -> tuple[str, Callable[..., None]]:
    """The name of the folder that `predict` writes to, and the function that writes a result."""
    semantic = isinstance(model, SegmentationModel)
    if semantic and args.score is not None:
        raise ValueError(f"--score is only for detectors, but {args.model} is a semantic model; "
                         "leave it out")
    if semantic and not args.instances:
        return "masks", {2: _predict_picture, 3: _predict_volume}[dims]
    check_finds_instances(model)
    return "instances", _predict_instances


def _predict_picture(args: argparse.Namespace, model: SegmentationModel, path: Path, masks: Path,
                     overlays: Path) -> None:
    image = read_image(path)
    with _naming(path):
        scores = predict_image(model, image, one_or_all(args.window), args.overlap)
        mask = to_mask(scores, model.task)
    _write_png(masks / f"{path.stem}.png", 255 * mask if model.task == "binary" else mask)
    _write_png(overlays / f"{path.stem}.png", paint_classes(to_rgb(image), mask))


def _predict_volume(args: argparse.Namespace, model: SegmentationModel, path: Path, masks: Path,
                    overlays: Path) -> None:
    volume = open_volume(path)
    slabs = predict_volume(model, volume, one_or_all(args.window), args.overlap)
    progress = require("tqdm").tqdm(total=volume.shape[0], desc=path.name, unit="plane",
                                    leave=False, disable=None)
    with _naming(path), progress, new_mask(masks / mask_name(volume), volume) as mask:
        for planes, scores in slabs:
            mask[planes] = to_mask(scores, model.task)
            progress.update(planes.stop - planes.start)
        case = Case(path.name, volume, {"prediction": mask})
        with _complete(overlays / f"{split_name(path)[0]}.png") as draft:
            draw_slices([case], draft)


def _predict_instances(args: argparse.Namespace, model: SegmentationModel | Detector, path: Path,
                       maps: Path, overlays: Path) -> None:
    image = read_image(path)
    with _naming(path):
        found = predict_instances(model, image, SCORE if args.score is None else args.score,
                                  one_or_all(args.window), args.overlap)
        if found.max(initial=0) > MAX_INSTANCES:
            raise ValueError(f"{found.max()} instances were found, but a 16-bit PNG can number at "
                             f"most {MAX_INSTANCES}; cut the image into parts")
    _write_png(maps / f"{path.stem}.png", found.astype(np.uint16))
    _write_png(overlays / f"{path.stem}.png", paint_instances(to_rgb(image), found))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A context in which errors name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _write_png(path: Path, pixels: np.ndarray) -> None:
    with _complete(path) as draft:
        require("PIL.Image").fromarray(pixels).save(draft)


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """Where to write a picture that is there whole or not at all."""
    with writing(str(path), "No part of it is there"), drafted(path) as draft:
        yield draft


def add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_image_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for masks/ (class indices; for one class 0 and 255, in "
                             "volumes 0 and 1, on the grid of the volume) or instances/ (16-bit "
                             "instance numbers), and for overlays/")
    parser.add_argument("--instances", action="store_true",
                        help="write the connected parts of a binary model's mask as instances; "
                             "detectors always write instances")
    parser.add_argument("--score", type=float, metavar="F",
                        help="only for detectors: leave out instances with a lower score (default: "
                             f"{SCORE})")
    parser.add_argument("--depth", type=int, metavar="D", help="prune to this depth first")
    parser.add_argument("--window", type=int, nargs="+", metavar="N",
                        help="size of the windows in which larger images are predicted, in pixels; "
                             f"one number or one for each axis (default: {WINDOW[2]}, in volumes "
                             f"{WINDOW[3]})")
    parser.add_argument("--overlap", type=float, default=OVERLAP, metavar="F",
                        help="overlap of neighbouring windows, a fraction (default: %(default)s)")
