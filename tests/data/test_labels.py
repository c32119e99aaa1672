"""What the numbers and colours of label files become, against arrays that are written out by hand.
"""

import io
import json
from itertools import product

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from places import REAL

from nestedseg.base.extras import require
from nestedseg.data import LabelledImages, LabelledInstances, Pair, Patches
from nestedseg.data.labels import VOID, check_objects, make_rules

Y, X = np.mgrid[:96, :96]
FAR = np.hypot(Y - 40, X - 50)  # of each pixel from the middle of a disc
DISC = FAR < 25
WHITE = (255 * DISC).astype(np.uint8)


def jpeg(pixels, quality=90):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def pair(folder, label, suffix=".png", **options):
    """A blank image and its label, as files."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(exist_ok=True)
    paths = Pair(folder / "images" / "a.png", folder / "labels" / f"a{suffix}")
    Image.fromarray(np.zeros(label.shape[:2], np.uint8)).save(paths.image)
    picture = label if isinstance(label, Image.Image) else Image.fromarray(label)
    picture.save(paths.label, **options)
    return paths


def read(folder, label, suffix=".png", **rules):
    return LabelledImages([pair(folder, label, suffix)], **rules)[0][1]


def refused(stored, dims=2, lossy=False, **rules):
    with pytest.raises(ValueError) as caught:
        make_rules(**rules).indices(stored, dims, lossy)
    return str(caught.value)


# -- masks that are no masks -----------------------------------------------------------------------

SHADED = {
    "anti-aliased": np.round(255 * np.clip(25.5 - FAR, 0, 1)),
    "anti-aliased, of 16 bits": np.round(65535 * np.clip(25.5 - FAR, 0, 1)),
    "anti-aliased, of 1 to 100": np.round(100 * np.clip(25.5 - FAR, 0, 1)),
    "blurred": cv2.GaussianBlur(WHITE, (0, 0), 2.0),
    "enlarged": cv2.resize(WHITE, (150, 150), interpolation=cv2.INTER_LINEAR),
    "reduced": cv2.resize(WHITE, (40, 40), interpolation=cv2.INTER_AREA),
    "enlarged in blocks": np.kron(cv2.resize(WHITE, (40, 40), interpolation=cv2.INTER_AREA),
                                  np.ones((4, 4), np.uint8)),
    **{f"JPEG of quality {quality}": jpeg(WHITE, quality) for quality in (10, 50, 75, 90, 98)},
}
SHADED = {name: pixels.astype(np.uint16 if pixels.max() > 255 else np.uint8)
          for name, pixels in SHADED.items()}


@pytest.mark.parametrize("rules", [{"binary": True}, {}], ids=["binary", "classes=1"])
@pytest.mark.parametrize("name", SHADED)
def test_shades_are_refused_with_their_counts_and_cures(name, rules):
    stored = SHADED[name]
    text = refused(stored, **rules)
    main = 65535 if stored.max() > 255 else 255 if stored.max() == 255 else int(
        np.bincount(stored.ravel())[1:].argmax()) + 1
    others = stored[(stored != 0) & (stored != main)]
    values = len(np.unique(others))
    assert f"besides 0 and {main} it has {values} other values in {others.size} pixels" in text
    half = (int(stored.max()) + 1) // 2
    assert f"threshold={half} (--threshold {half})" in text and "losslessly" in text
    assert "binary=True" not in text, "the hint led into the trap"
    found = make_rules(threshold=half, **rules).indices(stored, 2)
    np.testing.assert_array_equal(found, stored >= half)


@pytest.mark.parametrize("quality", [50, 90])
def test_the_threshold_that_the_message_gives_brings_the_disc_back(tmp_path, quality):
    Image.fromarray(WHITE).save(tmp_path / "disc.jpg", quality=quality)
    stored = np.asarray(Image.open(tmp_path / "disc.jpg"))
    files = pair(tmp_path, WHITE, ".jpg", quality=quality)
    with pytest.raises(ValueError, match=r"a\.jpg \(of .*a\.png\): .* use threshold=128 "):
        LabelledImages([files], binary=True)
    images = LabelledImages([files], threshold=128)
    np.testing.assert_array_equal(images[0][1], stored >= 128)
    assert ((stored >= 128) != DISC).sum() <= 2 and (stored > 0).sum() > 1.1 * DISC.sum()


def test_a_jpeg_disc_is_not_many_instances(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jpg .*no clean mask.*losslessly, as a 16-bit PNG"):
        LabelledInstances([pair(tmp_path, WHITE, ".jpg", quality=90)])
    with pytest.raises(ValueError, match=r"a\.png .*no clean mask") as caught:
        LabelledInstances([pair(tmp_path, jpeg(WHITE))])
    assert "threshold" not in str(caught.value)


def test_a_jpeg_of_class_indices_is_refused_even_where_all_values_are_classes():
    assert "changes class indices" in refused(DISC.astype(np.uint8), classes=3, lossy=True)
    assert "besides 0 and 255 it has 1 other value" in refused(DISC.astype(np.uint8), lossy=True)
    assert (make_rules(binary=True).indices(WHITE, 2, lossy=True) == DISC).all()


def ring(width):
    """Class 15 with a border of 255, as VOC marks objects."""
    return np.where(np.abs(FAR - 25) < width, 255, 15 * DISC).astype(np.uint8)


@pytest.mark.parametrize("width", [1, 2.5, 6])
def test_the_border_of_voc_does_not_become_foreground(width):
    label = ring(width)
    text = refused(label, binary=True)
    assert "besides 0 and 255" in text and "ignore_index=255 (--ignore 255)" in text
    found = make_rules(binary=True, ignore_index=255).indices(label, 2)
    np.testing.assert_array_equal(found, np.where(label == 255, VOID, label == 15))
    assert "ignore_index=255" in refused(label, classes=21)


def blobs(*numbers, size=12):
    """Squares with these numbers, side by side, so that they touch."""
    return np.pad(np.kron(np.array([numbers]), np.ones((size, size), int)), 4)


CLEAN = {
    "0 and 255": WHITE,
    "0 and 1": DISC,
    "0 and 7": (7 * DISC).astype(np.int32),
    "nothing": np.zeros((9, 9), np.uint8),
    "everything": np.full((9, 9), 3, np.uint8),
    "instances": blobs(1, 2, 3, 4).astype(np.uint16),
    "instances of 3 pixels": blobs(1, 2, 3, 4, size=3).astype(np.uint8),
    "instances with gaps": blobs(9, 70, 1000, 65535 - 5).astype(np.uint16),
    "instances that lie alone": np.kron(np.arange(1, 26).reshape(5, 5), [[1, 0], [0, 0]]),
    "one that lies alone has the largest number": blobs(9, 0, 255).astype(np.uint8),
    "all 255": np.kron(np.arange(1, 256).reshape(15, 17), np.ones((4, 4), int)).astype(np.uint8),
    "a sliver among many": np.where((Y == 4) & (X < 8), 9, np.pad(
        blobs(*range(1, 8), size=9), ((0, 79), (0, 25)))).astype(np.uint8),
    "classes": (DISC + (FAR < 12)).astype(np.uint8),
    "floats": DISC.astype(np.float64),
}


@pytest.mark.parametrize("name", CLEAN)
def test_numbers_of_instances_and_classes_are_a_mask(name):
    stored = CLEAN[name]
    found = make_rules(binary=True).indices(stored, 2)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, stored > 0)


def test_volumes_have_shades_too():
    z, y, x = np.mgrid[:24, :24, :24]
    far = np.sqrt((z - 12) ** 2 + (y - 11) ** 2 + (x - 13) ** 2)
    soft = np.round(200 * np.clip(8.5 - far, 0, 1)).astype(np.int16)
    assert "no clean mask: besides 0 and 200" in refused(soft, dims=3, binary=True)
    classes = ((far < 9).astype(np.int16) + (far < 5))
    assert (make_rules(binary=True).indices(classes, 3) == (classes > 0)).all()


def test_refused_numbers_may_be_affirmed():
    dots = np.arange(1, 101).reshape(10, 10).astype(np.uint8)  # instances of one pixel
    assert "threshold=1 (--threshold 1)" in refused(dots, binary=True)
    assert make_rules(binary=True, threshold=1).indices(dots, 2).all()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real images in {REAL}")
def test_real_instance_maps_pass_and_their_jpegs_do_not():
    paths = sorted((REAL / "nuclei" / "labels").glob("*.png"))[::20]
    assert len(paths) > 30
    for path in paths:
        numbers = np.asarray(Image.open(path)).astype(np.uint16)
        check_objects(numbers)
        white = (255 * (numbers > 0)).astype(np.uint8)
        for shaded in (jpeg(white), cv2.GaussianBlur(white, (0, 0), 1.0)):
            with pytest.raises(ValueError, match="no clean mask"):
                check_objects(shaded)


# -- other ways in which labels are stored ---------------------------------------------------------

COLOURS = {"background": [0, 0, 0], "disc": [0, 130, 255], "bar": [255, 0, 40]}
INDEX = np.where(Y < 10, 2, DISC)
STORED = INDEX.astype(np.uint8)
PAINTED = np.array(list(COLOURS.values()), np.uint8)[INDEX]


def test_grey_in_three_channels_is_grey(tmp_path):
    grey = np.repeat(WHITE[..., None], 3, -1)
    opaque = np.dstack([grey, np.full(WHITE.shape, 255, np.uint8)])
    for label in (grey, opaque, np.repeat(STORED[..., None], 3, -1)):
        rules = {"classes": 3} if label.max() < 3 else {"binary": True}
        np.testing.assert_array_equal(read(tmp_path, label, **rules), INDEX if "classes" in rules
                                      else DISC)
    holes = opaque.copy()
    holes[0, 0, 3] = 0
    assert "transparency, has values from 0 to 255" in refused(holes, binary=True)


def test_a_palette_is_read_by_index_whatever_its_colours(tmp_path):
    palette = Image.fromarray(np.where(STORED == 2, 255, STORED).astype(np.uint8))
    palette.putpalette([9, 9, 9, 255, 0, 0] + [7, 7, 7] * 254)
    files = pair(tmp_path, WHITE)
    palette.save(files.label)
    assert Image.open(files.label).mode == "P"
    found = LabelledImages([files], ignore_index=255)[0][1]
    np.testing.assert_array_equal(found, np.where(INDEX == 2, VOID, INDEX))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_of_whole_numbers_are_class_indices(tmp_path, dtype):
    require("tifffile")
    import tifffile

    files = pair(tmp_path, WHITE, ".tif")
    tifffile.imwrite(files.label, INDEX.astype(dtype))
    if dtype == np.float32:  # Pillow reads no others
        np.testing.assert_array_equal(LabelledImages([files], classes=3)[0][1], INDEX)
    np.testing.assert_array_equal(make_rules(3).indices(INDEX.astype(dtype), 2), INDEX)
    text = refused(INDEX.astype(dtype) / 2, classes=3)
    assert f"fractions in {(INDEX == 1).sum()} places, such as 0.5" in text
    assert "NaN" in refused(np.full((4, 4), np.nan, dtype), threshold=0.5)
    soft = np.clip(25.5 - FAR, 0, 1).astype(dtype)
    assert "threshold=0.5 (--threshold 0.5)" in refused(soft)
    np.testing.assert_array_equal(make_rules(threshold=0.5).indices(soft, 2), soft >= 0.5)


def test_colours_are_classes_in_the_order_of_the_file(tmp_path):
    (tmp_path / "colours.json").write_text(json.dumps(COLOURS))
    for colours in (COLOURS, tmp_path / "colours.json", str(tmp_path / "colours.json")):
        found = read(tmp_path, PAINTED, classes=3, label_colours=colours)
        np.testing.assert_array_equal(found, INDEX)
    found = read(tmp_path, PAINTED, classes=1, label_colours=COLOURS, ignore_index=2)
    np.testing.assert_array_equal(found, np.where(INDEX == 2, VOID, INDEX))
    text = refused(PAINTED, classes=3)
    assert "colours, [0, 0, 0] (" in text and "label_colours=... (--label-colours)" in text
    two = {name: COLOURS[name] for name in ("background", "disc")}
    text = refused(PAINTED, label_colours=two)
    assert "it has 1 colours that are no class, in 960 pixels: [255, 0, 40] (960 pixels)" in text
    assert "no colours, but numbers" in refused(INDEX, classes=3, label_colours=COLOURS)


@pytest.mark.parametrize("rules, message", [
    ({"threshold": 0}, "threshold must be a number above 0, got 0"),
    ({"threshold": 3, "classes": 3}, "needs classes=1 or multilabel=True, got classes=3"),
    ({"binary": True, "classes": 3}, "binary=True needs classes=1"),
    ({"ignore_index": 0}, "leaves out the background"),
    ({"ignore_index": 2.5}, "sequence of whole numbers"),
    ({"ignore_index": [1, "a"]}, "ignore_index must be a whole number"),
    ({"classes": 3, "label_colours": COLOURS, "multilabel": True}, "must be left out"),
    ({"classes": 2, "label_colours": COLOURS}, r"\['background', 'disc', 'bar'\], numbered to 2"),
    ({"label_colours": {"a": [0, 0]}}, "must be 3 numbers, red, green and blue"),
    ({"label_colours": {"a": [0, 0, 0], "b": [0, 0, 0]}}, "'a' and 'b' have the same colour"),
    ({"label_colours": {"a": [0, 0, 70000]}}, "from 0 to 65535, got 70000"),
    ({"label_colours": {}}, "must be an object of names and colours"),
    ({"label_colours": "nowhere.json"}, r"cannot read label_colours nowhere\.json"),
])
def test_rules_that_make_no_sense_are_refused(rules, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_rules(**rules)


# -- void ------------------------------------------------------------------------------------------

VALUES = np.arange(36).reshape(6, 6) % 12  # the layout of CamVid: 0 to 10, and 11 without a class


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_camvid_has_11_classes_and_void(dtype):
    stored = VALUES.astype(dtype)
    found = make_rules(11, ignore_index=11).indices(stored, 2)
    np.testing.assert_array_equal(found, np.where(VALUES == 11, VOID, VALUES))
    assert "values from 0 to 11; with classes=11 they must be from 0 to 10. Others are 11 (3 " \
           "pixels)" in refused(stored, classes=11)


def test_several_values_have_no_class_also_negative_ones():
    stored = np.array([[0, 1, 2], [255, -1, 254]], np.int16)
    found = make_rules(3, ignore_index=[255, -1, 254]).indices(stored, 2)
    assert found.tolist() == [[0, 1, 2], [VOID] * 3]
    assert "down to -1; if they mark pixels without a class, use ignore_index=-1" in refused(
        stored, binary=True, ignore_index=[254, 255])
    ade = make_rules(151, ignore_index=0).indices(np.arange(151).reshape(1, -1), 2)
    assert ade.dtype == np.int16 and ade[0].tolist() == [VOID, *range(1, 151)]


@pytest.mark.parametrize("classes, dtype", [(1, np.int8), (128, np.int8), (129, np.int16),
                                            (40_000, np.int32)])
def test_class_indices_and_void_fit_their_type(classes, dtype):
    last = max(classes - 1, 1)
    found = make_rules(classes, ignore_index=last + 7).indices(np.array([[0, last, last + 7]]), 2)
    assert found.dtype == dtype and found.tolist() == [[0, last, VOID]]


@pytest.mark.parametrize("several, dims", product([False, True], [2, 3]))
def test_patches_keep_void_and_are_never_centred_on_it(tmp_path, several, dims):
    shape = (30,) * dims
    label = np.full(shape, 255, np.uint8)  # mostly void
    label[(slice(4, 8),) * dims] = 0
    label[(slice(5, 7),) * dims] = 1
    stored = np.stack([label, np.where(label == 1, 0, label)], -1) if several else label
    image = np.where(label == 255, 200, label).astype(np.uint8)
    rules = {"classes": 2, "multilabel": True} if several else {}
    if dims == 3:
        files = Pair(tmp_path / "i.npy", tmp_path / "l.npy")
        np.save(files.image, image)
        np.save(files.label, stored)
    else:
        files = Pair(tmp_path / "i.png", tmp_path / "l.tif")
        Image.fromarray(image).save(files.image)
        Image.fromarray(label).save(files.label)
    if several and dims == 2:  # two channels, which no PNG has: as RGB of three classes
        Image.fromarray(np.dstack([stored, stored[..., 1:]])).save(files.label)
        rules["classes"] = 3
    images = LabelledImages([files], ignore_index=255, **rules)
    assert 0 < images.foreground <= 2 ** dims / 4 ** dims
    patches = Patches(images, 3, lambda part, moments: torch.from_numpy(
        part.astype(np.float32))[None, None], foreground=1.0, seed=1)
    for number in range(30):
        patch, target = patches[number]
        first = target[0] if several else target
        assert target.dtype == torch.int64 and first.shape == patch.shape[1:] == (3,) * dims
        assert first[(1,) * dims] == 1  # the middle
    patches = Patches(images, 16, patches.prepare, foreground=0.0, seed=1)
    for patch, target in map(patches.__getitem__, range(20)):
        first = target[0] if several else target
        assert {*first.unique().tolist()} <= {VOID, 0, 1}
        assert ((patch[0] > patch.median() + 50) == (first == VOID)).all() or (
            first == VOID).float().mean() > 0.5  # turned together
        if (first == 1).any():
            assert patch[0][first == VOID].min() > patch[0][first != VOID].max()


def test_a_multilabel_file_has_a_channel_for_each_class(tmp_path):
    stored = np.stack([WHITE, 255 * (FAR < 12), np.where(Y < 10, 7, 0)], -1).astype(np.uint8)
    found = read(tmp_path, stored, classes=3, multilabel=True, ignore_index=7)
    planes = np.stack([DISC, FAR < 12, np.where(Y < 10, VOID, 0)], -1)
    np.testing.assert_array_equal(found, planes)
    assert "3 channels; with multilabel=True and classes=2" in refused(
        stored, classes=2, multilabel=True)
    one = read(tmp_path, WHITE, classes=1, multilabel=True)
    np.testing.assert_array_equal(one, DISC[..., None])
    shaded = np.stack([WHITE, SHADED["blurred"]], -1)
    assert "no clean mask" in refused(shaded, classes=2, multilabel=True)
    found = make_rules(2, multilabel=True, threshold=128).indices(shaded, 2)
    np.testing.assert_array_equal(found, shaded >= 128)
