import copy
import hashlib
import itertools
import json
import os
import pickle
import random
import re
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from forks import in_child, wait

import nestedseg
from nestedseg.decoder.meta import fill_weights

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def make(topology="unetpp", seed=0, **arguments):
    torch.manual_seed(seed)
    if arguments.get("encoder", "plain") == "plain":
        arguments = {"encoder_channels": (4, 6, 8)} | arguments
    model = nestedseg.create(topology, **{"decoder_channels": (4, 5, 6, 7),
                                          "deep_supervision": True} | arguments)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)  # buffers are saved too
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture
def folder(model, tmp_path):
    """A saved model, to be damaged."""
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def one_head(tmp_path):
    """A saved model of one head, so of one file, to be damaged."""
    make(deep_supervision=False).save_pretrained(tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def little_memory():
    """What allocates first and checks later fails here, rather than to fill the machine."""
    status, old = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    if status.exists():
        used = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 ** 29, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def same_model(a, b):
    """The same configuration and the same bits."""
    first, second = a.state_dict(), b.state_dict()
    return a.config == b.config and list(first) == list(second) and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items())


def files(path):
    return sorted(p.name for p in path.iterdir())


def saved(model):
    """The files of a saved model."""
    count = len(model.depths)
    shards = [f"model-{k:05}-of-{count:05}.safetensors" for k in range(1, count + 1)]
    return [CONFIG, WEIGHTS] if count == 1 else [CONFIG, *shards, INDEX]


def edit(folder, **changes):
    """Changes keys of the config; ``...`` removes one."""
    config = json.loads((folder / CONFIG).read_text())
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(config))


def bless(folder):
    """Makes checksums right again, as one who changes files on purpose would."""
    if (folder / WEIGHTS).exists():
        edit(folder, sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
        return
    index = json.loads((folder / INDEX).read_text())
    for file in {*index["weight_map"].values()}:
        if (folder / file).is_file():
            digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
            index["metadata"][f"sha256.{file}"] = digest
    (folder / INDEX).write_text(json.dumps(index))


def edit_weights(folder, change):
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    bless(folder)


# -- there and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [
    {}, {"output": "ensemble", "classes": 3, "task": "multilabel", "dropout": 0.5},
    {"encoder": "test_resnet", "in_channels": 4, "output": 2},
    {"dims": 3, "upsample": "transpose", "norm": None}, {"norm": "instance", "activation": "prelu"},
    {"topology": "unet_e", "norm": "group", "upsample": "bilinear"},
], ids=str)
def test_a_model_comes_back_with_the_same_bits(arguments, tmp_path):
    model = make(**arguments)
    model.set_preprocessing(mean=[0.25] * model.config["in_channels"])
    path = tmp_path / "new" / "folder"
    model.save_pretrained(str(path))
    assert files(path) == saved(model)
    loaded = nestedseg.from_pretrained(str(path))
    assert same_model(loaded, model)
    assert not loaded.training and loaded.graph == model.graph
    x = torch.randn(1, model.config["in_channels"], *(37, 50, 9)[:model.config["dims"]])
    assert torch.equal(loaded(x), model(x))
    for depth, logits in model.forward_heads(x).items():
        assert torch.equal(loaded.forward_heads(x)[depth], logits)
        assert torch.equal(nestedseg.from_pretrained(path, depth=depth)(x), logits)


def test_a_depth_that_is_loaded_is_the_model_pruned(model, folder):
    for depth in model.depths:
        assert same_model(nestedseg.from_pretrained(folder, depth=depth), model.prune(depth))
    with pytest.raises(nestedseg.GraphError, match="no head at depth 3"):
        nestedseg.from_pretrained(folder, depth=3)


def test_training_goes_on_where_it_was_saved(tmp_path):
    model = make().train()
    model(torch.randn(2, 3, 8, 8))  # moves the running statistics
    model.save_pretrained(tmp_path)
    assert same_model(nestedseg.from_pretrained(tmp_path), model)


