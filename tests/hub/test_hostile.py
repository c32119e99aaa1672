"""Repos made to harm who loads them: an error, in less than a second and 200 MB of memory."""

import gc
import hashlib
import json
import math
import os
import resource
import socket
import struct
import time
import traceback
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hub_server import HubServer, use_server

import nestedseg
from nestedseg import models
from nestedseg.decoder.meta import own_tensors
from nestedseg.hub.client import HubError

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
FIRST, SECOND = (f"model-{k:05}-of-00002.safetensors" for k in (1, 2))
SECONDS, BYTES = 1, 200_000_000
ROW = [f"x0_{j}" for j in range(1, 1000)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A good repo, by name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("good")
    nestedseg.create("unetpp", encoder_channels=(4, 6, 8), deep_supervision=True).save_pretrained(
        folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(files, tmp_path):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def bless(folder):
    """Checksums of the files as they are: whoever makes such a repo makes those too."""
    index = json.loads((folder / INDEX).read_text())
    for name in (FIRST, SECOND):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        index["metadata"][f"sha256.{name}"] = digest
    (folder / INDEX).write_text(json.dumps(index))


def refused(folder, match=""):
    """That a load from the folder fails in a process with little memory, and soon.

    The child leaves its error, and how long it took, in a file.
    """
    report = folder / "report"
    pid = os.fork()
    if pid == 0:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            gc.freeze()  # not to look through what the tests before have left
            start = time.process_time()
            try:
                nestedseg.from_pretrained(folder)
                result = ["nothing", ""]
            except (ValueError, OSError) as error:
                result = ["refused", str(error)]
            except BaseException:
                result = ["failed", traceback.format_exc()]
            report.write_text(json.dumps([*result, time.process_time() - start]))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    outcome, message, seconds = json.loads(report.read_text())
    assert outcome == "refused", message
    assert seconds < SECONDS
    assert len(message) < 2000
    assert match in message
    return message


def test_what_is_measured_can_fail(folder):
    with pytest.raises(AssertionError):
        refused(folder)  # a good repo
    (folder / "report").unlink()
    (folder / CONFIG).unlink()
    assert CONFIG in refused(folder)


# -- config.json -----------------------------------------------------------------------------------

GRAPH = {"nodes": {"x0_1": ["x0_0", "x1_0"], "x1_1": ["x1_0", "x2_0"],
                   "x0_2": ["x0_0", "x0_1", "x1_1"]}, "heads": ["x0_1", "x0_2"]}
CONFIGS = {
    "huge channels": ({"encoder_channels": [65_536] * 3}, "shape"),
    "channels beyond all": ({"encoder_channels": [10 ** 30] * 3}, "encoder_channels"),
    "huge decoder": ({"decoder_channels": [65_536] * 3}, "shape"),
    "huge node": ({"graph": GRAPH | {"nodes": GRAPH["nodes"] | {"x0_1": {
        "inputs": ["x0_0", "x1_0"], "channels": 65_536}}}}, "shape"),
    "padding": ({"pad_multiple": [4096, 4096]}, "pad_multiple"),
    "padding along an axis": ({"pad_multiple": [4, 32]}, "at most [16, 16]"),
    "padding of small images": ({"pad_smallest": [4096, 4096]}, "pad_smallest"),
    "the size of all images": ({"image_size": [4096, 4096]}, "image_size"),
    "many nodes": ({"graph": {"nodes": {f"x0_{j}": [] for j in range(1, 50_000)},
                              "heads": ["x0_1"]}}, "at most 1000"),
    "many edges": ({"graph": {"nodes": {name: ["x0_0", *ROW[:k]] for k, name in
                                        enumerate(ROW[:400])}, "heads": [ROW[399]]}}, "inputs"),
    "cycle": ({"graph": {"nodes": {"x0_1": ["x0_2", "x0_0"], "x0_2": ["x0_1"]},
                         "heads": ["x0_2"]}}, "cycle"),
    "nested inputs": ({"graph": {"nodes": {"x0_1": [[[["x0_0"]]]]}, "heads": ["x0_1"]}}, "x0_1"),
    "names with dots": ({"graph": {"nodes": {"../x0_1": ["x0_0"]}, "heads": ["../x0_1"]}}, "../x0"),
    "a path as encoder": ({"encoder": "../../etc/passwd"}, "unknown encoder"),
    "a repo as encoder": ({"encoder": "hf-hub:stranger/model"}, "unknown encoder"),
    "weights to fetch": ({"encoder_weights": "imagenet"}, "encoder_weights"),
    "an address": ({"pretrained": "http://127.0.0.1/x"}, "pretrained"),
    "facts without end": ({"training": {f"a{i}": i for i in range(50_000)}}, "at most 1000"),
    "nested facts": ({"training": {"a": {"a": {"a": {"a": 1}}}}}, "invalid value in training"),
    "a long fact": ({"training": {"a": "x" * 900_000}}, "at most 200"),
    "markup in a class": ({"class_names": ["a\n# b"]}, "class_names"),
    "classes without end": ({"class_names": ["a"] * 10 ** 5}, "class_names"),
    "no finite score": ({"training": {"metrics": {"1": {"iou": float("nan")}}}}, "iou"),
    "a version of 10^6 digits": ({"schema_version": 99, "nestedseg_version": "9" * 900_000},
                                 "pip install"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_refused(folder, name):
    changes, match = CONFIGS[name]
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, match)


TEXTS = {"a million nodes": '{"graph": {"nodes": {' + '"x0_1": [], ' * 10 ** 6 + '"x0_2": []}}}',
         "deep nesting": '{"graph":' * 100_000, "lists": "[" * 900_000,
         "empty lists": '{"a": [' + "[]," * 330_000 + "[]]}", "a key twice":
         '{"schema_version": 1, "schema_version": 2}', "a number of 10^6 digits":
         '{"classes": ' + "9" * 900_000 + "}"}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("file", [CONFIG, INDEX])
def test_a_text_is_refused(folder, name, file):
    (folder / file).write_text(TEXTS[name])
    refused(folder, file)


# -- the index -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [
    "../model.safetensors", "/etc/passwd", f"./{FIRST}", f"sub/{FIRST}", f"{FIRST}/../{SECOND}",
    f"..\\{FIRST}", f"{FIRST}\n", f"{FIRST}\0", "pytorch_model.bin", INDEX, CONFIG, "", ".", "..",
    "http://127.0.0.1/x.safetensors", "x" * 900_000, 5, None, ["x"], {}], ids=lambda p: str(p)[:40])
def test_an_index_leads_to_files_beside_it_alone(folder, place):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["decoder.head_x0_1.weight"] = place
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "the index names the file")


