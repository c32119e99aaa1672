"""TIFF stacks and Zarr arrays as images and as volumes."""

import json

import numpy as np
import pytest

from nestedseg.data import LabelledImages, Pair, open_image, open_volume, spatial_axes
from nestedseg.data.volumes import new_mask

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)


def ome_zarr(path, array, axes, scale=None, version="0.4"):
    """Writes an OME-Zarr image with a smaller copy of itself, as its specification says."""
    zarr = pytest.importorskip("zarr", "3")
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    for level, part in enumerate((array, array[..., ::2, ::2])):
        stored = group.create_array(str(level), shape=part.shape, dtype=part.dtype,
                                    chunks=tuple(min(7, side) for side in part.shape))
        stored[:] = part
    units = [{"name": axis, "type": {"c": "channel", "t": "time"}.get(axis, "space"),
              **({"unit": "micrometer"} if axis in "zyx" else {})} for axis in axes]
    steps = [{"type": "scale", "scale": scale or [1.0] * len(axes)}]
    multiscales = [{"version": version, "axes": units, "datasets": [
        {"path": str(level), "coordinateTransformations": steps} for level in range(2)]}]
    group.attrs.update({"multiscales": multiscales} if version == "0.4"
                       else {"ome": {"version": version, "multiscales": multiscales}})


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "czyx", "zcyx", "tczyx"])
def test_ome_zarr_is_read_by_its_axes(axes, version, tmp_path):
    lengths = {"t": 1, "c": 3, "z": 5, "y": 20, "x": 30}
    array = RNG.integers(0, 4000, [lengths[axis] for axis in axes]).astype(np.uint16)
    ome_zarr(tmp_path / "a.zarr", array, axes, version=version,
             scale=[{"z": 2.0, "y": 0.5, "x": 0.25}.get(axis, 1.0) for axis in axes])
    order = [axes.index(axis) for axis in "tzyxc" if axis in axes]
    right = array.transpose(order).reshape(
        [lengths[axis] for axis in "zyx" if axis in axes] + [lengths["c"] if "c" in axes else 1])
    if "z" in axes:
        with pytest.raises(ValueError, match=r"a\.zarr: it is a stack of 5 planes.*--dims 3"):
            open_image(tmp_path / "a.zarr")
        source = open_volume(tmp_path / "a.zarr")
        assert source.spacing == pytest.approx((2e-3, 5e-4, 2.5e-4))
        np.testing.assert_array_equal(source[1:3], right[1:3, ..., 0] if right.shape[-1] == 1
                                      else right[1:3])
    else:
        source = open_image(tmp_path / "a.zarr")
    window = (slice(1, 4),) * (right.ndim - 3) + (slice(3, 17), slice(8, 30))
    assert source.shape == right.shape[:-1] and source.channels == right.shape[-1]
    np.testing.assert_array_equal(source.read(), right)
    np.testing.assert_array_equal(source.read(window), right[window])


@pytest.mark.parametrize("content", ["nothing", "text", "no arrays"])
def test_a_folder_that_is_no_zarr_image_is_named(content, tmp_path):
    pytest.importorskip("zarr")
    folder = tmp_path / "bad.zarr"
    folder.mkdir()
    if content == "text":
        (folder / ".zarray").write_text("{")
    if content == "no arrays":
        (folder / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    with pytest.raises(ValueError, match=r"cannot read the image .*bad\.zarr: \S"):
        open_image(folder)
    with pytest.raises(ValueError, match=r"cannot read the volume .*bad\.zarr: \S"):
        open_volume(folder)


@pytest.mark.parametrize("options", [{}, {"compression": "deflate"}, {"imagej": True}], ids=str)
def test_a_stack_is_a_volume_and_its_mask_has_its_voxels(options, tmp_path):
    array = RNG.integers(0, 250, (6, 20, 30)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", resolution=(4, 2),
                     metadata={"axes": "ZYX", "spacing": 3.0, "unit": "um"}, **options)
    volume = open_volume(tmp_path / "a.tif")
    assert volume.shape == (6, 20, 30) and volume.channels == 1
    np.testing.assert_array_equal(volume[2:4], array[2:4])
    np.testing.assert_array_equal(volume.read((slice(1, 3), slice(4, 9), slice(0, 30))),
                                  array[1:3, 4:9, :, None])
    if "imagej" in options:
        assert volume.spacing == pytest.approx((3e-3, 5e-4, 2.5e-4))
    with new_mask(tmp_path / "mask.tif", volume) as mask:
        mask[:] = array > 100
    again = open_volume(tmp_path / "mask.tif")
    np.testing.assert_array_equal(again.class_indices(), array > 100)
    assert again.spacing == pytest.approx(volume.spacing)


def test_stacks_are_volumes_where_volumes_are_asked_for(tmp_path):
    pairs = []
    for name in "ab":
        label = (RNG.random((6, 20, 30)) < 0.3).astype(np.uint8)
        for part, array in (("image", 90 * label), ("label", label)):
            tifffile.imwrite(tmp_path / f"{name}_{part}.tif", array, photometric="minisblack")
        pairs.append(Pair(tmp_path / f"{name}_image.tif", tmp_path / f"{name}_label.tif"))
    assert spatial_axes([pairs[0].image]) == 2 and spatial_axes([pairs[0].image], 3) == 3
    with pytest.raises(ValueError, match="--dims 3"):
        LabelledImages(pairs)
    images = LabelledImages(pairs, dims=3)
    assert images.dims == 3 and images.shapes == [(6, 20, 30)] * 2
    np.testing.assert_array_equal(images[0][0], 90 * images[0][1])
