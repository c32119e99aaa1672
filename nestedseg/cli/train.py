"""``nestedseg train``, of classes or of instances."""

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
from nestedseg.cli.publish import access, add_hub_options, push_run
from nestedseg.data import (
    LabelledImages,
    LabelledInstances,
    Pair,
    find_pairs,
    spatial_axes,
    split_pairs,
)
from nestedseg.hub.publish import open_repo
from nestedseg.models.model import SegmentationModel
from nestedseg.training.loop import MODEL, fit
from nestedseg.training.report.instances import write_instance_report
from nestedseg.training.report.semantic import depth_table, write_report
from nestedseg.training.settings import PRECISIONS, Settings

if TYPE_CHECKING:
    from nestedseg.instances.detectors import Detector

PATCH = {2: [96], 3: [64]}  # one number for all axes
TOPOLOGY = "unetpp"


def train(args: argparse.Namespace) -> None:
    """Train on pairs of images and labels; write the best model and a report."""
    pairs = find_pairs(args.images, args.labels)
    recipe = RECIPES[args.task](args, spatial_axes(pair.image for pair in pairs))
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    settings = Settings(**given | {"patch": one_or_all(args.patch or recipe.patch)})
    if (args.val_images is None) != (args.val_labels is None):
        raise ValueError("give --val-images and --val-labels together, or neither")
    if args.val_images:
        held_out = find_pairs(args.val_images, args.val_labels)
    else:
        pairs, held_out = split_pairs(pairs, args.val_fraction, args.seed)
    training, validation = recipe.read(pairs), recipe.read(held_out)
    torch.manual_seed(args.seed)
    model = recipe.create(training)
    if args.push_to_hub:
        open_repo(args.push_to_hub, **access(args))  # a wrong token shows now, not after hours
    history = fit(model, training, validation, args.out, settings, args.resume)
    if require("accelerate").PartialState().is_main_process:
        best = nestedseg.from_pretrained(args.out / MODEL).to(device())
        print(recipe.report(args.out, best, validation, history, asdict(settings)))
        print(f"the best model and its report are in {args.out}")
        if args.push_to_hub:
            push_run(args, args.push_to_hub, args.out)


class Recipe(NamedTuple):
    """What `train` does in each task's own way.

    Args:
        patch: its default size.
        read: the checked collection of some pairs of files.
        create: the model for a collection.
        report: writes the report, and gives its summary.
    """

    patch: Sequence[int]
    read: Callable[[Sequence[Pair]], LabelledImages]
    create: Callable[[Any], SegmentationModel | Detector]
    report: Callable[..., str]


def _semantic(args: argparse.Namespace, dims: int) -> Recipe:
    if args.anchor_scale != args.parser.get_default("anchor_scale"):
        raise ValueError("--anchor-scale is for --task instance")
    topology = args.topology or TOPOLOGY
    options = model_options(args, topology, dims)  # a wrong name shows before images are read
    if dims == 3:
        require("scipy", "medical")  # for the report: better missed now than after the training
    return Recipe(PATCH[dims],
                  lambda pairs: LabelledImages(pairs, args.classes, args.binary, args.spacing),
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
    """The model to train. Pretrained encoders keep the colours and statistics they know, but for
    volumes, which have none of them."""
    known = args.encoder_weights is not None and images.dims == 2
    model = nestedseg.create(topology, classes=args.classes,
                             in_channels=3 if known else images.in_channels,
                             encoder_weights=args.encoder_weights,
                             class_names=args.class_names, **options)
    if not known:
        model.set_preprocessing(**images.preprocessing(args.standardise))
    return model


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=RECIPES, default="semantic",
                        help="semantic: labels are classes; instance: they are instance maps, for "
                             "a Mask R-CNN (default: %(default)s)")
    data = parser.add_argument_group("data (PNG, JPEG or TIFF; or .nii, .nii.gz or .npy, for a 3-D "
                                     "model; paired by file name)")
    data.add_argument("--images", type=Path, required=True, metavar="DIR")
    data.add_argument("--labels", type=Path, required=True, metavar="DIR")
    data.add_argument("--val-images", type=Path, metavar="DIR",
                      help="validation images; without, a part of --images is held out")
    data.add_argument("--val-labels", type=Path, metavar="DIR")
    data.add_argument("--val-fraction", type=float, default=0.2, metavar="F",
                      help="part that is held out (default: %(default)s)")
    data.add_argument("--classes", type=int, default=1, metavar="C",
                      help="1: labels are 0 and 1; more: class indices 0 ... C-1 (default: 1)")
    data.add_argument("--binary", action="store_true",
                      help="every label above 0 is the foreground (instance numbers, 0/255)")
    data.add_argument("--spacing", type=float, nargs=3, metavar="MM",
                      help="along D, H, W, that volumes are resampled to (default: their own)")
    data.add_argument("--standardise", action=argparse.BooleanOptionalAction,
                      help="each image by its own mean and standard deviation, not by those of "
                           "all (default: for volumes)")
    model = add_model_options(parser)
    model.add_argument("--topology", metavar="NAME|JSON",
                       help=f"see `nestedseg list topologies` (default: {TOPOLOGY}; for instances "
                            f"{instances.TOPOLOGY})")
    model.add_argument("--anchor-scale", type=float, default=4, metavar="F",
                       help="of instances: side of the smallest anchors, in strides of 4 pixels "
                            "(default: %(default)s)")
    model.add_argument("--class-names", nargs="+", metavar="NAME", help="kept with the model")
    model.add_argument("--encoder-weights", metavar="imagenet|FILE",
                       help="pretrained weights of a timm encoder (default: random)")
    training = parser.add_argument_group("training")
    default = Settings()
    for name, text in (("epochs", "at most"), ("batch", "patches on each process"),
                       ("patience", "epochs without a better validation score before it stops"),
                       ("seed", "of everything random"),
                       ("workers", "processes that prepare patches")):
        training.add_argument(f"--{name}", type=int, default=getattr(default, name), metavar="N",
                              help=f"{text} (default: %(default)s)")
    training.add_argument("--patch", type=int, nargs="+", metavar="N",
                          help="in pixels, one number or one for each axis (default: "
                               f"{PATCH[2][0]}, in volumes {PATCH[3][0]}, for instances "
                               f"{instances.PATCH[0]})")
    training.add_argument("--foreground", type=float, metavar="F",
                          help="part of the patches that are centred on the foreground (default: "
                               "a third in volumes, 0 in pictures)")
    training.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=default.mirror,
                          help="mirror and turn patches at random; not where labels tell left from "
                               "right, or front from back")
    training.add_argument("--lr", type=float, default=default.lr, metavar="RATE",
                          help="Adam's learning rate (default: %(default)s)")
    training.add_argument("--steps", type=int, metavar="N",
                          help="batches in an epoch (default: what tiles the images)")
    training.add_argument("--seconds", type=float, metavar="S", help="time limit")
    training.add_argument("--precision", choices=PRECISIONS, default=default.precision,
                          help="default: %(default)s, half precision where the device has it")
    training.add_argument("--out", type=Path, required=True, metavar="RUN",
                          help="folder for the model, checkpoint and report")
    training.add_argument("--resume", action="store_true", help="continue the run in RUN")
    hub = add_hub_options(parser)
    hub.add_argument("--push-to-hub", metavar="USER/NAME",
                     help="push the best model at the end, as `nestedseg publish` does")
