"""``nestedseg train``, for semantic or instance segmentation."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import nestedseg
from nestedseg.base.extras import require
from nestedseg.cli import instances
from nestedseg.cli.arguments import add_model_options, device, model_options, one_or_all
from nestedseg.cli.files import FILES, SETS, add_file_options, find_files, write_files
from nestedseg.cli.intensity import add_intensity_options, choose_range, reading
from nestedseg.cli.labels import add_label_options, label_options, names_of
from nestedseg.cli.publish import access, add_hub_options, push_run
from nestedseg.data import (
    LabelledImages,
    LabelledInstances,
    Pair,
    spatial_axes,
)
from nestedseg.hub.publish import open_repo
from nestedseg.models.model import SegmentationModel
from nestedseg.training.loop import MODEL, fit
from nestedseg.training.report.instances import write_instance_report
from nestedseg.training.report.semantic import depth_table, write_report
from nestedseg.training.settings import PRECISIONS, Settings

if TYPE_CHECKING:
    from nestedseg.instances.detectors import Detector

PATCH = {2: [96], 3: [64]}  # default sizes, one number for all axes
TOPOLOGY = "unetpp"


def train(args: argparse.Namespace) -> None:
    """Train on pairs of images and labels; write the best model and a report."""
    files = find_files(args)
    recipe = RECIPES[args.task](args, spatial_axes((pair.image for pair in files.train), args.dims))
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    settings = Settings(**given | {"patch": one_or_all(args.patch or recipe.patch)})
    training, validation = recipe.read(files.train), recipe.read(files.validation)
    if training.cache is not None:
        print(f"decoded images are kept in {training.cache}")
    torch.manual_seed(args.seed)
    model = recipe.create(training)
    if args.push_to_hub:
        open_repo(args.push_to_hub, **access(args))  # reports a wrong token before the training
    history = fit(model, training, validation, args.out, settings, args.resume)
    if require("accelerate").PartialState().is_main_process:
        best = nestedseg.from_pretrained(args.out / MODEL).to(device())
        write_files(args.out / FILES, files)
        print(recipe.report(args.out, best, validation, history, asdict(settings)))
        print(f"the best model and its report are in {args.out}")
        if args.push_to_hub:
            push_run(args, args.push_to_hub, args.out)


class Recipe(NamedTuple):
    """The parts of `train` that differ between tasks.

    Args:
        patch: default size of a patch.
        read: makes a checked collection of pairs of files.
        create: makes the model for a collection.
        report: writes the report, and returns its summary.
    """

    patch: Sequence[int]
    read: Callable[[Sequence[Pair]], LabelledImages]
    create: Callable[[Any], SegmentationModel | Detector]
    report: Callable[..., str]


def _semantic(args: argparse.Namespace, dims: int) -> Recipe:
    if args.anchor_scale != args.parser.get_default("anchor_scale"):
        raise ValueError("--anchor-scale is only for --task instance; leave it out with --task "
                         "semantic")
    topology = args.topology or TOPOLOGY
    options = model_options(args, topology, dims)  # reports a wrong name before images are read
    if dims == 3:
        require("scipy", "medical")  # the report needs it: reported before the training
    return Recipe(PATCH[dims],
                  lambda pairs: LabelledImages(
                      pairs, args.classes, args.binary, args.spacing,
                      multilabel=args.label_parts in SETS, **label_options(args),
                      **reading(args, len(pairs))),
                  lambda images: _create_for(args, topology, images, options),
                  lambda *facts: depth_table(write_report(*facts)))


def _instance(args: argparse.Namespace, dims: int) -> Recipe:
    instances.check_options(args)
    return Recipe(instances.PATCH, LabelledInstances,
                  lambda images: instances.create_detector(args, images),
                  write_instance_report)


RECIPES = {"semantic": _semantic, "instance": _instance}


def _create_for(args: argparse.Namespace, topology: str, images: LabelledImages,
                options: dict[str, Any]) -> SegmentationModel:
    """The model to train. With pretrained weights for images it keeps the channels and the
    preprocessing of the encoder; otherwise it takes those of the images."""
    known = args.encoder_weights is not None and images.dims == 2
    model = nestedseg.create(topology, classes=args.classes,
                             in_channels=3 if known else images.in_channels,
                             encoder_weights=args.encoder_weights,
                             class_names=args.class_names or names_of(images.rules),
                             task="multilabel" if images.rules.multilabel else None, **options)
    intensity = choose_range(args, images, known)
    if known:
        own = {} if images.nodata is None else {"nodata": images.nodata}
        model.set_preprocessing(**intensity, **own)
    else:
        model.set_preprocessing(**images.preprocessing(args.standardise, **intensity))
    return model


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=RECIPES, default="semantic",
                        help="semantic: labels are classes; instance: labels are instance maps, "
                             "and a Mask R-CNN is trained (default: %(default)s)")
    add_file_options(parser)
    data = parser.add_argument_group("labels and volumes")
    data.add_argument("--classes", type=int, default=1, metavar="C",
                      help="1: labels are 0 and 1; more: class indices 0 ... C-1 (default: 1)")
    data.add_argument("--binary", action="store_true",
                      help="every label above 0 is the foreground (for instance numbers or 0/255)")
    data.add_argument("--dims", type=int, choices=(2, 3),
                      help="3: TIFF stacks and Zarr arrays are volumes (default: they are images)")
    add_label_options(parser)
    data.add_argument("--spacing", type=float, nargs=3, metavar="MM",
                      help="spacing along D, H, W to which volumes are resampled (default: they "
                           "are not)")
    data.add_argument("--standardise", action=argparse.BooleanOptionalAction,
                      help="scale each image by its own mean and standard deviation instead of "
                           "those of all images (default: only volumes)")
    add_intensity_options(parser)
    model = add_model_options(parser)
    model.add_argument("--topology", metavar="NAME|JSON",
                       help=f"see `nestedseg list topologies` (default: {TOPOLOGY}; for instances "
                            f"{instances.TOPOLOGY})")
    model.add_argument("--anchor-scale", type=float, default=4, metavar="F",
                       help="for instances: side of a level's anchors divided by its stride; the "
                            "finest stride is 4 pixels (default: %(default)s)")
    model.add_argument("--class-names", nargs="+", metavar="NAME",
                       help="names of the classes, saved with the model")
    model.add_argument("--encoder-weights", metavar="pretrained|FILE",
                       help="weights of a timm encoder: 'pretrained' (or 'imagenet', which means "
                            "the same) fetches those of its tag; or a .safetensors file (default: "
                            "random)")
    training = parser.add_argument_group("training")
    default = Settings()
    for name, text in (("epochs", "the most epochs to train"),
                       ("batch", "patches in a batch, on each process"),
                       ("patience", "stop after this many epochs without a better score"),
                       ("seed", "seed of everything random"),
                       ("workers", "processes that prepare patches")):
        training.add_argument(f"--{name}", type=int, default=getattr(default, name), metavar="N",
                              help=f"{text} (default: %(default)s)")
    training.add_argument("--patch", type=int, nargs="+", metavar="N",
                          help="size in pixels, one number or one for each axis (default: "
                               f"{PATCH[2][0]}, in volumes {PATCH[3][0]}, for instances "
                               f"{instances.PATCH[0]})")
    training.add_argument("--foreground", type=float, metavar="F",
                          help="fraction of patches that are centred on the foreground (default: "
                               "a third for volumes, 0 for images)")
    training.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=default.mirror,
                          help="mirror and rotate patches at random; use --no-mirror if labels "
                               "distinguish left from right, or front from back")
    training.add_argument("--lr", type=float, default=default.lr, metavar="RATE",
                          help="Adam's learning rate (default: %(default)s)")
    training.add_argument("--steps", type=int, metavar="N",
                          help="batches in an epoch (default: as many as tile the images)")
    training.add_argument("--seconds", type=float, metavar="S", help="time limit")
    training.add_argument("--precision", choices=PRECISIONS, default=default.precision,
                          help="default: %(default)s, which is half precision on a CUDA device")
    training.add_argument("--out", type=Path, required=True, metavar="RUN",
                          help="folder for the model, checkpoint and report")
    training.add_argument("--resume", action="store_true", help="continue the run in RUN")
    hub = add_hub_options(parser)
    hub.add_argument("--push-to-hub", metavar="USER/NAME",
                     help="push the best model at the end, as `nestedseg publish` does")
