"""``python -m nestedseg``."""

from nestedseg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