def test_weights_in_another_layout_are_saved_alike(model, tmp_path):
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    other.save_pretrained(tmp_path)
    assert same_model(nestedseg.from_pretrained(tmp_path), model)


def test_saving_over_a_model_replaces_it_and_leaves_other_files(folder):
    (folder / "notes.txt").write_text("mine")
    other = make("unet_plus", seed=1, encoder_channels=(3, 5, 7, 9))
    other.save_pretrained(folder)
    assert same_model(nestedseg.from_pretrained(folder), other)
    assert files(folder) == [*saved(other), "notes.txt"]
    one_head = make("unet", deep_supervision=False)
    one_head.save_pretrained(folder)
    assert same_model(nestedseg.from_pretrained(folder), one_head)
    assert files(folder) == [CONFIG, WEIGHTS, "notes.txt"]


def test_a_file_in_the_place_of_the_folder_is_left_alone(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_loading_fetches_nothing(tmp_path, monkeypatch):
    """Encoder weights are in the folder: neither timm nor the Hub nor a socket is asked for any."""
    make(encoder="test_resnet").save_pretrained(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("from_pretrained went out to fetch something")

    create_model = timm.create_model

    def without_weights(*args, pretrained=False, **kwargs):
        assert not pretrained
        return create_model(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", without_weights)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", refuse)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert nestedseg.from_pretrained(tmp_path).depths == (1, 2, 3, 4)


def test_loading_unpickles_nothing(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read")

    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"),
                         (torch, "load")]:
        monkeypatch.setattr(module, name, refuse)
    (folder / "pytorch_model.bin").write_bytes(b"never looked at")
    nestedseg.from_pretrained(folder)


# -- damaged folders -------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_folder_with_a_pickle_alone_holds_no_model(one_head, tmp_path):
    (one_head / WEIGHTS).unlink()
    (one_head / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor.*pytorch_model"):
        nestedseg.from_pretrained(one_head)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("number", range(4))
def test_a_missing_file_is_named(folder, model, number):
    name = saved(model)[number]
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        nestedseg.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        nestedseg.from_pretrained(folder / "nowhere")


def test_weights_that_are_a_pickle_are_refused(one_head, tmp_path):
    (one_head / WEIGHTS).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    bless(one_head)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        nestedseg.from_pretrained(one_head)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:4], lambda data: data[:100], lambda data: data[:-1],
    lambda data: data + b"\0", lambda data: struct.pack("<Q", 2 ** 62) + data[8:],
    lambda data: struct.pack("<Q", 10 ** 9) + data[8:], lambda data: data[:8] + b"!" + data[9:],
    lambda data: data.replace(b'"F32"', b'"F99"', 1),
], ids=["empty", "4 bytes", "100 bytes", "last byte gone", "one byte more", "header of 4 EiB",
        "header of 1 GB", "header is no JSON", "unknown dtype"])
@pytest.mark.parametrize("on_purpose", [False, True])
@pytest.mark.parametrize("heads", ["one", "two"])
def test_damaged_weights_are_refused(folder, one_head, damage, heads, on_purpose, little_memory):
    where, name = (folder, "model-00002-of-00002.safetensors") if heads == "two" \
        else (one_head, WEIGHTS)
    (where / name).write_bytes(damage((where / name).read_bytes()))
    if on_purpose:
        bless(where)
    with pytest.raises(ValueError, match=re.escape(name)):
        nestedseg.from_pretrained(where)


def test_a_flipped_bit_is_seen(folder, one_head, model):
    for where, name in ((folder, "model-00002-of-00002.safetensors"), (one_head, WEIGHTS)):
        data = (where / name).read_bytes()
        (where / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name}.*damaged.*sha256"):
            nestedseg.from_pretrained(where)
    assert same_model(nestedseg.from_pretrained(folder, depth=1), model.prune(1))  # not read


