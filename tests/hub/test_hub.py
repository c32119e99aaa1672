"""There and back over a Hub, with the real client; the server's log is the witness."""

import errno
import hashlib
import json
import time
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from hub_server import HubServer, use_server
from huggingface_hub import constants, file_download
from torch.utils._python_dispatch import TorchDispatchMode

import nestedseg
from nestedseg.decoder.meta import own_tensors
from nestedseg.hub.client import HubError
from nestedseg.hub.publish import write_repo

REPO, CONFIG, WEIGHTS = "someone/net", "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-{k:05}-of-00003.safetensors" for k in (1, 2, 3)]


def make(topology="unetpp", encoder="plain", seed=0, **arguments):
    torch.manual_seed(seed)
    model = nestedseg.create(topology, encoder, **{
        "encoder_channels": (4, 6, 8, 10), "decoder_channels": (4, 5, 6, 7),
        "deep_supervision": None if topology == "unet" else True} | arguments)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer() as hub, use_server(monkeypatch, hub, tmp_path / "home"):
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """What a push of the model sends."""
    folder = tmp_path_factory.mktemp("repo")
    write_repo(model, folder, REPO)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pushed(server, files):
    """The server with the model in `REPO`."""
    server.put(REPO, files)
    return server


@pytest.fixture
def no_waiting(monkeypatch):
    """Between the retries of the client."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def load(depth=None, **arguments):
    return nestedseg.from_pretrained(REPO, depth, **arguments)


def same_model(a, b):
    first, second = a.state_dict(), b.state_dict()
    return a.config == b.config and list(first) == list(second) and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items())


def commits(server):
    return [commit.sha for commit in server.repos[REPO].branches["main"]]


# -- what is downloaded ----------------------------------------------------------------------------


@pytest.mark.parametrize("topology, encoder, options", [
    ("unetpp", "plain", {}), ("unet_e", "plain", {}), ("unet_plus", "test_resnet", {}),
    ("unetpp", "test_resnet", {"dims": 3, "depth_strides": (1, 1, 2), "depth": 2}),
    *(pytest.param("unetpp", name, {}, marks=pytest.mark.slow) for name in (
        "test_efficientnet", "test_vit", "levit_128s", "coat_tiny"))])
def test_every_depth_comes_back_with_its_own_files_alone(server, tmp_path, topology, encoder,
                                                         options):
    model = make(topology, encoder, **options)
    model.push_to_hub(REPO)
    size = model.config["image_size"] or (64, 64, 32)[:model.config["dims"]]
    x, shards = torch.randn(1, 3, *size), len(model.depths)
    names = [f"model-{k:05}-of-{shards:05}.safetensors" for k in range(1, shards + 1)]
    with torch.no_grad():
        heads = model.forward_heads(x)
        for number, depth in enumerate(model.depths, 1):
            server.clear_log()
            loaded = load(depth, cache_dir=tmp_path / str(depth))
            assert sorted(server.downloads()) == sorted([CONFIG, INDEX, *names[:number]])
            assert same_model(loaded, model.prune(depth)) and not loaded.training
            assert torch.equal(loaded(x), heads[depth])
        server.clear_log()
        whole = load(cache_dir=tmp_path / "whole")
        assert sorted(server.downloads()) == sorted([CONFIG, INDEX, *names])
        assert same_model(whole, model) and torch.equal(whole(x), model(x))


def test_a_deeper_load_fetches_what_is_missing_alone(pushed, model):
    load(1)
    assert sorted(pushed.downloads()) == sorted([CONFIG, INDEX, SHARDS[0]])
    for depth, new in ((2, [SHARDS[1]]), (3, [SHARDS[2]]), (1, []), (None, [])):
        pushed.clear_log()
        load(depth)
        assert pushed.downloads() == new


def test_a_model_of_one_head_is_one_file(server):
    model = make("unet")
    model.push_to_hub(REPO)
    assert {*server.files(REPO)} == {".gitattributes", CONFIG, WEIGHTS, "README.md"}
    server.clear_log()
    assert same_model(load(), model)
    assert sorted(server.downloads()) == [CONFIG, WEIGHTS]


def test_a_warm_cache_is_asked_alone(pushed, model):
    sha = commits(pushed)[-1]
    load(2)
    pushed.clear_log()
    assert same_model(load(2, revision=sha), model.prune(2))
    assert same_model(load(2, local_files_only=True), model.prune(2))
    assert pushed.log == []
    load(2)  # a branch may have moved: one request
    assert pushed.log == [("HEAD", f"/{REPO}/resolve/main/{CONFIG}")]
    pushed.clear_log()
    with pytest.raises(HubError, match=rf"{SHARDS[2]}.*{REPO}.*not in the cache"):
        load(3, local_files_only=True)
    assert pushed.log == []


def test_a_stopped_server_leaves_the_cache(pushed, model, no_waiting):
    load(2)
    pushed.stop()
    assert same_model(load(2), model.prune(2))
    with pytest.raises(HubError, match=rf"{SHARDS[2]}.*{REPO}.*Try again"):
        load(3)


def test_heads_in_one_file_are_looked_for_once(server, model, tmp_path):
    """As other tools, or an earlier version, may have written them."""
    tensors = {name: t.clone() for name, t in own_tensors(model).items()}
    config = model.config | {"schema_version": 1, "pad_smallest": 1}
    config = {key: value for key, value in config.items() if key not in ("class_names", "training")}
    sha = server.put(REPO, {CONFIG: json.dumps(config).encode(),
                            WEIGHTS: safetensors.torch.save(tensors)})
    assert same_model(load(), model)
    assert same_model(load(2), model.prune(2))
    server.clear_log()
    assert same_model(load(revision=sha), model)
    assert server.log == []  # that there is no index is in the cache too


def test_a_load_is_of_one_commit(pushed, model, monkeypatch):
    """Even where another is pushed in its midst."""
    other, download = make(seed=1), huggingface_hub.hf_hub_download

    def push_after(repo, file, **arguments):
        path = download(repo, file, **arguments)
        if file == CONFIG and len(commits(pushed)) == 1:
            other.push_to_hub(REPO)
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", push_after)
    assert same_model(load(), model)
    assert same_model(load(), other)


def test_nothing_deeper_is_allocated(pushed):
    """Of the plain encoder and of a timm model: no tensor but the pruned model's own."""
    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type == "cpu":
                storage = out.untyped_storage()
                made[storage.data_ptr()] = storage  # kept, so that no address comes twice
            return out

    for encoder in ("plain", "test_efficientnet"):
        model = make("unetpp", encoder, encoder_channels=(4, 8, 32, 128))
        model.push_to_hub(REPO)
        load(1)
        made = {}
        with Allocations():
            small = load(1)
        size = sum(t.nbytes for t in small.state_dict().values())
        whole = sum(t.nbytes for t in model.state_dict().values())
        allocated = sum(storage.nbytes() for storage in made.values())
        # once read, once cloned, once looked at for what is not finite
        assert size <= allocated < 4 * size < whole


