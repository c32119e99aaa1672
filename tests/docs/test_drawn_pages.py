"""What docs/ holds of the library's own drawings and figures is what it draws and counts now."""

import ast
import json
import re

import pytest
from places import ROOT

from nestedseg import topology

DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)


@pytest.fixture
def explorer():
    import make_explorer
    return make_explorer


def constant(name):
    """The value of a constant in the data of the page."""
    text = (DOCS / "explorer/drawings.js").read_text(encoding="utf-8")
    return json.loads(re.search(rf"^const {name} = (.*?);$", text, re.MULTILINE | re.DOTALL)[1])


def test_the_page_shows_each_drawing_as_the_library_draws_it(explorer):
    lines = constant("LINES")
    shown = {key: "\n".join(lines[index] for index in indices)
             for key, indices in constant("DRAWINGS").items()}
    assert shown == explorer.drawings(), "run python docs/make_explorer.py"
    assert shown["unetpp/4/2"] == topology("unetpp", 4).to_svg(keep=2)


def test_the_page_has_the_costs_of_each_drawing():
    shown, costs = constant("DRAWINGS"), constant("COSTS")
    assert {key.rpartition("/")[0] for key in shown} == set(costs)
    for key in shown:
        graph, keep = key.rsplit("/", 1)
        assert keep == "all" or int(keep) in [row[0] for row in costs[graph]]


@pytest.mark.parametrize(("name", "depth"), [("unet", 4), ("unetpp", 4), ("fpnpp", 2),
                                             ("unet_e", 5)])
def test_the_costs_are_those_of_the_library(explorer, name, depth):
    assert constant("COSTS")[f"{name}/{depth}"] == explorer.costs(topology(name, depth)), \
        "run python docs/make_explorer.py"


def test_the_page_asks_for_files_that_are_there():
    page = (DOCS / "explorer/index.md").read_text(encoding="utf-8")
    scripts = re.findall(r'<script src="([^"]+)">', page)
    assert scripts == ["drawings.js", "explorer.js"]  # the data first
    assert all((DOCS / "explorer" / script).is_file() for script in scripts)


def test_the_pictures_are_as_the_library_draws_them():
    from make_images import IMAGES, topologies

    shown = {name: (IMAGES / f"{name}.svg").read_text(encoding="utf-8") for name in topologies()}
    assert shown == topologies(), "run python docs/make_images.py"


def test_the_example_of_the_pictures_is_that_of_the_page():
    from make_images import OWN

    page = (DOCS / "topologies.md").read_text(encoding="utf-8")
    written = re.search(r"^own = (\{.*?^\})", page, re.MULTILINE | re.DOTALL)[1]
    assert ast.literal_eval(written) == OWN
