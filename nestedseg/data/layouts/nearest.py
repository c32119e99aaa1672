"""Says what two folders contain, and which layout they are most like, for error messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path

from nestedseg.data.files import MOST_SEEN, contents, name_in, walk

ENDING = re.compile(r"[_.\-][^/]*$")  # what may be a suffix of names: it begins with one of these
TRIED = 20  # images whose names suggest a suffix
LISTS = ("*.txt", "*.csv", "ImageSets/Segmentation/*.txt")


def nearest_layout(images: Path, labels: Path) -> str:
    """The end of a message: what was found in two folders, and the options that would fit it best.

    Args:
        images: an existing folder.
        labels: an existing folder, perhaps the same.
    """
    found = f"; found in {images}: {contents(images)}"
    if labels != images:
        found += f"; in {labels}: {contents(labels)}"
    fits = sorted([*_parts(images, labels), *_fits(images, labels)], key=lambda fit: -fit[0])
    if not fits or fits[0][0] < 0.5:
        return (f"{found}. A list file can pair any names: --list pairs.csv, with the columns "
                f"image and label{_lists_near(images)}")
    share, options = fits[0]
    how_many = "" if share == 1 else f" for {share:.0%} of the images"
    narrow = "; --list FILE chooses some of the images" + _lists_near(images) if share < 1 else ""
    return f"{found}. The nearest layout fits{how_many}: {options}{narrow}"


def _fits(images: Path, labels: Path) -> Iterator[tuple[float, str]]:
    """Layouts, as options of the command line, each with the share of the images that it pairs."""
    for recursive in (False, True):
        more = " --recursive" if recursive else ""
        ours, theirs = (_names(folder, recursive) for folder in (images, labels))
        if not ours:
            continue
        for ending in dict.fromkeys(("", _common_ending(ours))):
            stems = [name.removesuffix(ending) for name in ours if name.endswith(ending)]
            taken = {*theirs}
            for suffix in _endings(stems, theirs):
                if (ending, suffix) == ("", "") and images == labels:
                    continue
                wanted = [stem for stem in stems if not (images == labels and suffix
                                                         and stem.endswith(suffix))]
                share = sum(stem + suffix in taken for stem in wanted) / max(len(wanted), 1)
                options = f" --image-suffix {ending}" * bool(ending) \
                    + f" --label-suffix {suffix}" * bool(suffix) + more
                yield share, options.strip() or "no option, names alone"

def _parts(images: Path, labels: Path) -> Iterator[tuple[float, str]]:
    """Layouts in which the label of an image is several files."""
    jsons = sorted(labels.glob("*.json"))[:2]
    if len(jsons) == 1:
        yield 0.75, f"--labels {jsons[0]}, if it is a COCO file"
    names = _names(images, False)
    classes = [folder for folder in islice(sorted(labels.iterdir()), 1000) if folder.is_dir()]
    if names and classes:
        inside = [sum((folder / name).with_suffix(".png").exists() for name in names[:TRIED])
                  for folder in classes]
        yield min(inside) / min(len(names), TRIED), "--label-parts classes"
        own = sum((labels / name).is_dir() for name in names)
        yield own / len(names), "--label-parts instances"
    cases = [name for name in _names(images, True) if "/images/" in f"/{name}"]
    if cases:
        own = sum((labels / Path(name).parent.parent / "masks").is_dir() for name in cases)
        yield own / len(cases), "--label-parts instances --recursive"


def _names(folder: Path, recursive: bool) -> list[str]:
    return sorted(name_in(folder, path) for path in islice(walk(folder, recursive), MOST_SEEN))


def _common_ending(names: Sequence[str]) -> str:
    """What all names end with, from a separator on: ``_leftImg8bit``; "" if there is nothing."""
    first, last = min(backwards := [name[::-1] for name in names]), max(backwards)
    same = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(first, last)))
    found = ENDING.search(first[:same][::-1]) if len(names) > 1 else None
    return found.group() if found else ""


def _endings(stems: Sequence[str], names: Sequence[str]) -> list[str]:
    """What names have in addition to some of the stems, the most frequent first."""
    counts: Counter[str] = Counter()
    for stem in stems[:TRIED]:
        counts.update(name[len(stem):] for name in names if name.startswith(stem))
    return [ending for ending, _ in counts.most_common(TRIED)]


def _lists_near(images: Path) -> str:
    """The list files beside a folder, for a message."""
    found = [path for pattern in LISTS for path in islice(sorted(images.parent.glob(pattern)), 3)]
    return f" (there is {', '.join(map(str, found[:3]))})" if found else ""
