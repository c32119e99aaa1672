"""Prediction for whole images and volumes of any size."""

from nestedseg.prediction.predict import (
    output_key,
    predict_heads,
    predict_image,
    predict_source,
    predict_volume,
    to_mask,
)
from nestedseg.prediction.sliding_window import default_window, slide, slide_slabs

__all__ = ["default_window", "output_key", "predict_heads", "predict_image", "predict_source",
           "predict_volume", "slide", "slide_slabs", "to_mask"]
