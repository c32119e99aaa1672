"""Models of very different families as encoders: real weights, real gradients, on the CPU."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import nestedseg
from nestedseg.encoders.feature_selection import Neck, pattern_of, select_features
from nestedseg.encoders.probe import Feature, probe
from nestedseg.encoders.prober import Prober, nearest_power
from nestedseg.encoders.timm_model import DoesNotRun
from nestedseg.encoders.unused import Zero, remove_unused

# Convolutional, attentional, both; strides from 1, 2, 4, 8 and 16, or one throughout; of any size,
# dynamic, built for a size, or of one size alone; parallel branches; a fixed front end.
DIFFERENT = ["test_resnet", "test_nfnet", "test_byobnet", "test_efficientnet", "test_convnext",
             "test_mambaout", "test_vit", "test_vit3", "test_vit_relpos", "test_coatnet",
             "test_maxvit", "efficientvim_m1", "dla46_c", "hrnet_w18_small", "levit_128s", "csatv2"]
LONG = ("test_maxvit", "dla46_c", "hrnet_w18_small", "csatv2")


def family(name):
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


FAMILIES = sorted({family(name) for name in timm.list_models()})


def smallest_of(module):
    """The model with the fewest parameters among those that a module of timm defines."""
    def parameters(name):
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())

    return min((name for name in timm.list_models() if family(name) == module), key=parameters)


def make(name, **arguments):
    return nestedseg.create("unetpp", name, **{"deep_supervision": True,
                                               "decoder_channels": (4,) * 8} | arguments)


def images(name, channels=3):
    """Two of the smallest that the encoder takes."""
    info = nestedseg.encoder_info(name)
    size = (info.multiple, info.multiple) if info.any_size else info.image_size
    return torch.rand(2, channels, *size)


def without_gradient(model, x):
    """The parameters that a step of training does not reach."""
    logits = model.train()(x)
    logits = logits if isinstance(logits, tuple) else (logits,)
    assert all(y.shape == (len(x), 1, *x.shape[2:]) for y in logits)
    sum(y.square().mean() for y in logits).backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def check(name, folder, **arguments):
    """All that is promised of any encoder."""
    model, x = make(name, **arguments), images(name)
    model.save_pretrained(folder)
    loaded = nestedseg.from_pretrained(folder).eval()
    tapped = []
    hook = model.eval().encoder.register_forward_hook(lambda module, args, out: tapped.append(
        [(feature, feature.clone()) for feature in out]))
    with torch.no_grad():
        heads = model.forward_heads(x)
        assert all(torch.equal(now, before) for now, before in tapped[0])
        for feature, level in zip([now for now, _ in tapped[0]], model.encoder.levels, strict=True):
            assert feature.shape[1] == level.channels
        assert torch.equal(loaded(x), heads[model.depths[-1]])
    hook.remove()
    del loaded  # some have 400 million parameters
    sizes = []
    for depth, logits in heads.items():
        small = model.prune(depth)
        sizes.append(sum(p.numel() for p in small.encoder.parameters()))
        with torch.no_grad():
            assert torch.equal(small(x), logits), depth
        assert without_gradient(small, x) == [], depth
        del small
    assert sizes == sorted(sizes)
    assert without_gradient(model, x) == []


# -- families --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in DIFFERENT])
def test_a_family_trains_prunes_and_is_saved(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("module", FAMILIES)
def test_every_family_trains_prunes_and_is_saved(module, tmp_path):
    check(smallest_of(module), tmp_path)


@pytest.mark.parametrize("name, channels", [
    pytest.param(name, channels, marks=() if channels == first else pytest.mark.slow)
    for name, first in (("test_resnet", 5), ("test_vit", 1), ("efficientvim_m1", 5), ("dla46_c", 1))
    for channels in (1, 5)])
def test_other_channels_reach_the_loss(name, channels):
    model, x = make(name, in_channels=channels), images(name, channels).requires_grad_()
    assert without_gradient(model, x) == []
    assert all(x.grad[:, channel].abs().sum() > 0 for channel in range(channels))


def test_a_front_end_for_three_channels_gets_them_by_a_convolution():
    name = "csatv2"
    assert probe(name, 3).in_channels == probe(name, 5).in_channels == 3
    model = make(name, in_channels=5, depth=1)
    assert model.encoder.colours.weight.shape == (3, 5, 1, 1)
    assert without_gradient(model, images(name, 5)) == []
    with torch.device("meta"):
        assert not hasattr(make(name, depth=1).encoder, "colours")


# -- the stem --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, added", [("test_resnet", 1), ("test_convnext", 2), ("test_vit", 2),
                                         pytest.param("efficientvim_m1", 4,
                                                      marks=pytest.mark.slow)])
def test_a_stem_adds_the_finer_levels_and_prunes(name, added, tmp_path):
    plain = [level.stride[0] for level in make(name).encoder.levels]
    model = make(name, stem=8, decoder_channels=(4,) * 10)
    strides = [level.stride[0] for level in model.encoder.levels]
    assert strides == [2 ** row for row in range(added)] + plain
    assert [level.channels for level in model.encoder.levels[:added]] == [8, 16, 32, 64][:added]
    check(name, tmp_path, stem=8, decoder_channels=(4,) * 10)
    assert make(name, stem=8, depth=added - 1 or 1).prune(1).decoder.strides["x0_1"] == (1, 1)


def test_pruned_into_the_stem_nothing_of_the_encoder_remains():
    model = make("test_convnext", stem=True).prune(1)
    assert model.encoder.body is None and len(model.encoder.stem) == 2
    assert without_gradient(model, torch.rand(2, 3, 7, 9)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "vgg19", "resnet152", "densenet201", "convnext_tiny", "swin_tiny_patch4_window7_224",
    "vit_base_patch16_224", "maxvit_tiny_tf_224", "mobilenetv4_conv_small", "hrnet_w18", "dla34"])
def test_the_issues_encoders_with_a_stem_at_an_odd_size(name):
    any_size = nestedseg.encoder_info(name).any_size
    starts_at_one = nestedseg.encoder_info(name).strides[0] == 1
    model = nestedseg.create("unetpp", encoder=name, deep_supervision=True,
                             stem=not starts_at_one).eval()
    size = (193, 257) if any_size else model.preprocessing["size"]
    with torch.no_grad():
        heads = model.forward_heads(torch.rand(1, 3, *size))
    assert list(heads) == list(range(1, len(model.encoder.levels)))
    assert all(y.shape == (1, 1, *size) and y.isfinite().all() for y in heads.values())
    assert model.encoder.levels[0].stride == (1, 1)


def test_an_encoder_at_full_resolution_needs_no_stem():
    strides = [level.stride[0] for level in make("dla46_c", stem=True).encoder.levels]
    assert strides == [1, 2, 4, 8, 16, 32]
    with pytest.raises(ValueError, match="stem needs 0 widths, one for each stride below 1"):
        make("dla46_c", stem=(8, 16))


@pytest.mark.parametrize("widths, message", [((8, 16, 32), "stem needs 2 widths, .*, got 3"),
                                             ((8,), "stem needs 2 widths, .*, got 1")])
def test_widths_for_another_stem_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        make("test_convnext", stem=widths)


# -- image sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_vit3", "test_mambaout"])
def test_any_size_is_taken(name):
    model = make(name).eval()
    with torch.no_grad():
        for size in ((1, 1), (33, 7), (193, 257)):
            assert model(torch.rand(1, 3, *size)).shape == (1, 1, *size)


@pytest.mark.parametrize("name", ["test_vit_relpos", "test_coatnet",
                                  pytest.param("test_maxvit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [(96, 160), (90, 150)], ids=["multiple", "padded"])
def test_a_model_is_built_for_the_size_that_is_asked_for(name, size, tmp_path):
    model = make(name, image_size=size).eval()
    assert model.encoder.runs_at == (96, 160) and model.config["image_size"] == list(size)
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        assert model(x).shape == (1, 1, *size)
        model.save_pretrained(tmp_path)
        assert torch.equal(nestedseg.from_pretrained(tmp_path).eval()(x), model(x))
    with pytest.raises(ValueError, match=r"create the model with image_size=\(64, 64\)"):
        model(torch.rand(1, 3, 64, 64))


def test_what_cannot_be_built_for_a_size_is_resized(caplog):
    with caplog.at_level("WARNING"):
        model = make("efficientformer_l1", image_size=(320, 192), depth=1).eval()
    assert "(320, 192)" in caplog.text and "(224, 224)" in caplog.text
    assert model.encoder.runs_at == (224, 224)
    x = torch.rand(1, 3, 320, 192)
    with torch.no_grad():
        assert model(x).shape == (1, 1, 320, 192)
        sizes = [(320 // level.stride[0], 192 // level.stride[1]) for level in model.encoder.levels]
        assert [feature.shape[2:] for feature in model.encoder(x)] == sizes


def test_a_model_of_one_size_names_the_argument():
    with pytest.raises(ValueError, match=r"built for images of \(160, 160\), got \(64, 96\).*"
                                         r"image_size=\(64, 96\)"):
        make("test_vit_relpos")(torch.rand(1, 3, 64, 96))


@pytest.mark.parametrize("size, error, message", [
    ((96,), ValueError, "2 numbers"), ((0, 96), ValueError, "image_size must be from 1"),
    ("big", TypeError, "image_size"), ((96.0, 96), TypeError, "image_size")])
def test_impossible_sizes_are_refused(size, error, message):
    with pytest.raises(error, match=message):
        make("test_vit_relpos", image_size=size)


# -- what is found out about a model ---------------------------------------------------------------


@pytest.mark.parametrize("name, pattern, strides, channels, any_size, multiple", [
    ("vgg11", "doubling", (1, 2, 4, 8, 16, 32), (64, 128, 256, 512, 512, 512), True, 32),
    ("resnet50", "doubling", (2, 4, 8, 16, 32), (64, 256, 512, 1024, 2048), True, 32),
    ("test_convnext", "doubling", (4, 8, 16, 32), (24, 32, 48, 64), True, 32),
    ("test_vit", "isotropic", (4, 8, 16, 32), (16, 32, 64, 64), True, 32),
    ("test_vit_relpos", "isotropic", (4, 8, 16, 32), (24, 48, 96, 96), False, 32),
    ("efficientvim_m1", "doubling", (16, 32, 64), (128, 192, 320), True, 64),
    ("csatv2", "doubling", (8, 16, 32, 64), (32, 72, 168, 386), True, 64),
    ("levit_128s", "irregular", (16, 32, 64), (128, 256, 384), False, 64),
    ("tresnet_m", "doubling", (4, 8, 16, 32), (64, 128, 1024, 2048), True, 32),
])
def test_levels_are_measured(name, pattern, strides, channels, any_size, multiple):
    info = nestedseg.encoder_info(name)
    assert (info.pattern, info.strides, info.channels) == (pattern, strides, channels)
    assert (info.any_size, info.multiple) == (any_size, multiple)


def test_a_prober_builds_and_runs_a_model_once(monkeypatch):
    built = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kw: built.append(kw) or create(
        *args, **kw))
    prober = Prober("test_vit3", 3, "meta")
    assert prober.own_size == (160, 160)
    assert prober.run((160, 160)).strides == [16.0] * len(prober.run((160, 160)).shapes)
    assert not prober.fits((96, 64)) and prober.fits((96, 64), dynamic_img_size=True)
    assert not prober.fits((96, 64), no_such_argument=1)
    with pytest.raises(DoesNotRun, match="no_such_argument"):
        prober.run((96, 64), no_such_argument=1)
    assert len(built) == 3


def test_what_is_no_image_model_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("nestedseg.encoders.prober.forward_taps", lambda *args: 1 / 0)
    with pytest.raises(ValueError, match="'test_nfnet' gives no feature maps: ZeroDivisionError"):
        probe.__wrapped__("test_nfnet", 3)


@pytest.mark.parametrize("stride, power", [(1, 1), (0.9, 1), (7, 8), (12, 16), (14, 16), (17, 16),
                                           (4.02, 4), (32, 32), (22, 16), (23, 32)])
def test_the_nearest_power_of_two(stride, power):
    assert nearest_power(stride) == power


# -- levels from features --------------------------------------------------------------------------


def features(*strides, channels=64, fits=True):
    return [Feature(channels, stride, fits) for stride in strides]


@pytest.mark.parametrize("strides, fits, pattern", [
    ((2, 4, 8, 16), True, "doubling"), ((4, 8, 8, 16), True, "doubling"), ((8, 16), True,
                                                                           "doubling"),
    ((16,) * 12, True, "isotropic"), ((13.7,) * 4, False, "isotropic"),
    ((12, 12, 17), False, "isotropic"), ((7, 14, 14), False, "irregular"),
    ((4, 16), True, "irregular"), ((16, 32, 64), False, "irregular")])
def test_patterns_come_from_strides(strides, fits, pattern):
    assert pattern_of(features(*strides, fits=fits)) == pattern


def test_the_deepest_feature_of_each_stride_is_a_level():
    taps = select_features(features(2, 4, 4, 8, 16, 16), None, None)
    assert [(tap.index, tap.stride, tap.made) for tap in taps] == [
        (0, 2, False), (2, 4, False), (3, 8, False), (5, 16, False)]
    taps = select_features(features(2, 4, 4, 8, 16, 16), (4, 1, 0), None)
    assert [tap.index for tap in taps] == [0, 1, 4]


@pytest.mark.parametrize("stride, channels", [(16, [16, 32, 64, 64]), (32, [8, 16, 32, 64]),
                                              (8, [32, 64, 64, 64]), (14, [16, 32, 64, 64])])
def test_one_stride_makes_a_simple_pyramid(stride, channels):
    taps = select_features(features(*[stride] * 12, fits=stride != 14), None, None)
    assert [tap.index for tap in taps] == [2, 5, 8, 11]
    assert [tap.stride for tap in taps] == [4, 8, 16, 32] and all(tap.made for tap in taps)
    assert [tap.channels for tap in taps] == channels
    size = (96, 160)
    for tap in taps:
        level = Neck(tap)(torch.rand(2, 64, round(96 / stride), round(160 / stride)), size)
        assert level.shape == (2, tap.channels, 96 // tap.stride, 160 // tap.stride)


def test_the_pyramid_is_normalised_and_made_by_what_its_stride_needs():
    necks = [Neck(tap).layers for tap in select_features(features(*[16] * 4), None, (8, 8, 64, 8))]
    assert all(isinstance(layers[0], timm.layers.LayerNorm2d) for layers in necks)
    kinds = [[type(layer).__name__ for layer in layers[1:]] for layers in necks]
    assert kinds == [["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d"],
                     ["ConvTranspose2d"], [], ["Conv2d"]]


def test_irregular_features_are_resampled():
    taps = select_features(features(7, 14, 14, fits=False), None, None)
    assert [(tap.index, tap.stride) for tap in taps] == [(0, 8), (2, 16)]
    x = torch.rand(1, 64, 32, 32)
    assert torch.equal(Neck(taps[0])(x, (224, 224)),
                       F.interpolate(x, size=(28, 28), mode="bilinear", align_corners=False))


def test_features_that_fit_pass_untouched():
    x = torch.rand(1, 64, 24, 40)
    neck = Neck(select_features(features(4, 8), None, None)[0])
    assert neck(x, (96, 160)) is x and not list(neck.parameters())


@pytest.mark.parametrize("arguments, message", [
    ({"encoder_taps": (0, 1, 2)}, "has 4 levels, with strides.*got 3"),
    ({"encoder_taps": (0, 1, 2, 99)}, "encoder_taps must be from 0 to"),
    ({"pyramid_channels": (8, 8)}, "has 4 levels, with strides.*got 2"),
    ({"pyramid_channels": (8, 8, 8, 0)}, "pyramid_channels must be from 1")])
def test_impossible_pyramids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make("test_vit", **arguments)


def test_channels_of_a_pyramid_that_is_not_made_are_refused():
    with pytest.raises(ValueError, match=r"features all have one stride.*\[2, 4, 8, 16, 32\]"):
        make("test_resnet", pyramid_channels=(8, 8, 8, 8))


def test_taps_and_channels_are_used():
    model = make("test_vit", encoder_taps=(0, 0, 3, 5), pyramid_channels=(6, 7, 8, 9))
    assert [level.channels for level in model.encoder.levels] == [6, 7, 8, 9]
    assert len(model.encoder.model.blocks) == 6 and len(model.prune(1).encoder.model.blocks) == 1
    assert without_gradient(model, images("test_vit")) == []
    assert [level.stride[0] for level in make("test_resnet", encoder_taps=(1, 3)).encoder.levels
            ] == [4, 16]


# -- what is unused --------------------------------------------------------------------------------


class Branches(nn.Module):
    """A feature; a branch that feeds nothing kept; a live path through a module of idle weights."""

    def __init__(self, joins):
        super().__init__()
        self.joins = joins
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.pooled = Pooled()
        self.never = nn.Linear(4, 4)
        self.idle = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.first(x)
        side = self.branch(x)
        side = torch.cat([side, x], dim=1) if self.joins == "cat" else side + x
        return [self.pooled(x)] if side.numel() else []


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.idle = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        self.idle(x)
        return F.max_pool2d(x, 3, 1, 1)


@pytest.mark.parametrize("joins", ["cat", "add"])
def test_what_reaches_no_feature_is_taken_out(joins):
    model = Branches(joins).eval()
    x = torch.rand(1, 3, 8, 8)
    before = model(x)[0]
    remove_unused(model, lambda ghost: ghost(torch.empty(1, 3, 8, 8, device="meta")), joins)
    assert [name for name, _ in model.named_parameters()] == ["first.weight", "first.bias"]
    assert torch.equal(model(x)[0], before)
    assert isinstance(model.pooled, Pooled) and isinstance(model.branch, nn.Identity)
    assert "idle" in dict(model.named_buffers())


def test_a_branch_that_only_a_zero_can_replace():
    class Narrowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.tail = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            kept = self.first(x)
            self.tail(F.max_pool2d(kept, 2)) + self.branch(x)
            return [kept]

    model = Narrowing()
    remove_unused(model, lambda ghost: ghost(torch.empty(1, 3, 8, 8, device="meta")), "narrowing")
    assert {type(model.branch), type(model.tail)} <= {nn.Identity, Zero}
    assert all(name.startswith("first") for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", [
    "test_vit", pytest.param("hrnet_w18_small", marks=pytest.mark.slow)])
def test_pruning_twice_leaves_what_pruning_once_does(name):
    with torch.device("meta"):
        twice, once, later = (make(name).encoder for _ in range(3))
    names = [n for n, _ in once.keep(2).named_parameters()]
    assert [n for n, _ in twice.keep(4).keep(2).named_parameters()] == names
    assert [n for n, _ in later.keep(2).named_parameters()] == names


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_model_that_recomputes_is_not_removed(name):
    model, expected = make(name), make(name).prune(2).state_dict().keys()
    model.set_grad_checkpointing()
    small = model.prune(2)
    assert small.state_dict().keys() == expected
    assert without_gradient(small, images(name)) == []


def test_sizes_in_between_are_padded_to_the_multiple():
    model = make("test_convnext")
    multiple = nestedseg.encoder_info("test_convnext").multiple
    seen = []
    model.eval().encoder.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[2:]))
    with torch.no_grad():
        model(torch.rand(1, 3, 33, 65))
    assert tuple(seen[0]) == tuple(math.ceil(n / multiple) * multiple for n in (33, 65))


@pytest.mark.parametrize("size", [(80, 80), (16, 112), (97, 33)])
def test_sizes_that_the_pyramid_does_not_divide(size):
    """The encoder divides 16, its pyramid 32: it is fed another size than the padded image's."""
    model = make("test_vit_relpos", image_size=size).eval()
    with torch.no_grad():
        assert all(y.shape == (1, 1, *size)
                   for y in model.forward_heads(torch.rand(1, 3, *size)).values())
