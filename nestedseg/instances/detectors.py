"""torchvision's detectors over feature pyramids. Mask RCNN++ is `mask_rcnn` with UNet++'s skips.

Sources: He et al., Mask R-CNN, 2017, arXiv 1703.06870; Zhou et al., UNet++, IEEE TMI 2020, section
IV-B, doi:10.1109/TMI.2019.2959609.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from torch import Tensor, nn

from nestedseg.base.errors import choose, show, whole
from nestedseg.base.extras import require
from nestedseg.hub.facts import check_training
from nestedseg.hub.hub_model import HubModel
from nestedseg.instances import card
from nestedseg.instances.arguments import check_numbers
from nestedseg.models.backbone import FeaturePyramid, PyramidConfig, check_keys, pyramid
from nestedseg.models.config import SCHEMA_VERSION, migrate
from nestedseg.topology.graph import MAX_CHANNELS, Graph

if TYPE_CHECKING:
    from torchvision import ops
    from torchvision.models import detection
    from torchvision.models.detection import anchor_utils
else:
    detection = require("torchvision.models.detection", "detection")
    anchor_utils = require("torchvision.models.detection.anchor_utils", "detection")
    ops = require("torchvision.ops", "detection")

__all__ = ["Detector", "faster_rcnn", "mask_rcnn", "retinanet"]

RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors
MAX_SCALE = 1e3  # of anchors


def mask_rcnn(topology: str | Path | Mapping[str, Any] | Graph = "fpnpp",
              encoder: str = "resnet101", *, classes: int = 1, anchor_scale: float = 8,
              resize: bool = True, **options: Any) -> MaskRCNN:
    """torchvision's Mask R-CNN over a feature pyramid; over "fpnpp" it is Mask RCNN++.

    In training mode ``model(images, targets)`` returns a dict of losses, in eval mode
    ``model(images)`` a dict of boxes, labels, scores and masks for each image, see torchvision.
    `nestedseg.instances` turns instance maps into targets, and predictions into instance maps.

    Args:
        topology: "fpn", "fpn_plus", "fpnpp", or another, see `nestedseg.pyramid`.
        encoder: see `nestedseg.create`; it must have levels of strides 4, 8, 16 and 32.
        classes: number of foreground classes, whose labels are 1 ... ``classes``.
        anchor_scale: side of a level's anchors divided by its stride: 8 gives 32 pixels at stride
            4.
        resize: whether torchvision resizes images to ``min_size`` (800) and ``max_size`` (1333)
            pixels. ``False``: images keep their size, so that a model trained on patches fits
            whole images.
        options: further arguments of `nestedseg.pyramid` (``encoder_weights``,
            ``frozen_batch_norm``, ``strides``, ``in_channels``, ...), and number arguments of
            torchvision's ``MaskRCNN`` (``min_size``, ``max_size``, ``box_score_thresh``,
            ``box_detections_per_img``, ...).

    Raises:
        ValueError: an unknown name, or numbers that do not fit together.
        GraphError: a malformed topology.
        OSError: encoder weights that cannot be fetched or read.
    """
    return _create("mask_rcnn", topology, encoder, classes, anchor_scale, resize,
                   {"coarser": "pool"} | options)


def faster_rcnn(topology: str | Path | Mapping[str, Any] | Graph = "fpnpp",
                encoder: str = "resnet101", *, classes: int = 1, anchor_scale: float = 8,
                resize: bool = True, **options: Any) -> FasterRCNN:
    """torchvision's Faster R-CNN over a feature pyramid: boxes without masks.

    Source: Ren et al., Faster R-CNN, 2015, arXiv 1506.01497. It raises the errors of `mask_rcnn`.

    Args:
        topology: see `mask_rcnn`.
        encoder: see `mask_rcnn`.
        classes: number of foreground classes, whose labels are 1 ... ``classes``.
        anchor_scale: see `mask_rcnn`.
        resize: whether torchvision resizes images; see `mask_rcnn`.
        options: further arguments of `nestedseg.pyramid`, and number arguments of torchvision's
            ``FasterRCNN``.
    """
    return _create("faster_rcnn", topology, encoder, classes, anchor_scale, resize,
                   {"coarser": "pool"} | options)


def retinanet(topology: str | Path | Mapping[str, Any] | Graph = "fpnpp",
              encoder: str = "resnet101", *, classes: int = 1, anchor_scale: float = 4,
              resize: bool = True, **options: Any) -> RetinaNet:
    """torchvision's RetinaNet over a feature pyramid of strides 8 ... 128: boxes without masks.

    Source: Lin et al., Focal loss for dense object detection, 2017, arXiv 1708.02002. It raises the
    errors of `mask_rcnn`.

    Args:
        topology: see `mask_rcnn`.
        encoder: see `nestedseg.create`; it must have levels of strides 8, 16 and 32.
        classes: number of foreground classes, whose labels are 1 ... ``classes``.
        anchor_scale: side of a level's anchors divided by its stride: 4 gives 32 pixels at stride
            8.
        resize: whether torchvision resizes images; see `mask_rcnn`.
        options: further arguments of `nestedseg.pyramid`, and number arguments of torchvision's
            ``RetinaNet``.
    """
    return _create("retinanet", topology, encoder, classes, anchor_scale, resize,
                   {"strides": (8, 16, 32), "coarser": "p6p7"} | options)


def _create(detector: str, topology: str | Path | Mapping[str, Any] | Graph, encoder: str,
            classes: int, anchor_scale: float, resize: bool, options: dict[str, Any]) -> Any:
    known = inspect.signature(pyramid).parameters
    arguments = {name: value for name, value in options.items() if name not in known}
    # before the encoder's weights are fetched
    check_numbers(DETECTORS[detector], detector, arguments, options.get("in_channels", 3))
    backbone = pyramid(topology, encoder,
                       **{name: options[name] for name in options if name in known})
    config = DetectorConfig(detector, classes, backbone.config, anchor_scale, arguments, resize)
    return DETECTORS[detector](config, backbone)


def build_detector(config: DetectorConfig) -> Detector:
    """Builds the detector of a configuration, with random weights."""
    return DETECTORS[config.detector](config, FeaturePyramid(config.pyramid))


# -- the detectors --------------------------------------------------------------------------------


class Detector(HubModel):
    """The base class of the detectors: adds saving, pushing and preprocessing to torchvision's.

    Made by `mask_rcnn`, `faster_rcnn` and `retinanet`. In training mode ``model(images, targets)``
    returns a dict of losses, in eval mode ``model(images)`` a dict of predictions for each image.
    """

    # A detector cannot be pruned: its weights are one file, and it has scores only as a whole.
    depths = ()

    backbone: FeaturePyramid
    transform: Any  # torchvision's, like the heads
    roi_heads: Any

    @staticmethod
    def parts(config: DetectorConfig, backbone: FeaturePyramid) -> dict[str, nn.Module]:
        """The modules that torchvision's class takes and that depend on the pyramid's strides.

        Args:
            config: has the scale of the anchors.
            backbone: has the strides.
        """
        raise NotImplementedError

    def __init__(self, config: DetectorConfig, backbone: FeaturePyramid) -> None:
        if backbone.fixed_size and not config.resize:
            raise ValueError(f"encoder {backbone.config.encoder.encoder!r} is built for images of "
                             f"{backbone.fixed_size}, so images must be resized, got resize=False; "
                             "use resize=True or another encoder")
        sizes = {"fixed_size": backbone.fixed_size[::-1], "size_divisible": 1} \
            if backbone.fixed_size else {"size_divisible": backbone.size_divisibility}
        colours = {f"image_{key}": backbone.preprocessing[key] for key in ("mean", "std")}
        with torch.device("cpu"):  # anchors are not weights: they are needed on meta models too
            parts = self.parts(config, backbone)
        super().__init__(backbone, config.classes + 1,
                         **sizes | colours | parts | dict(config.arguments))
        self._config = config
        if not config.resize:
            self.transform.resize = keep_size

    @property
    def config(self) -> dict[str, Any]:
        """Everything that is needed to rebuild the model, as JSON-able values."""
        return self._config.to_dict()

    @property
    def graph(self) -> Graph:
        """The skip topology of its pyramid."""
        return self._config.pyramid.graph

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `nestedseg.preprocess` does to an image: it only scales it to [0, 1].

        torchvision's detectors normalise images themselves.
        """
        channels = self._config.pyramid.encoder.in_channels
        return {"input_range": [0.0, 1.0], "mean": [0.0] * channels, "std": [1.0] * channels}

    def _rebuild(self) -> Detector:
        with torch.device("meta"):
            return build_detector(self._config)

    def _make_card(self, repo_id: str, config: Mapping[str, Any], license: str | None,
                   pictures: Mapping[str, str]) -> huggingface_hub.ModelCard:
        return card.make_detector_card(self, repo_id, config, license, pictures)


