"""The parts of `nestedseg train` that are special to ``--task instance``."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from nestedseg.data import LabelledInstances

if TYPE_CHECKING:
    from nestedseg.instances.detectors import MaskRCNN

PATCH = [256]
TOPOLOGY = "fpnpp"
DETECTIONS = 300  # the most instances in an image or window, enough for images of cells
OTHERS = ("binary", "class_names", "classes", "deep_supervision", "depth", "depth_strides",
          "ignore", "label_colours", "norm", "spacing", "standardise", "strides",
          "threshold", "upsample", "widths")  # only for semantic models


def check_options(args: argparse.Namespace) -> None:
    """Checks, before images are read, that a detector can be made of the options.

    Raises:
        ValueError: an option of semantic models, an unknown name, or an encoder without the levels
            of the pyramid.
        ImportError: torchvision is not installed.
    """
    for name in OTHERS:
        if vars(args).get(name) != args.parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} is only for --task semantic; leave it "
                             "out with --task instance")
    if args.encoder == "plain":
        raise ValueError("--task instance needs an encoder with levels of strides 4, 8, 16 and 32, "
                         "which 'plain' does not have; use one of timm's, like --encoder resnet18")
    with torch.device("meta"):
        make_detector(args)


def create_detector(args: argparse.Namespace, images: LabelledInstances) -> MaskRCNN:
    """The Mask R-CNN to train. With pretrained weights it keeps the channels and the mean and std
    of the encoder; otherwise it takes those of the images."""
    if args.encoder_weights is not None:
        return make_detector(args, encoder_weights=args.encoder_weights)
    return make_detector(args, in_channels=images.in_channels, image_mean=images.mean,
                         image_std=images.std)


def make_detector(args: argparse.Namespace, **options: Any) -> MaskRCNN:
    """A Mask R-CNN that does not resize images, because it is trained on patches of them."""
    if args.decoder_channels is not None:
        if len(args.decoder_channels) != 1:
            raise ValueError("--decoder-channels needs 1 number with --task instance, because all "
                             "levels of a pyramid have the same channels, got "
                             f"{len(args.decoder_channels)}")
        options["out_channels"] = args.decoder_channels[0]
    detection = import_module("nestedseg.instances.detectors")  # needs torchvision
    return detection.mask_rcnn(args.topology or TOPOLOGY, args.encoder, resize=False,
                               anchor_scale=args.anchor_scale,
                               box_detections_per_img=DETECTIONS, **options)
