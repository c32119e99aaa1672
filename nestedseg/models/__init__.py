"""Models: configuration, network, and the public class with prune, fuse, export and the rest."""

from nestedseg.models.backbone import FeaturePyramid, pyramid
from nestedseg.models.factory import create
from nestedseg.models.model import SegmentationModel
from nestedseg.models.outputs import choose_depth
from nestedseg.models.summary import Row, Summary

__all__ = ["FeaturePyramid", "Row", "SegmentationModel", "Summary", "choose_depth", "create",
           "pyramid"]