@pytest.mark.parametrize("change", [
    {"weight_map": {}}, {"weight_map": []}, {"weight_map": None}, {"metadata": []},
    {"weight_map": {f"t{i}": FIRST for i in range(20_000)}},
    {"weight_map": {f"../{i}": FIRST for i in range(10)}},
    {"weight_map": {"x" * 900_000: FIRST}}], ids=lambda change: str(change)[:40])
def test_an_index_is_one_of_this_model(folder, change):
    index = json.loads((folder / INDEX).read_text()) | change
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, INDEX)


def test_an_index_that_swaps_tensors_is_refused(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["decoder.head_x0_1.weight"] = SECOND
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "its index")


@pytest.mark.parametrize("checksum", ["0" * 64, "", 5, ["a"], {"a": 1}, "x" * 900_000],
                         ids=lambda c: str(c)[:20])
def test_a_wrong_checksum_is_refused(folder, checksum):
    index = json.loads((folder / INDEX).read_text())
    index["metadata"][f"sha256.{SECOND}"] = checksum
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "is damaged")


# -- weights ---------------------------------------------------------------------------------------


def edit(folder, change):
    tensors = safetensors.torch.load_file(folder / SECOND)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / SECOND)
    bless(folder)


HEAD, NORM = "decoder.head_x0_2.weight", "decoder.x0_2.block.norm1.running_var"
COUNT = "decoder.x0_2.block.norm1.num_batches_tracked"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [HEAD, NORM])
def test_weights_that_are_no_numbers_are_refused(folder, name, value):
    edit(folder, lambda tensors: tensors[name].flatten()[-1:].fill_(value))
    refused(folder, f"{name!r} has values that are not finite")


