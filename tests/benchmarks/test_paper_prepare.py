"""The original downloads of the paper's data sets, made here in small, to images and labels."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from benchmarks.paper import lidc
from benchmarks.paper.prepare import main, prepare
from nestedseg.data import LabelledImages, find_pairs, read_image, read_label


def pairs(folder):
    return find_pairs(folder / "images", folder / "labels")


def test_isbi_2012_is_two_stacks(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 8, 9), np.uint8)
    labels = 255 * rng.integers(0, 2, (3, 8, 9), np.uint8)
    for kind, stack in (("volume", images), ("labels", labels)):
        first, *others = map(Image.fromarray, stack)
        first.save(tmp_path / f"train-{kind}.tif", save_all=True, append_images=others)
    assert prepare("isbi2012", tmp_path, tmp_path / "em") == 3
    found = LabelledImages(pairs(tmp_path / "em"))
    assert [pair.image.name for pair in found.pairs] == ["00.png", "01.png", "02.png"]
    for index in range(3):
        np.testing.assert_array_equal(found[index][0], images[index])
        np.testing.assert_array_equal(found[index][1], labels[index] > 0)


def test_dsb_2018_is_a_mask_for_each_nucleus(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (6, 7, 4), np.uint8)
    grey = np.repeat(image[..., :1], 4, axis=2)
    for name, picture in (("ab", image), ("cd", grey)):
        for kind in ("images", "masks"):
            (tmp_path / "train" / name / kind).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "train" / name / "images" / f"{name}.png")
        for index in range(2):
            mask = np.zeros((6, 7), np.uint8)
            mask[3 * index:3 * index + 2, 1:4] = 255
            Image.fromarray(mask).save(tmp_path / "train" / name / "masks" / f"{index}.png")
    assert prepare("dsb2018", tmp_path / "train", tmp_path / "nuclei") == 2
    colour, single = pairs(tmp_path / "nuclei")
    np.testing.assert_array_equal(read_image(colour.image), image[..., :3])
    np.testing.assert_array_equal(read_image(single.image), grey[..., 0])
    label = read_label(colour.label)
    assert label.dtype == np.uint16 and label[0, 1] == 1 and label[3, 3] == 2
    assert (label > 0).sum() == 12


def volume(values, path, spacing=(1.0, 2.0, 3.0), origin=(5.0, 6.0, 7.0)):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def test_brats_2013_is_a_meta_image_for_each_modality(tmp_path):
    rng = np.random.default_rng(0)
    names = ("MR_Flair", "MR_T1", "MR_T1c", "MR_T2", "OT")
    values = {name: rng.integers(0, 5, (4, 5, 6)).astype(np.int16) for name in names}
    for name, each in values.items():
        folder = f"VSD.Brain.XX.O.{name}.54"
        volume(each, tmp_path / "in" / "HG" / "0001" / folder / f"{folder}.mha")
    assert prepare("brats2013", tmp_path / "in", tmp_path / "brats") == 1
    found = LabelledImages(pairs(tmp_path / "brats"))
    assert found.pairs[0].image.name == "HG_0001.nii.gz"
    assert found.in_channels == 4 and found.spacings == [pytest.approx((3, 2, 1))]
    image, label = found[0]
    # NIfTI's x and y point the other way than those of ITK
    np.testing.assert_array_equal(image[..., 2], values["MR_T1c"][:, ::-1, ::-1])
    np.testing.assert_array_equal(label, values["OT"][:, ::-1, ::-1] > 0)
    next((tmp_path / "in").rglob("*MR_T2*.mha")).unlink()
    with pytest.raises(ValueError, match="0001 has no volume T2"):
        prepare("brats2013", tmp_path / "in", tmp_path / "brats")


def test_lits_is_nifti_and_only_the_liver_counts(tmp_path):
    rng = np.random.default_rng(0)
    scan = rng.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    label = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    volume(scan, tmp_path / "Batch 1" / "volume-7.nii")
    volume(label, tmp_path / "Batch 1" / "segmentation-7.nii", origin=(0.0, 0.0, 0.0))
    assert prepare("lits", tmp_path, tmp_path / "out") == 1
    found = LabelledImages(pairs(tmp_path / "out"))
    assert found.pairs[0].image.name == "007.nii.gz"
    np.testing.assert_array_equal(found[0][0], scan[:, ::-1, ::-1])
    np.testing.assert_array_equal(found[0][1], label[:, ::-1, ::-1] == 1)


# -- LIDC-IDRI -------------------------------------------------------------------------------------

SPACING = (0.5, 0.5, 2.0)  # of columns, rows, slices


def write_scan(folder, values):
    """A scan in DICOM, a file for each slice; their identifiers."""
    folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    uids = []
    for index in range(len(values)):
        uids.append(f"1.2.3.{index + 1}")
        plane = image[:, :, index]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        for key, value in {"0008|0018": uids[-1], "0020|000e": "1.2.3", "0020|000d": "1.2",
                           "0008|0060": "CT", "0020|0013": str(index), "0028|1052": "0",
                           "0028|1053": "1", "0020|0037": "1\\0\\0\\0\\1\\0",
                           "0020|0032": "\\".join(map(str, position))}.items():
            plane.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{len(values) - index}.dcm"))  # not in their order
        writer.Execute(plane)
    return uids


def outline(nodule, uid, points, inclusion="TRUE"):
    roi = ElementTree.SubElement(nodule, "roi")
    for name, text in (("imageSOP_UID", uid), ("inclusion", inclusion)):
        ElementTree.SubElement(roi, name).text = text
    for x, y in points:
        edge = ElementTree.SubElement(roi, "edgeMap")
        ElementTree.SubElement(edge, "xCoord").text = str(x)
        ElementTree.SubElement(edge, "yCoord").text = str(y)


def square(first, last):
    return [(first, first), (last, first), (last, last), (first, last)]


def test_lidc_is_dicom_and_what_four_readers_drew(tmp_path):
    scan = np.random.default_rng(0).integers(-1000, 400, (6, 40, 40)).astype(np.int16)
    folder = tmp_path / "in" / "LIDC-IDRI-0001" / "study" / "series"
    uids = write_scan(folder, scan)
    root = ElementTree.Element("LidcReadMessage", xmlns="http://www.nih.gov")
    for reader in range(4):
        nodule = ElementTree.SubElement(ElementTree.SubElement(root, "readingSession"),
                                        "unblindedReadNodule")
        if reader < 2:  # two of four: 10 x 10 pixels within the outline, in two slices
            outline(nodule, uids[2], square(9, 20))
            outline(nodule, uids[3], square(9, 20))
            outline(nodule, uids[3], square(12, 17), "FALSE")
        outline(nodule, uids[5], [(30, 30)])  # smaller than 3 mm: a point
        if reader == 3:  # one reader alone
            outline(nodule, uids[0], square(25, 35))
    ElementTree.ElementTree(root).write(folder / "069.xml")
    assert prepare("lidc", tmp_path / "in", tmp_path / "out") == 1
    found = LabelledImages(pairs(tmp_path / "out"))
    image, label = found[0]
    assert found.pairs[0].image.name == "LIDC-IDRI-0001_0.nii.gz"
    assert image.shape == label.shape == (64, 64, 64) and found.spacings[0] == (1, 1, 1)
    # 5 x 5 mm, 2 mm thick, twice; a hole of 4 x 4 pixels in the second
    assert 0.8 * 92 < label.sum() < 1.2 * 92
    middle = np.argwhere(label).mean(0)
    assert np.abs(middle - 32).max() < 2
    assert image.min() == lidc.AIR and image[label > 0].std() > 100


def test_another_folder_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds nothing of lits"):
        prepare("lits", tmp_path, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["prepare", "isbi2012", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit, match=r"train-volume\.tif"):
        main()
