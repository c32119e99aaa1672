"""A disk that takes no more: the error says where and why, and the model before is whole."""

import re
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError

import nestedseg

LIMITED = """
import resource, sys
import nestedseg
model = nestedseg.create("unet", encoder_channels=(16, 32, 64))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # as of a disk that is full
try:
    model.save_pretrained(sys.argv[1])
except OSError as error:
    print(error)
"""


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
    result = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "model")],
                            capture_output=True, text=True, timeout=100, check=True)
    assert re.match(r"cannot write the model in .*model: .*unchanged", result.stdout), result
    assert names(tmp_path / "model") == before


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path, monkeypatch):
    def save_file(tensors, path, metadata):
        raise KeyError("a fault of ours")
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    with pytest.raises(KeyError, match="a fault of ours"):
        make(4).save_pretrained(tmp_path / "model")
