"""`nestedseg predict` on a folder with bad files: the others get their masks."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image

import nestedseg
from nestedseg.cli import main, predict


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    nestedseg.create("unet", encoder_channels=(4, 6, 8), in_channels=1).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abcd":
        Image.fromarray(np.full((16, 16), 50, np.uint8)).save(folder / f"{name}.png")
    (folder / "b.png").write_bytes(b"damaged")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "c.png")  # other channels
    return folder


def run(model, images, out, *options):
    return main(["predict", str(model), str(images), "--out", str(out), *options])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_bad_file_stops_no_other_and_is_listed(model, images, tmp_path, capsys):
    assert run(model, images, tmp_path) == 1
    captured = capsys.readouterr()
    assert names(tmp_path / "masks") == names(tmp_path / "overlays") == ["a.png", "d.png"]
    assert captured.out.startswith("2 images: ")
    summary = captured.err[captured.err.index("nestedseg: 2 of 4 images failed:"):].splitlines()
    assert len(summary) == 3
    assert "b.png: it is damaged" in summary[1] and "c.png: " in summary[2]


def test_the_exit_status_is_that_of_the_process(model, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nestedseg", "predict", str(model), str(images), "--out",
                                      str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("nestedseg", run_name="__main__")  # as `python -m nestedseg` does
    assert caught.value.code == 1
    assert "b.png" in (printed := capsys.readouterr().err) and "Traceback" not in printed


def test_good_files_are_status_0(model, images, tmp_path, capsys):
    for name in "bc":
        (images / f"{name}.png").unlink()
    assert run(model, images, tmp_path) == 0
    assert "failed" not in capsys.readouterr().err


def test_one_bad_file_is_one_error(model, images, tmp_path, capsys):
    assert run(model, images / "b.png", tmp_path) == 2
    assert capsys.readouterr().err.startswith("nestedseg: error: cannot read the image ")


@pytest.mark.parametrize("option", [("--overlap", "2"), ("--window", "0"), ("--window", "8", "8",
                                                                           "8")], ids=str)
def test_a_wrong_option_is_not_the_images_fault(model, images, tmp_path, option, capsys):
    assert run(model, images, tmp_path, *option) == 2
    assert "overlap" in capsys.readouterr().err and not (tmp_path / "masks").exists()


@pytest.mark.parametrize("error, status", [(OSError(28, "No space left on device"), 2),
                                           (KeyboardInterrupt(), 130)], ids=repr)
def test_what_stops_it_leaves_no_half_of_a_file(model, images, tmp_path, error, status, monkeypatch,
                                                capsys):
    def save(self, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise error
    monkeypatch.setattr(Image.Image, "save", save)
    assert run(model, images, tmp_path) == status
    assert names(tmp_path / "masks") == []
    if status == 2:
        assert "masks/a.png: No space left" in capsys.readouterr().err


def test_a_fault_of_ours_is_not_listed_as_the_images(model, images, tmp_path, monkeypatch):
    def broken(*args):
        raise AttributeError("a fault of ours")
    monkeypatch.setattr(predict, "to_mask", broken)
    with pytest.raises(AttributeError, match="a fault of ours"):
        run(model, images, tmp_path)
