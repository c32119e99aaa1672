"""Modules that a user has altered: every form of a model gives what calling them all would give.

The truth is `plain`, which is written here: a model whose nodes and blocks call one module after
the other, as the paper draws them.
"""

import copy
from functools import cache, reduce

import pytest
import torch
from alterations import CASES, ONCE, PLACES, WIDTHS, add_lora, altered, image, make
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm

import nestedseg
from nestedseg.decoder.blocks import Block, DoubleConv
from nestedseg.decoder.layers import ACTIVATIONS
from nestedseg.decoder.nodes import NodeModule
from nestedseg.decoder.recomputation import Recomputable
from nestedseg.decoder.untouched import METHODS, alteration

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


# -- the truth -------------------------------------------------------------------------------------


class PlainBlock(DoubleConv):
    def forward(self, x):
        x = self.dropout(self.act1(self.norm1(self.conv1(x))))
        return self.dropout(self.act2(self.norm2(self.conv2(x))))


class PlainNode(NodeModule):
    def forward(self, *inputs):
        maps = [edge(x) for edge, x in zip(self.edges.values(), inputs, strict=True)]
        return self.block(reduce(torch.add, maps) if self.fuse == "sum" else torch.cat(maps, 1))


PLAIN = {DoubleConv: PlainBlock, NodeModule: PlainNode}


def plain(model):
    """The model, in place, so that it bypasses nothing."""
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


# A few of each: every place, and every alteration.
MANY = [pytest.param(name, marks=() if name in ONCE or name.startswith("hook on") else
                     pytest.mark.slow) for name in CASES]


# -- every form ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MANY)
@torch.no_grad()
def test_in_eval_mode_each_form_gives_what_the_modules_give(case):
    model, x = altered(case).eval(), image()
    expected = plain(altered(case).eval())(x)
    torch.testing.assert_close(model(x), expected, **CLOSE)
    with nestedseg.execution("reference"):
        torch.testing.assert_close(model(x), expected, **CLOSE)
    torch.testing.assert_close(model.fuse()(x), expected, **CLOSE)


@pytest.mark.parametrize("case", MANY)
def test_three_steps_of_training_give_the_weights_that_the_modules_give(case):
    model, truth = altered(case).train(), plain(altered(case)).train()
    if case.startswith("backward hook") and PLACES[CASES[case][0]][2] in ("norm1", "norm2", "act1"):
        with pytest.raises(RuntimeError, match="is being modified inplace"):
            train(truth)  # torch itself: an activation in place follows the hook, or is it
        with pytest.raises(RuntimeError, match="is being modified inplace"):
            train(model)
        return
    train(model)
    train(truth)
    state = truth.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-7, atol=1e-8, msg=name)


def train(model):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(image())
        heads = logits if isinstance(logits, tuple) else [logits]
        sum(y.square().mean() for y in heads).backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_an_exported_program_gives_what_the_modules_give(case, tmp_path):
    model, x = altered(case).float().eval(), image().float()
    try:
        model.export(tmp_path / "model.pt2", format="torch")
    except ValueError as error:
        assert "cannot be traced" in str(error)
        return
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(x), plain(altered(case).float().eval())(x),
                               rtol=1e-3, atol=1e-4)


# -- what is seen ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fast", "reference"])
@pytest.mark.parametrize("training", [True, False])
def test_a_hook_that_observes_is_called_once_for_each_module(form, training):
    model, calls = make(), []
    model.train(training)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, y, name=name: calls.append(name))
    with nestedseg.execution(form):
        logits = model(image())
    (sum(y.sum() for y in logits) if training else logits.sum()).backward()
    known = {name for name, module in model.named_modules()
             if not isinstance(module, nn.ModuleDict) and "dropout" not in name}
    once = known - {"decoder"} - (set() if training else {"decoder.head_x0_1"})
    assert {name for name in known if calls.count(name) == 1} - {"decoder"} == once
    assert max(map(calls.count, known)) == 1


def test_hooks_on_all_modules_are_called():
    model, seen = make().eval(), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, y: seen.append(m))
    try:
        model(image())
    finally:
        handle.remove()
    assert model.decoder.x0_1.block.conv1 in seen
    seen.clear()
    model(image())
    assert seen == [] and model.decoder.executions["x0_1"] == "fast"


# -- classes whose methods are replaced -----------------------------------------------------------

CALL = ("__call__", "_call_impl")  # whatever the class, by default of a few
ALIKE = {type(make()) for make in ACTIVATIONS.values()} - {nn.ReLU}
REPLACED = [pytest.param(cls, name, id=f"{cls.__module__}.{cls.__qualname__}.{name}",
                         marks=() if cls in (nn.Conv2d, DoubleConv, nn.Module) or
                         (name not in CALL and cls not in ALIKE) else pytest.mark.slow)
            for cls in (*METHODS, DoubleConv, Block, Recomputable, nn.Module)
            for name in (*CALL, "forward", "compute", "_conv_forward")
            if hasattr(cls, name) and (cls, name) != (nn.Module, "forward")]