@pytest.mark.parametrize("name, dtype", [
    (HEAD, torch.int64), (HEAD, torch.float8_e4m3fn), (HEAD, torch.complex64), (HEAD, torch.bool),
    (HEAD, torch.float16), (COUNT, torch.float32), (COUNT, torch.int32)], ids=str)
def test_a_wrong_dtype_is_refused(folder, name, dtype):
    try:
        edit(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    except KeyError as error:
        if error.args != (dtype,):
            raise
        pytest.skip(f"this version of safetensors cannot write {dtype}")
    refused(folder, "mix the dtypes" if dtype is torch.float16 else
            f"dtype {dtype} for tensor {name!r}")


def write_header(folder, change):
    """A safetensors file whose header is another text over the same data."""
    data = (folder / SECOND).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = change(data[8:8 + size].decode().rstrip()).encode()
    (folder / SECOND).write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size:])
    bless(folder)


def test_a_tensor_twice_in_a_file_is_refused(folder):
    def twice(header):
        entry = json.dumps(json.loads(header)[HEAD])
        return header[:-1] + f', "{HEAD}": {entry}}}'

    write_header(folder, twice)
    assert "twice" in refused(folder, SECOND)


def test_a_tensor_in_two_files_is_refused(folder):
    first = safetensors.torch.load_file(folder / FIRST)
    name = sorted(first)[0]
    edit(folder, lambda tensors: tensors.update({name: first[name]}))
    assert name in refused(folder, "1 unknown")


@pytest.mark.parametrize("change", [
    lambda header: header.replace(HEAD, "../../x"),
    lambda header: header.replace('"shape":[1,4,1,1]', '"shape":[0,1099511627776]'),
    lambda header: json.dumps(json.loads(header) | {"huge": {
        "dtype": "F32", "shape": [0, 2 ** 62], "data_offsets": [0, 0]}}),
    lambda header: json.dumps(json.loads(header) | {HEAD: json.loads(header)[HEAD] | {
        "shape": [2 ** 40, 2 ** 40]}}),
    lambda header: '{"a":' * 100_000, lambda header: "[" * 900_000,
    lambda header: header + " " * 3_000_000, lambda header: "5"],
    ids=["a path", "huge zero", "huge extra", "overflow", "nesting", "lists", "3 MB", "no object"])
def test_a_header_is_refused(folder, change):
    write_header(folder, change)
    refused(folder, SECOND)


def test_a_model_of_many_nodes_that_are_not_in_the_weights(folder):
    """As many as are allowed, so that it would take long to build them."""
    names = [f"x0_{j}" for j in range(1, 1000)]
    graph = {"nodes": {name: ["x0_0", *names[max(0, k - 19):k]] for k, name in enumerate(names)},
             "heads": [names[-1]]}
    config = json.loads((folder / CONFIG).read_text()) | {"graph": graph}
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, "'decoder.x0_10.block.conv1.weight'")