def test_a_missing_tensor_is_named(one_head):
    edit_weights(one_head, lambda tensors: tensors.pop("decoder.x1_1.block.conv2.weight"))
    with pytest.raises(ValueError, match=r"1 .*missing.*decoder\.x1_1\.block\.conv2\.weight"):
        nestedseg.from_pretrained(one_head)


def test_a_missing_buffer_is_missed_too(one_head):
    edit_weights(one_head, lambda tensors: tensors.pop("encoder.x0_0.norm1.running_mean"))
    with pytest.raises(ValueError, match="running_mean"):
        nestedseg.from_pretrained(one_head)


def test_a_surplus_tensor_is_named(one_head):
    edit_weights(one_head, lambda tensors: tensors.update(surplus=torch.zeros(2)))
    with pytest.raises(ValueError, match=r"unknown.*surplus"):
        nestedseg.from_pretrained(one_head)


@pytest.mark.parametrize("shape", [(1, 4, 1), (4,), (1, 4, 1, 2), (0, 4, 1, 1), (4, 1, 1, 1)])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(one_head, shape):
    """Also where a copy would broadcast."""
    edit_weights(one_head, lambda tensors: tensors.update(
        {"decoder.head_x0_2.weight": torch.zeros(shape)}))
    with pytest.raises(ValueError, match=r"decoder\.head_x0_2\.weight") as error:
        nestedseg.from_pretrained(one_head)
    assert str(shape) in str(error.value) and "(1, 4, 1, 1)" in str(error.value)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "3", '"text"', "\x00\xff", "[" * 100_000, '{"a":' * 100_000,
    "{" + '"a": 1, ' * 600_000 + '"b": 2}',
], ids=["empty", "open", "list", "null", "number", "text", "bytes", "nested list", "nested object",
        "5 MB"])
def test_a_config_that_is_no_config_is_refused(folder, text):
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json"):
        nestedseg.from_pretrained(folder)


def test_a_later_schema_says_which_nestedseg_to_install(folder):
    edit(folder, schema_version=3, nestedseg_version="1.20.3")
    with pytest.raises(ValueError, match=r"versions 1 to 2.*nestedseg 1\.20\.3.*pip install \. in"):
        nestedseg.from_pretrained(folder)
    for writer in (..., 5, "1.0; rm -r x", "", "1.0\n", ["1.0"]):
        edit(folder, nestedseg_version=writer)
        with pytest.raises(ValueError, match=r"Install a newer nestedseg: pip install \. in"):
            nestedseg.from_pretrained(folder)


def test_an_earlier_schema_is_read(folder, model):
    edit(folder, schema_version=1, nestedseg_version=..., class_names=..., training=...,
         pad_smallest=1)
    assert same_model(nestedseg.from_pretrained(folder), model)


def test_what_is_known_of_a_model_is_saved(tmp_path):
    model = make(classes=2, class_names=["background", "nucleus"])
    model.save_pretrained(tmp_path)
    assert nestedseg.from_pretrained(tmp_path, 1).config["class_names"] == ["background", "nucleus"]
    for names in (["a"], ["a", "a"], ["a", 5], "ab", ["a", ""], ["a", "b\n"], ["a", "x" * 300]):
        with pytest.raises((TypeError, ValueError), match="class_names"):
            make(classes=2, class_names=names)


def test_a_buffer_that_nobody_can_compute_is_refused():
    """Or it would hold whatever lay in memory."""
    with torch.device("meta"):
        ghost = torch.nn.Linear(2, 1)
        ghost.register_buffer("scale", torch.ones(1), persistent=False)
    with pytest.raises(ValueError, match="the buffer 'scale' of a Linear"):
        fill_weights(ghost, {"weight": torch.ones(1, 2), "bias": torch.ones(1)})
    ghost.init_non_persistent_buffers = lambda: ghost.scale.fill_(3)
    fill_weights(ghost, {"weight": torch.ones(1, 2), "bias": torch.ones(1)})
    assert ghost(torch.ones(1, 2)).item() == 3 and ghost.scale.item() == 3