class FasterRCNN(Detector, detection.FasterRCNN):
    """See `faster_rcnn`."""

    @staticmethod
    def parts(config: DetectorConfig, backbone: FeaturePyramid) -> dict[str, nn.Module]:
        sizes = [(int(config.anchor_scale * stride),) for stride in backbone.strides]
        return {"rpn_anchor_generator": make_anchors(sizes), "box_roi_pool": make_pool(backbone, 7)}


class MaskRCNN(Detector, detection.MaskRCNN):
    """See `mask_rcnn`."""

    @staticmethod
    def parts(config: DetectorConfig, backbone: FeaturePyramid) -> dict[str, nn.Module]:
        return FasterRCNN.parts(config, backbone) | {"mask_roi_pool": make_pool(backbone, 14)}


class RetinaNet(Detector, detection.RetinaNet):
    """See `retinanet`."""

    @staticmethod
    def parts(config: DetectorConfig, backbone: FeaturePyramid) -> dict[str, nn.Module]:
        sizes = [tuple(int(config.anchor_scale * stride * 2 ** (third / 3)) for third in range(3))
                 for stride in backbone.strides]
        return {"anchor_generator": make_anchors(sizes)}


DETECTORS: dict[str, type[Detector]] = {
    "mask_rcnn": MaskRCNN, "faster_rcnn": FasterRCNN, "retinanet": RetinaNet}


