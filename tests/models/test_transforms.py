"""torch's transforms and tracers over whole models: what works with any module works with ours."""

import copy
import io

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

import nestedseg


def make(**arguments):
    torch.manual_seed(0)
    return nestedseg.create("unetpp", encoder_channels=(4, 6, 8), **arguments)


STYLES = [{}, {"norm": "instance", "activation": "elu"}, {"upsample": "transpose", "norm": None}]


def loss_of(model, x):
    """The loss as a function of the parameters, for `torch.func`."""
    def loss(parameters, x=x):
        return functional_call(model, parameters, (x,)).square().mean()
    return loss


# The running statistics of a batch norm in training are no input of a function: torch refuses that.
@pytest.mark.parametrize(("style", "training"), [
    *((style, False) for style in STYLES), *((style, True) for style in STYLES[1:])], ids=str)
def test_func_grad_is_the_gradient_of_backward(style, training):
    model = make(**style).double().train(training)
    x = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    found = grad(loss_of(copy.deepcopy(model), x))(parameters)
    model(x).square().mean().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_vmap_of_grad_gives_the_gradient_of_each_image(style):
    model = make(**style).double().eval()
    images = torch.rand(3, 1, 3, 8, 12, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    loss = loss_of(model, None)
    together = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    for index, image in enumerate(images):
        alone = grad(loss)(parameters, image)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][index], value, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_jvp_is_the_finite_difference(style):
    model = make(**style).double().eval()
    x, direction = torch.rand(2, 1, 3, 8, 12, dtype=torch.float64)
    _, slope = jvp(model, (x,), (direction,))
    step = 1e-6
    with torch.no_grad():
        difference = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)


def loaded(model):
    """What torch.load gives of a model that torch.save wrote."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, loaded])
def test_a_copy_compiles_in_one_graph(copied):
    model, x = make().eval(), torch.rand(1, 3, 16, 16)
    compiled = torch.compile(copied(model), fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced_by_jit_with_gradients(training):
    model, x = make(norm="group").train(training), torch.rand(2, 3, 16, 16)
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x))
    traced(x).square().mean().backward()
    gradient = model.decoder.x0_1.block.conv1.weight.grad.clone()
    model.zero_grad()
    model(x).square().mean().backward()
    torch.testing.assert_close(model.decoder.x0_1.block.conv1.weight.grad, gradient)


@pytest.mark.filterwarnings("ignore")
def test_torchs_older_onnx_export_takes_dynamic_axes(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model, x = make().eval(), torch.rand(1, 3, 16, 16)
    torch.onnx.export(model, (x,), str(tmp_path / "model.onnx"), dynamo=False,
                      input_names=["image"], dynamic_axes={"image": {0: "batch"}})
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
    found, = session.run(None, {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)
    assert model.graph.depth == 2
