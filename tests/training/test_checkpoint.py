"""A checkpoint on disk: whatever is wrong with it is one error that says what can be done."""

import errno
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import nestedseg
from nestedseg.cli import main
from nestedseg.hub.storage import remove_drafts
from nestedseg.training import checkpoint
from nestedseg.training.checkpoint import read_checkpoint, write_checkpoint
from nestedseg.training.history import Epoch

EARLIER = Path(__file__).parents[1] / "hub" / "earlier"
CPU = torch.device("cpu")


def parts():
    model = torch.nn.Conv2d(2, 3, 1)
    return model, torch.optim.Adam(model.parameters())


def state():
    model, optimizer = parts()
    return {"identity": {"a": 1}, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "scaler": None, "history": [asdict(Epoch(1, 0.5, 0.4, {}, 1.0))]}


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "checkpoint.pt", state())
    return tmp_path / "checkpoint.pt"


def test_a_checkpoint_comes_back(path):
    saved = read_checkpoint(path, CPU)
    model, optimizer = parts()
    saved.restore(model, optimizer, None)
    assert torch.equal(model.weight, saved.state["model"]["weight"])
    assert saved.identity == {"a": 1} and saved.history == [Epoch(1, 0.5, 0.4, {}, 1.0)]


def without(part):
    return lambda path: torch.save({k: v for k, v in state().items() if k != part}, path)


def changed(part, value):
    return lambda path: torch.save(state() | {part: value}, path)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2]),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "a text": lambda path: path.write_text("not a checkpoint"),
    "a byte": lambda path: path.write_bytes(path.read_bytes().replace(b"identity", b"?dentity")),
    "a list": lambda path: torch.save([1, 2], path),
    "a tensor": lambda path: torch.save(torch.zeros(2), path),
    "more than tensors": lambda path: torch.save(shutil.copyfile, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "sparse": lambda path: os.truncate(path, 2 ** 40),
    "sparse zeros": lambda path: (path.write_bytes(b""), os.truncate(path, 2 ** 40)),
    **{f"no {part}": without(part) for part in checkpoint.PARTS},
    **{f"{part} is a number": changed(part, 5) for part in checkpoint.PARTS if part != "scaler"},
    "the model of another": changed("model", {"weight": torch.zeros(2)}),
    "the optimizer of another": changed("optimizer", {"state": {}, "param_groups": []}),
    "an optimizer of nothing": changed("optimizer", {}),
    "epochs of another kind": changed("history", [{"epoch": 1}]),
    "epochs that are numbers": changed("history", [1]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_resumed_is_named_with_the_cure(path, damage):
    DAMAGES[damage](path)
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint\.pt: .*another folder"
                       ) as error:
        read_checkpoint(path, CPU).restore(*parts(), None)
    assert error.value.__cause__ is not None


@pytest.mark.parametrize("damage", ["empty", "half", "a text", "a list", "no optimizer"])
def test_the_command_line_says_so_in_one_line(tmp_path, damage, capsys):
    run = shutil.copytree(EARLIER / "run", tmp_path / "run")
    DAMAGES[damage](run / "checkpoint.pt")
    assert main(["train", "--images", str(run / "images"), "--labels", str(run / "labels"),
                 "--binary", "--widths", "4", "6", "8", "--out", str(run), "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nestedseg: error: cannot resume from ") and "checkpoint.pt" in error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"),
                                   RuntimeError("PytorchStreamWriter failed writing file")])
def test_a_full_disk_leaves_the_checkpoint_before(path, error, monkeypatch):
    before = path.read_bytes()

    def save(state, target):
        target.write_bytes(b"half")
        raise error
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match=r"checkpoint\.pt: .*unchanged") as caught:
        write_checkpoint(path, state())
    assert caught.value.__cause__ is error
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]


def test_what_a_killed_run_left_goes(path):
    (path.parent / ".checkpoint.123.pt").write_bytes(b"half")
    remove_drafts(path)
    assert [*path.parent.iterdir()] == [path]
    assert nestedseg.training.Epoch is Epoch
