"""Images, volumes and labels: files, checks, training patches, and synthetic nuclei."""

from nestedseg.data.cache import Cache
from nestedseg.data.files import Pair, list_images, spatial_axes
from nestedseg.data.images import open_image, read_image, read_label
from nestedseg.data.instances import InstancePatches, LabelledInstances
from nestedseg.data.labelled import LabelledImages
from nestedseg.data.layouts.coco import read_coco
from nestedseg.data.layouts.folders import find_pairs
from nestedseg.data.layouts.labelme import read_labelme
from nestedseg.data.layouts.lists import read_list
from nestedseg.data.layouts.parts import find_class_masks, find_object_masks
from nestedseg.data.layouts.splits import fold_pairs, split_pairs
from nestedseg.data.patches import EpochSampler, Patches
from nestedseg.data.preprocessing import preprocess
from nestedseg.data.synthetic import synthetic_nuclei
from nestedseg.data.volumes import Volume, new_mask, open_volume

__all__ = ["Cache", "EpochSampler", "InstancePatches", "LabelledImages", "LabelledInstances",
           "Pair", "Patches", "Volume", "find_class_masks", "find_object_masks",
           "find_pairs", "fold_pairs", "list_images", "new_mask", "open_image", "open_volume",
           "preprocess", "read_coco", "read_image", "read_label", "read_labelme", "read_list",
           "spatial_axes", "split_pairs", "synthetic_nuclei"]
