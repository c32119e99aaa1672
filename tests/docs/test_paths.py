"""Files and modules that pages, comments and docstrings name are where they say."""

import re
from importlib import import_module

import pytest
from places import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *ROOT.glob("docs/*.md")]
SOURCES = [*ROOT.glob("nestedseg/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]
FILE = re.compile(r"`((?:nestedseg|tests|benchmarks|docs|examples)/[\w./-]+\.\w+)`")
NAME = re.compile(r"`(nestedseg(?:\.\w+)+)`")


def resolves(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            value = getattr(value, part, None)
        return value is not None
    return False


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_that_a_page_names_are_there(path):
    named = FILE.findall(path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_the_package_lead_somewhere(path):
    named = {*NAME.findall(path.read_text(encoding="utf-8"))}
    assert [name for name in named if not resolves(name)] == []