@pytest.mark.parametrize("version", [..., None, 0, 3, 10 ** 30, "1", 1.0, True, [1]], ids=repr)
def test_an_unknown_schema_version_is_refused(folder, version):
    edit(folder, schema_version=version)
    with pytest.raises(ValueError, match="version"):
        nestedseg.from_pretrained(folder)


def test_an_unknown_key_is_refused_with_the_nearest(folder):
    edit(folder, activations="relu")
    with pytest.raises(ValueError, match="unknown config key 'activations'") as error:
        nestedseg.from_pretrained(folder)
    assert "did you mean 'activation'?" in str(error.value)
    assert str(folder / CONFIG) in str(error.value)


@pytest.mark.parametrize("key", ["graph", "encoder", "decoder_channels"])
def test_a_missing_key_is_named(folder, key):
    edit(folder, **{key: ...})
    with pytest.raises(ValueError, match=key):
        nestedseg.from_pretrained(folder)


# -- strangers' folders ----------------------------------------------------------------------------

JUNK = [None, -1, 0, 5, 1.5, 10 ** 9, 10 ** 400, float("nan"), float("inf"), True,
        "x", "x" * 10 ** 5, [], [5], [None], [[[]]], [10 ** 9] * 3, [-1, -1], {}, {"a": {}}]


def test_no_junk_in_any_key_gets_through_to_torch(model, folder):
    """Each value is refused at once, naming the file, or does no harm."""
    keys = json.loads((folder / CONFIG).read_text()).keys() - {"schema_version", "topology"}
    assert len(keys) > 12
    original = (folder / CONFIG).read_text()
    x = torch.randn(1, 3, 9, 10)
    for key in sorted(keys):
        for junk in JUNK:
            edit(folder, **{key: junk})
            start = time.process_time()
            try:
                loaded = nestedseg.from_pretrained(folder)
            except (ValueError, TypeError) as error:
                assert CONFIG in str(error) or ".safetensors" in str(error), (key, junk)
                assert len(str(error)) < 2000, (key, junk)
            else:
                assert loaded(x).shape == (1, 1, 9, 10), (key, junk)
            assert time.process_time() - start < 2, (key, junk)
            (folder / CONFIG).write_text(original)


GRAPH = {"nodes": {"x0_1": ["x0_0", "x1_0"], "x1_1": ["x1_0", "x2_0"],
                   "x0_2": ["x0_0", "x0_1", "x1_1"]}, "heads": ["x0_1", "x0_2"]}
