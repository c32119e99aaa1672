"""Detectors: torchvision's numbers, saving and loading, training on awkward images."""

import json
import re

import pytest
import torch
from torchvision.models import detection as torchvision_detection

import nestedseg
from nestedseg.instances.detectors import (
    DetectorConfig,
    build_detector,
    faster_rcnn,
    mask_rcnn,
    retinanet,
)

MAKERS = {"mask_rcnn": mask_rcnn, "faster_rcnn": faster_rcnn, "retinanet": retinanet}
SMALL = {"out_channels": 8, "min_size": 64, "max_size": 96}
CHEAP = {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 10}


def small(name, topology="fpnpp", **options):
    cheap = {} if name == "retinanet" else CHEAP
    return MAKERS[name](topology, "test_resnet", classes=2, **SMALL | cheap | options)


def images(count=2, channels=3):
    return [torch.rand(channels, 64, 48 + 16 * index) for index in range(count)]


def target(instances, side=(64, 48)):
    """A target of so many rectangles, one below the other."""
    rows = [(2 + 8 * index, 8 + 8 * index) for index in range(instances)]
    masks = torch.zeros(instances, *side, dtype=torch.uint8)
    for mask, (top, bottom) in zip(masks, rows):
        mask[top:bottom, 5:25] = 1
    boxes = torch.tensor([[5, top, 25, bottom] for top, bottom in rows]).float().reshape(-1, 4)
    return {"boxes": boxes, "masks": masks, "labels": torch.ones(instances, dtype=torch.int64)}


# -- torchvision's numbers ------------------------------------------------------------------------


