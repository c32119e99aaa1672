"""Where things are: this repository, and the real images beside it, which need not be there."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
