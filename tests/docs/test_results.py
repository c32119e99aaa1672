"""The result files themselves: counts made again, where and on what each was timed, and the ratios.

`test_docs.py` sees that the pages say what the files say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import timm
import torch
from places import ROOT

import nestedseg
from benchmarks.paper.data import DATA
from nestedseg.models.config import Config
from nestedseg.models.model import SegmentationModel

RESULTS = ROOT / "benchmarks" / "results"
FILES = sorted(RESULTS.rglob("*.json"))
TIMES = re.compile("milliseconds|minutes|times|.*seconds.*")


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# -- machines --------------------------------------------------------------------------------------


def timings(data: Any, machine: Any = None) -> Iterator[tuple[str, Any]]:
    """Where something was timed, and the machine beside it or above."""
    if isinstance(data, dict):
        machine = data.get("machine", machine)
        for key, value in data.items():
            if TIMES.fullmatch(key) and value is not None:
                yield key, machine
            elif key not in ("settings", "machine"):  # there seconds are a limit
                yield from timings(value, machine)
    elif isinstance(data, list):
        for value in data:
            yield from timings(value, machine)


FOLDERS = sorted({path.parent for path in FILES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_what_was_timed_says_on_which_machine_and_with_which_versions(folder):
    found = [(path.name, *each) for path in FILES if path.parent == folder
             for each in timings(json.loads(path.read_text(encoding="utf-8")))]
    assert {name for name, *_ in found} == {path.name for path in FILES if path.parent == folder}
    for name, key, machine in found:
        assert machine, f"{name}: {key} was timed on no machine"
        assert machine["cpu"] and machine["cores"] >= 1 and machine["threads"] >= 1
        assert all(re.match(r"\d+\.\d+", machine["versions"][package])
                   for package in ("python", "torch", "timm", "nestedseg"))


# -- counts ----------------------------------------------------------------------------------------

TRAINED = {"em_quick": lambda data: [data],
           "hippocampus": lambda data: [*data["encoders"].values()]}


@pytest.mark.parametrize("name", TRAINED)
def test_the_counts_of_each_depth_are_those_of_the_recorded_model(name):
    for entry in TRAINED[name](read(name)):
        results = entry["results"]
        with torch.device("meta"):
            model = SegmentationModel.from_config(Config.from_dict(entry["model"]))
        rows = model.summary(results.get("image") or results["volume"])
        assert [(row["depth"], row["parameters"], row["macs"]) for row in results["test"]] \
            == [(row.depth, row.parameters, row.macs) for row in rows]


def test_the_timed_depths_have_the_multiplications_of_the_summary():
    # The file counts those of the fused form, which has fewer where kernels are composed.
    found = read("speed")["rows"]["pruned"]["gmacs"]
    with torch.device("meta"):
        rows = nestedseg.create("unetpp", deep_supervision=True).summary(256)
    assert [*found] == [f"L{row.depth}" for row in rows]
    for macs, row in zip(found.values(), rows):
        assert macs == pytest.approx(row.macs / 1e9, abs=0.0006)


SAMPLE = ("test_resnet", "test_vit", "test_convnext", "resnet18")
MORE = sorted({*timm.list_models("test_*"), "vgg11", "densenet121"} - {*SAMPLE})


@pytest.mark.parametrize("name", [
    *SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_an_encoder_is_as_it_was_recorded(name):
    recorded, info = read("encoders")["models"][name], nestedseg.encoder_info(name)
    assert (recorded["strides"], recorded["channels"]) == ([*info.strides], [*info.channels])
    with torch.device("meta"):
        assert recorded["parameters"] == count(timm.create_model(name))


TRIALS = sorted(RESULTS.glob("paper/*/*.0.json"))


@cache  # the trials of a row have a few networks between them
def parameters(model: str, dims: int) -> int:
    with torch.device("meta"):
        return count(nestedseg.create(**json.loads(model), dims=dims, in_channels=1))


def test_the_papers_networks_have_the_recorded_parameters():
    assert len(TRIALS) > 20
    for path in TRIALS:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        dims = DATA[recorded["trial"]["row"].partition("/")[0]].dims
        assert recorded["parameters"] == parameters(
            json.dumps(recorded["trial"]["model"], sort_keys=True), dims), path.name


def test_the_sums_are_those_of_the_models():
    data = read("encoders")
    summary, models = data["summary"], [*data["models"].values()]
    assert summary["models"] == len(models)
    for check, ran in summary["ran"].items():
        assert ran == sum(check not in model.get("failed", {}) for model in models)
    for check in ("own", "second"):
        assert summary["smp"][check] == sum(check not in model["smp_failed"] for model in models)
    solid = read("encoders_3d")
    converted = [model for model in solid["models"].values() if "refused" not in model]
    assert solid["summary"]["models"] == len(solid["models"])
    assert solid["summary"]["converted"] == len(converted)


# -- ratios ----------------------------------------------------------------------------------------

MEASURED = {  # by the README's row: that of the file, and the unit
    "time, UNet++ over ResNet-34, 8 images": ("whole model, resnet34, batch 8", "milliseconds"),
    "time, the same, 1 image": ("whole model, resnet34, batch 1", "milliseconds"),
    "time, training it on 4 images": ("whole model training, resnet34, batch 4", "milliseconds"),
    "time, MONAI's UNet++, a volume": ("volume inference", "milliseconds"),
    "time, training it": ("volume training", "milliseconds"),
}


def rows_of(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [[re.sub(r"\*|\[|\]\(.*?\)", "", cell).strip() for cell in line.split("|")[1:-1]]
            for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("what", MEASURED)
def test_a_ratio_of_the_readme_is_that_of_the_fastest_times(what):
    name, unit = MEASURED[what]
    (row,) = [row for row in rows_of("README.md") if row[0] == what]
    times = read("speed")["rows"][name][unit]
    ours = min(value for key, value in times.items() if key.startswith("ours"))
    theirs = min(value for key, value in times.items() if not key.startswith("ours"))
    assert [figure for figure in row[1:] if figure] == ["1", f"{theirs / ours:.2f}"]


def test_a_ratio_of_the_page_is_that_of_the_times_beside_it():
    rows, found = read("speed")["rows"], 0
    for row in rows_of("docs/performance.md"):
        if row[0] in rows and len(row) in (6, 7):
            name, theirs, their_time, ours, our_time, ratio = row[:6]
            times = rows[name]["milliseconds"]
            assert ours.startswith("ours") and not theirs.startswith("ours")
            assert (their_time, our_time) == (f"{times[theirs]:.0f}", f"{times[ours]:.0f}")
            assert ratio == f"{times[theirs] / times[ours]:.2f}"
            found += 1
    assert found > 20
