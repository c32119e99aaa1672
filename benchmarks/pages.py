"""Makes Markdown tables, and puts them between the markers of pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head; all columns except the first are right-aligned."""
    lines = [rows[0], (":--", *["--:"] * (len(rows[0]) - 1)), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def insert(page: Path, name: str, block: str) -> str:
    """The text of a page, with a block between the two markers of that name."""
    text, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->",
                          lambda _: f"<!-- {name} -->\n{block}<!-- /{name} -->",
                          page.read_text(encoding="utf-8"), flags=re.DOTALL)
    if found != 1:
        raise SystemExit(f"{page} must contain the markers of {name} once, got {found} times")
    return text
