"""Options of ``nestedseg train`` and ``predict`` about which files are read."""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nestedseg.data import Pair, find_pairs, list_images, split_pairs
from nestedseg.data.files import contents, is_series, known_suffix, split_name
from nestedseg.data.layouts.coco import read_coco
from nestedseg.data.layouts.labelme import has_labelme, read_labelme
from nestedseg.data.layouts.lists import COLUMNS, LISTS, choose_pairs, list_named, read_list
from nestedseg.data.layouts.parts import count_channels, find_class_masks, find_object_masks
from nestedseg.data.layouts.splits import SPLITS, fold_pairs

PARTS = ("instances", "classes", "channels")
SETS = ("classes", "channels")  # which may overlap
FILES = "files.csv"  # of a run


class Found(NamedTuple):
    """The pairs of a data set, and what its layout says of their classes.

    Attributes:
        pairs: of images and labels.
        names: of the classes; empty = not said.
        classes: how many; ``None`` = not said.
    """

    pairs: list[Pair]
    names: Sequence[str] = ()
    classes: int | None = None


class Files(NamedTuple):
    """The pairs of a run.

    Attributes:
        train: to train on.
        validation: to validate on.
        rest: neither, because a list says that they are for tests.
    """

    train: list[Pair]
    validation: list[Pair]
    rest: list[Pair]


def add_file_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files (PNG, JPEG, TIFF or Zarr; or NIfTI, NRRD, MetaImage, "
                                      ".npy or DICOM, for a 3-D model)")
    group.add_argument("--images", type=Path, metavar="DIR")
    group.add_argument("--labels", type=Path, metavar="DIR|JSON",
                       help="labels of the same names as the images, or labelme's .json files; or "
                            "a COCO file")
    group.add_argument("--val-images", type=Path, metavar="DIR",
                       help="validation images (default: a part of the images is held out)")
    group.add_argument("--val-labels", type=Path, metavar="DIR|JSON")
    group.add_argument("--val-fraction", type=float, default=0.2, metavar="F",
                       help="fraction of the images that is held out (default: %(default)s)")
    group.add_argument("--val-list", type=Path, metavar="FILE",
                       help="as --list, of the validation images")
    group.add_argument("--label-suffix", default="", metavar="TEXT",
                       help="how the names of labels end, like _mask")
    group.add_argument("--label-parts", choices=PARTS,
                       help="a label is several masks: one for each of the instances, in a folder "
                            "named as the image; one for each of the classes, which may overlap, "
                            "in a folder for each class; or the channels are the masks of classes")
    group.add_argument("--fold", type=int, metavar="K",
                       help="validate on fold K of --folds, counted from 0, train on the others")
    group.add_argument("--folds", type=int, metavar="N", help="number of folds")
    add_choice_options(group)


