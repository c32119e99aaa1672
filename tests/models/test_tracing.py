"""torch.compile, torch.export and autocast on both executions and the fused form.

Each trace takes seconds: by default every style is compiled or exported, in one form; all else is
slow. `test_export.py` compiles a fused model.
"""

import itertools

import pytest
import torch

import nestedseg

STYLES = [{}, {"upsample": "transpose"}, {"norm": None, "upsample": "transpose", "dims": 3},
          {"encoder": "test_resnet"}, {"encoder": "test_vit"}]
FORMS = {"fast": lambda model: model, "fused": lambda model: model.fuse()}
COMPILED = ("fast", None, None, None, None)  # the form of each style
EXPORTED = (None, "fast", "fused", "fused", "fast")


def traced(quick):
    """Styles and forms, as slow where the form is not the quick one of the style."""
    for (style, first), form in itertools.product(zip(STYLES, quick), FORMS):
        yield pytest.param(style, form, marks=() if form == first else pytest.mark.slow,
                           id=f"{style}-{form}")


def make(seed=0, **style):
    torch.manual_seed(seed)
    return nestedseg.create("unetpp", **{"encoder_channels": (4, 8, 12), "deep_supervision": True,
                                         "decoder_channels": (4,) * 6} | style).eval()


def images(model, batch=2, side=None):
    dims = model.config["dims"]
    return torch.randn(batch, 3, *[side or {2: 32, 3: 16}[dims]] * dims)


def without_graph_breaks(module, backend="eager", dynamic=True):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)


@pytest.mark.parametrize("style, form", [*traced(COMPILED)])
def test_compiled_in_one_graph_for_all_batches(style, form):
    model = FORMS[form](make(**style))
    compiled = without_graph_breaks(model)
    with torch.no_grad():
        for batch in (2, 3, 5):
            x = images(model, batch)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["frames"]["ok"] <= 2


@pytest.mark.parametrize("style", [  # the first has batch norms, which must count a batch once
    STYLES[1], *(pytest.param(style, marks=pytest.mark.slow) for style in (STYLES[0], STYLES[2]))],
    ids=str)
def test_compiled_training_gives_the_same_gradients(style):
    model = make(**style).double().train()
    x = images(model).double()
    compiled = without_graph_breaks(model, "aot_eager", dynamic=False)  # the backward pass too

    def gradients(run):
        loss = sum(y.square().mean() for y in run(x))
        return torch.autograd.grad(loss, list(model.parameters()))

    for ours, theirs in zip(gradients(model), gradients(compiled)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("style, form", [*traced(EXPORTED)])
def test_exported_with_any_batch(style, form):
    model = FORMS[form](make(**style))
    program = torch.export.export(model, (images(model),),
                                  dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    x = images(model, 3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # the C++ compiler takes half a minute
def test_a_fused_model_compiles_itself():
    model = make(encoder="test_resnet")
    fused = model.fuse(compile=True)
    with torch.no_grad():
        for side in (32, 64):
            x = images(model, side=side)
            torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style, dtype", [
    pytest.param(style, dtype, marks=() if index % 3 in (0, 2) else pytest.mark.slow)
    for index, (style, dtype) in enumerate(itertools.product(
        STYLES[:3], [torch.bfloat16, torch.float16]))], ids=str)
def test_autocast_trains_and_keeps_its_gradients_close(style, dtype):
    model, x = make(**style).train(), images(make(**style))

    def gradients(execution, enabled=True):
        with nestedseg.execution(execution), torch.autocast("cpu", dtype=dtype, enabled=enabled):
            logits = model(x)
        loss = sum(y.float().square().mean() for y in logits)
        return torch.autograd.grad(loss, list(model.decoder.parameters()))

    def error(exact, rough):
        return (exact - rough).norm() / exact.norm().clamp_min(1e-3)

    exact = gradients("reference", enabled=False)
    for best, fast, reference in zip(exact, gradients("fast"), gradients("reference")):
        assert fast.dtype == torch.float32
        assert error(best, fast) < 2 * error(best, reference) + 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fused_model_takes_autocast_and_halves(dtype):
    model = make()
    x = images(model)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", dtype=dtype):
            cast = model.fuse()(x)
        halved = model.fuse(dtype=dtype)(x.to(dtype))
    for rough in (cast, halved):
        assert rough.dtype == dtype
        assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
