"""The command line: ``nestedseg train``, ``predict``, ``publish`` and so on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import nestedseg
from nestedseg import cli_instances
from nestedseg.data import (
    LabelledImages,
    LabelledInstances,
    Pair,
    find_pairs,
    list_images,
    new_mask,
    open_volume,
    read_image,
    spatial_axes,
    split_pairs,
)
from nestedseg.data.files import split_name
from nestedseg.encoders import Options, describe_encoder
from nestedseg.export import SUFFIXES
from nestedseg.extras import require
from nestedseg.inference import OVERLAP, WINDOW, predict_image, predict_volume, to_mask
from nestedseg.instance_inference import SCORE, check_finds_instances, predict_instances
from nestedseg.instance_report import write_instance_report
from nestedseg.layers import NORMS, UPSAMPLINGS
from nestedseg.model import SegmentationModel
from nestedseg.pictures import paint_classes, paint_instances, to_rgb
from nestedseg.publish import open_repo, write_repo
from nestedseg.remote import is_repo_id
from nestedseg.report import depth_table, read_report, write_report
from nestedseg.slices import Case, draw_slices
from nestedseg.topologies import read
from nestedseg.training import MODEL, PRECISIONS, Settings, fit

PATCH = {2: [96], 3: [64]}  # one number for all axes
TOPOLOGY = "unetpp"
MAX_INSTANCES = 65_535  # in a map of 16 bit

EXAMPLES = """\
examples:
  nestedseg demo --out demo
  nestedseg train --images train/images --labels train/labels --binary --out run
  accelerate launch -m nestedseg train --images ... --labels ... --out run
  nestedseg predict run/model images --out masks --depth 2
  nestedseg train --task instance --encoder resnet18 --images ... --labels ... --out cells
  nestedseg predict cells/model images --out found
  nestedseg prune run/model --depth 2 --out small
  nestedseg export run/model --depth 2 --out model.onnx
  nestedseg publish run --repo user/name --license mit
  nestedseg predict user/name images --out masks
  nestedseg summary unetpp --encoder resnet18
  nestedseg draw unetpp --depth 4 --out unetpp.svg
  nestedseg list encoders "convnext*"
"""
MODEL_HELP = "a folder, like run/model, or the id of a repo on the Hugging Face Hub, user/name"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0; 2 where the user's input is at fault; 130 after Ctrl-C;
    141 where the reader of a pipe has gone."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:  # as in `nestedseg list encoders | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        print(f"nestedseg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; the same command with --resume continues after the last whole epoch" \
            if args.run is train else ""
        print(f"\nnestedseg: stopped{hint}", file=sys.stderr)
        return 130
    return 0


# -- commands -------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Train on pairs of images and labels; write the best model and a report."""
    pairs = find_pairs(args.images, args.labels)
    recipe = RECIPES[args.task](args, spatial_axes(pair.image for pair in pairs))
    given = {field.name: getattr(args, field.name) for field in fields(Settings)}
    settings = Settings(**given | {"patch": _one_or_all(args.patch or recipe.patch)})
    if (args.val_images is None) != (args.val_labels is None):
        raise ValueError("give --val-images and --val-labels together, or neither")
    if args.val_images:
        held_out = find_pairs(args.val_images, args.val_labels)
    else:
        pairs, held_out = split_pairs(pairs, args.val_fraction, args.seed)
    training, validation = recipe.read(pairs), recipe.read(held_out)
    torch.manual_seed(args.seed)
    model = recipe.create(training)
    if args.push_to_hub:
        open_repo(args.push_to_hub, **_access(args))  # a wrong token shows now, not after hours
    history = fit(model, training, validation, args.out, settings, args.resume)
    if require("accelerate").PartialState().is_main_process:
        best = nestedseg.from_pretrained(args.out / MODEL).to(_device())
        print(recipe.report(args.out, best, validation, history, asdict(settings)))
        print(f"the best model and its report are in {args.out}")
        if args.push_to_hub:
            _push(args, args.push_to_hub, args.out)


