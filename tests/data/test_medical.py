"""NRRD, MetaImage and DICOM through SimpleITK: equal to what nibabel gives for the same volume."""

import os
import re

import nibabel as nib
import numpy as np
import pytest
import torch

import nestedseg
from nestedseg.cli import main
from nestedseg.data import LabelledImages, Pair, find_pairs, list_images, new_mask, open_volume
from nestedseg.data.files import spatial_axes, split_name
from nestedseg.data.medical import open_itk
from nestedseg.data.volumes import mask_name

sitk = pytest.importorskip("SimpleITK")
SUFFIXES = [".nrrd", ".nhdr", ".mha", ".mhd"]


def turned(seed):
    """A matrix of axes in any order, either way and, for odd seeds, oblique."""
    rng = np.random.default_rng(seed)
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    if seed % 2:
        angle = rng.uniform(-0.3, 0.3)
        c, s = np.cos(angle), np.sin(angle)
        axes = axes @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return axes


def image_of(seed, kind=np.int16, shape=(4, 5, 6)):
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.integers(-99, 999, shape).astype(kind))
    image.SetSpacing([0.7, 1.3, 2.5])
    image.SetOrigin([3.0, -4.0, 5.5])
    image.SetDirection(turned(seed).ravel().tolist())
    return image


def same(one, other):
    """Whether two volumes have the same voxels at the same places."""
    np.testing.assert_array_equal(one[:], other[:])
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)
    np.testing.assert_allclose(one.spacing, other.spacing, rtol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("seed", range(8))
def test_a_volume_equals_that_of_nibabel(tmp_path, suffix, seed):
    image = image_of(seed, (np.int16, np.float32, np.uint8)[seed % 3])
    for name in (f"a{suffix}", "a.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
    same(open_volume(tmp_path / f"a{suffix}"), open_volume(tmp_path / "a.nii.gz"))
    opened, loaded = open_itk(tmp_path / f"a{suffix}"), nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(opened.read(), loaded.get_fdata())
    np.testing.assert_allclose(opened.image.affine, loaded.affine, atol=1e-5)
    assert nib.aff2axcodes(opened.image.affine) == nib.aff2axcodes(loaded.affine)


def test_the_axes_of_a_nrrd_file_in_nibabel_s_own_order(tmp_path):
    voxels = np.arange(24, dtype=np.int16).reshape(4, 3, 2)  # slowest first
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 2 3 4\n"
        b"space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (7,8,9)\nencoding: raw\n"
        b"endian: little\nkinds: domain domain domain\n\n" + voxels.tobytes())
    volume = open_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume[:], voxels)
    np.testing.assert_allclose(volume.affine, [[1, 0, 0, 7], [0, 2, 0, 8], [0, 0, 3, 9],
                                               [0, 0, 0, 1]])


def test_channels_come_last(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels, isVector=True)
    sitk.WriteImage(image, str(tmp_path / "a.mha"))
    volume = open_volume(tmp_path / "a.mha")
    assert volume.shape == (4, 5, 6) and volume.channels == 2
    np.testing.assert_array_equal(volume[:], voxels[:, ::-1, ::-1])  # from back and left


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("seed", range(4))
def test_a_mask_is_written_in_the_format_and_on_the_grid_of_its_volume(tmp_path, suffix, seed):
    sitk.WriteImage(image_of(seed), str(tmp_path / f"a{suffix}"))
    volume = open_volume(tmp_path / f"a{suffix}")
    own = {".nrrd": "a.nrrd", ".nhdr": "a.nrrd", ".mha": "a.mha", ".mhd": "a.mha"}[suffix]
    assert mask_name(volume) == own
    wanted = (volume[:] > 300).astype(np.uint8)
    for name in (own, "a.nii.gz", "a.nii"):
        path = tmp_path / f"mask_{name}"
        with new_mask(path, volume) as mask:
            mask[:] = wanted
        written = open_volume(path)
        np.testing.assert_array_equal(written.class_indices(), wanted)
        np.testing.assert_allclose(written.affine, volume.affine, atol=1e-5)
        LabelledImages([Pair(tmp_path / f"a{suffix}", path)])
    theirs = sitk.ReadImage(str(tmp_path / f"mask_{own}"))
    assert theirs.GetDirection() == pytest.approx(image_of(seed).GetDirection(), abs=1e-9)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    with pytest.raises(ValueError, match=rf"must be a {re.escape(own[1:])} or \.nii\.gz or \.nii"):
        new_mask(tmp_path / "mask.npy", volume).__enter__()