def test_a_model_of_many_nodes_with_one_tensor_each(folder):
    """Of each node there is something, so that its name alone says nothing."""
    names = [f"x0_{j}" for j in range(1, 991)]
    graph = {"nodes": {name: ["x0_0", *names[max(0, k - 19):k]] for k, name in enumerate(names)},
             "heads": [names[-1]]}
    tensors = {f"decoder.{name}.block.conv1.weight": torch.zeros(1) for name in names}
    tensors[f"decoder.head_{names[-1]}.weight"] = torch.zeros(1)
    # of the twelve of a block, and the bias of the head; nobody has come to the encoder yet
    for fused, match in ((False, f"{11 * 990 + 1} are missing"), (True, "are missing")):
        config = json.loads((folder / CONFIG).read_text()) | {"graph": graph, "fused": fused}
        (folder / CONFIG).write_text(json.dumps(config))
        (folder / INDEX).unlink(missing_ok=True)
        safetensors.torch.save_file(tensors, folder / WEIGHTS)
        refused(folder, match)


@pytest.mark.parametrize("name", ["convnext_xxlarge", "eva_giant_patch14_224", "sequencer2d_s"])
@pytest.mark.parametrize("tensor", ["x", "norm.weight"])
def test_an_encoder_that_is_not_in_the_weights_is_not_tried(folder, name, tensor):
    config = json.loads((folder / CONFIG).read_text()) | {
        "encoder": name, "encoder_channels": None, "image_size": [4096, 4096]}
    (folder / CONFIG).write_text(json.dumps(config))
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][f"encoder.model.{tensor}"] = SECOND
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "of a tensor of its encoder")


def write_sparse(folder, model, wrong=None):
    """Saves a model that has no memory. The weights are a hole in the file, behind their header.

    Args:
        wrong: the name of the tensor that is one longer than it should be.
    """
    header, end = {}, 0
    for name, tensor in own_tensors(model).items():
        shape = [*tensor.shape]
        if name == wrong:
            shape[0] += 1
        size = math.prod(shape) * tensor.element_size()
        header[name] = {"dtype": {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype],
                        "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    (folder / CONFIG).write_text(json.dumps(
        {"nestedseg_version": nestedseg.__version__, **model.config}))


def last_of(model, beginnings):
    """The name of its last tensor of those whose names begin so, but for counts of batches."""
    return [name for name, tensor in own_tensors(model).items()
            if name.startswith(beginnings) and tensor.dim()][-1]


LARGE = [("convnext_base", {"stem": True}), ("resnet50", {"in_channels": 5}),
         *(pytest.param(*each, marks=pytest.mark.slow) for each in [
             ("convnext_xxlarge", {}), ("efficientnet_b7", {}), ("sequencer2d_s", {"depth": 1}),
             ("eva_giant_patch14_224", {"image_size": (448, 448)})])]


@pytest.mark.parametrize(("name", "options"), LARGE)
def test_one_wrong_shape_is_found_before_the_encoder_is_tried(tmp_path, name, options, monkeypatch):
    with torch.device("meta"):
        model = nestedseg.create("unet", name, **{"depth": 3} | options)
    monkeypatch.setattr(models.network, "describe_encoder", None)
    for part in (("encoder.model.", "encoder.body.model."), "decoder.x0_", "decoder.head"):
        wrong = last_of(model, part)
        write_sparse(tmp_path, model, wrong)
        refused(tmp_path, repr(wrong))