# -- what is pushed --------------------------------------------------------------------------------


def test_a_push_is_one_commit_and_stale_files_go(server, model):
    server.put(REPO, {"notes.txt": b"mine", "pytorch_model.bin": b"old", WEIGHTS: b"old",
                      "onnx/model.onnx": b"kept"})
    commit = model.push_to_hub(REPO, commit_message="three depths")
    kept = {"notes.txt", "onnx/model.onnx", "README.md", CONFIG}
    assert {*server.files(REPO)} == {*kept, INDEX, *SHARDS}
    assert commits(server)[1:] == [commit.oid]
    model.prune(3).push_to_hub(REPO)
    assert {*server.files(REPO)} == {*kept, WEIGHTS}
    model.prune(3).push_to_hub(REPO, revision="v2")
    make("unetpp", depth=2).push_to_hub(REPO)
    assert {*server.files(REPO)} == {*kept, INDEX, *(
        f"model-0000{k}-of-00002.safetensors" for k in (1, 2))}
    assert len(commits(server)) == 4
    assert {*server.files(REPO, "v2")} == {*kept, WEIGHTS}
    assert load(revision="v2").depths == (3,) and load().depths == (1, 2)


def test_the_index_has_the_sha256_of_every_file(pushed, model):
    index = json.loads(pushed.files(REPO)[INDEX])
    assert all(isinstance(value, str) for value in index["metadata"].values())
    assert index["metadata"]["format"] == "pt"
    for file in SHARDS:
        digest = hashlib.sha256(pushed.files(REPO)[file]).hexdigest()
        assert index["metadata"][f"sha256.{file}"] == digest
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert index["weight_map"]["decoder.head_x0_2.weight"] == SHARDS[1]


