"""Labels from polygons, circles and run lengths, against pycocotools, Pillow and arithmetic."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from nestedseg.data import LabelledImages, LabelledInstances
from nestedseg.data.layouts.coco import read_coco
from nestedseg.data.layouts.drawing import decode_runs, fill
from nestedseg.data.layouts.labelme import read_labelme

SHAPE = (40, 50)
mask_tools = pytest.importorskip("pycocotools.mask")


def polygon(rng, corners=8):
    """A polygon without crossings: corners around a centre, in the order of their angles."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(5, 20, corners)
    return np.stack([25 + radii * np.cos(angles), 20 + radii * np.sin(angles)], 1)


def filled(points, shape=SHAPE):
    inside = np.zeros(shape, bool)
    fill(inside, np.asarray(points, float))
    return inside


def contains(points, x, y):
    """Whether a point is inside, by the number of times that the outline turns around it."""
    angles = np.arctan2(points[:, 1] - y, points[:, 0] - x)
    turns = np.diff(np.append(angles, angles[0]))
    return abs(((turns + np.pi) % (2 * np.pi) - np.pi).sum()) > np.pi


def distance(points, x, y):
    """From a point to the outline."""
    start, end = points, np.roll(points, -1, 0)
    along, to = end - start, np.array([x, y]) - start
    share = np.clip((along * to).sum(1) / (along**2).sum(1), 0, 1)
    return np.linalg.norm(to - share[:, None] * along, axis=1).min()


# -- polygons -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_pixel_is_inside_if_its_centre_is(seed):
    points = polygon(np.random.default_rng(seed))
    wanted = [[contains(points, x + 0.5, y + 0.5) for x in range(SHAPE[1])]
              for y in range(SHAPE[0])]
    np.testing.assert_array_equal(filled(points), wanted)


@pytest.mark.parametrize("seed", range(20))
def test_pycocotools_differs_only_where_the_outline_passes_a_centre(seed):
    points = polygon(np.random.default_rng(seed))
    theirs = mask_tools.decode(mask_tools.frPyObjects([points.ravel().tolist()], *SHAPE))[..., 0]
    ours = filled(points)
    for y, x in np.argwhere(ours != theirs):  # it rounds corners to fifths of a pixel
        assert distance(points, x + 0.5, y + 0.5) < 0.3
    assert ours.sum() == pytest.approx(theirs.sum(), rel=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_pillow_differs_only_along_the_outline(seed):
    points = polygon(np.random.default_rng(seed))
    picture = Image.new("1", SHAPE[::-1])
    ImageDraw.Draw(picture).polygon([tuple(point) for point in points - 0.5], fill=1)
    for y, x in np.argwhere(filled(points) != np.asarray(picture)):
        assert distance(points, x + 0.5, y + 0.5) < 1.5  # it rounds corners, and paints the outline


def test_a_rectangle_by_hand():
    assert np.argwhere(filled([[2, 1], [4, 1], [4, 2], [2, 2]])).tolist() == [[1, 2], [1, 3]]
    assert np.argwhere(filled([[2.5, 1.5], [4.5, 1.5], [4.5, 2.5], [2.5, 2.5]])).tolist() == [
        [1, 2], [1, 3]]  # a centre on the outline counts on the left and the upper side only
    assert not filled([[2.6, 1.6], [3.4, 1.6], [3.4, 2.4], [2.6, 2.4]]).any()


@pytest.mark.parametrize("seed", range(20))
def test_polygons_that_tile_the_image_share_no_pixel_and_leave_none_out(seed):
    rng = np.random.default_rng(seed)
    middle = rng.integers(1, 79, 2) / 2 if seed % 2 else rng.uniform(1, 39, 2)
    corners = np.array([[0, 0], [50, 0], [50, 40], [0, 40]], float)
    counts = sum(filled([corners[k], corners[(k + 1) % 4], middle]).astype(int) for k in range(4))
    assert (counts == 1).all()


def test_lines_that_cross_are_filled_by_the_even_odd_rule():
    bow = [[0, 0], [20, 20], [20, 0], [0, 20]]
    assert filled(bow).sum() == pytest.approx(200, abs=20)
    twice = [[0, 0], [10, 0], [10, 10], [0, 10]] * 2
    assert not filled(twice).any()


def test_a_polygon_outside_or_larger_than_the_image():
    assert filled([[-9, -9], [99, -9], [99, 99], [-9, 99]]).all()
    assert not filled([[-9, -9], [-1, -9], [-1, 99]]).any()
    assert not filled([[60, 0], [70, 0], [70, 40]]).any()


@pytest.mark.parametrize("seed", range(20))
def test_compressed_run_lengths_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) < rng.random()
    text = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    runs = decode_runs(text, mask.size)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(SHAPE[::-1]).T
    np.testing.assert_array_equal(inside, mask)


