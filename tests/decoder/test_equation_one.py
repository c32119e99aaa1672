"""The model against Eq. 1 of the paper, written out by hand.

    X^{i,0} = H(D(X^{i-1,0}))
    X^{i,j} = H([ skips of row i ; U(X^{i+1,j-1}) ])        j > 0

The reference reads the model's tensors by name and uses nothing of nestedseg's forward pass: no
graph, no compiler, no layer. Only the features of a timm encoder are the model's own.
"""

import pytest
import torch
from torch.nn import functional as F

import nestedseg

TOPOLOGIES = ["unet", "unet_e", "unet_plus", "unetpp"]
SKIPS = {  # the columns k of the skip inputs X^{i,k} of X^{i,j}
    "unet": lambda j: [0],
    "unet_e": lambda j: [0],
    "unet_plus": lambda j: [j - 1],
    "unetpp": lambda j: list(range(j)),
}
CONV = {2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {2: F.max_pool2d, 3: F.max_pool3d}
LINEAR = {2: "bilinear", 3: "trilinear"}


class Reference:
    """Eq. 1 over a dict of tensors."""

    def __init__(self, tensors, topology, depth, dims=2):
        self.tensors, self.topology, self.depth, self.dims = tensors, topology, depth, dims

    def h(self, x, name):
        """H: twice convolution, norm (if there is one), ReLU."""
        for k in "12":
            weight = self.tensors[f"{name}.conv{k}.weight"]
            x = CONV[self.dims](x, weight, self.tensors.get(f"{name}.conv{k}.bias"), padding=1)
            x = F.relu(self.norm(x, f"{name}.norm{k}"))
        return x

    def norm(self, x, name):
        if f"{name}.running_mean" not in self.tensors:
            return x
        mean, var, weight, bias = (
            self.tensors[f"{name}.{key}"].view(-1, *[1] * self.dims)
            for key in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def up(self, x, name):
        """U: the transposed convolution where there are weights for it, else each pixel twice."""
        if f"{name}.up.weight" in self.tensors:
            weight, bias = self.tensors[f"{name}.up.weight"], self.tensors[f"{name}.up.bias"]
            return CONV_TRANSPOSE[self.dims](x, weight, bias, stride=2)
        for axis in range(2, 2 + self.dims):
            x = x.repeat_interleave(2, dim=axis)
        return x

    def encoder(self, x):
        features = [self.h(x, "encoder.x0_0")]
        for i in range(1, self.depth + 1):
            features.append(self.h(MAX_POOL[self.dims](features[-1], 2), f"encoder.x{i}_0"))
        return features

    def heads(self, features):
        """The logits of X^{0,j} by j, at the stride of level 0."""
        x = {(i, 0): feature for i, feature in enumerate(features)}
        for j in range(1, self.depth + 1):
            for i in range(self.depth + 1 - j):
                if self.topology == "unet" and i + j < self.depth:
                    continue
                name = f"decoder.x{i}_{j}"
                inputs = [x[i, k] for k in SKIPS[self.topology](j)]
                inputs.append(self.up(x[i + 1, j - 1], f"{name}.edges.x{i + 1}_{j - 1}"))
                x[i, j] = self.h(torch.cat(inputs, dim=1), f"{name}.block")
        logits = {}
        for j in range(1, self.depth + 1):
            head = f"decoder.head_x0_{j}"
            if f"{head}.weight" in self.tensors:
                logits[j] = CONV[self.dims](x[0, j], self.tensors[f"{head}.weight"],
                                            self.tensors[f"{head}.bias"])
        return logits


def pad(x, multiple):
    """The far border repeated, up to a multiple along each axis."""
    for axis in range(2, x.dim()):
        n = x.shape[axis]
        last = torch.arange(-(-n // multiple) * multiple).clamp(max=n - 1)
        x = x.index_select(axis, last)
    return x


def randomise(model):
    """Biases start at 0 and norms at the identity: a mistake in them would not be seen."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=rng))
            elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng))
    return model.double().eval()


def make(topology, encoder="plain", **arguments):
    supervised = None if topology == "unet" else True
    if encoder == "plain":
        arguments = {"encoder_channels": (3, 4, 5, 6, 7)} | arguments
    return randomise(nestedseg.create(topology, encoder, deep_supervision=supervised, classes=2,
                                      **arguments))


def assert_equal(given, expected):
    """Every head, to 1e-12 of the largest logit."""
    assert given.keys() == expected.keys()
    for depth, logits in expected.items():
        assert given[depth].dtype == torch.float64
        assert logits.std() > 1e-3  # the comparison means something
        assert (given[depth] - logits).abs().max() <= 1e-12 * logits.abs().max()


def depths(topology, depth):
    return [depth] if topology == "unet" else list(range(1, depth + 1))


PLAIN = {
    "transpose": {"norm": None, "upsample": "transpose"},
    "nearest": {"norm": "batch", "upsample": "nearest"},
    "narrow decoder": {"norm": "batch", "upsample": "transpose", "decoder_channels": (6, 3, 5, 2)},
}


@torch.no_grad()
@pytest.mark.parametrize("style", PLAIN)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_plain_encoder(topology, style):
    model = make(topology, **PLAIN[style])
    x = torch.randn(2, 3, 48, 32, dtype=torch.float64)
    reference = Reference(model.state_dict(), topology, depth=4)
    expected = reference.heads(reference.encoder(x))
    assert list(expected) == depths(topology, 4)
    assert_equal(model.forward_heads(x), expected)
    assert_equal({4: model(x)}, {4: expected[4]})


@torch.no_grad()
@pytest.mark.parametrize("upsample", ["nearest", "transpose"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_features_of_a_timm_encoder(topology, upsample):
    model = make(topology, "test_resnet", upsample=upsample, decoder_channels=(5, 6, 7, 8))
    x = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    logits = Reference(model.state_dict(), topology, depth=4).heads(model.encoder(x))
    expected = {depth: F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
                for depth, y in logits.items()}  # level 0 has stride 2
    assert list(expected) == depths(topology, 4)
    assert_equal(model.forward_heads(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_three_dimensions(topology):
    model = make(topology, dims=3, norm=None, upsample="transpose", encoder_channels=(2, 3, 4))
    x = torch.randn(1, 3, 8, 4, 12, dtype=torch.float64)
    reference = Reference(model.state_dict(), topology, depth=2, dims=3)
    assert_equal(model.forward_heads(x), reference.heads(reference.encoder(x)))


@torch.no_grad()
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_size_that_does_not_divide_is_padded_at_its_far_end_and_cropped(topology):
    plain = make(topology, norm=None)
    x = torch.randn(1, 3, 21, 35, dtype=torch.float64)
    reference = Reference(plain.state_dict(), topology, depth=4)
    logits = reference.heads(reference.encoder(pad(x, 16)))
    assert_equal(plain.forward_heads(x), {j: y[..., :21, :35] for j, y in logits.items()})

    over_resnet = make(topology, "test_resnet", decoder_channels=(4, 4, 4, 4))
    features = over_resnet.encoder(pad(x, 32))
    logits = Reference(over_resnet.state_dict(), topology, depth=4).heads(features)
    expected = {j: F.interpolate(y, scale_factor=2, mode="bilinear")[..., :21, :35]
                for j, y in logits.items()}
    assert_equal(over_resnet.forward_heads(x), expected)


@torch.no_grad()
def test_bilinear_up_sampling():
    model = make("unetpp", norm=None, upsample="bilinear", encoder_channels=(3, 4, 5))
    reference = Reference(model.state_dict(), "unetpp", depth=2)
    reference.up = lambda x, name: F.interpolate(x, scale_factor=2, mode="bilinear",
                                                 align_corners=False)
    x = torch.randn(1, 3, 12, 16, dtype=torch.float64)
    assert_equal(model.forward_heads(x), reference.heads(reference.encoder(x)))


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gradients(topology):
    """In training mode too, for a model without norm and dropout has but one mode."""
    model = make(topology, norm=None, upsample="transpose", encoder_channels=(3, 4, 5)).train()
    x = torch.randn(1, 3, 8, 12, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    logits = model(x)
    logits = logits if isinstance(logits, tuple) else (logits,)
    given = torch.autograd.grad(sum(y.square().sum() for y in logits), parameters.values())

    reference = Reference(parameters, topology, depth=2)
    expected = reference.heads(reference.encoder(x))
    loss = sum(y.square().sum() for y in expected.values())
    expected = torch.autograd.grad(loss, parameters.values())
    for name, a, b in zip(parameters, given, expected):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max(), name
