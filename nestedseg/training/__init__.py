"""Training: the loop, its settings, losses, and the report that a run writes."""

from nestedseg.training.history import Epoch, best_epoch
from nestedseg.training.loop import fit
from nestedseg.training.losses import DeepSupervision, HybridLoss, PaperHybridLoss
from nestedseg.training.settings import Settings

__all__ = ["DeepSupervision", "Epoch", "HybridLoss", "PaperHybridLoss", "Settings", "best_epoch",
           "fit"]