@pytest.mark.parametrize("header, name", [("a.mhd", "../../etc/passwd"), ("a.mhd", "LIST"),
                                          ("a.mhd", "/etc/passwd"), ("a.nhdr", "../secret.raw"),
                                          ("a.nhdr", "LIST"), ("a.mhd", "s%03d.raw 1 4 1")])
def test_a_header_that_leads_to_other_folders_is_refused(tmp_path, header, name):
    sitk.WriteImage(image_of(0), str(tmp_path / header))
    text = (tmp_path / header).read_text()
    text = re.sub(r"(ElementDataFile = |data file: ).*", rf"\g<1>{name}", text)
    (tmp_path / header).write_text(text)
    with pytest.raises(ValueError, match=rf"cannot read the volume .*{header}: its voxels are in"):
        open_volume(tmp_path / header)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:20],
                                    lambda data: data[:len(data) // 2], lambda data: bytes(99),
                                    lambda data: b"<html>" * 99])
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image_of(0), str(path), useCompression=False)
    path.write_bytes(damage(path.read_bytes()))
    if suffix in (".nhdr", ".mhd"):
        for raw in tmp_path.glob("a.*raw*"):
            raw.write_bytes(damage(raw.read_bytes()))
    with pytest.raises(ValueError, match=rf"cannot read the volume .*a\{suffix}"):
        open_volume(path)


def test_a_picture_in_a_nrrd_file_is_no_volume(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.uint8)), str(tmp_path / "a.nrrd"))
    with pytest.raises(ValueError, match="it has 2 axes; expected three"):
        open_volume(tmp_path / "a.nrrd")


def test_a_header_with_more_voxels_than_memory_is_refused(tmp_path):
    sitk.WriteImage(image_of(0), str(tmp_path / "a.mha"), useCompression=False)
    data = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(data.replace(b"DimSize = 6 5 4",
                                                  b"DimSize = 60000 50000 40000"))
    with pytest.raises(ValueError, match="too many pixels"):
        open_volume(tmp_path / "a.mha")


# -- DICOM ----------------------------------------------------------------------------------------


def write_series(folder, image, series="1.2.3", slope=None, name="", skip=(), intercept=-1024,
                 change=None):
    """Writes the slices of an image in a random order of names, as a scanner does."""
    folder.mkdir(parents=True, exist_ok=True)
    direction = np.reshape(image.GetDirection(), (3, 3))
    order = np.random.default_rng(0).permutation(image.GetSize()[2]).tolist()
    paths = []
    for place in range(image.GetSize()[2]):
        plane = image[:, :, place]
        tags = {"0008|0060": "CT", "0020|000e": series, "0020|000d": "1.2", "0008|103e": name,
                "0008|0018": f"{series}.{place + 1}", "0020|0013": str(place + 1),
                "0020|0032": "\\".join(f"{each:.6f}" for each in
                                       image.TransformIndexToPhysicalPoint((0, 0, place))),
                "0020|0037": "\\".join(f"{each:.9f}" for each in direction[:, :2].T.ravel()),
                "0018|0050": str(image.GetSpacing()[2])}
        if slope is not None:
            tags |= {"0028|1053": str(slope[place] if isinstance(slope, list) else slope),
                     "0028|1052": str(intercept)}
        tags |= change(place) if change else {}
        for key, value in tags.items():
            plane.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        path = folder / f"{name or 'IM'}{order[place]:04d}"
        if place not in skip:
            writer.SetFileName(f"{path}.dcm")
            writer.Execute(plane)
            os.rename(f"{path}.dcm", path)  # scanners' files often have no suffix
        paths.append(path)
    return paths


@pytest.mark.parametrize("seed", range(8))
def test_a_series_equals_the_volume_that_it_was(tmp_path, seed):
    image = image_of(seed, shape=(7, 5, 6))
    if np.linalg.det(turned(seed)) < 0:  # slices have no side: their normal makes a right hand
        direction = turned(seed)
        direction[:, 2] *= -1
        image.SetDirection(direction.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    write_series(tmp_path / "s", image)
    volume, wanted = open_volume(tmp_path / "s"), open_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume[:], wanted[:])
    np.testing.assert_allclose(volume.affine, wanted.affine, atol=1e-4)


