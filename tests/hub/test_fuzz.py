"""Random damage to saved models, and random calls of `create`: an error soon, or a working model.

Each case follows from its number alone, which the error of one that fails says.
"""

import copy
import hashlib
import json
import os
import random
import resource
import signal
import struct
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import nestedseg

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
SECONDS, BYTES = 1, 200_000_000
REFUSALS = (ValueError, TypeError, OSError, ImportError)
PROBING = 3  # seconds that an encoder may take which is tried for the first time
MANY, FEW = 110, 6  # cases of each kind of model
SMALL = 10 ** 6  # parameters of a model that is also run

JUNK = [None, True, False, -1, 0, 1, 2, 3, 7, 64, 4096, 65_536, 65_537, 10 ** 9, 2 ** 63, 10 ** 400,
        -0.5, 0.5, 1.5, 1e-300, 1e300, float("nan"), float("inf"), "", "x", "relu", "batch",
        "x0_1", "x0_0", "x1_0", "x31_1", "../x", "resnet18", "test_vit", "plain", "\u0000",
        "x" * 5000, [], [[]], [0], [1, 1], [4096, 4096], [65_536] * 3, [1] * 40, ["x0_0"], {},
        {"a": 1}, {"name": "group", "groups": 3}, {"inputs": ["x0_0"]}, [None], [1.5, 2]]


NUMBERS = [1, 2, 3, 4, 5, 8, 16, 31, 32, 33, 512, 65_536]
SEQUENCES = [(4, 6, 8), (4, 6, 8, 8, 8), (1,) * 14, (65_536,) * 5, (2,), (8, 4), (1,) * 32, (0, 1)]
VALUES = {
    "topology": ["unet", "unet_e", "unet_plus", "unetpp", "dla", "fpn", "fpnpp", "unet++", "nope",
                 {"nodes": {"x0_1": ["x0_0", "x1_0"]}, "heads": ["x0_1"]},
                 {"nodes": {"x3_1": ["x0_0"]}, "heads": ["x3_1"]},
                 {"nodes": {"x0_1": {"inputs": ["x0_0", "x31_0"], "block": "scse"}},
                  "heads": ["x0_1"]}],
    "encoder": ["plain", "plain", "test_resnet", "test_vit", "test_convnext", "nope", "test_vit.x"],
    "classes": NUMBERS, "in_channels": NUMBERS, "task": ["binary", "multiclass", "multilabel"],
    "depth": NUMBERS, "encoder_channels": SEQUENCES, "decoder_channels": SEQUENCES,
    "deep_supervision": [True, False], "head_kernel": NUMBERS, "dims": [2, 3, 4],
    "upsample": ["nearest", "bilinear", "bilinear_corners", "bicubic", "transpose"],
    "norm": ["batch", "instance", "group", None, {"name": "group", "groups": 5},
             {"name": "batch", "eps": -1}],
    "activation": ["relu", "leaky_relu", "elu", "silu", "mish", "gelu", "prelu",
                   {"name": "elu", "alpha": 1e9}],
    "bias": [True, False], "dropout": [0, 0.5, 0.999, 1], "execution": ["fast", "reference"],
    "output": ["deepest", "ensemble", 1, 2, 9],
    "image_size": [(64, 64), (4096, 4096), (65_536, 65_536), (1, 1), (64,), (64, 64, 64)],
    "stem": [True, False, 8, (4, 4), (65_536,), 65_536],
    "encoder_taps": [(0, 1), (3, 2, 1), ("stem",), ("layer1", "layer2"), (99,), ("x",) * 40],
    "pyramid_channels": [(4, 4, 4, 4), (65_536,) * 4, (4,)],
    "strides": [((1, 2), (2, 2)), ((4, 4),) * 2, ((1, 2, 2), (2, 2, 2)), ((1, 1),) * 4],
    "depth_strides": [(1, 1), (2, 2, 2, 2, 2, 2), (1,)],
    "class_names": [("a",), ("a", "b"), ("a", "a"), "ab"],
    "encoder_weights": ["nowhere.safetensors", "nope", 5],
}
LIKELY = VALUES | {
    "pad_multiple": [(4, 4), (8, 8), (16, 16), (64, 64), (4096, 4096), (4, 12), (65_536, 4)],
    "pad_smallest": [(1, 1), (8, 8), (4096, 4096), (64, 4096)], "fused": [True, False],
    "block": ["single_conv", "identity", "conv1x1", "scse", "scse_out", "batch_norm", "nope"],
    "fuse": ["sum", "concat"], "channels": NUMBERS, "up_channels": NUMBERS,
    "encoder_row": [0, 1, 31],
    "coarser": [None, "pool", "p6p7"], "out_channels": NUMBERS, "frozen_batch_norm": [True, False],
    "detector": ["mask_rcnn", "faster_rcnn", "retinanet", "nope"], "anchor_scale": [0.1, 8, 1e3],
    "min_size": [1, 800, 10 ** 6], "max_size": [1, 1333, 10 ** 6], "resize": [True, False],
    "schema_version": [1, 2, 3], "size": [None, (64, 64), (65_536, 65_536)],
    "dtype": ["F32", "F16", "BF16", "I64", "F8_E4M3", "U8", "BOOL", "C64"],
}


