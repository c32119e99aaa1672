"""README and documentation: blocks run, links lead somewhere, the reference is complete."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tables

import nestedseg

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@each_page
def test_the_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {"__name__": page.stem}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        code = "\n" * line + block.group(1)  # so that a traceback gives the page's line
        exec(compile(code, str(page), "exec"), names)


@each_page
def test_links_inside_the_repository_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in filter(None, (one or other for one, other in LINK.findall(text))):
        if re.match(r"[a-z]+:", target):
            continue  # an address outside: not for a test
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target} is not there"
        if anchor:
            assert anchor in anchors(found), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("name", tables.measured())
def test_figures_are_those_of_the_results(name):
    page, text = tables.fill(name)
    assert page.read_text(encoding="utf-8") == text, "run python benchmarks/tables.py"


def test_every_field_of_the_comparisons_leads_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Beside"):text.index("## More")]
    addresses = re.findall(r"^\[(.+?)\]: https://", section, re.MULTILINE)
    assert sorted(set(re.findall(r"\]\[(.+?)\]", section))) == sorted(addresses)
    rows = [line for line in section.splitlines() if re.match(r"\| [^ |:]", line)]
    fields = [field.strip() for row in rows for field in row.split("|")[2:-1]]
    assert len(rows) > 15
    assert [field for field in fields if not re.fullmatch(r"|1|\[.+\][\[(].+[\])]", field)] == []


def anchors(page: Path) -> set[str]:
    """Those that GitHub and mkdocs give to the headings of a page."""
    titles = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


# -- the reference ---------------------------------------------------------------------------------

MODULES = [nestedseg, *(getattr(nestedseg, name) for name in nestedseg._LAZY)]
PUBLIC = {f"{module.__name__}.{name}": getattr(module, name)
          for module in MODULES for name in module.__all__ if name != "__version__"}


def test_the_reference_has_an_entry_for_all_that_is_public():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    # mkdocstrings too takes a module before a function of the same name.
    entries = [pkgutil.resolve_name(entry) for entry in ENTRY.findall(page)]
    assert [name for name, value in PUBLIC.items() if value not in entries] == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_module_says_what_it_is(module):
    assert module.__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_says_what_it_is_and_what_it_takes(name):
    for part, value in parts_of(name, PUBLIC[name]):
        assert value.__doc__, f"{part} has no docstring"
        for argument in arguments_of(value):
            assert re.search(rf"\b{argument}\b", value.__doc__), f"{part} is silent on {argument}"


def parts_of(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The function or class itself, and the methods and properties that a class adds."""
    yield name, value
    for key, member in vars(value).items() if inspect.isclass(value) else ():
        member = getattr(member, "__func__", getattr(member, "fget", member))
        if inspect.isfunction(member) and not key.startswith("_"):
            yield f"{name}.{key}", member


def arguments_of(value: Callable[..., Any]) -> set[str]:
    """What it is called with; errors, and classes that the library makes, are not called."""
    if "Made by `" in value.__doc__ or value in (nestedseg.GraphError, nestedseg.HubError):
        return set()
    return {*inspect.signature(value).parameters} - {"self", "cls"}
