"""Models of other libraries as nestedseg models, and an encoder back as a plain timm model.

Neither segmentation_models.pytorch nor MONAI is imported: their models are read as configuration
and tensors. A layer without a counterpart here is an error that names it, before anything is built.
"""

from nestedseg.convert.backbone import timm_encoder
from nestedseg.convert.monai import from_monai
from nestedseg.convert.pretrained import from_pretrained
from nestedseg.convert.smp import from_smp

__all__ = ["from_monai", "from_pretrained", "from_smp", "timm_encoder"]
