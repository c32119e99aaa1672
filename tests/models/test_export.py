"""Exported files against the model: onnxruntime and torch, at sizes not those of the trace.

Each translation to ONNX takes seconds, so most of topologies, encoders and forms are for slow runs.
"""

import itertools
import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch._dynamo.testing import CompileCounter

import nestedseg
from nestedseg.models.export import OPSET

TIMM = {"decoder_channels": (4, 6, 8), "depth": 2, "classes": 3}
PLAIN = TIMM | {"encoder_channels": (4, 6, 8)}
ENCODERS = {"plain": PLAIN, "plain 3-D": PLAIN | {"dims": 3},
            "test_resnet": TIMM | {"encoder": "test_resnet"},
            "test_convnext": TIMM | {"encoder": "test_convnext"},
            "test_vit": TIMM | {"encoder": "test_vit", "encoder_taps": (0, 0, 1, 1)}}
FORMS = ("full", "pruned", "fused", "ensemble")
QUICK = ("unet", "plain 3-D", "fused")  # an encoder of timm and a pruned one are exported below
STYLES = [{"upsample": "transpose", "norm": None}, {"upsample": "bilinear", "norm": "group"},
          {"upsample": "bilinear_corners"}, {"upsample": "bicubic"},
          {"norm": "instance", "activation": "prelu"}, {"encoder": "test_resnet", "stem": 4},
          {"upsample": "transpose", "dims": 3}, {"encoder": "test_resnet", "dims": 3}]


def several_heads(topology):
    return len(nestedseg.topology(topology, 2).heads) > 1


def cases():
    """All of them, but for heads that a topology has not; all but the quick one as slow."""
    return [pytest.param(*case, id="-".join(case), marks=() if case == QUICK else pytest.mark.slow)
            for case in itertools.product(nestedseg.list_topologies(), ENCODERS, FORMS)
            if several_heads(case[0]) or case[2] in ("full", "fused")]


def make(topology="unetpp", encoder="plain", **arguments):
    """A small model, with other batch norms than the mean 0 and variance 1 that hide faults."""
    arguments = ENCODERS.get(encoder, TIMM | {"encoder": encoder}) | arguments
    model = nestedseg.create(topology, deep_supervision=several_heads(topology) or None,
                             **arguments)
    with torch.no_grad():
        model.train()(images(model, 4, 64))
    return model.eval()


def images(model, batch, *size):
    config = model.config
    size = config["image_size"] or (size * 3)[:config["dims"]]
    return torch.randn(batch, config["in_channels"], *size)


