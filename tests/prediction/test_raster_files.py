"""Masks and probabilities written row by row, read by other libraries."""

import numpy as np
import pytest
from PIL import Image

from nestedseg.data import open_image, read_label
from nestedseg.evaluation.visualise_masks import colours_of
from nestedseg.prediction.raster_files import Raster, new_raster, quantise, read_small, shrink

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
SHAPE = (300, 517)  # no multiple of a tile


def write(path, format, array, palette=None, like=None, step=37):
    raster = Raster(array.shape[:2], array.dtype, array.shape[2] if array.ndim == 3 else 1,
                    palette, like, like is not None)
    with new_raster(path, format, raster) as put:
        for start in range(0, len(array), step):
            put(array[start:start + step])


@pytest.mark.parametrize("format", ["png", "tif", "npy", "geotiff"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
@pytest.mark.parametrize("channels", [0, 1, 3, 5])
def test_what_is_written_row_by_row_is_read_as_a_whole(format, dtype, channels, tmp_path):
    if format == "geotiff":
        pytest.importorskip("rasterio")
        if dtype == "float16":
            dtype = "float32"
    shape = SHAPE + ((channels,) if channels > 1 else ())
    array = RNG.integers(0, 200, shape).astype(dtype)
    path = tmp_path / f"a.{format}"
    if format == "png" and (channels > 1 or dtype == "float16"):
        with pytest.raises(ValueError, match="PNG has no room"):
            write(path, format, array)
        assert not list(tmp_path.iterdir())
        return
    write(path, format, array)
    if format == "npy":
        found = np.load(path)
    elif format == "png":
        found = np.asarray(Image.open(path))
    else:
        found = tifffile.imread(path)
        if format == "geotiff" and channels > 1 and found.shape[0] == channels:
            found = found.transpose(1, 2, 0)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("format", ["png", "tif", "geotiff"])
@pytest.mark.parametrize("classes", [1, 2, 11, 254])
def test_masks_have_class_indices_and_the_colours_of_the_classes(format, classes, tmp_path):
    if format == "geotiff":
        pytest.importorskip("rasterio")
    mask = RNG.integers(0, classes + 1, SHAPE).astype(np.uint8)
    palette = np.vstack([[(0, 0, 0)], colours_of(classes)])
    path = tmp_path / f"a.{'png' if format == 'png' else 'tif'}"
    write(path, format, mask, palette)
    np.testing.assert_array_equal(read_label(path), mask)
    np.testing.assert_array_equal(open_image(path).read(), palette[mask])
    if format == "png":
        np.testing.assert_array_equal(np.asarray(Image.open(path).convert("RGB")), palette[mask])


def test_colours_of_classes_are_all_different():
    assert len({tuple(colour) for colour in colours_of(255)} | {(0, 0, 0)}) == 256


@pytest.mark.parametrize("format", ["png", "tif", "npy", "geotiff"])
def test_a_file_that_is_not_finished_is_not_there(format, tmp_path):
    if format == "geotiff":
        pytest.importorskip("rasterio")
    array = np.zeros(SHAPE, np.uint8)
    with pytest.raises(RuntimeError), new_raster(
            tmp_path / "a", format, Raster(SHAPE, array.dtype)) as put:
        put(array[:50])
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_geotiff_has_the_place_of_its_image(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.transform.from_origin(5e5, 5.4e6, 10, 10)
    with rasterio.open(tmp_path / "image.tif", "w", "GTiff", SHAPE[1], SHAPE[0], 2, dtype="uint16",
                       crs="EPSG:32633", transform=place, nodata=0) as file:
        file.write(np.ones((2, *SHAPE), np.uint16))
    mask = RNG.integers(0, 3, SHAPE).astype(np.uint8)
    source = open_image(tmp_path / "image.tif")
    assert source.georeferenced
    write(tmp_path / "mask.tif", "geotiff", mask, np.zeros((3, 3), np.uint8), source)
    with rasterio.open(tmp_path / "mask.tif") as file:
        assert file.crs.to_epsg() == 32633 and file.transform == place and file.nodata == 255
        assert file.profile["tiled"] and file.compression.name == "deflate"
        np.testing.assert_array_equal(file.read(1), mask)


def test_probabilities_become_whole_numbers_and_back():
    scores = np.linspace(0, 1, 1001)
    for dtype, largest in (("uint8", 255), ("uint16", 65535)):
        numbers = quantise(scores, dtype)
        assert numbers.dtype == dtype and numbers[0] == 0 and numbers[-1] == largest
        np.testing.assert_allclose(numbers / largest, scores, atol=0.5001 / largest)
    assert quantise(scores, "float16").dtype == np.float16


@pytest.mark.parametrize("step", [1, 2, 7])
def test_a_smaller_copy_has_every_so_many_pixels(step, tmp_path):
    array = RNG.integers(0, 9, (50, 40)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array)
    windows = [(slice(start, min(start + 9, 50)), slice(0, 40)) for start in range(0, 50, 9)]
    small = read_small(open_image(tmp_path / "a.tif"), step, iter(windows))
    np.testing.assert_array_equal(small, array[::step, ::step])
    parts = [shrink(array[start:start + 9], start, step) for start in range(0, 50, 9)]
    assert all(part.base is None for part in parts)  # so that the rows are not kept
    np.testing.assert_array_equal(np.concatenate(parts), array[::step, ::step])
