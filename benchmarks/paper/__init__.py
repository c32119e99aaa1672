"""The experiments of the UNet++ paper, run again: see docs/paper.md."""
