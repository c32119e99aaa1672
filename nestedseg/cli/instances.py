"""What `nestedseg train --task instance` does in its own way."""

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
DETECTIONS = 300  # in an image or window, at most: cells are many
OTHERS = ("binary", "class_names", "classes", "deep_supervision", "depth", "depth_strides", "norm",
          "spacing", "standardise", "strides", "upsample", "widths")  # of semantic models alone


def check_options(args: argparse.Namespace) -> None:
    """Refuses, before images are read, what no detector can be made of.

    Raises:
        ValueError: an option of semantic models, an unknown name, or an encoder without the levels
            of the pyramid.
        ImportError: torchvision is not installed.
    """
    for name in OTHERS:
        if vars(args).get(name) != args.parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} is for --task semantic")
    if args.encoder == "plain":
        raise ValueError("--task instance needs an encoder with levels of strides 4, 8, 16 and 32, "
                         "which plain has not; name one of timm's, like --encoder resnet18")
    with torch.device("meta"):
        make_detector(args)


def create_detector(args: argparse.Namespace, images: LabelledInstances) -> MaskRCNN:
    """The Mask R-CNN to train. Pretrained encoders keep the colours and statistics they know."""
    if args.encoder_weights is not None:
        return make_detector(args, encoder_weights=args.encoder_weights)
    return make_detector(args, in_channels=images.in_channels, image_mean=images.mean,
                         image_std=images.std)


def make_detector(args: argparse.Namespace, **options: Any) -> MaskRCNN:
    """A Mask R-CNN that takes images as they are, since it learns from patches of them."""
    if args.decoder_channels is not None:
        if len(args.decoder_channels) != 1:
            raise ValueError("all levels of a pyramid have one number of channels; "
                             f"--decoder-channels has {len(args.decoder_channels)}")
        options["out_channels"] = args.decoder_channels[0]
    detection = import_module("nestedseg.instances.detectors")  # needs torchvision
    return detection.mask_rcnn(args.topology or TOPOLOGY, args.encoder, resize=False,
                               anchor_scale=args.anchor_scale,
                               box_detections_per_img=DETECTIONS, **options)