def test_values_are_rescaled_to_hounsfield_units(tmp_path):
    voxels = np.random.default_rng(0).integers(-1000, 2000, (4, 5, 6)).astype(np.int16)
    image = sitk.GetImageFromArray(voxels)
    paths = write_series(tmp_path / "s", image, slope=1)
    for plane, path in zip(voxels, paths):  # the file ends with what is stored
        np.testing.assert_array_equal(np.frombuffer(path.read_bytes()[-60:], "<i2").reshape(5, 6),
                                      plane + 1024)
    volume = open_volume(tmp_path / "s")
    np.testing.assert_array_equal(volume[:], voxels[:, ::-1, ::-1])
    assert volume[:].min() < 0


def test_slices_that_are_scaled_unlike_each_other(tmp_path):
    voxels = np.full((4, 5, 6), 33, np.float64)
    slopes = [1, 0.5, 2.5, 0.1]
    voxels *= np.array(slopes)[:, None, None]
    stored = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
    write_series(tmp_path / "s", sitk.GetImageFromArray(voxels), slope=slopes, intercept=0,
                 change=lambda place: stored)
    np.testing.assert_allclose(open_volume(tmp_path / "s")[:], voxels, rtol=1e-6)


def test_a_missing_slice_is_named(tmp_path):
    paths = write_series(tmp_path / "s", image_of(0, shape=(7, 5, 6)), skip=(3,))
    with pytest.raises(ValueError) as error:
        open_volume(tmp_path / "s")
    names = {paths[2].name, paths[4].name}
    assert {*re.findall(r"IM\d+", str(error.value))} == names
    assert "1 slices seem to be missing" in str(error.value) and "5.000 mm apart" in str(
        error.value)


def test_uneven_doubled_and_sheared_slices_are_named(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((5, 4, 4), np.int16))
    cases = {"slices are uneven": lambda place: {"0020|0032": f"0\\0\\{place + (place == 2) * .3}"},
             "at the same place": lambda place: {"0020|0032": f"0\\0\\{min(place, 3)}"},
             "differ in orientation": lambda place: {} if place else {
                 "0020|0037": "1\\0\\0\\0\\0.8\\0.6"},
             "tilted gantry": lambda place: {"0020|0032": f"0\\{place * .5}\\{place}"}}
    for number, (message, change) in enumerate(cases.items()):
        write_series(tmp_path / f"s{number}", image, change=change)
        with pytest.raises(ValueError, match=rf"s{number}: .*{message}"):
            open_volume(tmp_path / f"s{number}")


def test_several_series_in_a_folder_are_listed(tmp_path):
    for number, name in enumerate(("lung", "bone")):
        write_series(tmp_path / "s", image_of(0), f"1.2.{number + 5}", name=name)
    with pytest.raises(ValueError, match=r"it contains 2 DICOM series, .*4 files .*'bone'|'lung'"):
        open_volume(tmp_path / "s")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no DICOM images"):
        open_volume(tmp_path / "none")


def test_series_are_listed_paired_and_segmented(tmp_path, monkeypatch):
    for index in range(2):
        name = f"1.2.{index}"  # folders are named like this
        image = image_of(0, shape=(8, 16, 16))
        image.SetDirection(np.eye(3).ravel().tolist())
        write_series(tmp_path / "images" / name, image)
        (tmp_path / "labels").mkdir(exist_ok=True)
        sitk.WriteImage(sitk.Cast(image > 300, sitk.sitkUInt8),
                        str(tmp_path / "labels" / f"{name}.nii.gz"))
    paths = list_images(tmp_path / "images")
    assert [split_name(path) for path in paths] == [("1.2.0", ""), ("1.2.1", "")]
    assert spatial_axes(paths) == 3
    with pytest.raises(ValueError, match="slices of a DICOM series, which are one volume"):
        list_images(paths[0])
    pairs = find_pairs(tmp_path / "images", tmp_path / "labels")
    images = LabelledImages(pairs, cache=tmp_path / "cache")
    np.testing.assert_array_equal(images[0][0] > 300, images[0][1])
    torch.manual_seed(0)
    model = nestedseg.create("unetpp", encoder_channels=(4, 6), in_channels=1, dims=3, norm=None)
    model.set_preprocessing(mean=[0.0], std=[1.0], standardise=True)
    model.save_pretrained(tmp_path / "model")
    for given, count in ((tmp_path / "images", 2), (paths[1], 1)):
        out = tmp_path / f"out{count}"
        assert main(["predict", str(tmp_path / "model"), str(given), "--out", str(out)]) == 0
        masks = sorted((out / "masks").iterdir())
        assert [path.name for path in masks] == ["1.2.0.nii.gz", "1.2.1.nii.gz"][2 - count:]
        np.testing.assert_allclose(open_volume(masks[0]).affine, open_volume(paths[0]).affine,
                                   atol=1e-4)
