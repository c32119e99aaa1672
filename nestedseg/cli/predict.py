"""``nestedseg predict``: masks, probabilities or instance maps of images and volumes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import nestedseg
from nestedseg.base.extras import require
from nestedseg.cli.arguments import MODEL_HELP, device, one_or_all
from nestedseg.cli.files import add_image_options, find_images
from nestedseg.data import new_mask, open_image, open_volume, read_image, spatial_axes
from nestedseg.data.files import split_name
from nestedseg.data.preprocessing import missing
from nestedseg.data.source import Source, blocks
from nestedseg.data.volumes import mask_name
from nestedseg.evaluation.visualise_masks import (
    colours_of,
    paint_classes,
    paint_instances,
    to_rgb,
)
from nestedseg.evaluation.visualise_volumes import Case, draw_slices
from nestedseg.hub.storage import drafted, writing
from nestedseg.instances.prediction import SCORE, check_finds_instances, predict_instances
from nestedseg.models.model import SegmentationModel
from nestedseg.prediction import to_mask
from nestedseg.prediction.polygons import check_polygons, write_polygons
from nestedseg.prediction.predict import check_together, nodata_for, predict_source
from nestedseg.prediction.raster_files import (
    SUFFIXES,
    VOID,
    Raster,
    check_format,
    is_georeferenced,
    new_raster,
    quantise,
    read_small,
    shrink,
)
from nestedseg.prediction.sliding_window import OVERLAP, WINDOW, window_sides

if TYPE_CHECKING:
    from nestedseg.instances.detectors import Detector

MAX_INSTANCES = 65_535  # that a 16-bit map can number
OVERLAY = 1536  # the longest side of an overlay, in pixels
SHRUNK = 2**21  # pixels that are read at once for it
NUMBERS = ("uint8", "uint16", "float16")  # of probabilities


def predict(args: argparse.Namespace) -> int:
    """Write a mask, or an instance map, and an overlay for each image."""
    paths = find_images(args)
    models = [nestedseg.from_pretrained(name, args.depth).to(device()) for name in args.model]
    work = _choose_work(args, models, paths)
    for folder in work.folders:
        folder.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    own = _share(paths)
    for path in require("tqdm").tqdm(own, unit="image", disable=None):
        if args.resume and work.is_done(path):
            continue
        try:
            work.write(path)
        except ValueError as error:  # the image's fault: the others may be good
            if paths == [args.images]:
                raise
            failures.append(" ".join(str(error).split()))
    failures, first = _gather(failures)
    if not first:
        return 1 if failures else 0
    if args.polygons:
        work.write_polygons(paths, args.polygons)
    print(f"{len(paths) - len(failures)} images: results are in "
          f"{', '.join(str(folder) for folder in work.folders)}")
    return _list_failures(failures, len(paths))


# -- several processes ----------------------------------------------------------------------------


def _share(paths: Sequence[Path]) -> Sequence[Path]:
    """The files of this process, under ``accelerate launch``; otherwise all."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return paths
    state = require("accelerate").PartialState()
    return paths[state.process_index::state.num_processes]


