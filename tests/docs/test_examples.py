"""The examples in docstrings give what they print; those in examples/ run."""

from __future__ import annotations

import doctest
import importlib
from doctest import DocTest

import pytest
from places import ROOT

import nestedseg
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
        failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append).failed
        assert not failed, "".join(report)


@pytest.mark.parametrize("value", SHOWN, ids=lambda value: value.__qualname__)
def test_what_is_used_first_has_an_example(value):
    assert ">>> " in value.__doc__