# -- COCO -----------------------------------------------------------------------------------------


def runs_of(mask):
    """Uncompressed run lengths, by columns."""
    flat = np.concatenate([[0], mask.T.ravel().astype(int), [2]])
    ends = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], ends]))
    return {"size": list(mask.shape),
            "counts": [int(each) for each in counts]}


BLOCK = np.zeros(SHAPE, bool)
BLOCK[10:20, 5:15] = True
HOLE = BLOCK.copy()
HOLE[12:18, 7:13] = False


def square(left, top, side):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def coco(folder, change=None):
    """Two images, categories 7 and 3 in this order, with every kind of object."""
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folder / name)
    compressed = mask_tools.encode(np.asfortranarray(HOLE.astype(np.uint8)))
    data = {
        "images": [{"id": 9, "file_name": "b.png", "height": 40, "width": 50},
                   {"id": 4, "file_name": "sets/a.png", "height": 40, "width": 50},
                   {"id": 5, "file_name": "c.png"}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 3, "segmentation": [square(2, 2, 4)]},
            {"id": 2, "image_id": 9, "category_id": 7,
             "segmentation": [square(0, 0, 10), square(20, 20, 5)]},
            {"id": 3, "image_id": 4, "category_id": 7, "iscrowd": 1, "segmentation": {
                "size": [40, 50], "counts": compressed["counts"].decode()}},
            {"id": 4, "image_id": 4, "category_id": 3, "segmentation": {
                **runs_of(np.flip(BLOCK, (0, 1)))}}]}
    if change is not None:
        change(data)
    (folder / "c.json").write_text(json.dumps(data))
    return folder / "c.json"


def test_coco_becomes_classes(tmp_path):
    pairs, names = read_coco(coco(tmp_path), tmp_path)
    assert [pair.image.name for pair in pairs] == ["b.png", "a.png", "c.png"]
    assert names == ["background", "cat", "dog"]  # by their numbers, 3 and 7
    wanted = np.zeros(SHAPE, int)
    wanted[0:10, 0:10] = wanted[20:25, 20:25] = 2
    wanted[2:6, 2:6] = 1  # smaller, so on top
    np.testing.assert_array_equal(pairs[0].label.draw(SHAPE), wanted)
    wanted = np.where(HOLE, 2, np.where(np.flip(BLOCK, (0, 1)), 1, 0))
    np.testing.assert_array_equal(pairs[1].label.draw(SHAPE), wanted)
    images = LabelledImages(pairs, classes=3)
    np.testing.assert_array_equal(images[1][1], wanted)
    assert not images[2][1].any()


def test_coco_with_some_classes_in_an_order_of_ones_own(tmp_path):
    path = coco(tmp_path)
    for given, names, dog, cat in (
            (["dog", "cat"], ["background", "dog", "cat"], 1, 2),
            (["background", "dog"], ["dog"], 1, 0), (["dog"], ["dog"], 1, 0)):
        pairs, found = read_coco(path, tmp_path, class_names=given)
        label = pairs[0].label.draw(SHAPE)
        assert found == names and label[8, 8] == dog and label[3, 3] == (cat or dog)
    with pytest.raises(ValueError, match="no class 'dgo'; did you mean 'dog'"):
        read_coco(path, tmp_path, class_names=["dgo"])


