"""Alterations of a model's modules, as users make them, and where: for tests of what they do."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import nestedseg

WIDTHS = (4, 6, 8)
SUMMED = {"nodes": {"x1_1": {"inputs": ["x1_0", "x2_0"], "fuse": "sum"}, "x0_1": ["x0_0", "x1_1"]},
          "heads": ["x0_1"]}


def make(kind="nearest"):
    torch.manual_seed(0)
    topology = SUMMED if kind == "sum" else "unetpp"
    model = nestedseg.create(topology, encoder_channels=WIDTHS, dropout=0.0, **(
        {} if kind == "sum" else {"deep_supervision": True, "upsample": kind})).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
    return model


PLACES = {  # the model, the parent of the module, its name
    "conv1": ("nearest", "decoder.x0_1.block", "conv1"),
    "conv2": ("nearest", "decoder.x0_2.block", "conv2"),
    "norm1": ("nearest", "decoder.x0_1.block", "norm1"),
    "act1": ("nearest", "decoder.x0_1.block", "act1"),
    "block": ("nearest", "decoder.x0_1", "block"),
    "node": ("nearest", "decoder", "x1_1"),
    "skip": ("nearest", "decoder.x0_1.edges", "x0_0"),
    "rising edge": ("nearest", "decoder.x0_1.edges", "x1_0"),
    "edge.up": ("transpose", "decoder.x1_1.edges.x2_0", "up"),
    "edge.project": ("sum", "decoder.x1_1.edges.x2_0", "project"),
    "summed block": ("sum", "decoder.x1_1", "block"),
    "head": ("nearest", "decoder", "head_x0_2"),
    "encoder conv": ("nearest", "encoder.x0_0", "conv1"),
    "encoder norm": ("nearest", "encoder.x1_0", "norm2"),
    "encoder block": ("nearest", "encoder", "x1_0"),
}


class Scaled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 0.5, bias)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Lora(nn.Conv2d):
    """LoRA as people write it by hand: a subclass with two small matrices more."""

    def forward(self, x):
        return super().forward(x) + self.up_(self.down(x))


class Around(nn.Module):
    """Any module that stands in the place of another."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, *inputs):
        return 1.5 * self.inside(*inputs)


def replace_by(make_new):
    def alter(parent, name):
        setattr(parent, name, make_new(getattr(parent, name))) if not isinstance(
            parent, nn.ModuleDict) else parent.update({name: make_new(parent[name])})
    return alter


def on(module_alteration):
    """An alteration of the module itself, in place."""
    return lambda parent, name: module_alteration(parent.get_submodule(name))


def to_class(cls):
    def alter(conv):
        conv.__class__ = cls
    return on(alter)


def add_lora(conv):
    conv.__class__ = Lora
    conv.down = nn.Conv2d(conv.in_channels, 2, 1).double()
    conv.up_ = nn.Conv2d(2, conv.out_channels, 1).double()


def own_forward(module):
    original = type(module).forward
    module.forward = lambda *args: 0.5 * original(module, *args)


ANY = {
    "hook": on(lambda m: m.register_forward_hook(lambda m, args, y: y * 0.5)),
    "pre-hook": on(lambda m: m.register_forward_pre_hook(
        lambda m, args: tuple(x + 0.1 for x in args))),
    "backward hook": on(lambda m: m.register_full_backward_hook(
        lambda m, before, after: tuple(None if g is None else 2 * g for g in before))),
    "forward of its own": on(own_forward),
    "replaced": replace_by(Around),
}
CONV = {
    "_conv_forward": to_class(Scaled),
    "subclass": to_class(Standardised),
    "LoRA": on(add_lora),
    "spectral_norm": on(parametrizations.spectral_norm),
    "weight_norm": on(parametrizations.weight_norm),
    "old spectral_norm": on(old_spectral_norm),
    "old weight_norm": on(old_weight_norm),
    "pruned": on(lambda conv: prune.l1_unstructured(conv, "weight", amount=0.4)),
    "wide kernel": replace_by(lambda conv: nn.Conv2d(
        conv.in_channels, conv.out_channels, 5, padding=2).double()),
    "dilated": replace_by(lambda conv: nn.Conv2d(
        conv.in_channels, conv.out_channels, 3, padding=2, dilation=2).double()),
}
CONVS = ("conv1", "conv2", "edge.project", "head", "encoder conv")
ON_UP = {name: CONV[name] for name in ("spectral_norm", "old weight_norm", "pruned")} | {
    "another layer": replace_by(lambda up: nn.Sequential(
        nn.Upsample(scale_factor=2), nn.Conv2d(up.in_channels, up.out_channels, 1)).double())}
ON_ACT = {"tanh": replace_by(lambda act: nn.Tanh())}
ON_NORM = {"instance norm": replace_by(lambda norm: nn.InstanceNorm2d(norm.num_features).double()),
           "none": replace_by(lambda norm: nn.Identity())}
SPECIAL = {**dict.fromkeys(CONVS, CONV), "edge.up": ON_UP, "act1": ON_ACT, "norm1": ON_NORM,
           "encoder norm": ON_NORM}
CASES = {f"{how} on {place}": (place, alter) for place in PLACES
         for how, alter in (ANY | SPECIAL.get(place, {})).items()}
ONCE = {*{name.partition(" on ")[0]: name for name in reversed(CASES)}.values()}  # each alteration


def altered(case):
    place, alter = CASES[case]
    kind, parent, name = PLACES[place]
    model = make(kind)
    alter(model.get_submodule(parent), name)
    return model


def image():
    return torch.rand(2, 3, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