class TooLong(BaseException):
    """Not an error that anybody would take for a refusal."""


def stop(*args):
    raise TooLong("it took too long")


@contextmanager
def limits(allowance=0):
    """Fails where what is done takes more than a second of the processor, or 200 MB.

    Args:
        allowance: seconds more, of what is done for the first time.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS,
                       (pages * os.sysconf("SC_PAGE_SIZE") + BYTES, before[1]))
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS + allowance)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module", autouse=True)
def warmed():
    """What only the first call does: imports, and torch's own preparations."""
    with torch.device("meta"):
        model = nestedseg.create("unetpp", "test_resnet", dims=2)
        model(torch.zeros(1, 3, 64, 64))
    volumes = nestedseg.create("unet", encoder_channels=(2, 3), dims=3).eval()
    volumes.fuse()(torch.zeros(1, 3, 4, 4, 4))


def test_the_limits_can_fail():
    with pytest.raises(TooLong), limits():
        while True:
            pass
    with pytest.raises(RuntimeError), limits():
        torch.zeros(BYTES)
    with limits():
        torch.zeros(BYTES // 8)


# -- saved models ----------------------------------------------------------------------------------


def make(kind):
    torch.manual_seed(0)
    if kind == "retinanet":
        pytest.importorskip("torchvision")
        from nestedseg.instances.detectors import retinanet
        return retinanet(
            "fpnpp", "test_resnet", strides=(4, 8, 16), out_channels=8, min_size=32, max_size=64)
    if kind == "timm":
        return nestedseg.create("unetpp", "test_resnet", decoder_channels=(4, 4, 4, 4, 4))
    model = nestedseg.create("unetpp", encoder_channels=(4, 6, 8),
                             norm={"name": "batch", "eps": 1e-4},
                             deep_supervision=kind == "shards").eval()
    return model.fuse() if kind == "fused" else model


KINDS = ("plain", "shards", "timm", "fused", "retinanet")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The files of a saved model of each kind, by name."""
    made = {}

    def files(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            make(kind).save_pretrained(folder)
            made[kind] = {path.name: path.read_bytes() for path in folder.iterdir()}
        return dict(made[kind])

    return files


def paths(tree, path=()):
    """The path to every place in a JSON value, but for the root."""
    items = tree.items() if isinstance(tree, dict) else \
        enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def places(tree):
    """Every place in a JSON value, as what holds it and its key there."""
    return [(at(tree, path[:-1]), path[-1]) for path in paths(tree)]


def change_tree(tree, rng):
    """Changes one place in a JSON value."""
    parent, key = rng.choice(places(tree))
    value = parent[key]
    how = rng.choice(["junk", "junk", "number", "away", "twin", "other", "new", "likely", "likely"])
    if how == "number" and type(value) in (int, float):
        parent[key] = rng.choice([-value, value + 1, value * 2, value * 1000, value * 2 ** 40,
                                  float(value), value / 3])
    elif how == "likely":
        parent, key = rng.choice([(parent, key) for parent, key in places(tree) if key in LIKELY]
                                 or [(parent, key)])
        parent[key] = copy.deepcopy(rng.choice(LIKELY.get(key, JUNK)))
    elif how == "away":
        del parent[key]
    elif how == "twin" and isinstance(parent, list):
        parent.append(copy.deepcopy(value))
    elif how == "other":
        other, name = rng.choice(places(tree))
        parent[key] = copy.deepcopy(other[name])
    elif how == "new" and isinstance(parent, dict):
        parent[rng.choice(["x", "x9_9", "channels", "head_x0_1", key + "x"])] = copy.deepcopy(value)
    else:
        parent[key] = copy.deepcopy(rng.choice(JUNK))


def change_bytes(data, rng):
    """Damages a file anywhere."""
    at = rng.randrange(max(1, len(data)))
    return rng.choice([
        lambda: data[:at], lambda: data[:at] + bytes([rng.randrange(256)]) + data[at + 1:],
        lambda: data[:at] + rng.randbytes(8) + data[at:], lambda: data + rng.randbytes(8),
        lambda: data[:at] + data[at:at + 64] * 3 + data[at + 64:], lambda: b""])()


def change_json(data, rng):
    try:
        tree = json.loads(data)
    except ValueError:  # damaged before
        tree = None
    if not tree or rng.random() < 0.15:
        return change_bytes(data, rng)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        change_tree(tree, rng)
    return json.dumps(tree).encode()


def change_header(data, rng):
    """Other names, shapes, types or places in a file over the same values."""
    size = struct.unpack("<Q", data[:8])[0]
    header = change_json(data[8:8 + size].rstrip(), rng)
    length = len(header) if rng.random() < 0.9 else rng.choice([0, 2 ** 40, 2 ** 64 - 1])
    return struct.pack("<Q", length) + header + data[8 + size:]


def change_tensors(data, rng):
    """A whole file of changed tensors."""
    tensors = safetensors.torch.load(data)
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    change = rng.choice(["away", "name", "cast", "empty", "longer", "value", "flat"])
    if change == "name":
        tensors[rng.choice([name + "x", name.partition(".")[2], "x" * 200])] = value
    elif change == "cast":
        tensors[name] = value.to(rng.choice(
            [torch.float16, torch.float64, torch.int64, torch.bool]))
    elif change == "empty":
        tensors[name] = value.new_empty(0)
    elif change == "longer":
        tensors[name] = torch.cat([value.flatten(), value.flatten()])
    elif change == "flat":
        tensors[name] = value.flatten().clone()
    elif change == "value" and value.is_floating_point():
        tensors[name] = value * rng.choice([float("nan"), float("inf"), 1e30, 0])
    return safetensors.torch.save(tensors, {"format": "pt"})


def bless(files):
    """Checksums of the files as they are, where there is a place for them."""
    try:
        if INDEX in files:
            index = json.loads(files[INDEX])
            for name in files:
                if f"sha256.{name}" in index["metadata"]:
                    index["metadata"][f"sha256.{name}"] = hashlib.sha256(files[name]).hexdigest()
            files[INDEX] = json.dumps(index).encode()
        elif WEIGHTS in files:
            config = json.loads(files[CONFIG]) | {
                "sha256": hashlib.sha256(files[WEIGHTS]).hexdigest()}
            files[CONFIG] = json.dumps(config).encode()
    except (ValueError, TypeError, KeyError):
        pass  # it is no longer a config or index


def damage(files, rng):
    """Changes one file or two."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        name = rng.choice([CONFIG, CONFIG, *sorted(files)])
        if name not in files:
            continue
        if rng.random() < 0.03:
            del files[name]
        elif name.endswith(".json"):
            files[name] = change_json(files[name], rng)
        else:
            change = rng.choice([change_header, change_tensors, change_bytes])
            try:
                files[name] = change(files[name], rng)
            except (ValueError, IndexError, struct.error, safetensors.SafetensorError):
                files[name] = b"[]"  # damaged before
    if rng.random() < 0.6:
        bless(files)


def run(model):
    """A forward pass of a model on a small image, if it is a small model."""
    if sum(tensor.numel() for tensor in model.parameters()) > SMALL:
        return
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        if isinstance(model, nestedseg.SegmentationModel):
            config = model.config
            size = config["image_size"] or [9, 10, 6][:config["dims"]]
            x = torch.zeros(2, config["in_channels"], *size, dtype=dtype, device=device)
            assert model(x).shape == (2, config["classes"], *size)
        else:
            channels = model.config["pyramid"]["encoder"]["in_channels"]
            # a square one: of a longer one, `max_size` of one pixel leaves nothing
            model([torch.zeros(channels, 24, 24, dtype=dtype)])


def check_load(files, folder, case):
    """That a load of these files ends soon, in an error that is meant or a model that works."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = nestedseg.from_pretrained(folder)
        except REFUSALS as error:
            assert len(str(error)) < 3000, case
            return "refused"
        run(model)
        return "works"


def fuzz_loads(saved, tmp_path, kind, numbers):
    outcomes = []
    for number in numbers:
        rng, files = random.Random(f"{kind}-{number}"), saved(kind)
        damage(files, rng)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            outcomes.append(check_load(files, folder, number))
        except BaseException as error:
            raise AssertionError(f"case {number} of {kind}, in {folder}") from error
    return outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_models_are_refused_or_work(saved, tmp_path, kind):
    outcomes = fuzz_loads(saved, tmp_path, kind, range(FEW))
    assert "refused" in outcomes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_models_are_refused_or_work(saved, tmp_path, kind):
    outcomes = fuzz_loads(saved, tmp_path, kind, range(FEW, MANY))
    assert {*outcomes} == {"refused", "works"}  # and the damage is not always too much


def sweep(saved, tmp_path, kind, numbers=None):
    """Puts every junk and likely value into every place of a config; ``numbers`` are of cases."""
    files = saved(kind)
    config = json.loads(files[CONFIG])
    cases = [(path, value) for path in paths(config) for value in
             [*JUNK, *LIKELY.get(path[-1], [])]]
    for number in range(len(cases)) if numbers is None else numbers:
        path, value = cases[number % len(cases)]
        changed = copy.deepcopy(config)
        at(changed, path[:-1])[path[-1]] = copy.deepcopy(value)
        check_load(files | {CONFIG: json.dumps(changed).encode()}, tmp_path,
                   f"{kind}: {str(value)[:100]} at {path}")


@pytest.mark.parametrize("kind", KINDS)
def test_some_places_of_a_config_take_no_junk(saved, tmp_path, kind):
    sweep(saved, tmp_path, kind, range(0, 30 * 97, 97))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_place_of_a_config_takes_no_junk(saved, tmp_path, kind):
    sweep(saved, tmp_path, kind)


# -- create ----------------------------------------------------------------------------------------

def random_call(number):
    """Arguments of `create`: most of their type, some of another one."""
    rng = random.Random(f"create-{number}")
    call = {"topology": "unetpp", "encoder_channels": (4, 6, 8)}
    for name in rng.sample(sorted(VALUES), rng.choice([1, 1, 2, 2, 3, 4, 6])):
        values = VALUES[name] if rng.random() < 0.75 else JUNK
        call[name] = copy.deepcopy(rng.choice(values))
    return call


def check_call(call, tried):
    """That a call ends soon, in an error that is meant or a model that works."""
    key = str((call.get("encoder"), call.get("in_channels"), call.get("dims"),
               call.get("image_size"), call.get("encoder_taps")))
    allowance = PROBING if call.get("encoder", "plain") != "plain" and key not in tried else 0
    tried.add(key)
    with limits(allowance), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):  # what is asked for may be larger than any memory
                model = nestedseg.create(**call).eval()
        except REFUSALS as error:
            assert len(str(error)) < 3000
            return "refused"
        run(model)
        if sum(map(nn.Parameter.numel, model.parameters())) > SMALL:
            return "works"
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(nestedseg.create(**call).eval())
    return "works"


def fuzz_calls(numbers):
    outcomes, tried = [], set()
    for number in numbers:
        call = random_call(number)
        try:
            outcomes.append(check_call(call, tried))
        except BaseException as error:
            raise AssertionError(f"call {number}: create(**{str(call)[:1000]})") from error
    return outcomes


def test_calls_of_create_are_refused_or_work():
    assert {*fuzz_calls(range(50))} == {"refused", "works"}


@pytest.mark.slow
@pytest.mark.parametrize("start", range(50, 1250, 200))
def test_many_calls_of_create_are_refused_or_work(start):
    assert {*fuzz_calls(range(start, start + 200))} == {"refused", "works"}
