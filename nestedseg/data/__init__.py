"""Pictures and labels: files, checks, training patches, and synthetic nuclei."""

from nestedseg.data.files import (
    Pair,
    find_pairs,
    list_images,
    read_image,
    read_label,
    split_pairs,
)
from nestedseg.data.labelled import LabelledImages
from nestedseg.data.patches import EpochSampler, Patches
from nestedseg.data.synthetic import synthetic_nuclei

__all__ = ["EpochSampler", "LabelledImages", "Pair", "Patches", "find_pairs", "list_images",
           "read_image", "read_label", "split_pairs", "synthetic_nuclei"]
