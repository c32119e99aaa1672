"""Training tasks: everything in which `fit` treats semantic models and detectors differently.

A new kind of model is trained by a class with the methods of `TrainingTask`, chosen in `task_of`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from nestedseg.data import InstancePatches, LabelledImages, LabelledInstances, Patches
from nestedseg.data.labels import VOID
from nestedseg.data.preprocessing import preprocess
from nestedseg.evaluation.depths import new_scores, score_heads
from nestedseg.instances.metrics import InstanceScores
from nestedseg.instances.prediction import check_finds_instances, predict_instances
from nestedseg.models.model import SegmentationModel
from nestedseg.prediction.predict import output_key
from nestedseg.training.losses import DeepSupervision, HybridLoss

if TYPE_CHECKING:
    from nestedseg.instances.detectors import Detector
    from nestedseg.training.settings import Settings


class TrainingTask(Protocol):
    """How one kind of model is trained and scored.

    Attributes:
        title: describes the model in a few words.
        measure: name of the score by which the best epoch is chosen.
        collate: makes a batch ``(inputs, targets)`` of samples; ``None`` = they are stacked.
    """

    title: str
    measure: str
    collate: Callable[[list[Any]], Any] | None

    def check(self, images: LabelledImages, name: str) -> None:
        """Checks that images fit the model; ``name`` is what messages call them.

        Raises:
            ValueError: they do not.
        """

    def record(self, images: Any) -> None:
        """Writes into the model's config what the labels of the training images leave out."""

    def patches(self, images: Any, settings: Settings) -> Patches | InstancePatches:
        """The samples to train on."""

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """The loss of a batch; ``model`` may be wrapped for several devices."""

    def totals(self, images: Any, indices: Iterable[int]) -> Tensor:
        """Sums from which the scores of images are computed; they add up over processes."""

    def scores(self, totals: Tensor) -> tuple[float, dict[str, float]]:
        """The score by which the best epoch is chosen, and all scores by name, from the sums."""


def task_of(model: SegmentationModel | Detector) -> TrainingTask:
    """The training task of a model.

    Raises:
        ValueError: the model is a detector that does not predict masks.
    """
    return SemanticTask(model) if isinstance(model, SegmentationModel) else InstanceTask(model)


class SemanticTask(TrainingTask):
    """Trains a semantic model with the hybrid loss on every head, and scores the IoU of each."""

    measure = "IoU"
    collate = None

    def __init__(self, model: SegmentationModel) -> None:
        self.model = model
        self.objective = DeepSupervision(HybridLoss(model.task, ignore_index=VOID))
        self.title = (f"{model.graph.name} over {model.config['encoder']}, depths "
                      f"{list(model.depths)}")

    def check(self, images: LabelledImages, name: str) -> None:
        if isinstance(images, LabelledInstances):
            raise ValueError(f"the {name} labels are instances, but the model takes classes; use "
                             "nestedseg.data.LabelledImages(..., binary=True)")
        several = self.model.task == "multilabel"
        if images.rules.multilabel != several:
            raise ValueError(f"the {name} labels have {'one class' if several else 'several'} per "
                             f"pixel, but the model's task is {self.model.task!r}; use "
                             f"LabelledImages(..., multilabel={several}), or create the model with "
                             "another task")
        dims, wanted = self.model.config["dims"], self.model.preprocessing.get("spacing")
        if images.dims != dims:
            raise ValueError(f"the {name} images have {images.dims} axes, but the model takes "
                             f"{dims}; create it with dims={images.dims}")
        check_channels(images, self.model, name)
        if images.spacing != wanted:
            raise ValueError(f"the {name} images have the spacing {images.spacing}, but the model "
                             f"takes {wanted}; use model.set_preprocessing(spacing=...)")

    def record(self, images: LabelledImages) -> None:
        self.model.set_ignore_index(images.rules.ignore)

    def patches(self, images: LabelledImages, settings: Settings) -> Patches:
        return Patches(images, settings.patch, partial(preprocess, model=self.model),
                       settings.seed, settings.foreground, settings.mirror,
                       images.prepared_std(self.model.preprocessing))

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.objective(model(inputs), targets)

    def totals(self, images: LabelledImages, indices: Iterable[int]) -> Tensor:
        scores = score_heads(self.model, images, indices)
        return torch.stack([score.counts for score in scores.values()])

    def scores(self, totals: Tensor) -> tuple[float, dict[str, float]]:
        ious = {}
        for (key, score), counts in zip(new_scores(self.model).items(), totals):
            score.counts = counts
            ious[str(key)] = score.compute()["iou"]["mean"]
        return ious[str(output_key(self.model))], ious


class InstanceTask(TrainingTask):
    """Trains a Mask R-CNN with the sum of its losses, and scores as in the paper's Table V."""

    measure = "DSB score"

    def __init__(self, model: Detector) -> None:
        check_finds_instances(model)
        self.model = model
        encoder = model.config["pyramid"]["encoder"]["encoder"]
        self.title = f"mask_rcnn with {model.graph.name} over {encoder}"

    def check(self, images: LabelledImages, name: str) -> None:
        if not isinstance(images, LabelledInstances):
            raise ValueError(f"the {name} labels are classes, but the model takes instances; use "
                             "nestedseg.data.LabelledInstances")
        check_channels(images, self.model, name)

    def record(self, images: LabelledInstances) -> None:
        """Nothing: instance maps leave out nothing."""

    def patches(self, images: LabelledInstances, settings: Settings) -> InstancePatches:
        return InstancePatches(images, settings.patch, partial(preprocess, model=self.model),
                               settings.batch, seed=settings.seed, foreground=settings.foreground,
                               mirror=settings.mirror)

    @staticmethod
    def collate(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[list[Any], list[Any]]:
        images, targets = zip(*samples)
        return list(images), list(targets)

    def loss(self, model: nn.Module, inputs: list[Tensor],
             targets: list[dict[str, Tensor]]) -> Tensor:
        losses: dict[str, Tensor] = model(inputs, targets)
        return reduce(operator.add, losses.values())

    def totals(self, images: LabelledInstances, indices: Iterable[int]) -> Tensor:
        scores = InstanceScores()
        for image, truth in map(images.__getitem__, indices):
            scores.update(predict_instances(self.model, image), truth)
        return torch.from_numpy(scores.totals)

    def scores(self, totals: Tensor) -> tuple[float, dict[str, float]]:
        scores = InstanceScores()
        scores.totals = totals.numpy()
        found = scores.compute()
        return found["score"], found


def check_channels(images: LabelledImages, model: SegmentationModel | Detector, name: str) -> None:
    """Checks that the model takes the channels of the images.

    Raises:
        ValueError: it does not.
    """
    channels = len(model.preprocessing["mean"])
    if images.in_channels not in (1, channels):
        raise ValueError(f"the {name} images have {images.in_channels} channels, but the model "
                         f"takes {channels}; create it with in_channels={images.in_channels}")