def test_coco_becomes_instances_without_crowds(tmp_path):
    pairs, _ = read_coco(coco(tmp_path), tmp_path, instances=True)
    label = pairs[0].label.draw(SHAPE)
    assert label[0, 0] == label[22, 22] == 1 and label[3, 3] == 2 and label.max() == 2
    np.testing.assert_array_equal(pairs[1].label.draw(SHAPE), np.flip(BLOCK, (0, 1)))
    instances = LabelledInstances(pairs[:2])
    assert [instances[n][1].max() for n in (0, 1)] == [2, 1]


def test_the_cache_keeps_the_labels_of_one_file_apart(tmp_path):
    pairs, _ = read_coco(coco(tmp_path / "images"), tmp_path / "images")
    for _ in range(2):
        images = LabelledImages(pairs, classes=3, cache=tmp_path / "cache")
        for index, pair in enumerate(pairs):
            np.testing.assert_array_equal(images[index][1], pair.label.draw(SHAPE))
    other, _ = read_coco(tmp_path / "images/c.json", tmp_path / "images",
                         class_names=["dog", "cat"])
    images = LabelledImages(other, classes=3, cache=tmp_path / "cache")
    np.testing.assert_array_equal(images[0][1], other[0].label.draw(SHAPE))


def put(*places, value):
    """A change of a COCO file at a place."""
    def change(data):
        for place in places[:-1]:
            data = data[place]
        data[places[-1]] = value
    return change