STYLES = [{}, {"dims": 3}, {"upsample": "transpose"}, {"dims": 3, "upsample": "transpose"},
          {"norm": "group"}, {"norm": None}, *({"activation": name} for name in ACTIVATIONS)]


@cache
def model_with(cls):
    """A model that has a module of this class, and an image or a volume for it."""
    torch.manual_seed(0)
    models = (nestedseg.create("unetpp", encoder_channels=WIDTHS, deep_supervision=True, **style)
              for style in STYLES)
    model = next(m for m in models if any(isinstance(part, cls) for part in m.modules()))
    return model.double(), torch.rand(2, 3, *(8, 12, 4)[:model.config["dims"]]).double()


def halve(monkeypatch, cls, name):
    original = getattr(cls, name)

    def replaced(*args):
        y = original(*args)
        return 0.5 * y if torch.is_tensor(y) else y

    monkeypatch.setattr(cls, name, replaced)


def gradients(model, x):
    state = copy.deepcopy(model.state_dict())
    loss = sum(y.square().mean() for y in model.train()(x))
    found = torch.autograd.grad(loss, [*model.parameters()])
    model.load_state_dict(state)  # the running statistics of before
    return found


@pytest.mark.parametrize("cls, name", REPLACED)
def test_a_class_whose_method_is_replaced_is_called(cls, name, monkeypatch):
    model, x = model_with(cls)
    truth = plain(copy.deepcopy(model)) if not issubclass(DoubleConv, cls) \
        and cls is not NodeModule else None
    halve(monkeypatch, cls, name)
    for run in (lambda m: gradients(m, x), lambda m: [m.eval()(x).detach()]):
        with nestedseg.execution("reference"):
            expected = run(truth or model)
        torch.testing.assert_close(run(model), expected, **CLOSE)
    torch.testing.assert_close(model.fuse()(x), expected[0], **CLOSE)


@pytest.mark.parametrize("cls", METHODS)
def test_every_replaced_method_is_named(cls, monkeypatch):
    module = next(part for part in model_with(cls)[0].modules() if isinstance(part, cls))
    kind = type(module)
    assert alteration(module, (kind,)) is None
    for name in METHODS[kind]:
        for owner, message in ((kind, f"{kind.__name__}.{name} was replaced"),
                               (module, f"it has its own {name}")):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, lambda *args: None)
                assert alteration(module, (kind,)) == message
    monkeypatch.setattr(kind, "_call_impl", lambda *args: None)
    assert alteration(module, (kind,)) == f"the call of {kind.__name__} was replaced"


# -- what is said, and what others do --------------------------------------------------------------


def test_executions_say_what_was_altered():
    model = make("transpose")
    assert {*model.decoder.executions.values()} == {"fast"}
    model.decoder.x0_1.block.conv1.register_forward_hook(lambda *args: None)
    old_weight_norm(model.decoder.x1_1.edges.x2_0.up)
    model.decoder.x0_2.block.forward = model.decoder.x0_2.block.forward
    assert model.decoder.executions == {
        "x0_1": "reference: its first layer was altered: it has hooks",
        "x1_1": "reference: the edge from x2_0 was altered: up: it has hooks",
        "x0_2": "reference: the block was altered: it has its own forward"}


def test_an_edge_that_is_removed_is_an_error():
    model = make()
    del model.decoder.x0_2.edges["x0_1"]
    with pytest.raises(RuntimeError, match="a node with 3 inputs has 2 edges"):
        model(image())


def test_the_gradient_of_lora_is_its_own():
    model = make()
    add_lora(model.decoder.x0_1.block.conv1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.decoder.x0_1.block.conv1.down.weight.requires_grad_(True)
    sum(y.square().sum() for y in model.train()(image())).backward()
    assert model.decoder.x0_1.block.conv1.down.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("prepare", ["prepare", "prepare_qat"])
def test_observers_of_a_quantisation_see_what_passes(prepare):
    quantization = pytest.importorskip("torch.ao.quantization")
    model = make().float()
    node = model.decoder.x0_1
    node.block.qconfig = quantization.get_default_qat_qconfig("x86") if "qat" in prepare \
        else quantization.get_default_qconfig("x86")
    getattr(quantization, prepare)(node.block.train("qat" in prepare), inplace=True)
    model(image().float())
    observer = node.block.conv1.activation_post_process
    assert torch.isfinite(observer.calculate_qparams()[0]).all()
    assert getattr(observer, "activation_post_process", observer).min_val.numel() > 0


def test_lora_of_peft_trains_on_a_decoder():
    peft = pytest.importorskip("peft")
    model = make().float().eval()
    x = image().float()
    before = model(x).detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(
        r=2, target_modules=r"decoder\.x\d_\d\.block\.conv[12]"))
    torch.testing.assert_close(adapted(x), before, rtol=1e-4, atol=1e-5)  # begins at nothing
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.5)
    losses = []
    for _ in range(3):
        losses.append(adapted(x).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    truth = plain(copy.deepcopy(adapted.base_model.model))
    torch.testing.assert_close(adapted(x), truth(x), rtol=1e-4, atol=1e-5)
