"""TIFF files of every kind that software writes, against the array that was written."""

import itertools
import pickle

import numpy as np
import pytest

from nestedseg.data import read_image
from nestedseg.data.images import open_image, read_label
from nestedseg.data.tiff import Tiff

tifffile = pytest.importorskip("tifffile")
HEIGHT, WIDTH = 37, 41  # no multiple of a tile or a strip

CHOICES = {
    "dtype": ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32",
              "float64", "bool"],
    "samples": range(1, 14),
    "planar": ["contig", "separate"],
    "photometric": ["minisblack", "miniswhite", "rgb", "palette"],
    "extra": [None, "unspecified", "assocalpha", "unassalpha"],
    "layout": [{"rowsperstrip": 37}, {"rowsperstrip": 5}, {"tile": (16, 16)}],
    "compression": [None, "lzw", "deflate", "packbits", "jpeg", "zstd"],
    "predictor": [False, True],
    "big": [False, True],
    "byteorder": ["<", ">"],
}


def possible(dtype, samples, planar, photometric, extra, compression, predictor, **_):
    """Whether such a file exists."""
    colours = 3 if photometric == "rgb" else 1
    return (samples >= colours and (extra is not None) == (samples > colours)
            and not (samples == 1 and planar == "separate")
            and not (photometric == "palette" and (samples > 1 or dtype not in ("uint8",)))
            and not (compression == "jpeg" and (dtype != "uint8" or samples not in (1, 3) or extra
                                                or photometric in ("palette", "miniswhite")))
            and not (dtype == "bool" and (samples > 1 or compression not in (None, "deflate")
                                          or photometric == "rgb"))
            and not (predictor and (compression not in ("lzw", "deflate", "zstd")
                                    or dtype == "bool")))


def every_file():
    for values in itertools.product(*CHOICES.values()):
        case = dict(zip(CHOICES, values))
        if possible(**case):
            yield case


def some_files(count=400, seed=0):
    """A sample in which each value of each choice comes up with most values of the others."""
    rng = np.random.default_rng(seed)
    while count:
        case = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
        if possible(**case):
            yield case
            count -= 1


def content(dtype, samples, seed=0):
    values = np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH, samples))
    if dtype == "bool":
        return values > 0
    if dtype.startswith("float"):
        return values.astype(dtype)
    info = np.iinfo(dtype)
    middle, spread = (int(info.max) + int(info.min)) / 2, (int(info.max) - int(info.min)) / 8
    return np.clip(middle + spread * values, info.min, info.max).astype(dtype)


def write(path, array, planar, photometric, extra, layout, compression, predictor, big, byteorder,
          **_):
    """Writes ``(H, W, S)``; returns the palette, if there is one."""
    samples, colours = array.shape[2], 3 if photometric == "rgb" else 1
    palette = None
    if photometric == "palette":
        palette = (np.random.default_rng(1).integers(0, 256, (3, 256)) * 257).astype(np.uint16)
    stored = array.transpose(2, 0, 1) if planar == "separate" else array
    tifffile.imwrite(
        path, np.ascontiguousarray(stored[..., 0] if samples == 1 else stored),
        planarconfig=planar if samples > 1 else None, photometric=photometric, colormap=palette,
        extrasamples=None if extra is None else [extra] * (samples - colours),
        compression=compression, predictor=predictor, bigtiff=big, byteorder=byteorder,
        metadata=None, **layout)
    return palette


def check(path, case):
    array = content(case["dtype"], case["samples"])
    if case["compression"] == "jpeg":  # which loses detail
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        waves = [120 + 60 * np.sin(rows / 9 + k) * np.cos(columns / 8) for k in
                 range(case["samples"])]
        array = np.stack(waves, -1).astype(np.uint8)
    palette = write(path, array, **case)
    colours = 3 if case["photometric"] == "rgb" else 1
    right = array[..., :colours] if case["extra"] in ("assocalpha", "unassalpha") else array
    if palette is not None:
        right = (palette.T // 257).astype(np.uint8)[array[..., 0]]
    source = open_image(path)
    assert (source.shape, source.channels, source.dtype) \
        == ((HEIGHT, WIDTH), right.shape[2], right.dtype)
    tolerance = 30 if case["compression"] == "jpeg" else 0
    whole, window = source.read(), (slice(9, 30), slice(11, 39))
    assert whole.dtype == right.dtype
    assert np.abs(whole.astype(float) - right.astype(float)).max() <= tolerance
    assert (source.read(window) == whole[window]).all()
    if palette is not None:
        assert (read_label(path) == array[..., 0]).all()


def test_every_kind_of_tiff_is_read_as_it_was_written(tmp_path):
    for case in some_files():
        try:
            check(tmp_path / "a.tif", case)
        except Exception as error:
            raise AssertionError(f"{case}") from error


@pytest.mark.slow
def test_all_kinds_of_tiff_are_read_as_they_were_written(tmp_path):
    count = 0
    for count, case in enumerate(every_file(), 1):  # noqa: B007
        try:
            check(tmp_path / "a.tif", case)
        except Exception as error:
            raise AssertionError(f"{case}") from error
    assert count > 20_000


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("layout", CHOICES["layout"], ids=str)
def test_windows_of_a_turned_tiff_are_those_of_the_turned_picture(tag, layout, tmp_path):
    array = content("uint16", 4)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["unspecified"],
                     compression="deflate", extratags=[(274, 3, 1, tag, True)], **layout)
    turned = {1: array, 2: array[:, ::-1], 3: np.rot90(array, 2), 4: array[::-1],
              5: array.transpose(1, 0, 2), 6: np.rot90(array, -1),
              7: np.rot90(array.transpose(1, 0, 2), 2), 8: np.rot90(array)}[tag]
    source = open_image(tmp_path / "a.tif")
    assert source.shape == turned.shape[:2] and (source.read() == turned).all()
    for rows, columns in ((slice(0, 5), slice(30, 37)), (slice(8, 36), slice(1, 2))):
        assert (source.read((rows, columns)) == turned[rows, columns]).all()


