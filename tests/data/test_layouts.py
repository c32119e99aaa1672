"""How files are found, paired and divided: against brute force, and along people's data sets."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from nestedseg.cli import build_parser, main
from nestedseg.cli.files import find_files, find_images
from nestedseg.data import (
    LabelledImages,
    LabelledInstances,
    Pair,
    find_pairs,
    list_images,
    split_pairs,
)
from nestedseg.data.layouts.lists import list_named, read_list
from nestedseg.data.layouts.parts import find_class_masks, find_object_masks
from nestedseg.data.layouts.splits import fold_pairs

SIDE = 32


def touch(*paths):
    """Empty files: pairing opens none."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def names(pairs, folder):
    return [(pair.image.relative_to(folder).as_posix(), pair.label.relative_to(folder).as_posix())
            for pair in pairs]


# -- folders --------------------------------------------------------------------------------------


def brute_force(images, labels, image_suffix, label_suffix):
    """The pairs, each image with each label; by the texts of paths."""
    def stem(path, folder, suffix):
        name = os.path.splitext(os.path.relpath(path, folder))[0]
        return name[:len(name) - len(suffix)] if name.endswith(suffix) else None

    def files(folder):
        return [os.path.join(place, file) for place, _, found in os.walk(folder) for file in found]

    return sorted((image, label) for image in files(images) for label in files(labels)
                  if stem(image, images, image_suffix) is not None
                  and stem(image, images, image_suffix) == stem(label, labels, label_suffix))


@pytest.mark.parametrize("seed", range(30))
def test_random_trees_are_paired_as_by_brute_force(tmp_path, seed):
    rng = np.random.default_rng(seed)
    endings = ["", "_mask", "_x", ".y"]
    image_suffix, label_suffix = rng.choice(endings, 2)
    words = rng.choice(["a", "b", "ab", "a_b", "a_mask", "7", "a.y"], 4, replace=False)
    folders = [*rng.choice(["", "p", "q/r", "p/p"], 3, replace=False)]
    for word in words:
        folder = rng.choice(folders)
        touch(tmp_path / "i" / folder / f"{word}{image_suffix}.{rng.choice(['jpg', 'tif'])}",
              tmp_path / "l" / folder / f"{word}{label_suffix}.{rng.choice(['png', 'PNG'])}")
    found = find_pairs(tmp_path / "i", tmp_path / "l", image_suffix=str(image_suffix),
                       label_suffix=str(label_suffix), recursive=True)
    wanted = brute_force(tmp_path / "i", tmp_path / "l", image_suffix, label_suffix)
    assert sorted((str(pair.image), str(pair.label)) for pair in found) == wanted
    assert len(found) == 4


def test_images_and_labels_in_one_folder(tmp_path):
    touch(*(tmp_path / name for name in ("a.jpg", "a_mask.png", "b_mask.jpg", "b_mask_mask.png")))
    with pytest.raises(ValueError, match=r"b_mask\.jpg has no image"):
        find_pairs(tmp_path, tmp_path, label_suffix="_mask")
    (tmp_path / "b_mask.jpg").unlink()
    (tmp_path / "b_mask_mask.png").unlink()
    assert names(find_pairs(tmp_path, tmp_path, label_suffix="_mask"), tmp_path) == [
        ("a.jpg", "a_mask.png")]
    with pytest.raises(ValueError, match=r"same folder.* end differently.*--label-suffix _mask"):
        find_pairs(tmp_path, tmp_path)


def test_other_files_are_ignored_with_suffixes(tmp_path):
    touch(*(tmp_path / "i" / name for name in ("a_img.png", "a_preview.png", ".hidden_img.png")),
          *(tmp_path / "l" / name for name in ("a_seg.png", "a_seg_colour.png", "notes.txt")))
    assert names(find_pairs(tmp_path / "i", tmp_path / "l", image_suffix="_img",
                            label_suffix="_seg"), tmp_path) == [("i/a_img.png", "l/a_seg.png")]
    with pytest.raises(ValueError, match=r"ends in '_x', .* ends in '_y'"):
        find_pairs(tmp_path / "i", tmp_path / "l", image_suffix="_x", label_suffix="_y")


