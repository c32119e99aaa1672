"""timm encoders made volumetric: a rule for each class of layer, checked by numbers."""