STACKS = {
    "imagej": ({"imagej": True}, "ZCYX", (3, 2)),
    "imagej in colour": ({"imagej": True}, "ZYXS", (4,)),
    "imagej channels": ({"imagej": True}, "CYX", (3,)),
    "ome": ({"ome": True}, "ZCYX", (3, 2)),
    "ome, channels first": ({"ome": True}, "CZYX", (2, 3)),
    "ome channels": ({"ome": True}, "CYX", (5,)),
    "ome compressed": ({"ome": True, "compression": "deflate"}, "CZYX", (2, 3)),
    "pages": ({"metadata": None, "photometric": "minisblack"}, "ZYX", (6,)),
    "compressed pages": ({"metadata": None, "photometric": "minisblack",
                          "compression": "deflate"}, "ZYX", (6,)),
}


@pytest.mark.parametrize("kind", STACKS)
def test_the_axes_of_a_stack_become_channels_or_planes(kind, tmp_path):
    options, axes, leading = STACKS[kind]
    shape = tuple(leading) + (HEIGHT, WIDTH) + ((3,) if axes.endswith("S") else ())
    array = np.random.default_rng(0).integers(0, 250, shape).astype(np.uint8)
    given = {"metadata": {"axes": axes}, "photometric": "rgb" if axes.endswith("S")
             else "minisblack"} | options
    path = tmp_path / ("a.ome.tif" if given.pop("ome", False) else "a.tif")
    tifffile.imwrite(path, array, **given)
    order = [axes.index(axis) for axis in "ZYXCS" if axis in axes]
    right = array.transpose(order)
    planes = axes.count("Z")
    right = right.reshape(*right.shape[:2 + planes], -1)
    if planes:
        with pytest.raises(ValueError, match=rf"a\..*tif.*stack of {len(right)} p.*--dims 3"):
            read_image(path)
    source = Tiff(path, dims=2 + planes)
    assert source.shape == right.shape[:-1] and source.channels == right.shape[-1]
    assert (source.read() == right).all()
    window = (slice(1, 3),) * planes + (slice(4, 20), slice(30, 41))
    assert (source.read(window) == right[window]).all()


def test_an_overview_or_a_mask_of_transparency_is_no_image(tmp_path):
    array = content("uint16", 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(array, photometric="rgb", tile=(16, 16), subifds=1)
        file.write(array[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1)
        file.write(array[..., 0] > 3, subfiletype=4, photometric=4)
    assert (read_image(tmp_path / "a.tif") == array).all()


def test_several_images_in_one_file_are_refused_with_their_shapes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(content("uint8", 3), photometric="rgb")
        file.write(content("uint8", 3)[:20], photometric="rgb")
    with pytest.raises(ValueError, match=r"a\.tif.*2 images \(\(37, 41, 3\), \(20, 41, 3\)\)"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("layout", CHOICES["layout"], ids=str)
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_cut_file_is_named_before_a_pixel_is_decoded(layout, compression, tmp_path):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, content("uint16", 3), photometric="rgb", compression=compression,
                     **layout)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"cannot read the image .*cut\.tif: \S"):
        open_image(path)


def test_a_segment_that_was_never_written_holds_the_value_for_nothing_measured(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "sparse.tif"
    with rasterio.open(path, "w", "GTiff", 64, 64, 2, dtype="int16", nodata=-9999, tiled=True,
                       blockxsize=16, blockysize=16, sparse_ok=True, compress="deflate") as file:
        ones = np.ones((2, 16, 16), np.int16)
        file.write(ones, window=rasterio.windows.Window(16, 32, 16, 16))
    right = np.full((64, 64, 2), -9999, np.int16)
    right[32:48, 16:32] = 1
    source = open_image(path)
    assert source.nodata == -9999 and (source.read() == right).all()


def test_an_opened_file_goes_to_another_process(tmp_path):
    write(tmp_path / "a.tif", content("uint16", 2), **dict(next(iter(some_files(1))),
          photometric="minisblack", extra="unspecified", planar="separate", compression="lzw",
          predictor=True))
    source = open_image(tmp_path / "a.tif")
    assert (pickle.loads(pickle.dumps(source)).read() == content("uint16", 2)).all()
