"""Small files that are easily read wrong, from outside the project, with their right values."""

import json

import numpy as np
import pytest
from places import ROOT

from nestedseg.data import read_image, read_label
from nestedseg.data.labels import VOID, make_rules

FOLDER = ROOT.parent / "shared" / "cases" / "files"
CASES = json.loads((FOLDER / "cases.json").read_text()) if FOLDER.is_dir() else []
RULES = {"binary": {"binary": True}, "ignore 255": {"ignore_index": 255},
         "classes 3": {"classes": 3}, "label-colours": {"classes": 3}}


def read(case, **rules):
    path = FOLDER / case["file"]
    if case["kind"] == "image":
        return read_image(path)
    if "colours" in case:
        rules["label_colours"] = case["colours"]
    return make_rules(**rules).indices(read_label(path), 2, path.suffix == ".jpg")


@pytest.mark.skipif(not CASES, reason=f"the cases are not there: {FOLDER.name}")
def test_every_case_has_its_right_value_or_its_error():
    for case in CASES:
        rules = RULES.get(case.get("option"), {})
        if case["right"] == "error":
            with pytest.raises(ValueError, match=case["file"] if case["kind"] == "image" else ""):
                read(case, **rules)
        else:
            right = np.load(FOLDER / case["right"])
            if "void" in case:
                right = np.where(right == 255, VOID, right.astype(int))
            np.testing.assert_array_equal(read(case, **rules), right, err_msg=case["file"])
        if "with_threshold_128" in case:
            assert (read(case, threshold=128) == 1).sum() == case["with_threshold_128"]