def test_a_shape_of_a_detector_is_found_before_its_encoder_is_tried(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    from nestedseg.instances.detectors import retinanet
    with torch.device("meta"):
        model = retinanet("fpn", "resnet50", out_channels=8)
    monkeypatch.setattr(models.backbone, "describe_encoder", None)
    for part in ("backbone.encoder.model.", "backbone.decoder."):
        wrong = last_of(model, part)
        write_sparse(tmp_path, model, wrong)
        refused(tmp_path, repr(wrong))


@pytest.mark.parametrize("tensors", [{}, {"encoder.stem.0.conv1.weight": torch.zeros(1)},
                                     {"encoder.body.model.x": torch.zeros(1)}])
def test_behind_a_stem_there_is_the_encoder(tmp_path, tensors):
    """`sequencer2d_s` takes ten seconds to be tried."""
    model = nestedseg.create("unet", encoder_channels=(4, 6, 8))
    (tmp_path / CONFIG).write_text(json.dumps(
        {"nestedseg_version": nestedseg.__version__, **model.config,
         "encoder": "sequencer2d_s", "encoder_channels": None, "stem": True}))
    decoder = {name: value for name, value in model.state_dict().items()
               if name.startswith("decoder.")}
    safetensors.torch.save_file(decoder | tensors, tmp_path / WEIGHTS)
    refused(tmp_path, "of a tensor of its encoder")


def test_a_model_that_only_has_a_stem_is_loaded(tmp_path):
    model = nestedseg.create("unet", "test_convnext", stem=True, depth=1)
    assert not any("body" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    assert nestedseg.from_pretrained(tmp_path).config == model.config


def test_an_image_size_of_an_encoder_of_any_size(tmp_path):
    """The fused form is found by trying the encoder at this size."""
    nestedseg.create("unet", "test_resnet", depth=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text()) | {
        "image_size": [4096, 4096], "fused": True}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    weights = safetensors.torch.load_file(tmp_path / WEIGHTS)
    fused = nestedseg.create("unet", "test_resnet", depth=1).eval().fuse().state_dict()
    safetensors.torch.save_file(weights | {name: tensor.contiguous() for name, tensor
                                           in fused.items()}, tmp_path / WEIGHTS)
    refused(tmp_path, "it takes any size")


# -- files that never end --------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [False, True])
def test_a_sparse_file_is_refused_before_it_is_read(folder, claimed):
    size = 30 * 10 ** 9
    if claimed:
        data = (folder / SECOND).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + length])
        header[HEAD] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
        text = json.dumps(header).encode()
        (folder / SECOND).write_bytes(struct.pack("<Q", len(text)) + text)
        size += 8 + len(text)
    with (folder / SECOND).open("r+b") as file:
        file.truncate(size)
    refused(folder, "shape" if claimed else f"it has {size} bytes, but its header says")


@pytest.mark.parametrize("file", [CONFIG, INDEX, FIRST])
@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/full", "/dev/null", "pipe", "socket"])
def test_what_is_no_regular_file_is_not_read(folder, kind, file, monkeypatch):
    (folder / file).unlink()
    if kind == "pipe":
        os.mkfifo(folder / file)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        monkeypatch.chdir(folder)
        server.bind(file)  # a whole path may be too long for one
        server.close()
    else:
        (folder / "pipe").symlink_to(kind)  # a link to a link
        (folder / file).symlink_to(folder / "pipe")
    refused(folder, "not a regular file")


# -- from a Hub ------------------------------------------------------------------------------------


def test_of_a_hostile_repo_no_weights_are_downloaded(files, monkeypatch, tmp_path):
    config = json.loads(files[CONFIG])
    with HubServer() as server, use_server(monkeypatch, server, tmp_path):
        for name in ("cycle", "many nodes", "a path as encoder", "an address", "nested facts"):
            changes, _ = CONFIGS[name]
            server.put("evil/net", files | {CONFIG: json.dumps(config | changes).encode()})
            server.clear_log()
            with pytest.raises(ValueError, match=r"'config\.json' of the repo 'evil/net'"):
                nestedseg.from_pretrained("evil/net")
            assert {*server.downloads()} <= {CONFIG, INDEX}


def test_a_commit_whose_name_is_a_path(files, monkeypatch, tmp_path):
    """The server says which commit a file is of, and the cache has a folder of that name."""
    with HubServer() as server, use_server(monkeypatch, server, tmp_path / "home"):
        server.put("evil/net", files)
        server.repos["evil/net"].branches["main"][-1].sha = "../../../../outside"
        with pytest.raises((HubError, ValueError)):
            nestedseg.from_pretrained("evil/net")
        assert not list(tmp_path.glob("outside*"))
