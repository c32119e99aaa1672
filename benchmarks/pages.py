"""Tables for Markdown pages, and the places where they stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head; the columns but the first are set to the right."""
    lines = [rows[0], (":--", *["--:"] * (len(rows[0]) - 1)), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def insert(page: Path, name: str, block: str) -> str:
    """The text of a page, with a block between the two markers of that name."""
    text, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->",
                          lambda _: f"<!-- {name} -->\n{block}<!-- /{name} -->",
                          page.read_text(encoding="utf-8"), flags=re.DOTALL)
    if found != 1:
        raise SystemExit(f"{page} must hold the markers of {name} once, not {found} times")
    return text
