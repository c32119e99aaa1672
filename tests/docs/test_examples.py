"""The examples in docstrings give what they print; those in examples/ run."""

from __future__ import annotations

import doctest
import importlib
import json
import runpy
import sys
from doctest import DocTest
from pathlib import Path

import pytest
from PIL import Image
from places import ROOT

import nestedseg
from nestedseg.data import synthetic_nuclei
from nestedseg.topology import rules
from nestedseg.training.loop import fit
from nestedseg.training.losses import DeepSupervision

MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts)
           for path in sorted((ROOT / "nestedseg").rglob("*.py"))
           if ">>> " in path.read_text(encoding="utf-8")]
SHOWN = (nestedseg.create, nestedseg.SegmentationModel.prune, nestedseg.SegmentationModel.fuse,
         nestedseg.from_pretrained, nestedseg.Graph, fit, DeepSupervision)


def examples(module: str) -> list[DocTest]:
    """Those of a module, each with no name but what it imports, as for one who copies it."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(importlib.import_module(module), globs={})
            if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_give_what_they_print(module, tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "_RULES", {**rules._RULES})  # what an example adds goes again
    for number, test in enumerate(examples(module)):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        failed = runner.run(test, out=report.append).failed
        assert not failed, "".join(report)


@pytest.mark.parametrize("value", SHOWN, ids=lambda value: value.__qualname__)
def test_what_is_used_first_has_an_example(value):
    assert ">>> " in value.__doc__


# -- examples/ -------------------------------------------------------------------------------------

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = EXAMPLES / "segment_nuclei.ipynb"
LEFT = {"train_on_a_folder": "folder/prediction.png", "own_training_loop": "loop/config.json",
        "own_topology": "topology/graph.svg"}

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


@each_script
def test_an_example_runs_on_folders(script, tmp_path, monkeypatch):
    """One epoch of one step: images of 64 pixels are few patches."""
    folders = [tmp_path / "images", tmp_path / "labels"]
    for folder, pictures in zip(folders, synthetic_nuclei(4, size=64)):
        folder.mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{number}.png")
    run(script, tmp_path, monkeypatch, "--images", folders[0], "--labels", folders[1])


@pytest.mark.slow
@each_script
def test_an_example_runs_on_what_it_makes(script, tmp_path, monkeypatch):
    run(script, tmp_path, monkeypatch)


def run(script: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "Agg")  # no window is opened
    monkeypatch.setattr(rules, "_RULES", {**rules._RULES})
    monkeypatch.setattr(sys, "argv", [str(script), "--epochs", "1", *map(str, words)])
    runpy.run_path(str(script), run_name="__main__")
    assert (folder / "runs" / LEFT[script.stem]).is_file()


def test_the_notebook_was_run_from_top_to_bottom_and_is_small():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert NOTEBOOK.stat().st_size < 150_000, "run python docs/run_notebook.py"


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(ROOT / "docs")
    from run_notebook import execute

    execute(nbformat.read(NOTEBOOK, as_version=4))