ROW_0 = [f"x0_{j}" for j in range(1, 1000)]
HOSTILE = {  # the large ones are made when their turn comes
    "wide encoder": {"encoder_channels": [65_536] * 3},
    "wide enough for a few GB": {"encoder_channels": [8192] * 3},
    "wide decoder": {"decoder_channels": [65_536] * 3},
    "wide node": {"graph": {**GRAPH, "nodes": {
        **GRAPH["nodes"], "x0_1": {"inputs": ["x0_0", "x1_0"], "channels": 65_536}}}},
    "many classes": {"classes": 65_536, "task": "multilabel"},
    "many channels": {"in_channels": 65_536},
    "deep encoder": {"encoder_channels": [512] * 32},
    "large encoder": {"encoder": "convnext_xxlarge", "encoder_channels": None},
    "large pad": {"pad_multiple": [2 ** 14, 2 ** 14]},
    "pad that does not divide": {"pad_multiple": [3, 3]},
    "pad too small": {"pad_multiple": [2, 2]},
    "pad of three": {"pad_multiple": [4, 4, 4]},
    "no pad": {"pad_multiple": None},
    "three dimensions": {"dims": 3},
    "a thousand nodes too many": {"graph": {"nodes": {
        f"x{i}_{j}": ["x0_0"] for i in range(20) for j in range(1, 101)}, "heads": ["x0_1"]}},
    "200,000 nodes": lambda: {"graph": {"nodes": {f"x0_{j}": [] for j in range(1, 200_001)},
                                        "heads": ["x0_1"]}},
    "row 9999": {"graph": {"nodes": {"x0_1": ["x9999_0"]}, "heads": ["x0_1"]}},
    "row of 40 digits": {"graph": {"nodes": {"x0_1": [f"x{'9' * 40}_0"]}, "heads": ["x0_1"]}},
    "node of no inputs": {"graph": {"nodes": {"x0_1": []}, "heads": ["x0_1"]}},
    "cycle": {"graph": {"nodes": {"x0_1": ["x0_2", "x0_0"], "x0_2": ["x0_1"]}, "heads": ["x0_2"]}},
    "nested inputs": {"graph": {"nodes": {"x0_1": [[[["x0_0"]]]]}, "heads": ["x0_1"]}},
    "dense": lambda: {"graph": {"nodes": {name: ["x0_0", *ROW_0[:k]] for k, name in
                                          enumerate(ROW_0[:400])}, "heads": [ROW_0[399]]}},
    "a path as encoder": {"encoder": "../../etc/passwd"},
    "a Hub repository as encoder": {"encoder": "hf-hub:stranger/model"},
    "not finite": {"dropout": float("nan")},
    "mean not finite": {"preprocessing": {"mean": [float("nan")] * 3}},
    "mean of 400 digits": {"preprocessing": {"mean": [10 ** 400] * 3}},
    "mean of one channel": {"preprocessing": {"mean": [0.5]}},
    "mean of booleans": {"preprocessing": {"mean": [True] * 3}},
    "std of zero": {"preprocessing": {"std": [0.0] * 3}},
    "range of nothing": {"preprocessing": {"input_range": [1, 1]}},
    "size of 10^9": {"preprocessing": {"size": [10 ** 9, 10 ** 9]}},
    "no preprocessing": {"preprocessing": {}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values_are_refused_before_anything_is_allocated(folder, name, little_memory):
    changes = HOSTILE[name]() if callable(HOSTILE[name]) else dict(HOSTILE[name])
    if changes.get("preprocessing"):
        whole = json.loads((folder / CONFIG).read_text())["preprocessing"]
        changes["preprocessing"] = whole | changes["preprocessing"]
    edit(folder, **changes)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"config\.json|model.*\.safetensors") as error:
        nestedseg.from_pretrained(folder)
    assert time.process_time() - start < 5
    assert len(str(error.value)) < 2000


def test_a_long_name_does_not_fill_the_message(folder):
    edit(folder, topology="n" * 10 ** 6, output=7)
    with pytest.raises(ValueError, match="7") as error:
        nestedseg.from_pretrained(folder)
    assert len(str(error.value)) < 2000


# -- interrupted saves -----------------------------------------------------------------------------
# Each save runs in a child process, which is stopped before its first change to the disk, before
# its second, and so on: by an error, as of a full disk, or by kill -9.

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink",
           "os.truncate"}


def save_stopped(model, path, number, how):
    """The exit status of a save that is stopped before its change to the disk of this number.

    It is 0 where there was no such change, 5 where the error was got over.
    """
    seen = 0

    def hook(event, args):
        nonlocal seen
        writes = event == "open" and isinstance(args[2], int) and args[2] & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGES or writes:
            seen += 1
            if seen == number + 1:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(28, "No space left on device")

    def work():
        sys.addaudithook(hook)
        model.save_pretrained(path)
        return 5 if seen > number else 0

    return wait(in_child(work))


@pytest.fixture(scope="module")
def two_models():
    """Of different widths and depths, so that no file of one goes with a file of the other."""
    return make(), make("unet_plus", seed=1, encoder_channels=(3, 5, 7, 9), upsample="transpose")


@pytest.fixture(scope="module")
def one_file():
    """A model of one head."""
    return make("unet", seed=2, encoder_channels=(5, 4), deep_supervision=False)


