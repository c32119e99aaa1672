"""The experiments of the UNet++ paper as data: rows, profiles, and the trials in their order.

Source: Zhou et al., UNet++, IEEE TMI 2020, doi:10.1109/TMI.2019.2959609.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from nestedseg.base.errors import nearest, show
from nestedseg.training.settings import Settings


@dataclass(frozen=True)
class Architecture:
    """A network of the paper's Tables I and III.

    Args:
        title: its name in the paper.
        topology: its name in nestedseg.
        deep_supervision: whether every head is trained; the heads then vote.
        depth: L.
        wide: whether it has the wide U-Net's widths.
    """

    title: str
    topology: str
    deep_supervision: bool = False
    depth: int = 4
    wide: bool = False

    def title_of(self, dims: int) -> str:
        """In 3-D the paper says V."""
        return self.title if dims == 2 else self.title.replace("UN", "VN").replace("U-", "V-")


ARCHITECTURES = {
    "unet-l1": Architecture("U-Net L1", "unet", depth=1),
    "unet-l2": Architecture("U-Net L2", "unet", depth=2),
    "unet-l3": Architecture("U-Net L3", "unet", depth=3),
    "unet": Architecture("U-Net", "unet"),
    "wide-unet": Architecture("wide U-Net", "unet", wide=True),
    "unet-e": Architecture("U-Net^e", "unet_e", True),
    "unetp": Architecture("UNet+", "unet_plus"),
    "unetp-ds": Architecture("UNet+", "unet_plus", True),
    "unetpp": Architecture("UNet++", "unetpp"),
    "unetpp-ds": Architecture("UNet++", "unetpp", True),
    "unetpp-l2": Architecture("UNet++ L2, alone", "unetpp", True, depth=2),
    "unetpp-l3": Architecture("UNet++ L3, alone", "unetpp", True, depth=3),
}
TABLE_1 = ("unet-l1", "unet-l2", "unet-l3", "unet", "wide-unet", "unet-e", "unetp", "unetp-ds",
           "unetpp", "unetpp-ds")
TABLE_4 = ("unet", "wide-unet", "unetp", "unetp-ds", "unetpp", "unetpp-ds")
FIGURE_4 = ("unet", "unetp-ds", "unetpp-ds")
FIGURE_6 = ("unetpp-l2", "unetpp-l3")  # UNet++ L1 is U-Net L1
FIGURE_8 = ("unet", "unet-e", "unetp", "unetp-ds", "unetpp", "unetpp-ds")
BACKBONES = ("vgg", "resnet", "densenet")


@dataclass(frozen=True, order=True)
class Row:
    """One architecture on one data set.

    Args:
        data: a key of `benchmarks.paper.data.DATA`.
        architecture: a key of `ARCHITECTURES`.
        backbone: "plain", or one of `BACKBONES`.
    """

    data: str
    architecture: str
    backbone: str = "plain"

    def __str__(self) -> str:
        """What ``--only`` calls it: ``em/unetpp-ds``, ``em/unetpp-ds/resnet``."""
        parts = [self.data, self.architecture, *([self.backbone] * (self.backbone != "plain"))]
        return "/".join(parts)


# The most important first: a budget that is cut short then leaves whole tables.
GROUPS = (
    *[[Row(data, each) for each in TABLE_1] for data in ("em", "nuclei")],
    *[[Row(data, each) for each in TABLE_4] for data in ("hippocampus", "lidc")],
    [Row(data, each) for data in ("em", "nuclei") for each in FIGURE_6],
    [Row(data, each, backbone) for data in ("em", "nuclei") for backbone in BACKBONES
     for each in FIGURE_4],
)
ROWS = [row for group in GROUPS for row in group]


# -- profiles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """How a data set is used.

    Args:
        settings: of training; the seed is the trial's number.
        norm: of the plain networks; backbones have batch norms, and so have the decoders over them.
        overlap: of neighbouring windows in the test, as a fraction of a patch.
        images: use so many at most.
        side: leave out pictures that are higher or wider, in pixels.
    """

    settings: Settings
    norm: str | None
    overlap: float = 0.5
    images: int | None = None
    side: int | None = None


@dataclass(frozen=True)
class Profile:
    """How large the experiments are.

    Args:
        name: of the profile.
        trials: of each row, unless another number is asked for.
        widths: of the rows of the plain networks, finest first; of a decoder over a backbone too.
        wide: those of the wide U-Net.
        protocols: by data set.
        encoders: the timm model that each backbone is.
        backbone_settings: what differs from the protocol's where a backbone is trained.
    """

    name: str
    trials: int
    widths: tuple[int, ...]
    wide: tuple[int, ...]
    protocols: Mapping[str, Protocol]
    encoders: Mapping[str, str]
    backbone_settings: Mapping[str, Any] = field(default_factory=dict)


_QUICK_2D = Settings(epochs=8, steps=25, batch=8, patch=96, lr=1e-3, precision="no")
# All hippocampi of the set lie alike: mirrored, they would be a harder task than theirs.
_QUICK_3D = Settings(epochs=12, steps=20, batch=2, patch=(32, 48, 32), mirror=False, lr=2e-3,
                     precision="no")
QUICK = Profile(
    name="quick", trials=3, widths=(8, 16, 32, 64, 128), wide=(9, 18, 35, 70, 140),
    protocols={"em": Protocol(_QUICK_2D, "batch"),
               "nuclei": Protocol(_QUICK_2D, "batch", images=60, side=256),
               "hippocampus": Protocol(_QUICK_3D, "instance", images=100)},
    encoders={"vgg": "vgg11_bn", "resnet": "resnet18", "densenet": "densenet121"},
    backbone_settings={"epochs": 4, "batch": 4})

_FULL_2D = Settings(epochs=100, batch=16, patch=96, lr=3e-4, patience=20, workers=8)
_FULL_3D = replace(_FULL_2D, batch=8)
FULL = Profile(
    name="full", trials=5, widths=(32, 64, 128, 256, 512), wide=(35, 70, 140, 280, 560),
    protocols={"em": Protocol(_FULL_2D, None), "nuclei": Protocol(_FULL_2D, None, overlap=2 / 3),
               "hippocampus": Protocol(replace(_FULL_3D, patch=(32, 48, 32), mirror=False), None),
               "lidc": Protocol(replace(_FULL_3D, patch=64), None)},
    encoders={"vgg": "vgg19_bn", "resnet": "resnet152", "densenet": "densenet201"})

PROFILES = {profile.name: profile for profile in (QUICK, FULL)}


# -- trials ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A row, trained once. Its number is its seed."""

    profile: Profile
    row: Row
    number: int

    def __str__(self) -> str:
        return f"{self.row}, trial {self.number}"

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{str(self.row).replace('/', '.')}.{self.number}"

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.row.architecture]

    @property
    def protocol(self) -> Protocol:
        """That of its data set, with what its backbone and its number change."""
        protocol = self.profile.protocols[self.row.data]
        changes = {} if self.row.backbone == "plain" else self.profile.backbone_settings
        return replace(protocol,
                       settings=replace(protocol.settings, seed=self.number, **changes))

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `nestedseg.create`, but for what the images say."""
        each = self.architecture
        widths = self.profile.wide if each.wide else self.profile.widths
        options = {"topology": each.topology, "depth": each.depth, "upsample": "transpose",
                   "deep_supervision": each.deep_supervision}
        if self.row.backbone == "plain":
            return options | {"encoder_channels": widths, "norm": self.protocol.norm}
        return options | {"encoder": self.profile.encoders[self.row.backbone],
                          "decoder_channels": widths, "norm": "batch"}

    def facts(self) -> dict[str, Any]:
        """What it is, JSON-able."""
        return {"profile": self.profile.name, "row": str(self.row), "number": self.number,
                "model": self.options, "protocol": asdict(self.protocol)}


def plan(profile: Profile, trials: int | None = None, only: Sequence[str] = ("*",),
         data: Sequence[str] | None = None) -> list[Trial]:
    """The trials in their order: group after group, in each the first trial of all rows first.

    Args:
        profile: how large they are; rows of data sets that it does not have are left out.
        trials: of each row; default: the profile's.
        only: patterns of rows, ``em/unetpp-ds`` or ``nuclei/*``.
        data: the data sets that are there; default: all.

    Raises:
        ValueError: a pattern that no row fits.
    """
    names = [str(row) for row in ROWS]
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"no row is {show(pattern)}; {nearest(pattern, names)}")
    there = profile.protocols if data is None else profile.protocols.keys() & set(data)
    return [Trial(profile, row, number) for group in GROUPS
            for number in range(profile.trials if trials is None else trials)
            for row in group if row.data in there
            and any(fnmatchcase(str(row), pattern) for pattern in only)]
