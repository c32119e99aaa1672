"""A disk that takes no more: the error says where and why, and the model before is whole."""

import re
import resource

import pytest
import torch
from forks import in_child, wait
from safetensors import SafetensorError

import nestedseg


def make(width):
    return nestedseg.create("unet", encoder_channels=(width, 6, 8)).eval()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [SafetensorError("I/O error: No space left on device"),
                                   OSError(28, "No space left on device"), PermissionError(13, "No")
                                   ], ids=repr)
def test_a_save_that_fails_says_so_and_leaves_the_model_before(error, tmp_path, monkeypatch):
    model = make(4)
    model.save_pretrained(tmp_path / "model")
    before = names(tmp_path / "model")

    def save_file(tensors, path, metadata):
        path.write_bytes(b"half")
        raise error
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "model")) + ".*unchanged") as caught:
        make(5).save_pretrained(tmp_path / "model")
    assert caught.value.__cause__ is error
    assert names(tmp_path / "model") == before
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(nestedseg.from_pretrained(tmp_path / "model")(x), model(x))


def test_a_disk_that_is_really_full(tmp_path):
    make(4).save_pretrained(tmp_path / "model")
    before = names(tmp_path / "model")
    large = nestedseg.create("unet", encoder_channels=(16, 32, 64))

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as of a disk that is full
        try:
            large.save_pretrained(tmp_path / "model")
        except OSError as error:
            (tmp_path / "error").write_text(str(error))

    assert wait(in_child(save)) == 0
    message = (tmp_path / "error").read_text()
    assert re.match(r"cannot write the model in .*model: .*unchanged", message), message
    assert names(tmp_path / "model") == before


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path, monkeypatch):
    def save_file(tensors, path, metadata):
        raise KeyError("a fault of ours")
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    with pytest.raises(KeyError, match="a fault of ours"):
        make(4).save_pretrained(tmp_path / "model")