def which(folder, models):
    """0 or 1: the folder holds this model and nothing of the other."""
    loaded = nestedseg.from_pretrained(folder)
    (index,) = [i for i, model in enumerate(models) if same_model(loaded, model)]
    return index


@pytest.mark.parametrize("how, kinds", [
    ("error", "two files, one"), ("kill", "one file, two"),
    pytest.param("kill", "two files, one", marks=pytest.mark.slow),
    pytest.param("kill", "two files, three", marks=pytest.mark.slow)])
def test_a_save_stopped_at_any_moment_leaves_one_model_whole(two_models, one_file, tmp_path, how,
                                                             kinds):
    two_models = {"two files, three": two_models, "two files, one": (two_models[0], one_file),
                  "one file, two": (one_file, two_models[0])}[kinds]
    old, new = two_models
    outcomes = []
    for number in range(100):
        old.save_pretrained(tmp_path)
        assert which(tmp_path, two_models) == 0
        status = save_stopped(new, tmp_path, number, how)
        if status == 5:
            assert which(tmp_path, two_models) == 1
            continue
        assert status in (0, -signal.SIGKILL if how == "kill" else 3)
        outcomes.append(which(tmp_path, two_models))
        if status == 0:
            break
    assert len(outcomes) > 3  # two files cannot be replaced in fewer steps
    assert outcomes == sorted(outcomes)  # the old one up to some moment, then the new one
    assert outcomes[0] == 0 and outcomes[-1] == 1
    assert files(tmp_path) == saved(new)  # the last save swept up after the others


def test_a_first_save_that_is_killed_leaves_no_half_model(model, tmp_path):
    for number in range(100):
        path = tmp_path / str(number)
        status = save_stopped(model, path, number, "kill")
        try:
            assert same_model(nestedseg.from_pretrained(path), model)
        except FileNotFoundError:
            assert status == -signal.SIGKILL
        if status == 0:
            break
    assert number > 3


@pytest.mark.slow  # the tests above are killed at each moment that counts
@pytest.mark.parametrize("other", ["one file", "three files"])
def test_kill_9_at_random_moments_leaves_one_model_whole(two_models, one_file, tmp_path, other):
    two_models = two_models if other == "three files" else (two_models[0], one_file)
    start = time.perf_counter()
    two_models[0].save_pretrained(tmp_path)
    longest = 0.05 + 3 * (time.perf_counter() - start)  # on a busy machine a save may take long
    rng, found = random.Random(0), [0]

    def work():
        for index in itertools.count(1 + found[-1]):  # first the one that is not there
            two_models[index % 2].save_pretrained(tmp_path)

    while len(found) < 15 or (set(found) != {0, 1} and len(found) < 100):
        pid = in_child(work)
        time.sleep(rng.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
        found.append(which(tmp_path, two_models))
        if found[-1] == found[-2]:
            longest *= 1.05  # and longer later than at first
    assert set(found) == {0, 1}  # or it was never killed after a save
    two_models[1].save_pretrained(tmp_path)
    assert which(tmp_path, two_models) == 1
    assert files(tmp_path) == saved(two_models[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(tmp_path, dtype):
    model = make().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = nestedseg.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert same_model(loaded, model)


@pytest.mark.parametrize("to", [torch.int64, torch.float16])
def test_a_tensor_of_another_dtype_is_refused(one_head, to):
    def change(tensors):
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
        tensors[name] = tensors[name].to(to)

    edit_weights(one_head, change)
    with pytest.raises(ValueError, match=r"int64|mix the dtypes"):
        nestedseg.from_pretrained(one_head)


def test_tensors_that_a_model_shares_are_written_once(tmp_path):
    model = nestedseg.create("unetpp", "coat_lite_tiny", depth=1)
    model.save_pretrained(tmp_path)
    written = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert len(written) < len(model.state_dict())
    loaded = nestedseg.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