def test_a_zarr_folder_is_one_file_and_is_not_searched(tmp_path):
    touch(tmp_path / "s/a.zarr/0/x.png", tmp_path / "s/.git/x.png", tmp_path / "s/t/b.tif")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path, True)]
    assert found == ["s/a.zarr", "s/t/b.tif"]
    (tmp_path / "s/t/loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(list_images(tmp_path, recursive=True)) == 2
    with pytest.raises(ValueError, match=r"no images; .*Found: 1 subfolders \(s\)"):
        list_images(tmp_path)


# -- the nearest layout ---------------------------------------------------------------------------

TREES = {  # files, the folders of images and labels, and what the message must say
    "--label-suffix _mask": (["i/1.jpg", "i/2.jpg", "l/1_mask.png", "l/2_mask.png"], "i", "l"),
    "--image-suffix _leftImg8bit --label-suffix _gtFine_labelTrainIds --recursive": (
        ["i/x/x_1_leftImg8bit.png", "i/y/y_2_leftImg8bit.png", "l/x/x_1_gtFine_labelTrainIds.png",
         "l/y/y_2_gtFine_labelTrainIds.png"], "i", "l"),
    "--recursive": (["i/x/1.png", "i/y/1.png", "l/x/1.png", "l/y/1.png"], "i", "l"),
    "--label-parts instances --recursive": (
        ["s/a/images/a.png", "s/a/masks/b.png", "s/c/images/c.png", "s/c/masks/d.png"], "s", "s"),
    "--label-parts classes": (["i/1.jpg", "i/2.jpg", "l/sky/1.png", "l/sky/2.png", "l/sea/1.png",
                               "l/sea/2.png"], "i", "l"),
    "--label-parts instances": (["i/1.jpg", "i/2.jpg", "l/1/a.png", "l/2/b.png"], "i", "l"),
    "COCO": (["i/1.jpg", "l/instances.json"], "i", "l"),
    "--list FILE": (["i/1.jpg", "i/2.jpg", "i/3.jpg", "l/1.png", "l/2.png", "train.txt"],
                    "i", "l"),
    "--list pairs.csv": (["i/1.jpg", "i/2.jpg", "l/x.png"], "i", "l"),
}


@pytest.mark.parametrize("wanted", TREES)
def test_an_error_shows_what_was_found_and_the_nearest_layout(tmp_path, wanted):
    files, images, labels = TREES[wanted]
    touch(*(tmp_path / file for file in files))
    with pytest.raises(ValueError) as error:
        find_pairs(tmp_path / images, tmp_path / labels)
    assert wanted in str(error.value) and "found in" in str(error.value)
    if wanted.startswith("--") and "list" not in wanted:
        assert str(error.value).endswith(f"The nearest layout fits: {wanted}")
        options = build_parser().parse_args(
            ["train", "--images", str(tmp_path / images), "--labels", str(tmp_path / labels),
             "--out", "run", *wanted.split()])
        options.val_fraction = 0.5
        assert len(find_files(options).train) == 1


def test_the_message_counts_by_suffix(tmp_path):
    touch(*(tmp_path / "i" / f"{n}.jpg" for n in range(5)), tmp_path / "l/a.gif",
          tmp_path / "l/b.gif", tmp_path / "l/sub/c.png")
    with pytest.raises(ValueError, match=r"5 \.jpg \(0\.jpg, 1\.jpg, 2\.jpg, \.\.\.\).*"
                                         r"2 \.gif \(a\.gif, b\.gif\), 1 subfolders \(sub\)"):
        find_pairs(tmp_path / "i", tmp_path / "l")


# -- lists ----------------------------------------------------------------------------------------


def test_the_layout_of_voc(tmp_path):
    touch(*(tmp_path / f"JPEGImages/2007_{n}.jpg" for n in range(4)),
          *(tmp_path / f"SegmentationClass/2007_{n}.png" for n in range(3)))
    sets = tmp_path / "ImageSets/Segmentation"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("2007_2\n\n# a comment\n2007_0\n")
    pairs = read_list(sets / "train.txt", tmp_path / "JPEGImages", tmp_path / "SegmentationClass")
    assert names(pairs, tmp_path) == [
        (f"JPEGImages/2007_{n}.jpg", f"SegmentationClass/2007_{n}.png") for n in (2, 0)]
    (sets / "train.txt").write_text("2007_2\n2007_3\n")
    with pytest.raises(ValueError, match=r"line 2, names the image '2007_3', which has no label; "
                                         r"looked in .*SegmentationClass.* 1 of 2 lines"):
        read_list(sets / "train.txt", tmp_path / "JPEGImages", tmp_path / "SegmentationClass")
    (sets / "train.txt").write_text("2007_2\n2007_9\n")
    with pytest.raises(ValueError, match="line 2, names no image that is there: '2007_9'"):
        read_list(sets / "train.txt", tmp_path / "JPEGImages", tmp_path / "SegmentationClass")


def test_the_layout_of_camvid(tmp_path):
    touch(*(tmp_path / f"{part}/0{n}.png" for part in ("train", "trainannot") for n in range(3)))
    (tmp_path / "train.txt").write_text("".join(
        f"/SegNet/CamVid/train/0{n}.png /SegNet/CamVid/trainannot/0{n}.png\n" for n in range(3)))
    wanted = [(f"train/0{n}.png", f"trainannot/0{n}.png") for n in range(3)]
    assert names(read_list(tmp_path / "train.txt"), tmp_path) == wanted
    assert list_named(tmp_path / "train.txt") == [tmp_path / image for image, _ in wanted]
    (tmp_path / "train/01.png").unlink()
    with pytest.raises(ValueError, match=r"line 2, .* '/SegNet/CamVid/train/01\.png'.* 1 of 3"):
        read_list(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_text("other/train/00.png trainannot/00.png\n")
    with pytest.raises(ValueError, match=r"line 1, names no image"):  # no full path: taken as it is
        read_list(tmp_path / "train.txt")


@pytest.mark.parametrize("gap", [" ", "\t", ",", ", ", "   "])
def test_names_with_spaces_are_told_by_the_files(tmp_path, gap):
    touch(tmp_path / "my image 1.png", tmp_path / "its mask 1.png")
    (tmp_path / "l.txt").write_text(f"my image 1.png{gap}its mask 1.png\r\n")
    assert names(read_list(tmp_path / "l.txt"), tmp_path) == [("my image 1.png", "its mask 1.png")]


def write_table(path, rows, comma=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=comma).writerows(rows)
    return path


@pytest.mark.parametrize("comma, suffix", [(",", "csv"), (";", "csv"), ("\t", "tsv")])
def test_a_table_of_images_labels_splits_and_groups(tmp_path, comma, suffix):
    touch(*(tmp_path / f"d/{n}.{kind}" for n in range(3) for kind in ("jpg", "png")))
    table = write_table(tmp_path / f"t.{suffix}", [
        ["Group", "image", "age", "split", "label"],
        ["x", "d/0.jpg", "7", "train", "d/0.png"], ["y", "d/1.jpg", "7", "test", "d/1.png"],
        ["", str(tmp_path / "d/2.jpg"), "7", "val", "d/2.png"]], comma)
    assert read_list(table) == [
        Pair(tmp_path / "d/0.jpg", tmp_path / "d/0.png", "x", "train"),
        Pair(tmp_path / "d/1.jpg", tmp_path / "d/1.png", "y", "test"),
        Pair(tmp_path / "d/2.jpg", tmp_path / "d/2.png", "", "val")]
    assert list_named(table, split="test") == [tmp_path / "d/1.jpg"]
    assert len(list_named(table)) == 3


@pytest.mark.parametrize("rows, message", [
    ([["img", "label"], ["a.png", "b.png"]], "'image'.*img,label.*did you mean 'image'"),
    ([["image", "label", "split"], ["a.png", "b.png", "tran"]],
     "line 2: unknown split 'tran'; did you mean 'train'"),
    ([["image", "label", "split"], ["a.png", "b.png", ""]], "line 2: unknown split ''"),
    ([["image", "label"], ["a.png"]], "line 2: 1 cells under 2 headings"),
    ([["image", "image"], ["a.png", "b.png"]], "2 columns 'image'"),
    ([["image", "label"], ["a.png", "b.png"], ["a.png", "b.png"]], "twice, in the lines 2 and 3"),
    ([["image", "label"], ["a.png", "x.png"]], "names no label that is there: 'x.png'"),
    ([["image"], ["a.png"]], r"no label; write the label into the list, or .*\(--labels\)"),
    ([["image", "label"]], "names no image"),
    ([["image", "label", "split", "group"], ["a.png", "b.png", "train", "g"],
      ["b.png", "a.png", "val", "g"]], "group 'g' are in the splits 'train' and 'val'"),
])
def test_what_is_wrong_in_a_table_is_named(tmp_path, rows, message):
    touch(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(ValueError, match=rf"t\.csv.*{message}"):
        read_list(write_table(tmp_path / "t.csv", rows))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\0" * 9, b"", b"image\n\"" + b"x" * 200_000,
                                     b"x" * 10_000])
@pytest.mark.parametrize("name", ["t.csv", "t.txt"])
def test_what_is_no_list_is_named(tmp_path, content, name):
    touch(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_list(tmp_path / name)
    with pytest.raises(ValueError, match="No such file"):
        read_list(tmp_path / "none" / name)


# -- several masks --------------------------------------------------------------------------------


def test_the_layout_of_the_data_science_bowl(tmp_path):
    wanted = {}
    rng = np.random.default_rng(0)
    for case in ("aa", "bb", "cc"):
        save(tmp_path / case / f"images/{case}.png", np.zeros((8, 9, 3), np.uint8))
        wanted[case] = rng.integers(0, 4, (8, 9))
        for number in range(1, 4):
            save(tmp_path / case / f"masks/{number}.png",
                 np.where(wanted[case] == number, 255, 0).astype(np.uint8))
    pairs = find_object_masks(tmp_path, tmp_path, recursive=True)
    assert [pair.image.stem for pair in pairs] == ["aa", "bb", "cc"]
    for pair in pairs:
        np.testing.assert_array_equal(pair.label.draw((8, 9)), wanted[pair.image.stem])
    assert LabelledInstances(pairs)[1][1].max() == 3
    save(tmp_path / "bb/masks/2.png", np.zeros((9, 8), np.uint8))
    with pytest.raises(ValueError, match=r"2\.png is 9 x 8, but its image is 8 x 9"):
        LabelledImages(pairs, binary=True)
    save(tmp_path / "bb/masks/2.png", np.arange(72, dtype=np.uint8).reshape(8, 9))
    with pytest.raises(ValueError, match=r"2\.png has 72 values.* expected 0 and one other"):
        LabelledImages(pairs, binary=True)
    os.rename(tmp_path / "cc/masks", tmp_path / "cc/mask")
    with pytest.raises(ValueError, match=r"4 of 6 images have no folder of masks"):
        find_object_masks(tmp_path, tmp_path, recursive=True)


def test_a_changed_mask_is_read_again(tmp_path):
    save(tmp_path / "i/a.png", np.zeros((8, 9), np.uint8))
    mask = np.zeros((8, 9), np.uint8)
    for number in range(3):
        mask[number] = 1
        save(tmp_path / f"l/a/{number}.png", mask)
    pairs = find_object_masks(tmp_path / "i", tmp_path / "l")
    assert LabelledImages(pairs, binary=True, cache=tmp_path / "c")[0][1].sum() == 27
    mask[:] = 1
    save(tmp_path / "l/a/2.png", mask)
    os.utime(tmp_path / "l/a/2.png", (1, 1))
    images = LabelledImages(pairs, binary=True, cache=tmp_path / "c")
    assert images[0][1].sum() == 72 and images.foreground == 1


def class_folders(folder, count=4):
    """Overlapping classes, as folders and as channels."""
    rng = np.random.default_rng(1)
    sets = rng.random((count, SIDE, SIDE, 3)) < 0.4
    for index, each in enumerate(sets):
        save(folder / f"i/{index}.png", (200 * each[..., 0] + 20).astype(np.uint8))
        save(folder / f"channels/{index}.png", np.where(each, 255, 0).astype(np.uint8))
        for place, name in enumerate(("sea", "sky", "town")):
            save(folder / f"l/{name}/{index}.png", each[..., place].astype(np.uint8))
    return sets


def test_a_folder_for_each_class(tmp_path):
    sets = class_folders(tmp_path)
    pairs, found = find_class_masks(tmp_path / "i", tmp_path / "l")
    assert found == ["sea", "sky", "town"]
    images = LabelledImages(pairs, classes=3, multilabel=True, cache=tmp_path / "c")
    for index, wanted in enumerate(sets):
        np.testing.assert_array_equal(images[index][1], wanted)
    assert images.foreground == pytest.approx(sets.any(-1).mean())
    pairs, found = find_class_masks(tmp_path / "i", tmp_path / "l", class_names=["town", "sea"])
    assert found == ["town", "sea"]
    np.testing.assert_array_equal(pairs[0].label.draw((SIDE, SIDE)), sets[0][..., [2, 0]])
    with pytest.raises(ValueError, match="unknown class 'twon'; did you mean 'town'"):
        find_class_masks(tmp_path / "i", tmp_path / "l", class_names=["twon"])
    (tmp_path / "l/sky/2.png").unlink()
    with pytest.raises(ValueError, match=r"2\.png has no label .*sky"):
        find_class_masks(tmp_path / "i", tmp_path / "l")


# -- dividing -------------------------------------------------------------------------------------


def grouped(rng, count=60, groups=12):
    return [Pair(f"{n}", f"{n}", f"g{g}" if g else "")
            for n, g in enumerate(rng.integers(0, groups, count))]


@pytest.mark.parametrize("seed", range(10))
def test_folds_are_disjoint_whole_and_keep_groups(seed):
    rng = np.random.default_rng(seed)
    pairs = grouped(rng)
    folds = [fold_pairs(pairs, fold, 5, seed) for fold in range(5)]
    assert folds == [fold_pairs(pairs, fold, 5, seed) for fold in range(5)]
    assert sorted(pair.image for _, held_out in folds for pair in held_out) == sorted(
        pair.image for pair in pairs)
    largest = max(sum(pair.group == group for pair in pairs)
                  for group in {pair.group for pair in pairs} - {""})
    sizes = [len(held_out) for _, held_out in folds]
    assert max(sizes) - min(sizes) <= largest
    for train, held_out in folds:
        assert len(train) + len(held_out) == len(pairs)
        assert not ({pair.group for pair in train} & {pair.group for pair in held_out}) - {""}


def test_folds_without_groups_differ_by_one_image_at_most():
    pairs = [Pair(f"{n}", f"{n}") for n in range(23)]
    assert sorted(len(fold_pairs(pairs, fold, 5)[1]) for fold in range(5)) == [4, 4, 5, 5, 5]
    assert fold_pairs(pairs, 0, 5, 1) != fold_pairs(pairs, 0, 5, 2)
    for fold, folds, message in ((5, 5, "must be from 0 to 4, got 5"), (-1, 5, "from 0 to 4"),
                                 (0, 1, "from 2 to"), (0, 24, "at least 24 images, got 23")):
        with pytest.raises(ValueError, match=message):
            fold_pairs(pairs, fold, folds)


@pytest.mark.parametrize("seed", range(10))
def test_a_random_split_keeps_groups_and_nearly_its_fraction(seed):
    pairs = grouped(np.random.default_rng(seed))
    train, held_out = split_pairs(pairs, 0.25, seed)
    assert not ({pair.group for pair in train} & {pair.group for pair in held_out}) - {""}
    assert len(train) + len(held_out) == 60 and abs(len(held_out) - 15) <= 5
    large = [Pair(f"{n}", f"{n}", "a" if n < 50 else "b") for n in range(60)]
    assert len(split_pairs(large, 0.1, seed)[1]) == 10
    with pytest.raises(ValueError, match="at least 2 groups of images"):
        split_pairs(large[:50], 0.1)


# -- the command line -----------------------------------------------------------------------------


def train_options(*words):
    return build_parser().parse_args(["train", "--out", "run", *map(str, words)])


def train(out, *words):
    return main(["train", "--widths", "4", "8", "--epochs", "1", "--steps", "1", "--batch", "2",
                 "--patch", "16", "--out", str(out), *map(str, words)])


def table_of(run):
    with (run / "files.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten pictures of three classes in a folder for each city, with a table of splits."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = [["image", "label", "split", "group"]]
    for index in range(10):
        label = rng.integers(0, 2, (SIDE, SIDE)).astype(np.uint8)
        names = (f"images/c{index % 2}/{index}_photo.png", f"labels/c{index % 2}/{index}_mask.png")
        save(folder / names[0], 200 * label + 20)
        save(folder / names[1], label)
        split = ("train", "train", "train", "val", "test")[index // 2]
        rows.append([*names, split, f"p{index // 2}"])
    write_table(folder / "all.csv", rows)
    write_table(folder / "groups.csv", [[*row[:2], row[3]] for row in rows])
    return folder


NESTED_OPTIONS = ("--image-suffix", "_photo", "--label-suffix", "_mask", "--recursive")


def test_training_and_predicting_by_a_table(pictures, tmp_path):
    assert train(tmp_path / "run", "--list", pictures / "all.csv") == 0
    rows = table_of(tmp_path / "run")
    assert [row["split"] for row in rows] == ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    assert {row["group"] for row in rows if row["split"] == "test"} == {"p4"}
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["validation"] == ["6_photo.png", "7_photo.png"]
    for listing in (pictures / "all.csv", tmp_path / "run/files.csv"):
        out = tmp_path / listing.stem
        assert main(["predict", str(tmp_path / "run/model"), str(listing), "--split", "test",
                     "--out", str(out)]) == 0
        assert sorted(path.name for path in (out / "masks").iterdir()) == [
            "8_photo.png", "9_photo.png"]
    files = find_files(train_options("--list", tmp_path / "run/files.csv"))
    assert [len(part) for part in files] == [6, 2, 2]  # a run can be repeated by its table


def test_folds_on_the_command_line_keep_groups(pictures):
    seen = []
    for fold in range(5):
        files = find_files(train_options("--list", pictures / "groups.csv", "--fold", fold,
                                         "--folds", 5))
        assert len({pair.group for pair in files.validation}) == 1 and len(files.train) == 8
        seen += [pair.image for pair in files.validation]
    assert len({*seen}) == 10


def test_nested_folders_with_suffixes_on_the_command_line(pictures):
    folders = ("--images", pictures / "images", "--labels", pictures / "labels")
    files = find_files(train_options(*folders, *NESTED_OPTIONS))
    assert len(files.train) == 8 and len(files.validation) == 2
    args = build_parser().parse_args(["predict", "m", str(pictures / "images"), "--out", "o",
                                      "--recursive", "--image-suffix", "_photo"])
    assert len(find_images(args)) == 10


@pytest.mark.parametrize("words, message", [
    ((), "give --images and --labels, or --list"),
    (("--images", "images"), "give --images and --labels, or --list"),
    (("--list", "all.csv", "--fold", "1"), "--fold and --folds together"),
    (("--list", "all.csv", "--fold", "0", "--folds", "5"), "says which images are for validation"),
    (("--list", "all.csv", "--val-list", "all.csv"), "says which images are for validation"),
    (("--list", "all.csv", "--label-parts", "classes"), "classes needs --images and --labels"),
    (("--list", "all.csv", "--label-parts", "channels", "--binary"), "leave it out with --binary"),
])
def test_options_that_contradict_each_other(pictures, monkeypatch, words, message):
    monkeypatch.chdir(pictures)
    with pytest.raises(ValueError, match=message):
        find_files(train_options(*words))


def test_images_for_both_training_and_validation_are_told(pictures, capsys):
    table = pictures / "groups.csv"
    assert len(find_files(train_options("--list", table, "--val-list", table)).train) == 10
    assert "10 images are both for training and for validation" in capsys.readouterr().err


def test_predict_says_what_it_needs(pictures, tmp_path):
    def chosen(*words):
        return find_images(build_parser().parse_args(["predict", "m", "--out", "o",
                                                      *map(str, words)]))

    with pytest.raises(ValueError, match="both lists; give one of them"):
        chosen(pictures / "all.csv", "--list", pictures / "groups.csv")
    with pytest.raises(ValueError, match="--split needs a list"):
        chosen(pictures / "images", "--split", "test")
    with pytest.raises(ValueError, match=r"no image of the split 'test'; it has .*'train': 0"):
        chosen(pictures / "groups.csv", "--split", "test")
    touch(tmp_path / "a/x.png", tmp_path / "b/x.png")
    with pytest.raises(ValueError, match="2 of the images have the name x"):
        chosen(tmp_path, "--recursive")


@pytest.mark.parametrize("parts", ["classes", "channels"])
def test_training_with_classes_that_overlap(tmp_path, parts):
    class_folders(tmp_path)
    labels = tmp_path / ("l" if parts == "classes" else "channels")
    assert train(tmp_path / "run", "--images", tmp_path / "i", "--labels", labels,
                 "--label-parts", parts) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["model"]["task"] == "multilabel" and metrics["model"]["classes"] == 3
    assert metrics["model"]["class_names"] == (
        ["sea", "sky", "town"] if parts == "classes" else None)
    assert 0 < metrics["depths"][0]["dice"] <= 1


def test_training_from_a_coco_file(tmp_path):
    rng = np.random.default_rng(0)
    data = {"images": [], "annotations": [], "categories": [{"id": 8, "name": "cell"},
                                                            {"id": 2, "name": "gap"}]}
    for index in range(4):
        save(tmp_path / f"i/{index}.png", rng.integers(0, 255, (SIDE, SIDE)).astype(np.uint8))
        data["images"].append({"id": index, "file_name": f"{index}.png", "width": SIDE,
                               "height": SIDE})
        for category in (8, 2):
            data["annotations"].append({
                "id": 10 * index + category, "image_id": index, "category_id": category,
                "segmentation": [[0, 0, 20, 0, 20, category, 0, category]]})
    (tmp_path / "c.json").write_text(json.dumps(data))
    words = ("--images", tmp_path / "i", "--labels", tmp_path / "c.json")
    assert train(tmp_path / "run", *words) == 0
    model = json.loads((tmp_path / "run/metrics.json").read_text())["model"]
    assert model["class_names"] == ["background", "gap", "cell"] and model["classes"] == 3
    (tmp_path / "some.txt").write_text("2.png\n0.png\n")
    with pytest.raises(ValueError, match="leave out --label-parts and --label-suffix"):
        find_files(train_options(*words, "--label-suffix", "_mask"))
    chosen = find_files(train_options(*words, "--list", tmp_path / "some.txt"))
    assert {pair.image.name for part in chosen for pair in part} == {"0.png", "2.png"}
    args = train_options(*words, "--class-names", "cell")
    find_files(args)
    assert args.classes == 1 and args.class_names == ["cell"]
    with pytest.raises(ValueError, match=r"--classes 7 .* 3 classes: background, gap, cell"):
        find_files(train_options(*words, "--classes", 7))
