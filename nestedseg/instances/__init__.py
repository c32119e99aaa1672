"""Instance segmentation: detectors over feature pyramids, instance maps, and their scores.

The detectors need torchvision and are in `nestedseg.instances.detectors`, which is not imported
here.
"""

from nestedseg.data.instance_maps import renumber, to_target
from nestedseg.instances.maps import Piece, find_pieces, from_mask, from_prediction, put_together
from nestedseg.instances.metrics import InstanceScores, bowl_score
from nestedseg.instances.prediction import predict_instances

__all__ = ["InstanceScores", "Piece", "bowl_score", "find_pieces", "from_mask", "from_prediction",
           "predict_instances", "put_together", "renumber", "to_target"]