def opened(path):
    """What runs the file."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = open_onnx(path)
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def open_onnx(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def assert_close(ours, theirs, tolerance=1e-4):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@torch.no_grad()
def check(path, model, tolerance=1e-4):
    """The file against the model, at sizes that need padding, that need none, and tiny ones."""
    run = opened(path)
    for batch, *size in ((1, 37, 70), (3, 64, 32), (2, 3, 5)):
        x = images(model, batch, *size)
        assert_close(run(x), model(x), tolerance)


# -- the matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("topology, encoder, form", cases())
def test_onnx_gives_what_the_model_gives(topology, encoder, form, tmp_path):
    model, path = make(topology, encoder), tmp_path / "model.onnx"
    depth = model.depths[0] if form == "pruned" else None
    (model.fuse() if form == "fused" else model).export(path, depth=depth,
                                                        ensemble=form == "ensemble")
    model.output = {"pruned": depth, "ensemble": "ensemble"}.get(form, "deepest")
    check(path, model)


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES, ids=str)
def test_every_style_is_exported_for_every_size(style, tmp_path):
    model, path = make(**style), tmp_path / "model.onnx"
    model.export(path)
    check(path, model)


@pytest.mark.parametrize("topology, encoder, form", cases())
def test_compiled_at_most_twice_for_all_batches(topology, encoder, form):
    model = make(topology, encoder)
    if form == "ensemble":
        model.output = "ensemble"
    elif form != "full":
        model = model.fuse() if form == "fused" else model.prune(model.depths[0])
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for batch in (1, 2, 3, 5):
            x = images(model, batch, 40, 64)
            assert_close(compiled(x), model(x))
    assert counter.frame_count <= 2  # for one image, and for several


# -- what is in the file --------------------------------------------------------------------------


def test_the_file_says_what_it_takes_and_gives(tmp_path):
    model = make("fpn_plus", "test_resnet", class_names=("sky", "cell", "rim"))
    path = tmp_path / "new" / "model.onnx"
    model.set_preprocessing(mean=[0.1, 0.2, 0.3])
    model.export(path, depth=1, probabilities=True, half=True)
    model = model.prune(1)
    session = open_onnx(path)
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type) == ("image", "tensor(float)")
    assert (made.name, made.type) == ("probabilities", "tensor(float)")
    assert given.shape == made.shape == ["batch", 3, "height", "width"]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == ["sky", "cell", "rim"]
    assert json.loads(facts["preprocessing"]) == model.preprocessing
    assert (facts["task"], facts["output"], facts["depths"]) == ("multiclass", made.name, "[1]")
    x = images(model, 2, 37, 50)
    assert_close(opened(path)(x), model.predict(x), tolerance=0.01)
    content = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in content.opset_import] == [("", OPSET)]
    halves = [weight.data_type == onnx.TensorProto.FLOAT16
              for weight in content.graph.initializer if len(weight.dims) == 4]
    assert halves and all(halves)
    assert str(Path(nestedseg.__file__).parent).encode() not in path.read_bytes()


def test_a_program_of_torch_gives_what_output_says(tmp_path):
    model, path = make("unet_e").train(), tmp_path / "model.pt2"
    model.output = "ensemble"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.export(path, "torch")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    check(path, model.eval())
    facts = {"preprocessing": "", "output": ""}
    torch.export.load(path, extra_files=facts)
    assert json.loads(facts["preprocessing"]) == model.preprocessing
    assert facts["output"] in ("logits", b"logits")


def test_axes_that_are_not_dynamic_keep_their_length(tmp_path):
    model, path = make("unet", depth=1), tmp_path / "model.pt2"
    model.set_preprocessing(size=[24, 40])
    model.export(path, "torch", dynamic=["batch"])
    run, x = opened(path), images(model, 3, 24, 40)
    with torch.no_grad():
        assert_close(run(x), model(x))
    with pytest.raises(Exception, match=r"Guard failed|size"):
        run(images(model, 3, 24, 41))


def test_an_encoder_of_one_size_keeps_it(tmp_path):
    model, path = make("unet", encoder="test_vit_relpos", depth=1), tmp_path / "model.pt2"
    model.export(path, "torch")
    x = images(model, 3)
    with torch.no_grad():
        assert_close(opened(path)(x), model(x))
    with pytest.raises(ValueError, match=r"'height' cannot be dynamic: .* built for images of"):
        model.export(path, "torch", dynamic=["height"])


def test_an_encoder_that_asks_for_the_size_is_refused(tmp_path):
    model = make("unet", depth=1)
    model.encoder.register_forward_hook(
        lambda encoder, args, maps: [y + 1 if y.shape[-1] > 7 else y for y in maps])
    with pytest.raises(ValueError, match=r"'plain' cannot be traced .* is a different one"):
        model.export(tmp_path / "model.pt2", "torch")
    assert not any(tmp_path.iterdir())


# -- what is refused, before anything is traced ---------------------------------------------------


REFUSED = [
    ({"format": "tflite"}, "unknown format 'tflite'; Allowed: onnx, torch"),
    ({"path": "a.pt"}, "a file of the format 'onnx' ends in .onnx, got 'a.pt'"),
    ({"path": "a.onnx", "format": "torch"}, "ends in .pt2, got 'a.onnx'"),
    ({"depth": 3}, "no head at depth 3"),
    ({"depth": 1, "ensemble": True}, "give one of the two"),
    ({"dynamic": ["batch", "hight"]}, "unknown dynamic axis 'hight'; did you mean 'height'?"),
    ({"dynamic": ["depth"]}, "Allowed: batch, height, width"),
]


@pytest.fixture
def untraced(monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: pytest.fail("traced"))


@pytest.mark.parametrize("options, message", REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_at_once(options, message, untraced):
    with pytest.raises(ValueError) as caught:
        make().export(**{"path": "a.onnx"} | options)
    assert message in str(caught.value)


def test_one_head_makes_no_ensemble(untraced):
    with pytest.raises(ValueError, match=r"needs several heads.* only one, at depth 2"):
        make("unet").export("a.onnx", ensemble=True)


def test_weights_that_the_file_cannot_hold_are_refused(untraced, monkeypatch):
    model = make()
    monkeypatch.setattr("nestedseg.models.export.MAX_ONNX_BYTES", 1000)
    with pytest.raises(ValueError, match="GiB of weights, but an ONNX file is limited"):
        model.export("a.onnx")
    model.decoder.head_x0_2.bias.data[0] = 1e5
    with pytest.raises(ValueError, match="weights larger than 65504"):
        model.export("a.pt2", "torch", half=True)


def test_a_missing_extra_is_named(untraced, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[export\]"'):
        make().export("a.onnx")


# -- what is left as it was -----------------------------------------------------------------------


def test_a_failed_export_leaves_the_file_before_it(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"good")

    def fail(program, file, **options):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        make("unet", depth=1).export(path, "torch", dynamic=[])
    assert path.read_bytes() == b"good" and list(tmp_path.iterdir()) == [path]
