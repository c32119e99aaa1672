"""The journeys in docs/journeys, from the command line to scored predictions, on made data."""

import os
import subprocess
import sys

import pytest
from places import ROOT

JOURNEYS = ROOT / "docs" / "journeys"
KINDS = sorted(path.stem for path in JOURNEYS.glob("*.sh"))


def test_each_kind_has_data_and_a_journey():
    code = (JOURNEYS / "make_data.py").read_text()
    assert len(KINDS) == 5 and all(f"def {kind}(" in code for kind in KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_journey_is_an_example_that_ends_with_scores(kind, tmp_path):
    command = tmp_path / "bin" / "nestedseg"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nestedseg "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"EPOCHS": "1", "PYTHONPATH": str(ROOT),
                                "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    data = tmp_path / kind
    subprocess.run([sys.executable, JOURNEYS / "make_data.py", kind, data], check=True)
    done = subprocess.run(["bash", JOURNEYS / f"{kind}.sh", data], env=environment, check=True,
                          stdout=subprocess.PIPE, text=True, timeout=600)
    table = done.stdout.splitlines()
    assert any(line.startswith("| class ") for line in table) and " IoU " in done.stdout