def _gather(failures: list[str]) -> tuple[list[str], bool]:
    """The failures of all processes, and whether this one speaks for all."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return failures, True
    state = require("accelerate").PartialState()
    return require("accelerate.utils").gather_object(failures), state.is_main_process


def _list_failures(failures: Sequence[str], count: int) -> int:
    """Prints why some of so many images have no result; the exit status."""
    if not failures:
        return 0
    lines = [f"nestedseg: {len(failures)} of {count} images failed:", *failures]
    print("\n  ".join(lines), file=sys.stderr)
    return 1


# -- what is written ------------------------------------------------------------------------------


def _choose_work(args: argparse.Namespace, models: Sequence[Any], paths: Sequence[Path]) -> _Work:
    """What is written for each image; wrong options are reported here, before any is read."""
    first = models[0]
    wanted = first.config.get("dims", 2)
    dims = spatial_axes(paths, wanted)
    if dims != wanted:
        raise ValueError(f"{paths[0]} has {dims} spatial axes, but the model takes {wanted}")
    window_sides(one_or_all(args.window), args.overlap, (1,) * dims)
    semantic = all(isinstance(model, SegmentationModel) for model in models)
    if semantic and args.score is not None:
        raise ValueError(f"--score is only for detectors, but {args.model[0]} is a semantic model; "
                         "leave it out")
    if args.instances or not semantic:
        for option in ("tta", "probabilities", "polygons", "format"):
            if getattr(args, option):
                raise ValueError(f"--{option} is for masks, but instance maps are written; leave "
                                 "it out")
        if len(models) > 1:
            raise ValueError("instances cannot be averaged over several models; give one")
        check_finds_instances(first)
        return _Instances(args, models)
    check_together(models)
    if args.polygons:
        check_polygons(args.polygons)
        if dims == 3 or first.task == "multilabel":
            raise ValueError("--polygons is for images whose pixels have one class")
    if dims == 3:
        if first.task == "multilabel":
            raise ValueError("the mask of a volume has one class for each voxel, but the classes "
                             f"of {args.model[0]} overlap; use nestedseg.prediction."
                             "predict_volume from Python, which gives the probabilities")
        if args.format not in (None, "nifti", "npy", "tif"):
            raise ValueError(f"--format {args.format} is for images; the mask of a volume has the "
                             "format of the volume")
        return _Volumes(args, models)
    if args.format == "nifti":
        raise ValueError(f"--format nifti is for volumes; for images {', '.join(SUFFIXES)}")
    return _Pictures(args, models)


class _Work:
    """What is written for each image.

    Args:
        args: of the command.
        models: of which the first decides.
    """

    kind = "masks"

    def __init__(self, args: argparse.Namespace, models: Sequence[Any]) -> None:
        self.args, self.models, self.model = args, models, models[0]
        self.results, self.overlays = args.out / self.kind, args.out / "overlays"

    @property
    def folders(self) -> list[Path]:
        """The folders that are written to."""
        return [self.results, *([] if self.args.no_overlay else [self.overlays])]

    def files(self, path: Path) -> list[Path]:
        """The files that are written for an image."""
        overlay = self.overlays / f"{split_name(path)[0]}.png"
        return [self.results / f"{split_name(path)[0]}.png",
                *([] if self.args.no_overlay else [overlay])]

    def is_done(self, path: Path) -> bool:
        """Whether all files of an image are there; each appears when it is complete."""
        return all(file.exists() for file in self.files(path))

    def write(self, path: Path) -> None:
        """Writes them."""
        raise NotImplementedError

    def write_polygons(self, paths: Sequence[Path], out: Path) -> None:
        """Writes the polygons of all masks."""
        raise NotImplementedError


class _Pictures(_Work):
    """Masks of images, in a palette of the class colours, and probabilities."""

    def __init__(self, args: argparse.Namespace, models: Sequence[SegmentationModel]) -> None:
        super().__init__(args, models)
        several = self.model.task == "multilabel"
        self.format = args.format or ("tif" if several else "png")
        self.probabilities = args.out / "probabilities"
        self.classes = max(2, self.model.classes)  # that a mask may have
        self.warned = False
        if args.probabilities:  # reported before a file is read
            check_format(self._number_format, Raster((1, 1), np.dtype(args.probabilities),
                                                     self.model.classes))

    @property
    def folders(self) -> list[Path]:
        more = [self.probabilities] if self.args.probabilities else []
        return [*super().folders, *more]

    def files(self, path: Path) -> list[Path]:
        mask, *overlay = super().files(path)
        more = [self.probabilities / f"{split_name(path)[0]}{SUFFIXES[self._number_format]}"] \
            if self.args.probabilities else []
        return [mask.with_suffix(SUFFIXES[self.format]), *overlay, *more]

    @property
    def _number_format(self) -> str:
        """The format of probabilities: PNG only has room for one class of whole numbers."""
        fits = self.model.classes == 1 and self.args.probabilities != "float16"
        return "tif" if self.format == "png" and not fits else self.format

    def write(self, path: Path) -> None:
        source = open_image(path)
        self._say_what_is_lost(source)
        mask, *_ = self.files(path)
        step = -(-max(source.shape) // OVERLAY)
        small: list[np.ndarray] = []
        bar = require("tqdm").tqdm(total=source.shape[0] * source.shape[1], desc=path.name,
                                   unit="px", unit_scale=True, leave=False, disable=None)
        with _naming(path), bar, ExitStack() as stack:
            write = stack.enter_context(new_raster(mask, self.format, self._raster(source)))
            write_scores = stack.enter_context(self._scores(path, source))
            for rows, scores in predict_source(
                    self.models, source, one_or_all(self.args.window), self.args.overlap,
                    self.args.tta):
                classes = self._classes(scores)
                write(self._marked(classes, source, rows))
                write_scores(scores)
                small.append(shrink(classes, rows.start, step))
                bar.update((rows.stop - rows.start) * source.shape[1])
        if not self.args.no_overlay:
            picture = read_small(source, step, blocks(source.shape, SHRUNK))
            _write_png(self.overlays / f"{split_name(path)[0]}.png",
                       paint_classes(to_rgb(picture), np.concatenate(small)))

    def _classes(self, scores: Any) -> np.ndarray:
        if self.model.task == "multilabel":
            return (scores > 0.5).movedim(0, -1).cpu().numpy().astype(np.uint8)
        return to_mask(scores, self.model.task)

    def _raster(self, source: Source) -> Raster:
        several = self.model.task == "multilabel"
        palette = None if several else np.vstack([[(0, 0, 0)], colours_of(self.classes - 1)])
        return Raster(source.shape, np.dtype(np.uint8), self.model.classes if several else 1,
                      palette, source, self._marks(source))

    def _marks(self, source: Source) -> bool:
        """Whether the mask says which pixels were not measured: a GeoTIFF can."""
        unknown = nodata_for(self.model, source) is not None or source.dtype.kind == "f"
        return self.format == "geotiff" and unknown and self.model.task != "multilabel"

    def _marked(self, classes: np.ndarray, source: Source, rows: slice) -> np.ndarray:
        """The classes, with `VOID` for pixels that were not measured, if the mask says it."""
        if not self._marks(source):
            return classes
        gone = missing(source.read((rows, slice(0, source.shape[1]))),
                       nodata_for(self.model, source))
        return classes if gone is None else np.where(gone.all(-1), np.uint8(VOID), classes)

    @contextmanager
    def _scores(self, path: Path, source: Source) -> Iterator[Any]:
        """A context with a function that writes probabilities, if they are asked for."""
        dtype = self.args.probabilities
        if not dtype:
            yield lambda scores: None
            return
        raster = Raster(source.shape, np.dtype(dtype), self.model.classes, None, source)
        with new_raster(self.files(path)[-1], self._number_format, raster) as write:
            def write_scores(scores: Any) -> None:
                numbers = quantise(scores.float().cpu().numpy(), dtype)
                write(numbers[0] if self.model.classes == 1 else numbers.transpose(1, 2, 0))
            yield write_scores

    def _say_what_is_lost(self, source: Source) -> None:
        if not self.warned and self.format != "geotiff" and is_georeferenced(source):
            self.warned = True
            print(f"{source.path} has a place on the Earth, which a {self.format} mask does not "
                  "keep; --format geotiff does (extra geo)", file=sys.stderr)

    def write_polygons(self, paths: Sequence[Path], out: Path) -> None:
        masks = {self.files(path)[0]: path for path in paths if self.files(path)[0].exists()}
        names = self.model.config.get("class_names") or ()
        if len(names) == 1:
            names = ("background", *names)
        print(f"{write_polygons(out, masks, names)} polygons are in {out}")


class _Volumes(_Work):
    """Masks of volumes, on their own grids."""

    def files(self, path: Path) -> list[Path]:
        return [self.results / self._name(path), *super().files(path)[1:]]

    def _name(self, path: Path) -> str:
        suffix = {None: None, "nifti": ".nii.gz", "npy": ".npy", "tif": ".tif"}[self.args.format]
        return mask_name(open_volume(path)) if suffix is None else split_name(path)[0] + suffix

    def write(self, path: Path) -> None:
        volume = open_volume(path)
        slabs = predict_source(self.models, volume, one_or_all(self.args.window),
                               self.args.overlap, self.args.tta)
        progress = require("tqdm").tqdm(total=volume.shape[0], desc=path.name, unit="plane",
                                        leave=False, disable=None)
        with _naming(path), progress, ExitStack() as stack:
            mask = stack.enter_context(new_mask(self.results / self._name(path), volume))
            write_scores = stack.enter_context(self._scores(path))
            for planes, scores in slabs:
                mask[planes] = to_mask(scores, self.model.task)
                write_scores(scores)
                progress.update(planes.stop - planes.start)
            if not self.args.no_overlay:
                with _complete(self.overlays / f"{split_name(path)[0]}.png") as draft:
                    draw_slices([Case(path.name, volume, {"prediction": mask})], draft)

    @property
    def folders(self) -> list[Path]:
        more = [self.args.out / "probabilities"] if self.args.probabilities else []
        return [*super().folders, *more]

    @contextmanager
    def _scores(self, path: Path) -> Iterator[Any]:
        """A context with a function that writes probabilities ``(D, H, W, classes)`` as .npy."""
        dtype = self.args.probabilities
        if not dtype:
            yield lambda scores: None
            return
        raster = Raster(open_volume(path).shape, np.dtype(dtype), self.model.classes)
        out = self.args.out / "probabilities" / f"{split_name(path)[0]}.npy"
        with new_raster(out, "npy", raster) as write:
            yield lambda scores: write(quantise(
                scores.float().cpu().numpy(), dtype).transpose(1, 2, 3, 0))


class _Instances(_Work):
    """Instance maps of images, of a detector or of the connected parts of a mask."""

    kind = "instances"

    def write(self, path: Path) -> None:
        image = read_image(path)
        model: SegmentationModel | Detector = self.model
        with _naming(path):
            found = predict_instances(
                model, image, SCORE if self.args.score is None else self.args.score,
                one_or_all(self.args.window), self.args.overlap)
            if found.max(initial=0) > MAX_INSTANCES:
                raise ValueError(f"{found.max()} instances were found, but a 16-bit PNG can number "
                                 f"at most {MAX_INSTANCES}; cut the image into parts")
        file, *overlay = self.files(path)
        _write_png(file, found.astype(np.uint16))
        for picture in overlay:
            _write_png(picture, paint_instances(to_rgb(image), found))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A context in which errors name the file."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error):
            raise
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
    parser.add_argument("model", metavar="MODEL", nargs="+",
                        help=f"{MODEL_HELP}; the probabilities of several models are averaged")
    add_image_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for masks/ (class indices, in PNG and TIFF with the colours "
                             "of the classes as a palette; of volumes on their grid) or "
                             "instances/ (16-bit instance numbers), and for overlays/")
    parser.add_argument("--format", choices=(*SUFFIXES, "nifti"),
                        help="of the masks (default: png; for classes that overlap tif, with a "
                             "band for each; for volumes as the volume)")
    parser.add_argument("--probabilities", choices=NUMBERS, metavar="|".join(NUMBERS),
                        help="write the probabilities of the classes too, as whole numbers up to "
                             "the largest of the type, or as fractions")
    parser.add_argument("--polygons", type=Path, metavar="FILE",
                        help="write the outlines of the classes of all images to a .geojson or "
                             ".gpkg file")
    parser.add_argument("--no-overlay", action="store_true", help="write no overlays")
    parser.add_argument("--tta", action="store_true",
                        help="average the predictions of the image mirrored along all axes")
    parser.add_argument("--resume", action="store_true",
                        help="leave out images whose results are in --out already")
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