NESTED = "[" * 100_000
WRONG = {
    "leads out of the folder": put("images", 0, "file_name", value="../b.png"),
    "leads out of the folder of": put("images", 0, "file_name", value="/etc/b.png"),
    "leads out of": put("images", 0, "file_name", value="C:\\b.png"),
    "1 of its 3 images are not in .*'d.png'": put("images", 0, "file_name", value="d.png"),
    "2 of its images have the file": put("images", 0, "file_name", value="a.png"),
    "its id 4 is that of another image": put("images", 0, "id", value=4),
    "same name": put("categories", 0, "name", value="cat"),
    "'name' is 5": put("categories", 0, "name", value=5),
    "annotation 0: its image 77": put("annotations", 0, "image_id", value=77),
    "or category 77": put("annotations", 0, "category_id", value=77),
    "'image_id' is None": put("annotations", 0, "image_id", value=None),
    "annotation 1: its points are": put("annotations", 0, "segmentation", value=[[1, 2, 3, 4]]),
    "at least 3 pairs": put("annotations", 0, "segmentation", value=[[1, 2, 3, 4, 5, 6, 7]]),
    "its points": put("annotations", 0, "segmentation", value=[[1, 2, 3, 4, 5, float("nan")]]),
    "its points are": put("annotations", 0, "segmentation", value=[["x"] * 6]),
    "Boxes alone": put("annotations", 0, "segmentation", value=[]),
    "do not add up": put("annotations", 3, "segmentation", "counts", value=[5]),
    "expected whole numbers": put("annotations", 3, "segmentation", "counts", value=[-5, 2005]),
    "have the letter": put("annotations", 2, "segmentation", "counts", value="ab\x7f"),
    "run of": put("annotations", 2, "segmentation", "counts", value="ooooooooooo1"),
    r"\[1, 1\] pixels, in an image of": put("annotations", 3, "segmentation", "size",
                                            value=[1, 1]),
    "'height' and 'width' are": put("images", 0, "height", value=-40),
    "'annotations' is": put("annotations", value={}),
    "0 of its 0 images": put("images", value=[]),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_in_a_coco_file_is_named(tmp_path, message):
    path = coco(tmp_path, WRONG[message])
    with pytest.raises(ValueError, match=rf"c\.json.*{message}"):
        read_coco(path, tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", NESTED, '{"images": ' + "9" * 5000 + "}"])
def test_a_file_that_is_no_coco_file_is_named(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json"):
        read_coco(tmp_path / "c.json", tmp_path)


def test_another_size_than_the_image_is_named(tmp_path):
    path = coco(tmp_path, put("images", 0, "width", value=49))
    with pytest.raises(ValueError, match=r"image 9 is of an image of 49 x 40 pixels.* 50 x 40"):
        LabelledImages(read_coco(path, tmp_path)[0], classes=3)


# -- labelme --------------------------------------------------------------------------------------


def labelme(folder, name, shapes, **more):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folder / f"{name}.jpg")
    rows = [{"label": label, "points": points, "shape_type": kind, "group_id": group}
            for label, points, kind, group in shapes]
    (folder / f"{name}.json").write_text(json.dumps(
        {"version": "5.0", "shapes": rows, "imageData": "AAAA", "imagePath": "../../etc/passwd",
         "imageHeight": 40, "imageWidth": 50} | more))


SHAPES = [("tree", [[0, 0], [10, 0], [10, 10], [0, 10]], "polygon", None),
          ("house", [[8, 12], [2, 2]], "rectangle", 1),
          ("house", [[30, 30], [30, 34]], "circle", 1),
          ("_background_", [[0, 0], [1, 0], [1, 1], [0, 1]], "polygon", None)]


def test_labelme_becomes_classes_and_instances(tmp_path):
    labelme(tmp_path, "a", SHAPES)
    labelme(tmp_path, "b", [], imageHeight=None, imageWidth=None)
    pairs, names = read_labelme(tmp_path, tmp_path)
    assert names == ["background", "house", "tree"]
    rows, columns = np.mgrid[:40, :50] + 0.5
    wanted = np.zeros(SHAPE, int)
    wanted[0:10, 0:10] = 2
    wanted[2:12, 2:8] = 1  # later, so on top
    wanted[(rows - 30) ** 2 + (columns - 30) ** 2 <= 16] = 1
    wanted[0, 0] = 0
    np.testing.assert_array_equal(pairs[0].label.draw(SHAPE), wanted)
    assert not pairs[1].label.draw(SHAPE).any()
    pairs, _ = read_labelme(tmp_path, tmp_path, instances=True)
    instances = np.where(wanted, 3 - wanted, 0)  # the tree is 1, the two shapes of a house are 2
    np.testing.assert_array_equal(pairs[0].label.draw(SHAPE), instances)


def test_labelme_with_names_given(tmp_path):
    labelme(tmp_path, "a", SHAPES)
    for given in (["tree", "house", "road"], ["background", "tree", "house", "road"]):
        pairs, names = read_labelme(tmp_path, tmp_path, class_names=given)
        assert names == ["background", "tree", "house", "road"]
        assert pairs[0].label.draw(SHAPE)[9, 9] == 1
    with pytest.raises(ValueError, match=r"a\.json: unknown class 'house'; did you mean 'hause'"):
        read_labelme(tmp_path, tmp_path, class_names=["tree", "hause"])


def test_labelme_in_subfolders_and_in_another_folder(tmp_path):
    labelme(tmp_path / "x", "a", SHAPES)
    pairs, _ = read_labelme(tmp_path, tmp_path, recursive=True)
    assert [pair.image.name for pair in pairs] == ["a.jpg"]
    (tmp_path / "labels").mkdir()
    (tmp_path / "x/a.json").rename(tmp_path / "labels/a.json")
    assert read_labelme(tmp_path / "x", tmp_path / "labels")[0][0].label.path.name == "a.json"
    (tmp_path / "labels/b.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b\.json has no image of the same name .* 1 of 2"):
        read_labelme(tmp_path / "x", tmp_path / "labels")
    Image.new("L", (3, 3)).save(tmp_path / "x/c.png")
    with pytest.raises(ValueError, match=r"c\.png has no \.json file"):
        read_labelme(tmp_path / "x", tmp_path / "labels")


@pytest.mark.parametrize("shape, message", [
    (("t", [[0, 0], [1, 1]], "line", None), "unknown shape 'line'; .*Allowed: polygon, rectangle"),
    (("t", [[0, 0], [1, 1]], "polygon", None), "shape 0: its points .* at least 3 pairs"),
    (("t", [[0, 0], [1, 1], [2, 2]], "circle", None), "a circle needs 2 points, got 3"),
    ((5, [[0, 0], [1, 1], [2, 2]], "polygon", None), "'label' is 5"),
    (("t", None, "polygon", None), "its points are None"),
])
def test_what_is_wrong_in_a_labelme_file_is_named(tmp_path, shape, message):
    labelme(tmp_path, "a", [shape])
    with pytest.raises(ValueError, match=rf"a\.json.*{message}"):
        read_labelme(tmp_path, tmp_path)