def from_torchvision(state, levels):
    """torchvision's names of a ResNet detector's weights -> ours, whose body is timm's ResNet."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("backbone.body.", "backbone.encoder.model.")
        key = key.replace("backbone.fpn.extra_blocks.", "backbone.")
        found = re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0\.(\w+)", key)
        if found:
            row = int(found[2])
            column = 1 if found[1] == "inner" else levels - row + 1
            key = f"backbone.decoder.x{row}_{column}.block.conv.{found[3]}"
        renamed[key] = value
    return renamed


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other) and len(other["boxes"]) > 0
        for key in other:
            torch.testing.assert_close(mine[key], other[key], rtol=1e-9, atol=1e-9)


CASES = {
    "mask_rcnn": ("maskrcnn_resnet50_fpn", 4,
                  {"rpn_post_nms_top_n_test": 12, "box_score_thresh": 0.0}),
    "retinanet": ("retinanet_resnet50_fpn", 3,
                  {"score_thresh": 0.0, "detections_per_img": 10}),
}


@pytest.mark.parametrize("name", CASES)
def test_over_fpn_it_is_torchvisions(name):
    theirs, levels, options = CASES[name]
    options = {"min_size": 64, "max_size": 96} | options
    theirs = getattr(torchvision_detection, theirs)(
        weights=None, weights_backbone=None, num_classes=3, **options).double().eval()
    ours = MAKERS[name]("fpn", "resnet50", classes=2, **options).double().eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict(), levels))
    x = [image.double() for image in images()]
    with torch.no_grad():
        assert_same(ours(x), theirs(x))


# -- what they are made of ------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["fpn", "fpn_plus", "fpnpp"])
@pytest.mark.parametrize("name", MAKERS)
def test_it_is_torchvisions_class_and_predicts(name, topology):
    model = small(name, topology).eval()
    theirs = {"mask_rcnn": "MaskRCNN", "faster_rcnn": "FasterRCNN", "retinanet": "RetinaNet"}
    assert isinstance(model, getattr(torchvision_detection, theirs[name]))
    with torch.no_grad():
        for image, found in zip(images(), model(images())):
            assert found["labels"].numel() == 0 or found["labels"].max() <= 2
            if name == "mask_rcnn":
                assert found["masks"].shape[1:] == (1, *image.shape[1:])


def test_anchors_match_the_strides_of_the_pyramid():
    model = mask_rcnn("fpn", "test_resnet", strides=(2, 4, 8), out_channels=4, anchor_scale=3)
    assert model.rpn.anchor_generator.sizes == ((6,), (12,), (24,), (48,))
    assert model.backbone.strides == (2, 4, 8, 16)
    assert model.roi_heads.mask_roi_pool.featmap_names == ["0", "1", "2"]
    assert small("retinanet").anchor_generator.sizes[0] == (32, 40, 50)


def test_images_are_normalised_as_the_encoder_expects():
    model = small("mask_rcnn")
    assert model.transform.image_mean == nestedseg.create(
        "unet", "test_resnet").preprocessing["mean"]
    own = small("mask_rcnn", image_mean=[0.1, 0.2, 0.3])
    assert own.transform.image_mean == [0.1, 0.2, 0.3]
    grey = small("faster_rcnn", in_channels=1).eval()
    assert len(grey.transform.image_mean) == 1 and len(grey(images(channels=1))) == 2


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext", "test_efficientnet"])
def test_other_encoders(encoder):
    model = mask_rcnn("fpnpp", encoder, **SMALL | CHEAP).eval()
    assert model.transform.size_divisible == model.backbone.size_divisibility
    with torch.no_grad():
        assert len(model(images())) == 2


def test_an_encoder_of_one_size_gets_images_of_that_size():
    model = mask_rcnn("fpn", "test_vit_relpos", image_size=(60, 96), out_channels=8, **CHEAP).eval()
    assert model.transform.fixed_size == (96, 60)
    with torch.no_grad():
        assert len(model(images())) == 2


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("instances", [(0, 0), (0, 3), (1, 2)])
@pytest.mark.parametrize("name", MAKERS)
def test_it_trains_with_and_without_instances(name, instances):
    model = small(name).train()
    pictures = [torch.rand(3, 64, 48) for _ in instances]
    losses = model(pictures, [target(count) for count in instances])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_falls():
    model = small("mask_rcnn", anchor_scale=4, box_batch_size_per_image=16).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    picture = target(3)
    x = picture["masks"].amax(0).float().expand(3, -1, -1).contiguous()
    losses = []
    for _ in range(10):
        loss = sum(model([x, x], [picture, picture]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(sorted(losses)[:3]) < 0.6 * sum(losses[:3])  # single steps may be off


def test_frozen_batch_norms_are_an_option():
    frozen = small("mask_rcnn", frozen_batch_norm=True).train()
    norms = [m for m in frozen.backbone.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert frozen.config["pyramid"]["frozen_batch_norm"] is True
    assert small("mask_rcnn").config["pyramid"]["frozen_batch_norm"] is False


# -- saving and loading ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_saved_and_loaded(name, tmp_path):
    model = small(name, frozen_batch_norm=True, anchor_scale=5.5).double().eval()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = nestedseg.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and not loaded.training
    written = json.loads((tmp_path / "config.json").read_text())
    assert loaded.config == model.config and written == written | model.config
    assert loaded.graph.name == "fpnpp"
    x = [image.double() for image in images()]
    with torch.no_grad():
        for ours, theirs in zip(loaded(x), model(x), strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(ValueError, match="has no depths"):
        nestedseg.from_pretrained(tmp_path, depth=1)


def test_a_graph_of_ones_own_is_saved_too(tmp_path):
    graph = {"nodes": {"x1_1": {"inputs": ["x1_0"], "block": "conv1x1"},
                       "x0_1": {"inputs": ["x0_0", "x1_1"], "fuse": "sum"}},
             "heads": ["x0_1", "x1_1"]}
    model = faster_rcnn(graph, "test_resnet", strides=(8, 16), **SMALL)
    model.save_pretrained(tmp_path)
    assert nestedseg.from_pretrained(tmp_path).backbone.decoder.graph == nestedseg.Graph(**graph)


def test_a_plan_takes_no_memory_but_for_its_anchors():
    with torch.device("meta"):
        plan = build_detector(DetectorConfig.from_dict(small("mask_rcnn").config))
    assert all(parameter.is_meta for parameter in plan.parameters())
    assert not any(anchors.is_meta for anchors in plan.rpn.anchor_generator.cell_anchors)


def edit(*path, value=None):
    """A change to a saved config: a key set, or removed where ``value`` is None."""
    def change(config):
        for key in path[:-1]:
            config = config[key]
        if value is None:
            del config[path[-1]]
        else:
            config[path[-1]] = value
    return change


HOSTILE = {
    "another detector": (edit("detector", value="os.system"), "unknown detector"),
    "no object": (edit("arguments", value=[1]), "arguments must be an object"),
    "an argument that is a module": (edit("arguments", value={"rpn_head": 5}), "rpn_head"),
    "an argument that is text": (edit("arguments", "min_size", value="64"), "min_size"),
    "a huge argument": (edit("arguments", "min_size", value=10**12), "min_size"),
    "a negative argument": (edit("arguments", "min_size", value=-1), "min_size"),
    **{f"{name} of {value}": (edit("arguments", name, value=value), f"{name} must be a number")
       for name in ("min_size", "max_size") for value in (0, 0.5, 10**6, [0, 800])},
    "a long list": (edit("arguments", "image_mean", value=[0.5] * 99), "image_mean"),
    "huge classes": (edit("classes", value=10**9), "classes"),
    "anchors of no size": (edit("anchor_scale", value=0), "anchor_scale"),
    "anchors below a pixel": (edit("anchor_scale", value=0.2), "at least 1 pixel wide"),
    "an unknown key": (edit("surprise", value=1), "unknown config key 'surprise'"),
    "no pyramid": (edit("pyramid"), "'pyramid' is missing"),
    "a pyramid of text": (edit("pyramid", value="fpn"), "pyramid must be an object"),
    "an unknown key inside": (edit("pyramid", "depth", value=1), "unknown pyramid key 'depth'"),
    "an encoder of text": (edit("pyramid", "encoder", value="resnet18"), "must be an object"),
    "another encoder": (edit("pyramid", "encoder", "encoder", value="test_vit"), "not those of"),
    "volumes": (edit("pyramid", "encoder", "dims", value=3), "dims=3"),
    "no graph": (edit("pyramid", "graph"), "'graph' is missing"),
    "other strides": (edit("pyramid", "strides", value=[4, 16, 32, 64]), "strides"),
    "wider": (edit("pyramid", "out_channels", value=9), "shape"),
    "huge": (edit("pyramid", "out_channels", value=60_000), "shape"),
    "frozen by text": (edit("pyramid", "frozen_batch_norm", value="yes"), "frozen_batch_norm"),
    "resized by text": (edit("resize", value="no"), "resize must be true or false"),
    "no facts": (edit("training", value=[1]), "training must be an object"),
    "scores by depth": (edit("training", value={"metrics": {"2": {"iou": 0.5}}}), "scores by name"),
    "another version": (edit("schema_version", value=99), "schema version 99"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    small("faster_rcnn").save_pretrained(folder)
    return folder


def test_a_config_without_what_need_not_be_there_is_read(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    assert config["pyramid"].pop("topology") == "fpnpp"
    del config["resize"], config["training"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").hardlink_to(saved / "model.safetensors")
    loaded = nestedseg.from_pretrained(tmp_path)
    assert loaded.graph.name == "graph" and loaded.config["resize"] is True


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_config_that_was_tampered_with_is_refused(saved, tmp_path, change, message):
    config = json.loads((saved / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").hardlink_to(saved / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)):
        nestedseg.from_pretrained(tmp_path)


# -- mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "argument": ({"min_sise": 64}, "did you mean 'min_size'"),
    "module": ({"box_head": torch.nn.Identity()}, "For heads of your own"),
    "classes": ({"classes": 0}, "classes"),
    "topology": ({"topology": "fnp"}, "unknown topology"),
    "encoder": ({"encoder": "resnet999"}, "unknown encoder"),
    "strides": ({"strides": (4, 16)}, "consecutive"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mask_rcnn(**{"topology": "fpn", "encoder": "test_resnet"} | arguments)
