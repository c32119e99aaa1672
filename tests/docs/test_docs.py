"""README and documentation: blocks run, links lead somewhere, the reference is complete."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import encoders
import pytest
import tables
from places import ROOT

import nestedseg
from nestedseg import Graph, GraphError
from nestedseg.decoder import compiler
from nestedseg.instances import detectors
from nestedseg.topology import graph, rules

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
# Libraries that a block shows the use of, and that the project never needs; torch.ao is to go.
OTHERS = ("lightning", "peft", "torch.ao", "torch.ao.quantization")
LONG = ("instances", "export")  # a Mask R-CNN of full size, and translations to ONNX
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.mark.parametrize("page", [  # `make docs` runs the long ones too
    pytest.param(page, marks=pytest.mark.slow if page.stem in LONG else (), id=page.stem)
    for page in PAGES])
def test_the_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(rules, "_RULES", {**rules._RULES})  # what a page adds goes again
    names = {"__name__": page.stem}
    text, left_out = page.read_text(encoding="utf-8"), []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        code = "\n" * line + block.group(1)  # so that a traceback gives the page's line
        try:
            exec(compile(code, str(page), "exec"), names)
        except ModuleNotFoundError as error:
            if error.name not in OTHERS:
                raise
            left_out.append(f"line {line} needs {error.name}")
    if left_out:
        pytest.skip(f"all blocks ran but: {', '.join(left_out)}")


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


@pytest.mark.parametrize("name", encoders.KINDS)
def test_counts_of_encoders_are_those_of_the_results(name):
    results = json.loads(tables.results_of(name).read_text())
    page = encoders.PAGE.read_text(encoding="utf-8")
    assert page == encoders.fill(name, results), "run python benchmarks/encoders.py --table"


GENERATED = re.compile(r"<!-- ([\w-]+) -->.*?<!-- /\1 -->", re.DOTALL)
NUMBER = r"\b(?:\d[\d.,]*|two|three|four|five|six|seven|eight|nine|ten|half|a \w+)"
FIGURE = re.compile(rf"{NUMBER}[ -]?(?:times|%|percent|ms|(?:milli)?seconds|minutes|hours|[KMG]B|"
                    r"G?FLOPs?|G?MACs?|of the (?:time|memory))(?!\w)"
                    r"|\b(?:a hundred|\d[\d,]*\d) (?:models|encoders)\b")
NOT_MEASURED = {"two minutes": "how long `make demo` trains: an argument",
                "95 %": "the percentile of the Hausdorff distance: its name"}


def typed_figures(text: str) -> list[str]:
    """What reads as a measurement outside blocks that a benchmark fills, code and addresses."""
    for kind in (GENERATED, re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL), LINK):
        text = kind.sub("", text)
    return [found for found in FIGURE.findall(text) if found not in NOT_MEASURED]


@each_page
def test_no_figure_is_typed_in(page):
    assert typed_figures(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("figure", ["3.2 times", "41 %", "six times", "12 ms", "1,200 MB",
                                    "a quarter of the time", "a hundred models"])
def test_a_typed_figure_is_found(figure):
    assert typed_figures(f"It takes {figure} here, in 95 % of cases.") == [figure]
    assert typed_figures(f"<!-- speed -->\n| {figure} |\n<!-- /speed -->") == []


def test_every_field_of_the_comparisons_leads_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Beside"):text.index("## More")]
    addresses = re.findall(r"^\[(.+?)\]: https://", section, re.MULTILINE)
    assert sorted(set(re.findall(r"\]\[(.+?)\]", section))) == sorted(addresses)
    rows = [line for line in section.splitlines() if re.match(r"\| [^ |:]", line)]
    fields = [field.strip() for row in rows for field in row.split("|")[2:-1]]
    assert len(rows) > 15
    assert [field for field in fields if not re.fullmatch(r"|\[.+\][\[(].+[\])]", field)] == []


CLAIMS = {  # by the link of a field: what a reader will look for there
    "tests/topology/test_topologies.py": ("unet", "unet_e", "unet_plus", "unetpp"),
    "docs/topologies.md#your-own-in-six-lines": ('"nodes"', '"heads"'),
    "docs/pruning.md": ("deep_supervision=True",),
    "tests/models/test_prune.py": ("encoder", "prune(depth)"),
    "docs/volumes.md": ("NIfTI",),
    "docs/encoders.md#volumes": ("dims=3", "inflated"),
    "docs/encoders.md#image-sizes": ("any size",),
    "docs/hub.md": ("depth=",),
    "docs/convert.md": ("from_smp", "from_monai"),
    "docs/instances.md#the-pyramids": ("fpn_plus", "fpnpp"),
    "docs/reference.md#losses-and-scores": ("HybridLoss", "PaperHybridLoss"),
    "docs/instances.md": ("Mask R-CNN", "faster_rcnn", "retinanet"),
    "#what-is-not-there-yet": ("trained",),
    "docs/training.md#on-the-command-line": ("mirrored and rotated", "constant learning rate"),
    "docs/export.md": ("ONNX", "onnxruntime"),
    "docs/instances.md#scores": ("score",),
    "#try-it": ("clone",),
    "CHANGELOG.md": ("Unreleased",),
}


def test_what_is_said_of_us_is_where_its_link_leads():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Beside"):text.index("What was measured")]
    ours = [line.split("|")[2] for line in section.splitlines() if line.startswith("|")]
    assert {target for field in ours for target, _ in LINK.findall(field)} == CLAIMS.keys()
    for target, words in CLAIMS.items():
        path, _, anchor = target.partition("#")
        page = (ROOT / (path or "README.md")).read_text(encoding="utf-8")
        part = section_of(page, anchor) if anchor else page
        assert [word for word in words if word not in part] == [], target


def section_of(page: str, anchor: str) -> str:
    """The text below the heading of an anchor, to the next heading."""
    parts = re.split(r"^#+ +(.*)$", page, flags=re.MULTILINE)
    return dict(zip(map(anchor_of, parts[1::2]), parts[2::2]))[anchor]


def anchors(page: Path) -> set[str]:
    """Those that GitHub and mkdocs give to the headings of a page."""
    return {*map(anchor_of, HEADING.findall(page.read_text(encoding="utf-8")))}


def anchor_of(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


# -- the errors of the JSON format -----------------------------------------------------------------

ERROR = re.compile(r"^\| `([^`]+)` \| [^|]+ \| (?:`([^`]+)` )?\|$", re.MULTILINE)
TABLES = (ROOT / "docs" / "topologies.md").read_text(encoding="utf-8").partition("## Errors")[2]
ERRORS = ERROR.findall(TABLES)
WITH_TEXT = [(message, text) for message, text in ERRORS if text]


def refusal(text: str) -> GraphError:
    with pytest.raises(GraphError) as caught:
        nestedseg.create(Graph.from_json(text, "own"))
    return caught.value


@pytest.mark.parametrize(("message", "text"), WITH_TEXT, ids=[text for _, text in WITH_TEXT])
def test_a_text_gives_the_message_beside_it(message, text):
    where = r"topology 'own'(, node '\w+')?:? "
    assert re.fullmatch(where + re.escape(message), str(refusal(text)))


@pytest.mark.parametrize("module", [graph, compiler], ids=["graph", "compiler"])
def test_every_error_is_in_the_tables(module):
    reached = {line for _, text in WITH_TEXT for line in lines_that_raised(module, refusal(text))}
    missing = lines_that_raise(module) - reached
    # Too long for a page: too many nodes or inputs. And decoder_channels is no part of a text.
    assert len(missing) == {graph: len(ERRORS) - len(WITH_TEXT), compiler: 1}[module]


def lines_that_raise(module) -> set[int]:
    """Where a graph is refused; `Graph.head` refuses a depth, not a graph."""
    functions = [node for node in ast.walk(ast.parse(inspect.getsource(module)))
                 if isinstance(node, ast.FunctionDef) and node.name not in ("_fail", "head")]
    return {node.lineno for function in functions for node in ast.walk(function)
            if isinstance(node, ast.Call)
            and getattr(node.func, "id", None) in ("_fail", "GraphError")}


def lines_that_raised(module, error: GraphError) -> set[int]:
    return {call.lineno for call in traceback.extract_tb(error.__traceback__)
            if call.filename == module.__file__} & lines_that_raise(module)


# -- the reference ---------------------------------------------------------------------------------

MODULES = [nestedseg, detectors, *(getattr(nestedseg, room) for room in nestedseg._ROOMS)]
PUBLIC = {f"{module.__name__}.{name}": getattr(module, name)
          for module in MODULES for name in module.__all__ if name != "__version__"}


def test_the_reference_has_an_entry_for_all_that_is_public():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    # mkdocstrings too takes a module before a function of the same name.
    entries = [pkgutil.resolve_name(entry) for entry in ENTRY.findall(page)]
    assert [name for name, value in PUBLIC.items() if value not in entries] == []


@pytest.mark.parametrize("name", ["nestedseg.SegmentationModel",
                                  "nestedseg.instances.detectors.Detector"])
def test_the_reference_has_the_methods_that_a_model_inherits(name):
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert f"::: {name}\n    options:\n      inherited_members: true\n" in page


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_module_says_what_it_is(module):
    assert module.__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_says_what_it_is_and_what_it_takes(name):
    for part, value in parts_of(name, PUBLIC[name]):
        assert value.__doc__, f"{part} has no docstring"
        for argument in arguments_of(value):
            assert re.search(rf"\b{argument}\b", value.__doc__), f"{part} is silent on {argument}"


ARGUMENTS = re.compile(r"^Args:\n(.*?)(?=^\w|\Z)", re.MULTILINE | re.DOTALL)
ARGUMENT = re.compile(r"^    ([*\w, ]+):(.*?)(?=^    [*\w]|\Z)", re.MULTILINE | re.DOTALL)


def documented(value: Any) -> dict[str, str]:
    """The text of each argument in the section of arguments, in its order."""
    section = ARGUMENTS.search(inspect.cleandoc(value.__doc__))
    entries = ARGUMENT.findall(section[1]) if section else []
    return {name.strip("* "): text for names, text in entries for name in names.split(",")}


@pytest.mark.parametrize("name", PUBLIC)
def test_arguments_are_documented_in_their_order_with_their_defaults(name):
    for part, value in parts_of(name, PUBLIC[name]):
        texts = documented(value)
        if not texts or not arguments_of(value):
            continue
        parameters = inspect.signature(value).parameters
        assert [*texts] == [each for each in parameters if each not in ("self", "cls")], part
        for argument, text in texts.items():
            for claim in re.findall(r"[Dd]efault: (``\w+``|\"\w+\"|[\d.]+)[.,;)]", text):
                default = parameters[argument].default
                assert default in (None, ast.literal_eval(claim.strip("`"))), f"{part}, {argument}"


def test_arguments_of_create_are_read_from_its_docstring():
    texts = documented(nestedseg.create)
    assert len(texts) > 20 and "``False``" in texts["stem"]  # or the test above could not fail


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