def predict(args: argparse.Namespace) -> None:
    """Write a mask, or an instance map, and an overlay for each image."""
    paths = list_images(args.images) if args.images.is_dir() else [args.images]
    model = nestedseg.from_pretrained(args.model, args.depth).to(_device())
    dims, wanted = spatial_axes(paths), model.config.get("dims", 2)
    if dims != wanted:
        raise ValueError(f"{paths[0]} has {dims} axes in space, the model takes {wanted}")
    kind, write = _choose_output(args, model, dims)
    results, overlays = args.out / kind, args.out / "overlays"
    for folder in (results, overlays):
        folder.mkdir(parents=True, exist_ok=True)
    for path in require("tqdm").tqdm(paths, unit="image", disable=None):
        write(args, model, path, results, overlays)
    print(f"{len(paths)} images: {kind} are in {results}, overlays in {overlays}")


def prune(args: argparse.Namespace) -> None:
    """Keep what one depth needs, and save it."""
    model = nestedseg.from_pretrained(args.model, args.depth)
    model.save_pretrained(args.out)
    print(f"depth {args.depth}, {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"is in {args.out}")


def export(args: argparse.Namespace) -> None:
    """Write an ONNX file or, where --out ends in .pt2, a program of torch.export."""
    model = nestedseg.from_pretrained(args.model, args.depth)
    model.export(args.out, "torch" if args.out.suffix == SUFFIXES["torch"] else "onnx", None,
                 args.ensemble, args.dynamic, args.probabilities, args.half)
    print(f"{args.out} has {args.out.stat().st_size:,} bytes")


def publish(args: argparse.Namespace) -> None:
    """Push the model of a training run, with a card, to the Hugging Face Hub."""
    if args.dry_run is None:
        _push(args, args.repo, args.run_folder)
    else:
        model = nestedseg.from_pretrained(args.run_folder / MODEL)
        write_repo(model, args.dry_run, args.repo, **_facts(args, args.run_folder))
        print(f"what would be pushed to {args.repo} is in {args.dry_run}")


def summary(args: argparse.Namespace) -> None:
    """Print what each depth costs."""
    is_file = args.model.endswith(".json")
    if Path(args.model).is_dir() or (is_repo_id(args.model) and not is_file):
        model = nestedseg.from_pretrained(args.model)
        if not model.depths:
            raise ValueError(f"{args.model} is a detector, which has no depths to compare")
    else:
        model = nestedseg.create(args.model, classes=args.classes, in_channels=args.in_channels,
                                 **_model_options(args, args.model, args.dims))
    print(model.summary(_one_or_all(args.size)))


def draw(args: argparse.Namespace) -> None:
    """Draw a topology as SVG or, where the file ends in .mmd, as a Mermaid flowchart."""
    if args.out.suffix not in (".svg", ".mmd"):
        raise ValueError(f"--out must end in .svg or .mmd, got {str(args.out)!r}")
    graph = read(args.topology) if args.topology.endswith(".json") \
        else nestedseg.topology(args.topology, args.depth)
    text = graph.to_svg(args.keep) if args.out.suffix == ".svg" else graph.to_mermaid()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(f"{graph!r} is drawn in {args.out}")


def list_names(args: argparse.Namespace) -> None:
    """Print the names that create() knows, one a line."""
    names = nestedseg.list_topologies() if args.what == "topologies" \
        else nestedseg.list_encoders("*", args.pretrained)
    print("\n".join(name for name in names if fnmatch(name, args.pattern)))


def demo(args: argparse.Namespace) -> None:
    """Train, compare depths, prune, save and reload, on pictures that the package makes."""
    from nestedseg.demo import run_demo
    run_demo(args.out, args.images, args.labels)


# -- to the Hub -----------------------------------------------------------------------------------


def _push(args: argparse.Namespace, repo: str, run: Path) -> None:
    model = nestedseg.from_pretrained(run / MODEL)
    commit = model.push_to_hub(repo, **_access(args), **_facts(args, run))
    print(f"pushed to {repo}: {commit.commit_url}")


def _access(args: argparse.Namespace) -> dict[str, Any]:
    return {"private": args.private or None, "token": args.token}


def _facts(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    return {**read_report(run), "license": args.license, "dataset": args.dataset}


# -- from arguments to models ---------------------------------------------------------------------


class Recipe(NamedTuple):
    """What `train` does in each task's own way.

    Args:
        patch: its default size.
        read: the checked collection of some pairs of files.
        create: the model for a collection.
        report: writes the report, and gives its summary.
    """

    patch: Sequence[int]
    read: Callable[[Sequence[Pair]], LabelledImages]
    create: Callable[[Any], nn.Module]
    report: Callable[..., str]


def _semantic(args: argparse.Namespace, dims: int) -> Recipe:
    if args.anchor_scale != args.parser.get_default("anchor_scale"):
        raise ValueError("--anchor-scale is for --task instance")
    topology = args.topology or TOPOLOGY
    options = _model_options(args, topology, dims)  # a wrong name shows before images are read
    if dims == 3:
        require("scipy", "medical")  # for the report: better missed now than after the training
    return Recipe(PATCH[dims],
                  lambda pairs: LabelledImages(pairs, args.classes, args.binary, args.spacing),
                  lambda images: _create_for(args, topology, images, options),
                  lambda *facts: depth_table(write_report(*facts)))


def _instance(args: argparse.Namespace, dims: int) -> Recipe:
    cli_instances.check_arguments(args)
    return Recipe(cli_instances.PATCH, LabelledInstances,
                  lambda images: cli_instances.create_detector(args, images),
                  write_instance_report)


RECIPES = {"semantic": _semantic, "instance": _instance}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _predict_picture(args: argparse.Namespace, model: SegmentationModel, path: Path, masks: Path,
                     overlays: Path) -> None:
    image = read_image(path)
    with _naming(path):
        scores = predict_image(model, image, _one_or_all(args.window), args.overlap)
        mask = to_mask(scores, model.task)
    _write_png(masks / f"{path.stem}.png", 255 * mask if model.task == "binary" else mask)
    _write_png(overlays / f"{path.stem}.png", paint_classes(to_rgb(image), mask))


def _predict_volume(args: argparse.Namespace, model: SegmentationModel, path: Path, masks: Path,
                    overlays: Path) -> None:
    volume = open_volume(path)
    slabs = predict_volume(model, volume, _one_or_all(args.window), args.overlap)
    progress = require("tqdm").tqdm(total=volume.shape[0], desc=path.name, unit="plane",
                                    leave=False, disable=None)
    with _naming(path), progress, new_mask(masks / path.name, volume) as mask:
        for planes, scores in slabs:
            mask[planes] = to_mask(scores, model.task)
            progress.update(planes.stop - planes.start)
        case = Case(path.name, volume, {"prediction": mask})
        draw_slices([case], overlays / f"{split_name(path)[0]}.png")


def _choose_output(args: argparse.Namespace, model: nn.Module,
                   dims: int) -> tuple[str, Callable[..., None]]:
    """What `predict` writes, as its folder is called, and the function that does."""
    semantic = isinstance(model, SegmentationModel)
    if semantic and args.score is not None:
        raise ValueError("--score is for detectors; the model is none")
    if semantic and not args.instances:
        return "masks", {2: _predict_picture, 3: _predict_volume}[dims]
    check_finds_instances(model)
    return "instances", _predict_instances


def _predict_instances(args: argparse.Namespace, model: nn.Module, path: Path, maps: Path,
                       overlays: Path) -> None:
    image = read_image(path)
    with _naming(path):
        found = predict_instances(model, image, SCORE if args.score is None else args.score,
                                  _one_or_all(args.window), args.overlap)
        if found.max(initial=0) > MAX_INSTANCES:
            raise ValueError(f"{found.max()} instances are found; a 16-bit PNG holds "
                             f"{MAX_INSTANCES} at most")
    _write_png(maps / f"{path.stem}.png", found.astype(np.uint16))
    _write_png(overlays / f"{path.stem}.png", paint_instances(to_rgb(image), found))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors within it name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _one_or_all(values: Sequence[int] | None) -> int | tuple[int, ...] | None:
    """One number for all axes, or one for each."""
    if values is None:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    require("PIL.Image").fromarray(pixels).save(path)


def _create_for(args: argparse.Namespace, topology: str, images: LabelledImages,
                options: dict[str, Any]) -> SegmentationModel:
    """The model to train. Pretrained encoders keep the colours and statistics they know, but for
    volumes, which have none of them."""
    known = args.encoder_weights is not None and images.dims == 2
    model = nestedseg.create(topology, classes=args.classes,
                             in_channels=3 if known else images.in_channels,
                             encoder_weights=args.encoder_weights,
                             class_names=args.class_names, **options)
    if not known:
        model.set_preprocessing(**images.preprocessing(args.standardise))
    return model


def _model_options(args: argparse.Namespace, topology: str, dims: int) -> dict[str, Any]:
    encoder = {"encoder": args.encoder, "dims": dims, "encoder_channels": args.widths,
               "strides": args.strides, "depth_strides": args.depth_strides}
    return {**encoder, "depth": args.depth, "decoder_channels": args.decoder_channels,
            "upsample": args.upsample,
            "norm": None if args.norm == "none" else args.norm,
            "deep_supervision": _supervision(topology, args, Options(**encoder))}


def _supervision(topology: str, args: argparse.Namespace, encoder: Options) -> bool | None:
    """On where a named topology offers several heads; a graph of the user's keeps its own."""
    if args.deep_supervision is not None or topology.endswith(".json"):
        return args.deep_supervision
    levels = describe_encoder(encoder).levels
    return len(nestedseg.topology(topology, args.depth or len(levels) - 1).heads) > 1 or None


# -- parser ---------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command's function is in ``run``, its own parser in ``parser``."""
    parser = argparse.ArgumentParser(
        prog="nestedseg", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Nested U-Nets for image segmentation: train, prune and use them.")
    parser.add_argument("--version", action="version", version=nestedseg.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        text = run.__doc__ or ""
        added = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."),
                                    description=text)
        added.set_defaults(run=run, parser=added)
        return added

    _add_train(command("train", train))
    _add_predict(command("predict", predict))
    _add_prune(command("prune", prune))
    _add_export(command("export", export))
    _add_publish(command("publish", publish))
    _add_summary(command("summary", summary))
    _add_draw(command("draw", draw))
    _add_list(command("list", list_names))
    _add_demo(command("demo", demo))
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=RECIPES, default="semantic",
                        help="semantic: labels are classes; instance: they are instance maps, for "
                             "a Mask R-CNN (default: %(default)s)")
    data = parser.add_argument_group("data (PNG, JPEG or TIFF; or .nii, .nii.gz or .npy, for a 3-D "
                                     "model; paired by file name)")
    data.add_argument("--images", type=Path, required=True, metavar="DIR")
    data.add_argument("--labels", type=Path, required=True, metavar="DIR")
    data.add_argument("--val-images", type=Path, metavar="DIR",
                      help="validation images; without, a part of --images is held out")
    data.add_argument("--val-labels", type=Path, metavar="DIR")
    data.add_argument("--val-fraction", type=float, default=0.2, metavar="F",
                      help="part that is held out (default: %(default)s)")
    data.add_argument("--classes", type=int, default=1, metavar="C",
                      help="1: labels are 0 and 1; more: class indices 0 ... C-1 (default: 1)")
    data.add_argument("--binary", action="store_true",
                      help="every label above 0 is the foreground (instance numbers, 0/255)")
    data.add_argument("--spacing", type=float, nargs=3, metavar="MM",
                      help="along D, H, W, that volumes are resampled to (default: their own)")
    data.add_argument("--standardise", action=argparse.BooleanOptionalAction,
                      help="each image by its own mean and standard deviation, not by those of "
                           "all (default: for volumes)")
    model = _add_model_options(parser)
    model.add_argument("--topology", metavar="NAME|JSON",
                       help=f"see `nestedseg list topologies` (default: {TOPOLOGY}; for instances "
                            f"{cli_instances.TOPOLOGY})")
    model.add_argument("--anchor-scale", type=float, default=4, metavar="F",
                       help="of instances: side of the smallest anchors, in strides of 4 pixels "
                            "(default: %(default)s)")
    model.add_argument("--class-names", nargs="+", metavar="NAME", help="kept with the model")
    model.add_argument("--encoder-weights", metavar="imagenet|FILE",
                       help="pretrained weights of a timm encoder (default: random)")
    training = parser.add_argument_group("training")
    default = Settings()
    for name, text in (("epochs", "at most"), ("batch", "patches on each process"),
                       ("patience", "epochs without a better validation score before it stops"),
                       ("seed", "of everything random"),
                       ("workers", "processes that prepare patches")):
        training.add_argument(f"--{name}", type=int, default=getattr(default, name), metavar="N",
                              help=f"{text} (default: %(default)s)")
    training.add_argument("--patch", type=int, nargs="+", metavar="N",
                          help="in pixels, one number or one for each axis (default: "
                               f"{PATCH[2][0]}, in volumes {PATCH[3][0]}, for instances "
                               f"{cli_instances.PATCH[0]})")
    training.add_argument("--foreground", type=float, metavar="F",
                          help="part of the patches that are centred on the foreground (default: "
                               "a third in volumes, 0 in pictures)")
    training.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=default.mirror,
                          help="mirror and turn patches at random; not where labels tell left from "
                               "right, or front from back")
    training.add_argument("--lr", type=float, default=default.lr, metavar="RATE",
                          help="Adam's learning rate (default: %(default)s)")
    training.add_argument("--steps", type=int, metavar="N",
                          help="batches in an epoch (default: what tiles the images)")
    training.add_argument("--seconds", type=float, metavar="S", help="time limit")
    training.add_argument("--precision", choices=PRECISIONS, default=default.precision,
                          help="default: %(default)s, half precision where the device has it")
    training.add_argument("--out", type=Path, required=True, metavar="RUN",
                          help="folder for the model, checkpoint and report")
    training.add_argument("--resume", action="store_true", help="continue the run in RUN")


    hub = _add_hub_options(parser)
    hub.add_argument("--push-to-hub", metavar="USER/NAME",
                     help="push the best model at the end, as `nestedseg publish` does")


def _add_hub_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("Hugging Face Hub")
    group.add_argument("--private", action="store_true", help="if the repo has to be made")
    group.add_argument("--token", metavar="TOKEN",
                       help="with the right to write (default: $HF_TOKEN, or what `hf auth login` "
                            "stored)")
    group.add_argument("--license", metavar="NAME", help="like mit or cc-by-4.0, for the card")
    group.add_argument("--dataset", metavar="NAME",
                       help="what it was trained on, for the card; without, no scores are listed "
                            "among the Hub's results")
    return group


def _add_model_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("model")
    group.add_argument("--encoder", default="plain", metavar="NAME",
                       help="plain, or a timm model (default: %(default)s)")
    group.add_argument("--depth", type=int, metavar="L", help="default: all the encoder offers")
    group.add_argument("--widths", type=int, nargs="+", metavar="N",
                       default=[32, 64, 128, 256, 512],
                       help="channels of the plain encoder, finest first (default: %(default)s)")
    group.add_argument("--strides", type=_stride, nargs="+", metavar="N,N,N",
                       help="of the plain encoder, along each axis from each level to the next, "
                            "finest first, like 1,2,2 2,2,2 2,2,2 2,2,2 (default: all 2)")
    group.add_argument("--depth-strides", type=int, nargs="+", metavar="N",
                       help="of a timm encoder for volumes, along D where it halves H and W, "
                            "finest first: 1 keeps thick slices, 2 halves (default: all 2)")
    group.add_argument("--decoder-channels", type=int, nargs="+", metavar="N",
                       help="channels of the decoder, finest first")
    group.add_argument("--upsample", default="nearest", choices=UPSAMPLINGS,
                       help="default: %(default)s")
    group.add_argument("--norm", default="batch", choices=[*NORMS, "none"],
                       help="default: %(default)s")
    group.add_argument("--deep-supervision", action=argparse.BooleanOptionalAction,
                       help="a head at every depth (default: where the topology offers them)")
    return group


def _stride(text: str) -> tuple[int, ...]:
    """One step of --strides: "1,2,2" -> (1, 2, 2)."""
    return tuple(map(int, text.split(",")))


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("images", type=Path, metavar="IMAGE_OR_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="gets masks/ (class indices; one class: 0 and 255, in volumes 0 and "
                             "1, on the grid of the image) or instances/ (their numbers, 16 bit), "
                             "and overlays/")
    parser.add_argument("--instances", action="store_true",
                        help="write the connected parts of a binary model's mask as instances; "
                             "detectors always write instances")
    parser.add_argument("--score", type=float, metavar="F",
                        help="of detectors: leave out instances with a lower score (default: "
                             f"{SCORE})")
    parser.add_argument("--depth", type=int, metavar="D", help="prune to this depth first")
    parser.add_argument("--window", type=int, nargs="+", metavar="N",
                        help="larger images go in windows of so many pixels, one number or one for "
                             f"each axis (default: {WINDOW[2]}, in volumes {WINDOW[3]})")
    parser.add_argument("--overlap", type=float, default=OVERLAP, metavar="F",
                        help="of neighbouring windows (default: %(default)s)")


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--depth", type=int, required=True, metavar="D", help="depth to keep")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".onnx or .pt2")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--depth", type=int, metavar="D", help="prune to this depth first")
    output.add_argument("--ensemble", action="store_true", help="the mean of all depths")
    parser.add_argument("--dynamic", nargs="*", metavar="AXIS",
                        help="which of batch, depth, height and width may have any length "
                             "(default: all, but for an encoder that is built for one size)")
    parser.add_argument("--probabilities", action="store_true", help="instead of logits")
    parser.add_argument("--half", action="store_true", help="compute in float16")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of `nestedseg train`")
    parser.add_argument("--repo", required=True, metavar="USER/NAME",
                        help="made where it is not there")
    parser.add_argument("--dry-run", type=Path, metavar="DIR",
                        help="write to a folder what would be pushed, and push nothing")
    _add_hub_options(parser)


def _add_summary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL|TOPOLOGY",
                        help="a folder or repo of a model, or a topology's name or .json")
    group = _add_model_options(parser)
    group.add_argument("--classes", type=int, default=1, metavar="C", help="default: 1")
    group.add_argument("--in-channels", type=int, default=3, metavar="C", help="default: 3")
    group.add_argument("--dims", type=int, choices=(2, 3), default=2,
                       help="3: for volumes (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs="+", metavar="N",
                        help="one number for all axes or one for each, for the MACs (default: the "
                             "encoder's, or 256, or in volumes 64)")


def _add_draw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topology", metavar="TOPOLOGY", help="a name, or a .json file")
    parser.add_argument("--depth", type=int, default=4, metavar="L",
                        help="of a named topology (default: %(default)s)")
    parser.add_argument("--keep", type=int, metavar="D",
                        help="draw grey what pruning to this depth removes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".svg or .mmd")


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("encoders", "topologies"))
    parser.add_argument("pattern", nargs="?", default="*", help='like "convnext*"')
    parser.add_argument("--pretrained", action="store_true",
                        help="only encoders with pretrained weights, with the weights' tags")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR",
                        help="default: %(default)s")
    parser.add_argument("--images", type=Path, metavar="DIR", help="real images in their place")
    parser.add_argument("--labels", type=Path, metavar="DIR",
                        help="their labels; above 0 is the foreground")
