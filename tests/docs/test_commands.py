"""The shell blocks of README and documentation: the options that they name exist, and they run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer, use_server
from PIL import Image
from places import ROOT

from nestedseg.cli import build_parser, main
from nestedseg.data import synthetic_nuclei
from nestedseg.topology import rules

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHORT = ["--epochs", "1", "--steps", "1", "--batch", "2"]  # all else is as printed
IMAGES = 6


def commands(block: str) -> list[list[str]]:
    """The words after ``nestedseg``, line by line."""
    lines = (shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines())
    return [words[1:] for words in lines if words[:1] == ["nestedseg"]]


BLOCKS = {f"{page.stem}-{number}": block
          for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
          for number, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
          if commands(block)}


def test_blocks_are_found():
    assert len(BLOCKS) > 5


@pytest.mark.parametrize("name", BLOCKS)
def test_the_parser_takes_what_a_block_says(name):
    for words in commands(BLOCKS[name]):
        build_parser().parse_args(words)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "_RULES", {**rules._RULES})  # what a block adds goes again
    write_data(name)
    with HubServer() as hub, use_server(monkeypatch, hub, tmp_path / "home"):
        monkeypatch.setenv("HF_TOKEN", hub.token)
        if name.startswith("hub"):  # it begins after a training
            run(commands("nestedseg train --images images --labels labels --binary "
                         "--out runs/nuclei")[0])
        for words in commands(BLOCKS[name]):
            run(words)


def run(words: list[str]) -> None:
    assert main(words + (SHORT if words[0] == "train" else [])) == 0


def write_data(name: str) -> None:
    """Images and labels of the kind that a block is about, wherever a page has them."""
    if name.startswith("topologies"):  # the block of Python before it
        page = (ROOT / "docs/topologies.md").read_text(encoding="utf-8")
        rule = re.findall(r"^(@nestedseg.register_topology.*?)\n\n", page, re.M | re.S)[0]
        Path("my_topologies.py").write_text(f"import nestedseg\n\n\n{rule}\n")
    for folder in map(Path, (".", "train", "other", "demo")):
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True)
        if name.startswith("data"):
            write_layouts(folder)
        elif name.startswith("volumes"):
            write_volumes(folder, classes=3 if "--classes 3" in BLOCKS[name] else 2)
        else:
            write_pictures(folder)
        if name.startswith("labels"):
            write_forms(folder)
    Path("classes.json").write_text('{"a": [0, 0, 0], "b": [1, 30, 60], "c": [2, 60, 120]}')


def write_forms(folder: Path) -> None:
    """The labels of nuclei again in each form that the page about labels names."""
    for index, labels in enumerate(synthetic_nuclei(IMAGES, 64)[1]):
        forms = {"grey": 200 * (labels > 0), "camvid": labels % 12,
                 "colours": labels[..., None] % 3 * [1, 30, 60],
                 "planes": np.stack([labels > 0, labels % 2, labels > 5], -1)}
        for form, pixels in forms.items():
            (folder / form).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / form / f"{index}.png")


def write_layouts(folder: Path) -> None:
    """Labels by suffix, and a table of the same."""
    (folder / "all").mkdir()
    rows = ["image,label,split,group"]
    for index, (image, labels) in enumerate(zip(*synthetic_nuclei(IMAGES, 64))):
        Image.fromarray(image).save(folder / f"all/{index}.png")
        Image.fromarray((labels > 0).astype(np.uint8)).save(folder / f"all/{index}_mask.png")
        split = "train" if index < IMAGES - 1 else "test"
        rows.append(f"all/{index}.png,all/{index}_mask.png,{split},{index}")
    (folder / "data.csv").write_text("\n".join(rows))


def write_volumes(folder: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        labels = np.zeros((20, 40, 40), np.uint8)
        for value in range(1, classes):
            labels[5:15, 10 * value:10 * value + 10, 10:30] = value
        np.save(folder / f"images/{index}.npy", labels + rng.normal(0, 0.2, labels.shape))
        np.save(folder / f"labels/{index}.npy", labels)


def write_pictures(folder: Path) -> None:
    """With the nuclei's numbers as labels, which are also a mask's."""
    for index, (image, labels) in enumerate(zip(*synthetic_nuclei(IMAGES, 64))):
        Image.fromarray(image).save(folder / f"images/{index}.png")
        Image.fromarray(labels).save(folder / f"labels/{index}.png")
