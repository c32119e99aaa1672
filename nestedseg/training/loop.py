"""The training loop: one process or many through accelerate, and resumable after every epoch.

Everything random (patches, order, dropout) depends only on the seed and the epoch. So a checkpoint
needs no states of random generators, and a resumed run gives the same results as one without an
interruption.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.utils import distribute_bn
from torch.utils.data import DataLoader

from nestedseg.base.errors import show
from nestedseg.base.extras import require
from nestedseg.data import EpochSampler, LabelledImages
from nestedseg.hub.lock import FolderInUse, locked
from nestedseg.hub.storage import remove_drafts
from nestedseg.training.checkpoint import read_checkpoint, write_checkpoint
from nestedseg.training.history import Epoch, best_epoch
from nestedseg.training.settings import Settings
from nestedseg.training.tasks import task_of

if TYPE_CHECKING:
    from nestedseg.instances.detectors import Detector
    from nestedseg.models.model import SegmentationModel

CHECKPOINT = "checkpoint.pt"
MODEL = "model"
CURE = "Wait until that training is done, or stop it, or choose another folder"
MAY_CHANGE = ("epochs", "patience", "workers", "seconds")  # settings that a resumed run may change


def fit(model: SegmentationModel | Detector, train: LabelledImages, validation: LabelledImages,
        run: str | Path, settings: Settings | None = None, resume: bool = False,
        log: Callable[[str], None] = print) -> list[Epoch]:
    """Trains a model, and keeps the weights with the best validation score.

    A semantic model is trained with the hybrid loss on every head, a Mask R-CNN with its own
    losses.

    After each epoch ``run/checkpoint.pt`` contains everything that ``resume`` needs, and
    ``run/model`` the model with the best validation score so far. ``model`` itself has the weights
    of the last epoch. Under ``accelerate launch`` every process calls this with the same arguments.

    Args:
        model: the model to train, from `nestedseg.create`, or a Mask R-CNN of
            `nestedseg.instances.detectors`. Its preprocessing is used as it is.
        train: images or volumes to train on; for a Mask R-CNN, `LabelledInstances`.
        validation: images or volumes to validate on, likewise.
        run: folder to write to. An existing run in it is never overwritten, and continued only with
            ``resume``.
        settings: see `Settings`.
        resume: continue the run in the folder, if there is one.
        log: called with a line of text for each epoch.

    Returns:
        One `Epoch` for each epoch since the start of the run.

    Raises:
        ValueError: the folder contains a run and ``resume`` is false, or a run with other settings
            or images; the labels contain no foreground; or the images do not fit the model.
        FloatingPointError: the loss is no longer a finite number.
        FolderInUse: another training writes to the folder (an `OSError`).

    Examples:
        >>> import os
        >>> import cv2
        >>> import nestedseg
        >>> from nestedseg.data import LabelledImages, find_pairs, split_pairs, synthetic_nuclei
        >>> from nestedseg.training import Settings, fit
        >>> for folder, pictures in zip(("images", "labels"), synthetic_nuclei(4, size=64)):
        ...     os.mkdir(folder)
        ...     files = [cv2.imwrite(f"{folder}/{n}.png", each) for n, each in enumerate(pictures)]
        >>> train, validation = (LabelledImages(pairs, binary=True)
        ...                      for pairs in split_pairs(find_pairs("images", "labels"), 0.25))
        >>> model = nestedseg.create("unetpp", in_channels=1, depth=2, deep_supervision=True)
        >>> model.set_preprocessing(**train.preprocessing())
        >>> history = fit(model, train, validation, "run", Settings(epochs=1, batch=2, patch=64))
        unetpp over plain, depths [1, 2]: 2 batches an epoch, 1 validation images, ...
        epoch   1/1  loss ...  val IoU ...
        >>> list(history[0].scores)  # the IoU of each depth
        ['1', '2']
        >>> nestedseg.from_pretrained("run/model").depths  # the best epoch's weights
        (1, 2)
    """
    return _Trainer(model, train, validation, Path(run), settings or Settings(), log).fit(resume)


class _Trainer:
    def __init__(self, model: SegmentationModel | Detector, train: LabelledImages,
                 validation: LabelledImages, run: Path, settings: Settings,
                 log: Callable[[str], None]) -> None:
        self.task = task_of(model)
        for name, images in (("training", train), ("validation", validation)):
            if images.foreground == 0:
                raise ValueError(f"the {name} labels contain no foreground: every pixel is 0"
                                 + (" or has no class" if images.rules.ignore else ""))
            self.task.check(images, name)
        self.task.record(train)
        self.validation, self.run, self.settings, self.log = validation, run, settings, log
        self.identity = _identity(model, train, validation, settings) | {
            "measure": self.task.measure}
        self.history: list[Epoch] = []
        self.accelerator = require("accelerate").Accelerator(
            mixed_precision=_precision(settings.precision))
        patches = self.task.patches(train, settings)
        together = settings.batch * self.accelerator.num_processes
        steps = settings.steps or math.ceil(len(patches) / together)
        sampler = EpochSampler(steps * together, settings.seed)
        # With a generator of its own, because the loader would otherwise use that of dropout.
        loader = DataLoader(patches, settings.batch, sampler=sampler, collate_fn=self.task.collate,
                            num_workers=settings.workers, generator=torch.Generator(),
                            persistent_workers=settings.workers > 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            model, optimizer, loader)
        self.bare = self.accelerator.unwrap_model(self.model)

    def fit(self, resume: bool) -> list[Epoch]:
        """See `fit`. One process holds the run; it is free again when that process ends."""
        with self._alone():
            return self._fit(resume)

    def _fit(self, resume: bool) -> list[Epoch]:
        start = time.monotonic()
        self._open(resume)
        self._log(f"{self.task.title}: {len(self.loader)} batches an epoch, "
                  f"{len(self.validation)} validation images, "
                  f"{self.accelerator.num_processes} x {self.accelerator.device.type}")
        while not self._finished(time.monotonic() - start):
            epoch = self._epoch(len(self.history))
            self.history.append(epoch)
            self._save()
            better = " *" if best_epoch(self.history) is epoch else ""
            self._log(f"epoch {epoch.epoch:3d}/{self.settings.epochs}  loss {epoch.loss:.4f}  "
                      f"val {self.task.measure} {epoch.score:.4f}  {epoch.seconds:.1f} s{better}")
        return self.history

    # -- one epoch ----------------------------------------------------------------------------

    def _epoch(self, number: int) -> Epoch:
        start = time.monotonic()
        loss = self._train(number)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of epoch {number + 1} is {loss}; try a smaller "
                                     f"learning rate than {self.settings.lr:g}")
        return Epoch(number + 1, loss, *self._validate(), time.monotonic() - start)

    def _train(self, number: int) -> float:
        seed = [self.settings.seed, number, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        self.model.train()
        self.loader.set_epoch(number)
        losses = [self._step(*batch) for batch in self._progress(number)]
        if self.accelerator.num_processes > 1:
            # Each process saw other batches. The running moments of batch norms are averaged, so
            # that all processes score the same model, the one that is saved.
            distribute_bn(self.bare, self.accelerator.num_processes, reduce=True)
        mean = torch.stack(losses).mean()
        return self.accelerator.reduce(mean, "mean").item()

    def _step(self, inputs: Any, targets: Any) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.task.loss(self.model, inputs, targets)
        self.accelerator.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def _validate(self) -> tuple[float, dict[str, float]]:
        """The validation scores; each process scores its share of the images."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        with self.accelerator.autocast():
            totals = self.task.totals(self.validation,
                                      range(process, len(self.validation), processes))
        if processes > 1:
            totals = self.accelerator.reduce(totals.to(self.accelerator.device), "sum").cpu()
        return self.task.scores(totals)

    def _progress(self, number: int) -> Any:
        # tqdm's disable=None hides the bar if the output is not a terminal.
        hidden = None if self.accelerator.is_main_process else True
        return require("tqdm").tqdm(self.loader, desc=f"epoch {number + 1}", unit="batch",
                                    leave=False, disable=hidden)

    def _finished(self, elapsed: float) -> bool:
        """Whether to stop; the same on every process, although their clocks differ."""
        limit = self.settings.seconds
        late = bool(self.history) and limit is not None \
            and elapsed + self.history[-1].seconds > limit
        flag = torch.tensor(float(late), device=self.accelerator.device)
        patience = len(self.history) - best_epoch(self.history).epoch if self.history else 0
        return (len(self.history) >= self.settings.epochs or patience >= self.settings.patience
                or self.accelerator.reduce(flag, "sum").item() > 0)

    def _log(self, line: str) -> None:
        if self.accelerator.is_main_process:
            self.log(line)

    # -- on disk ------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the run's folder, which the main process does for all.

        Raises:
            FolderInUse: another training writes to it.
        """
        with ExitStack() as stack:
            refusal: list[str | None] = [None]
            if self.accelerator.is_main_process:
                self.run.mkdir(parents=True, exist_ok=True)
                try:
                    lock = stack.enter_context(locked(self.run, 0, CURE))
                    if lock.works:
                        remove_drafts(self.run / CHECKPOINT)
                except FolderInUse as error:
                    refusal = [str(error)]
            if self.accelerator.num_processes > 1:
                require("accelerate.utils").broadcast_object_list(refusal)
            if refusal[0] is not None:
                raise FolderInUse(refusal[0])
            yield

    def _open(self, resume: bool) -> None:
        path = self.run / CHECKPOINT
        if not path.exists():
            return
        if not resume:
            raise ValueError(f"{self.run} already contains a run; use resume=True (--resume) to "
                             "continue it, or choose another folder")
        saved = read_checkpoint(path, self.accelerator.device)
        _check_same(saved.identity, self.identity, str(path))
        saved.restore(self.bare, self.optimizer, self.accelerator.scaler)
        self.history = saved.history
        self._log(f"resuming {self.run} after epoch {len(self.history)}")

    def _save(self) -> None:
        """Saves the best model, then the checkpoint: if killed between the two, the epoch runs
        again, with the same result."""
        if self.accelerator.is_main_process:
            if best_epoch(self.history) is self.history[-1]:
                self.bare.save_pretrained(self.run / MODEL)
            self._save_checkpoint()
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self) -> None:
        scaler = self.accelerator.scaler
        state = {"identity": self.identity, "model": self.bare.state_dict(),
                 "optimizer": self.optimizer.state_dict(),
                 "scaler": None if scaler is None else scaler.state_dict(),
                 "history": [asdict(epoch) for epoch in self.history]}
        write_checkpoint(self.run / CHECKPOINT, state)


def _precision(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _identity(model: SegmentationModel | Detector, train: LabelledImages,
              validation: LabelledImages, settings: Settings) -> dict[str, Any]:
    """Everything that the results of a run depend on; a run is only resumed if it is the same."""
    fixed = {key: value for key, value in asdict(settings).items() if key not in MAY_CHANGE}
    rules = {key: str(value) for key, value in asdict(train.rules).items()}
    return {**model.config, **fixed, "labels": rules,
            "training images": [pair.image.name for pair in train.pairs],
            "validation images": [pair.image.name for pair in validation.pairs]}


def _check_same(saved: dict[str, Any], given: dict[str, Any], path: str) -> None:
    # what runs of earlier versions did not record
    saved = {"ignore_index": [], "labels": given["labels"]} | saved
    for key, value in given.items():
        if saved.get(key) != value:
            raise ValueError(f"cannot resume {path}: {key!r} was {show(saved.get(key))} in that "
                             f"run, and is now {show(value)}; use the same value, or choose "
                             "another folder")