def keep_size(image: Tensor, target: dict[str, Tensor] | None = None
              ) -> tuple[Tensor, dict[str, Tensor] | None]:
    """Replaces torchvision's resizing in detectors with ``resize=False``: changes nothing."""
    return image, target


def make_anchors(sizes: Sequence[tuple[int, ...]]) -> nn.Module:
    """torchvision's generator of anchors, with these sides on each level, in three shapes."""
    return anchor_utils.AnchorGenerator(tuple(sizes), (RATIOS,) * len(sizes))


def make_pool(backbone: FeaturePyramid, side: int) -> nn.Module:
    """torchvision's pooling of ``side`` x ``side`` features per box, from the encoder's levels."""
    names = backbone.names[:len(backbone.config.strides)]
    return ops.MultiScaleRoIAlign(list(names), side, sampling_ratio=2)


# -- their configuration --------------------------------------------------------------------------


@dataclass(frozen=True)
class DetectorConfig:
    """Everything needed to rebuild a detector, as checked data.

    Args:
        detector: "mask_rcnn", "faster_rcnn" or "retinanet".
        classes: number of foreground classes.
        pyramid: the configuration of the backbone.
        anchor_scale: side of a level's anchors divided by its stride.
        arguments: further number arguments of torchvision's class.
        resize: whether torchvision resizes images.
        training: what the model was trained on, and its scores; see `check_training`.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: an unknown name, or a value out of bounds.
    """

    detector: str
    classes: int
    pyramid: PyramidConfig
    anchor_scale: float
    arguments: Mapping[str, Any]
    resize: bool = True
    training: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        kind = DETECTORS[choose("detector", self.detector, DETECTORS)]
        check_numbers(kind, self.detector, self.arguments, self.pyramid.encoder.in_channels)
        whole("classes", self.classes, 1, MAX_CHANNELS)
        if type(self.anchor_scale) not in (int, float) or not 0 < self.anchor_scale <= MAX_SCALE:
            raise ValueError(f"anchor_scale must be a number above 0 and at most {MAX_SCALE:g}, "
                             f"got {show(self.anchor_scale)}")
        if self.anchor_scale * self.pyramid.strides[0] < 1:
            raise ValueError("anchors must be at least 1 pixel wide; anchor_scale "
                             f"{self.anchor_scale} times stride {self.pyramid.strides[0]} is "
                             "less: use a larger anchor_scale")
        if type(self.resize) is not bool:
            raise TypeError(f"resize must be true or false, got {show(self.resize)}")
        if self.training is not None:
            object.__setattr__(self, "training", check_training(self.training, by_depth=False))

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON-able values."""
        arguments = {name: list(value) if isinstance(value, tuple) else value
                     for name, value in self.arguments.items()}
        return {"schema_version": SCHEMA_VERSION, "detector": self.detector,
                "classes": self.classes, "anchor_scale": self.anchor_scale,
                "arguments": arguments, "resize": self.resize, "pyramid": self.pyramid.to_dict(),
                "training": copy.deepcopy(self.training)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DetectorConfig:
        """The checked configuration in an object that `to_dict` wrote."""
        data = check_keys(cls, migrate(data), "config")
        return cls(**data | {"pyramid": PyramidConfig.from_dict(data["pyramid"])})