def add_choice_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options that `train` and `predict` share."""
    parser.add_argument("--list", type=Path, metavar="FILE", dest="listing",
                        help="the images to read: a name or a pair a line; or a .csv with the "
                             "columns image, label, split (train, val, test), group")
    parser.add_argument("--recursive", action="store_true", help="search subfolders too")
    parser.add_argument("--image-suffix", default="", metavar="TEXT",
                        help="how the names of images end, like _leftImg8bit; others are ignored")


def find_files(args: argparse.Namespace) -> Files:
    """The files of a run, by the options of `add_file_options`.

    If the layout says which classes there are, ``args.classes`` and ``args.class_names`` say it
    from then on.

    Raises:
        ValueError: the options contradict each other, or the files do not fit them.
    """
    _check_options(args)
    found = _find(args, args.images, args.labels, args.listing, args.class_names)
    _settle_classes(args, found)
    train, held_out, rest = ([pair for pair in found.pairs if (pair.split or "train") == split]
                             for split in SPLITS)
    others = args.val_images or args.val_list or args.folds
    if held_out and others:
        raise ValueError(f"{args.listing} says which images are for validation; leave out "
                         "--val-images, --val-list and --fold, or the split val")
    if not train:
        raise ValueError(f"{args.listing} has no image of the split train")
    if args.val_images or args.val_list:
        other = _find(args, args.val_images or args.images, args.val_labels or args.labels,
                      args.val_list, found.names or args.class_names)
        if other.classes != found.classes:
            raise ValueError(f"the validation labels have {other.classes} classes, those for "
                             f"training {found.classes}")
        held_out = other.pairs
    elif args.folds is not None:
        train, held_out = fold_pairs(train, args.fold, args.folds, args.seed)
    elif not held_out:
        train, held_out = split_pairs(train, args.val_fraction, args.seed)
    _warn_of_overlap(train, held_out)
    return Files(train, held_out, rest)


def _check_options(args: argparse.Namespace) -> None:
    if (args.val_images is None) != (args.val_labels is None):
        raise ValueError("give --val-images and --val-labels together, or neither")
    if (args.fold is None) != (args.folds is None):
        raise ValueError("give --fold and --folds together, like --fold 0 --folds 5")
    if args.folds is not None and (args.val_images or args.val_list):
        raise ValueError("--fold chooses the validation images; leave out --val-images and "
                         "--val-list")
    if args.label_parts in ("instances", "classes") and (args.images is None
                                                         or args.labels is None):
        raise ValueError(f"--label-parts {args.label_parts} needs --images and --labels")
    if args.label_parts == "instances" and args.label_suffix:
        raise ValueError("--label-suffix has no effect with --label-parts instances: all pictures "
                         "in a folder are masks; leave it out")
    if args.label_parts in SETS and (args.task == "instance" or args.binary):
        raise ValueError(f"--label-parts {args.label_parts} is for classes that overlap; leave it "
                         f"out with {'--binary' if args.binary else '--task instance'}")


def _find(args: argparse.Namespace, images: Path | None, labels: Path | None,
          listing: Path | None, class_names: Sequence[str] | None) -> Found:
    """A data set, of one of the layouts."""
    ways = {"image_suffix": args.image_suffix, "recursive": args.recursive}
    if images is not None and labels is not None:
        drawn = _find_drawn(args, images, labels, class_names)
        if drawn is not None and listing is not None:
            return drawn._replace(pairs=choose_pairs(drawn.pairs, listing, images, **ways))
        if drawn is not None:
            return drawn
    ways["label_suffix"] = args.label_suffix
    if listing is not None:
        pairs = read_list(listing, images, labels, **ways)
    elif images is not None and labels is not None:
        pairs = find_pairs(images, labels, **ways)
    else:
        raise ValueError("give --images and --labels, or --list FILE, which names both")
    if args.label_parts == "channels":
        return Found(pairs, class_names or (), count_channels(pairs, args.dims))
    return Found(pairs)


def _find_drawn(args: argparse.Namespace, images: Path, labels: Path,
                class_names: Sequence[str] | None) -> Found | None:
    """A data set whose labels are not one picture for each image; ``None`` if they are."""
    instances, recursive = args.task == "instance", args.recursive
    if labels.suffix.lower() == ".json":
        if args.label_parts or args.label_suffix:
            raise ValueError(f"{labels} says which objects each image has; leave out "
                             "--label-parts and --label-suffix")
        pairs, names = read_coco(labels, images, instances=instances, class_names=class_names)
    elif args.label_parts == "instances":
        return Found(find_object_masks(images, labels, recursive=recursive))
    elif args.label_parts == "classes":
        pairs, names = find_class_masks(
            images, labels, image_suffix=args.image_suffix, label_suffix=args.label_suffix,
            recursive=recursive, class_names=class_names)
    elif not args.label_suffix and has_labelme(images, labels, recursive):
        pairs, names = read_labelme(images, labels, instances=instances, class_names=class_names,
                                    recursive=recursive)
    else:
        return None
    return Found(pairs, names, len(names))


def _settle_classes(args: argparse.Namespace, found: Found) -> None:
    """Makes the options about classes what the layout says."""
    if found.classes is None or args.task == "instance":
        return
    if args.binary:
        args.class_names = None
        return
    if args.classes not in (args.parser.get_default("classes"), found.classes):
        raise ValueError(f"--classes {args.classes} was given, but the labels have {found.classes} "
                         f"classes: {', '.join(found.names) or 'one for each channel'}; leave it "
                         "out, or choose some with --class-names")
    args.classes, args.class_names = found.classes, list(found.names) or None


def _warn_of_overlap(train: Sequence[Pair], validation: Sequence[Pair]) -> None:
    both = {pair.image.resolve() for pair in train} & {pair.image.resolve() for pair in validation}
    if both:
        print(f"warning: {len(both)} images are both for training and for validation, the first "
              f"is {min(both)}; the scores say nothing about other images", file=sys.stderr)


def write_files(path: Path, files: Files) -> None:
    """Writes which files were in which part of a run, as a table that --list reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for split, pairs in zip(SPLITS, files):
            for pair in pairs:
                label = pair.label.resolve() if isinstance(pair.label, Path) else ""
                table.writerow((pair.image.resolve(), label, split, pair.group))


# -- predict --------------------------------------------------------------------------------------


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """The images that `predict` reads."""
    parser.add_argument("images", type=Path, metavar="IMAGE_OR_DIR",
                        help="an image, a folder of images, or a list of images as for --list")
    add_choice_options(parser)
    parser.add_argument("--split", choices=SPLITS, help="of a list, only the images of this split")


def find_images(args: argparse.Namespace) -> list[Path]:
    """The images to predict, by the options of `add_image_options`.

    Raises:
        ValueError: there are none, or two have the same name, by which results are named.
    """
    listing, folder = args.listing, args.images
    if args.images.suffix.lower() in LISTS and not args.images.is_dir():
        if listing is not None:
            raise ValueError(f"{args.images} and --list {listing} are both lists; give one of them")
        listing, folder = args.images, None
    if listing is not None:
        paths = list_named(listing, folder, split=args.split, recursive=args.recursive,
                           image_suffix=args.image_suffix)
    elif args.split is not None:
        raise ValueError("--split needs a list, which says the split of each image")
    elif args.images.is_dir() and not known_suffix(args.images) and not is_series(args.images):
        paths = [path for path in list_images(args.images, args.recursive)
                 if split_name(path)[0].endswith(args.image_suffix)]
        if not paths:
            raise ValueError(f"no image in {args.images} has a name that ends in "
                             f"{args.image_suffix!r}; found: {contents(args.images)}")
    else:
        return [args.images]
    names = Counter(split_name(path)[0] for path in paths)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} of the images have the name {name}, and so would their "
                         "results; predict them one folder after the other")
    return paths
