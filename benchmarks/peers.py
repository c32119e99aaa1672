"""The peers' UNet++ and ours with the same topology, widths and weights."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from monai.networks.nets import BasicUNetPlusPlus
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import nestedseg

MONAI_FEATURES = (16, 16, 32, 64, 128, 16)


def smp_pair(encoder: str) -> tuple[nn.Module, nestedseg.SegmentationModel]:
    """segmentation_models.pytorch's UNet++ over a timm encoder that starts at stride 2, and ours.

    Its nodes are not the paper's: one that is named x_{d}_{i} there is the (i - d + 1)th of its
    row, reads the rest of the row in reverse, and one block more brings the result to stride 1.
    """
    peer = with_statistics(smp.UnetPlusPlus(f"tu-{encoder}", encoder_weights=None).eval())
    blocks, nodes, names = peer.decoder.blocks, {}, {}
    rows = peer.decoder.depth
    for i in range(rows):  # i = 0 is the deepest row of nodes
        for d in range(i, -1, -1):
            row = rows - i
            above = f"x{row + 1}_{i - d}"
            beside = [f"x{row}_{column}" for column in range(i - d, -1, -1)]
            name = names[f"x_{d}_{i}"] = f"x{row}_{i - d + 1}"
            nodes[name] = {"inputs": [above, *beside], "channels": width(blocks[f"x_{d}_{i}"])}
    last = names[f"x_0_{rows}"] = f"x0_{rows + 1}"
    nodes[last] = {"inputs": [f"x1_{rows}"], "channels": width(blocks[f"x_0_{rows}"])}
    graph = {"nodes": nodes, "heads": [last], "encoder_row": 1}
    ours = nestedseg.create(graph, encoder).eval()
    channels = ours.decoder.get_submodule(f"head_{last}").in_channels
    ours.decoder.add_module(f"head_{last}", nn.Conv2d(channels, 1, 3, padding=1))  # as theirs
    pieces = {"segmentation_head.0": f"decoder.head_{last}"}
    for theirs, name in names.items():
        for index in (1, 2):
            block = f"decoder.blocks.{theirs}.conv{index}"
            pieces[f"{block}.0"] = f"decoder.{name}.block.conv{index}"
            pieces[f"{block}.1"] = f"decoder.{name}.block.norm{index}"
    copy_weights(peer, ours, pieces)
    return peer, ours


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms as training leaves them; 0 and 1 would make folding them look exact."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
    return model


def width(block: nn.Module) -> int:
    return block.conv1[0].out_channels


def monai_pair() -> tuple[nn.Module, nestedseg.SegmentationModel]:
    """MONAI's UNet++ for volumes, with its defaults but the widths and the slope, and ours."""
    peer = BasicUNetPlusPlus(spatial_dims=3, in_channels=1, out_channels=2,
                             features=MONAI_FEATURES,
                             act=("LeakyReLU", {"inplace": True, "negative_slope": 0.01})).eval()
    ours = nestedseg.create("unetpp", encoder_channels=MONAI_FEATURES[:5], in_channels=1, classes=2,
                            dims=3, norm="instance", activation="leaky_relu",
                            upsample="transpose").eval()
    blocks = {"conv_0_0": "encoder.x0_0"}
    blocks |= {f"conv_{row}_0.convs": f"encoder.x{row}_0" for row in range(1, 5)}
    pieces = {"final_conv_0_4": "decoder.head_x0_4"}
    for name in ours.graph.nodes:
        row, column = map(int, name[1:].split("_"))
        blocks[f"upcat_{row}_{column}.convs"] = f"decoder.{name}.block"
        pieces[f"upcat_{row}_{column}.upsample.deconv"] = \
            f"decoder.{name}.edges.x{row + 1}_{column - 1}.up"
    for theirs, own in blocks.items():
        for index in (0, 1):
            pieces[f"{theirs}.conv_{index}.conv"] = f"{own}.conv{index + 1}"
            pieces[f"{theirs}.conv_{index}.adn.N"] = f"{own}.norm{index + 1}"
    copy_weights(peer, ours, pieces)
    return peer, ours


def copy_weights(peer: nn.Module, ours: nn.Module, pieces: dict[str, str]) -> None:
    """Copies the peer's tensors, the modules' names translated; they must cover all of ours.

    A convolution's bias before an instance norm, which subtracts it again, has no place in ours.
    """
    state, known = {}, ours.state_dict().keys()
    for name, tensor in peer.state_dict().items():
        module, _, leaf = name.rpartition(".")
        name = f"{pieces.get(module, module)}.{leaf}"
        if name in known:
            state[name] = tensor
    ours.load_state_dict(state)
