"""What is known of a decoder's tensors before it is built is true of the decoder that is built."""

import pytest
import torch
from graphs import EXAMPLES
from hypothesis import given, settings
from hypothesis import strategies as st

import nestedseg
from nestedseg.decoder.blocks import BLOCKS
from nestedseg.decoder.layers import NORMS
from nestedseg.decoder.names import MOST_BUILT, block_shapes, head_shapes, needed_names
from nestedseg.models.pretrained import decoder_tensors

TOPOLOGIES = ["unet", "unet_e", "unet_plus", "unetpp", "dla",
              *(pytest.param(graph, id=name) for name, graph in EXAMPLES.items()
                if name != "finer")]  # than any plain encoder


def check(topology, least=0.5, **options):
    """That names are there and shapes are right, and that they are of a good part of the tensors.

    Args:
        least: part of the tensors that are outside edges and whose shapes must be known.
    """
    with torch.device("meta"):
        model = nestedseg.create(topology, encoder_channels=(4, 6, 8, 8, 8), **options).eval()
    needed, shapes = decoder_tensors(model._config)
    built = {name: tuple(tensor.shape) for name, tensor in model.decoder.state_dict().items()}
    assert needed <= built.keys()
    assert {name: built[name] for name in shapes} == shapes
    assert len(shapes) >= least * len([name for name in built if ".edges." not in name])
    return model


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_of_every_topology(topology, dims):
    check(topology, dims=dims, head_kernel=3, classes=5)
    check(topology, dims=dims, norm=None, upsample="transpose", bias=True)


@pytest.mark.parametrize("fuse", ["concat", "sum"])
@pytest.mark.parametrize("norm", [*NORMS, None])
@pytest.mark.parametrize("block", BLOCKS)
def test_of_every_block(block, norm, fuse):
    # of one width, because some blocks take no other
    graph = {"nodes": {"x0_1": {"inputs": ["x0_0"], "block": block, "fuse": fuse, "channels": 4},
                       "x0_2": {"inputs": ["x0_1"], "block": block, "fuse": fuse, "channels": 4}},
             "heads": ["x0_2"]}
    check(graph, 0, norm=norm)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 70), min_size=5, max_size=5), st.sampled_from(["concat", "sum"]))
def test_of_any_width(widths, fuse):
    graph = {"nodes": {"x1_1": {"inputs": ["x1_0", "x2_0"], "fuse": fuse},
                       "x0_1": {"inputs": ["x0_0", "x1_1"], "fuse": fuse, "block": "scse"}},
             "heads": ["x0_1", "x1_1"]}
    check(graph, 0.5, decoder_channels=widths[:3])


def test_of_a_fused_decoder_only_names_are_known():
    model = nestedseg.create("unetpp", encoder_channels=(4, 6, 8)).eval().fuse()
    needed, shapes = decoder_tensors(model._config)
    assert needed and not shapes and needed <= model.decoder.state_dict().keys()


def test_of_many_widths_some_are_built():
    graph = nestedseg.Graph({f"x0_{k}": {"inputs": [f"x0_{k - 1}"], "channels": k}
                             for k in range(1, 200)}, ["x0_199"])
    style = nestedseg.create("unet", encoder_channels=(4, 6))._config.style
    shapes = block_shapes(graph, (4,), style)
    assert len({name.partition(".")[0] for name in shapes}) == MOST_BUILT
    assert head_shapes(graph, (4,), 2, 2, 1) == {"head_x0_199.weight": (2, 199, 1, 1),
                                                 "head_x0_199.bias": (2,)}
    assert len({name.partition(".")[0] for name in needed_names(graph, style)}) == 200
