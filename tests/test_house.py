"""The rooms of the package and their order: imports run down, and nowhere in a circle.

An import counts wherever it stands: at the top of a file, in a function, for an annotation, or as a
text that `import_module` takes.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import pytest
from places import ROOT

PACKAGE = ROOT / "nestedseg"
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for path in PACKAGE.rglob("*.py")}
TOP = ("nestedseg", "nestedseg.__main__")  # the public names: above all rooms
MOST_ENTRIES = 16
DRAWING = re.compile(r"^  (\w+)((?: --> \w+)+)", re.MULTILINE)


def imported(name: str) -> Iterator[str]:
    """The modules of the package that a module imports."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (each if each in FILES else node.module for each in inside)
        elif isinstance(node, ast.Call) and "import_module" in (
                getattr(node.func, "id", None), getattr(node.func, "attr", None)):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            yield from (text for text in texts if text.startswith("nestedseg."))


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "nestedseg"


ARROWS = {name: {*imported(name)} - {name} for name in FILES}


def room(name: str) -> str:
    return name.split(".")[1]


def drawn() -> dict[str, set[str]]:
    """The rooms that each room may import, by the drawing in CONTRIBUTING.md, all the way down."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    chains = [[first, *re.findall(r"\w+", rest)] for first, rest in DRAWING.findall(text)]
    below: dict[str, set[str]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            below.setdefault(upper, set()).add(lower)
            below.setdefault(lower, set())
    for name in TopologicalSorter(below).static_order():  # what lies below comes first
        below[name] |= {deep for lower in below[name] for deep in below[lower]}
    return below


BELOW = drawn()


def test_the_top_floor_has_few_entries():
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_the_drawing_shows_every_room():
    assert BELOW.keys() == {room(name) for name, path in FILES.items() if path.parent != PACKAGE}


@pytest.mark.parametrize("name", sorted(FILES.keys() - {*TOP}))
def test_a_module_imports_only_its_own_room_and_those_below(name):
    allowed = {room(name)} | BELOW[room(name)]
    # the command line uses the library as everybody does
    public = {"nestedseg"} if room(name) == "cli" else set()
    assert [each for each in ARROWS[name] - public
            if each == "nestedseg" or room(each) not in allowed] == []


def test_no_modules_import_each_other_in_a_circle():
    # A package's own file gathers the names of its room; who imports a name from it imports both.
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("nestedseg.topology")])
def test_a_topology_is_data_and_needs_no_torch(name):
    below = {name}
    while more := {each for known in below for each in ARROWS[known]} - below:
        below |= more
    for each in below:
        source = FILES[each].read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (torch|timm|numpy)\b", source, re.MULTILINE), each
