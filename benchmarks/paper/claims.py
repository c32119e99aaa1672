"""The paper's claims, each as the comparisons that test it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.paper.data import DATA
from benchmarks.paper.plan import ARCHITECTURES, BACKBONES
from benchmarks.paper.printed import IOU
from benchmarks.paper.results import Results
from benchmarks.paper.score import BUCKETS
from benchmarks.paper.stats import Comparison, compare, within

BASE, PLAIN, OURS = "unet", "unetpp", "unetpp-ds"  # the last two: without DS, and with
ISOLATED = {1: "unet-l1", 2: "unetpp-l2", 3: "unetpp-l3"}  # UNet++ L1 is U-Net L1
MARGIN, LOST = 1.0, 0.6  # points of IoU: that a pruned network may lose, and that the paper's lost

# What is compared, how that came out, and the difference that the paper prints, if any.
Found = tuple[str, Comparison, float | None]
Tests = Callable[[Results, str], Iterator[Found]]


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper.

    Args:
        text: the claim.
        tests: what compares on a data set; each difference is above 0 where the claim holds.
            What has not been run is left out.
    """

    text: str
    tests: Tests

    def test(self, results: Results) -> list[Found]:
        """The comparisons on all data sets."""
        return [(f"{DATA[data].title}: {text}", *found) for data in DATA
                for text, *found in self.tests(results, data)]


def better(*pairs: tuple[str, str]) -> Tests:
    """The first architecture of each pair against the second."""
    def tests(results: Results, data: str) -> Iterator[Found]:
        for a, b in pairs:
            if f"{data}/{a}" in results and f"{data}/{b}" in results:
                yield (f"{name(data, a)} > {name(data, b)}",
                       compare(results.scores(f"{data}/{a}"), results.scores(f"{data}/{b}")),
                       printed(data, a, b))
    return tests


def over_backbones(results: Results, data: str) -> Iterator[Found]:
    for backbone in BACKBONES:
        a, b = (f"{data}/{each}/{backbone}" for each in (OURS, BASE))
        if a in results and b in results:
            yield (f"{name(data, OURS)} > {name(data, BASE)} over {backbone}",
                   compare(results.scores(a), results.scores(b)), None)


def pruned(results: Results, data: str) -> Iterator[Found]:
    row = f"{data}/{OURS}"
    if row in results:
        losses = [deep - shallow for deep, shallow in
                  zip(results.scores(row, head="4"), results.scores(row, head="3"))]
        part, whole = (cost["parameters"] for cost in results.of(row)[0]["costs"][-2:])
        yield (f"L3 + {MARGIN:g} point > L4, with {part / whole:.0%} of the parameters",
               within(losses, MARGIN), MARGIN - LOST)


def embedded(results: Results, data: str) -> Iterator[Found]:
    for depth, alone in ISOLATED.items():
        whole, part = f"{data}/{OURS}", f"{data}/{alone}"
        if whole in results and part in results:
            yield (f"L{depth} embedded > isolated",
                   compare(*(results.scores(row, head=str(depth)) for row in (whole, part))), None)


def by_size(results: Results, data: str) -> Iterator[Found]:
    a, b = f"{data}/{OURS}", f"{data}/{BASE}"
    if DATA[data].objects and a in results and b in results:
        for index in range(BUCKETS):
            values = results.bucket(a, index), results.bucket(b, index)
            if all(values):
                yield (f"{name(data, OURS)} > {name(data, BASE)}, size {index + 1} of {BUCKETS}",
                       compare(*values), None)


def printed(data: str, a: str, b: str) -> float | None:
    """The difference of two IoU in the paper."""
    ious = IOU[DATA[data].printed]
    return ious[a][0] - ious[b][0] if a in ious and b in ious else None


def name(data: str, architecture: str) -> str:
    """As the paper calls it, with DS where it is trained with deep supervision."""
    each = ARCHITECTURES[architecture]
    return each.title_of(DATA[data].dims) + (" DS" if each.deep_supervision else "")


CLAIMS = (
    Claim("UNet++ is better than U-Net (Tables I and IV)", better((PLAIN, BASE), (OURS, BASE))),
    Claim("UNet++ is better than a wide U-Net: it is not its parameters",
          better((PLAIN, "wide-unet"), (OURS, "wide-unet"))),
    Claim("UNet+ lies between U-Net and UNet++",
          better(("unetp", BASE), (PLAIN, "unetp"), ("unetp-ds", BASE), (OURS, "unetp-ds"))),
    Claim("Deep supervision, with the heads voting, helps",
          better(("unetp-ds", "unetp"), (OURS, PLAIN))),
    Claim("UNet++ is better than U-Net over other encoders too (Fig. 4)", over_backbones),
    Claim("Deep supervision makes pruning possible: UNet++ L3 is close to L4 (Fig. 5)", pruned),
    Claim("Embedded training is better than isolated training (Fig. 6)", embedded),
    Claim("UNet++ is better for objects of every size (Fig. 7)", by_size),
)