def test_stock_tools_read_the_whole_set(model, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model.save_pretrained(tmp_path)
    other = make(seed=1)
    accelerate.load_checkpoint_in_model(other, str(tmp_path))
    assert same_model(other, model)
    if hasattr(huggingface_hub, "load_torch_model") and client() >= (1, 32):
        other = make(seed=1)
        huggingface_hub.load_torch_model(other, tmp_path, strict=True)
        assert same_model(other, model)


def client():
    return tuple(map(int, huggingface_hub.__version__.split(".")[:2]))


def test_a_private_repo_and_its_token(server, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    model.push_to_hub(REPO, private=True, token=server.token)
    assert server.repos[REPO].private
    assert same_model(load(token=server.token), model)
    with pytest.raises(HubError, match=rf"{REPO}.*private.*token"):
        load(token="hf_another", revision="main", force_download=True)
    for token in (None, "hf_another"):
        with pytest.raises(HubError, match=rf"{REPO}.*[Tt]oken"):
            model.push_to_hub(REPO, token=token)
    server.put("someone/open", {})
    with pytest.raises(ValueError, match=r"'someone/open' exists and is public"):
        model.push_to_hub("someone/open", private=True, token=server.token)
    assert server.files("someone/open") == {}


def test_two_pushes_at_once_do_not_mix(pushed, model, monkeypatch):
    info = huggingface_hub.HfApi.model_info

    def overtaken(self, *args, **kwargs):
        found = info(self, *args, **kwargs)
        if self.library_name == "nestedseg":
            pushed.commit(REPO, "main", {CONFIG: b"theirs"})
        return found

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", overtaken)
    with pytest.raises(HubError, match="somebody else pushed"):
        make(seed=1).push_to_hub(REPO)
    assert pushed.files(REPO) == {CONFIG: b"theirs"}


@pytest.mark.parametrize("arguments, message", [
    ({"metrics": {4: {"iou": 0.5}}}, "no head at depth 4"),
    ({"metrics": {2: {"iou": "high"}}}, "scores"), ({"metrics": {2: 0.5}}, "scores|cannot|object"),
    ({"metrics": {2: {"iou": float("nan")}}}, "invalid value in training, 'iou'"),
    ({"dataset": "x" * 300}, "at most 200"), ({"dataset": 5}, "dataset"),
    ({"license": "a\nb"}, "license"), ({"training": {"a": [1]}}, "invalid value in training, 'a'"),
    ({"pictures": {"curves": Path("nowhere.png")}}, "nowhere.png")], ids=str)
def test_facts_that_cannot_be_are_refused_before_anything_is_sent(server, model, arguments,
                                                                  message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        model.push_to_hub(REPO, **arguments)
    assert server.log == []
    for name in ("net", "a/b/c", "../x", "a b/c", "", 5, "-x/y", "someone/net.git"):
        with pytest.raises(ValueError, match="user/name"):
            model.push_to_hub(name)
    assert server.log == []


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [CONFIG, INDEX, SHARDS[1]])
@pytest.mark.parametrize("kind", ["truncate", "close", "reset"])
def test_a_broken_transfer_is_one_error_and_a_retry_goes_on(pushed, model, no_waiting, file, kind):
    pushed.fault(file, kind, times=20)
    with pytest.raises(HubError, match=rf"{file}.*{REPO}.*Try again"):
        load(2)
    pushed.faults.clear()
    before = set(pushed.downloads()) - {file}
    pushed.clear_log()
    assert same_model(load(2), model.prune(2))
    assert not before & {*pushed.downloads()} and file in pushed.downloads()


@pytest.mark.parametrize("file", [CONFIG, SHARDS[0]])
@pytest.mark.parametrize("status, message", [
    ("401", "access denied"), ("403", "owner must grant access"), ("404", "no such file"),
    ("503", "overloaded")])
def test_a_refusal_is_one_error_that_says_what_to_do(pushed, model, no_waiting, file, status,
                                                     message):
    pushed.fault(file, status, times=20)
    with pytest.raises(HubError, match=rf"{file}.*{REPO}.*{message}"):
        load(2)
    pushed.faults.clear()
    assert same_model(load(2), model.prune(2))


def test_an_index_that_cannot_be_had_is_no_missing_index(pushed, no_waiting):
    """Else the single file would be looked for, which may be an old one."""
    pushed.fault(INDEX, "503", times=20)
    with pytest.raises(HubError, match=INDEX):
        load()
    assert not any(path.endswith(WEIGHTS) for _, path in pushed.log)


def test_no_network(server, no_waiting):
    server.stop()
    with pytest.raises(HubError, match=rf"{CONFIG}.*{REPO}.*out of reach"):
        load()


def test_a_repo_or_revision_that_is_not_there(pushed):
    with pytest.raises(HubError, match=r"someone/nott.*no such repo.*token"):
        nestedseg.from_pretrained("someone/nott")
    with pytest.raises(HubError, match=rf"{REPO}.*no such branch"):
        load(revision="v9")


@pytest.mark.parametrize("file, depth", [(SHARDS[1], 2), (WEIGHTS, None)])
def test_a_flipped_bit_is_found_and_replaced_when_asked(server, model, file, depth):
    pushed = model if depth else model.prune(3)
    pushed.push_to_hub(REPO)
    server.fault(file, "flip")
    for _ in range(2):  # it stays in the cache
        with pytest.raises(HubError, match=rf"{file}.*{REPO}.*damaged.*force_download=True"):
            load(depth)
    assert same_model(load(depth, force_download=True), pushed.prune(depth) if depth else pushed)
    assert load(depth).depths


def test_a_full_disk(pushed, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", full)
        with pytest.raises(HubError, match=rf"{CONFIG}.*{REPO}.*disk is full.*cache_dir"):
            load()
    assert load().depths == (1, 2, 3)


def test_a_repo_with_a_pickle_alone_is_refused(server, model):
    server.put(REPO, {CONFIG: json.dumps(model.config).encode(), "pytorch_model.bin": b"pickle"})
    with pytest.raises(FileNotFoundError, match=rf"{REPO}.*model\.safetensors.*pytorch_model\.bin"):
        load()
    assert server.downloads() == [CONFIG]


def test_a_failed_push_leaves_the_repo_as_it_was(pushed, no_waiting):
    before = pushed.files(REPO)
    for path, kind in (("/commit/main", "503"), ("/preupload/main", "401")):
        pushed.fault(path, kind, times=20)
        with pytest.raises(HubError, match=REPO):
            make(seed=1).push_to_hub(REPO)
        pushed.faults.clear()
        assert pushed.files(REPO) == before


# -- folder or repo --------------------------------------------------------------------------------


def test_a_folder_of_that_name_wins(pushed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = make(seed=1)
    other.save_pretrained(REPO)
    assert same_model(load(), other)
    assert pushed.log == []


@pytest.mark.parametrize("name", ["net", "a/b/c", "/nowhere/net", "./some one/net", "", "a/..",
                                  Path("someone/net")], ids=str)
def test_what_is_neither_is_said_without_a_request(pushed, name):
    with pytest.raises(FileNotFoundError, match=r"neither a folder nor.*user/name"):
        nestedseg.from_pretrained(name)
    assert pushed.log == []


def test_device_and_dtype(pushed):
    assert {p.dtype for p in load(dtype=torch.float16).parameters()} == {torch.float16}
    assert {p.device.type for p in load(device="meta").parameters()} == {"meta"}


def test_constants_are_as_the_server_needs_them(server):
    assert server.url == constants.ENDPOINT  # or these tests would go out to the internet


def test_damage_to_a_header_is_said_in_the_same_way(server, model):
    """In the single file, whose header is read before all else."""
    model.prune(3).push_to_hub(REPO)
    files = server.files(REPO)
    data = files[WEIGHTS]
    server.put(REPO, files | {WEIGHTS: data[:20] + bytes([data[20] ^ 1]) + data[21:]})
    with pytest.raises(HubError, match=rf"{WEIGHTS}.*{REPO}.*damaged.*force_download=True"):
        load()
