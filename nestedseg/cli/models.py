"""The commands that do not read images: prune, export, summary, draw, list."""

from __future__ import annotations

import argparse
from fnmatch import fnmatch
from pathlib import Path

import nestedseg
from nestedseg.cli.arguments import MODEL_HELP, add_model_options, model_options, one_or_all
from nestedseg.hub.client import is_repo_id
from nestedseg.models.export import SUFFIXES
from nestedseg.topology.rules import read_graph


def prune(args: argparse.Namespace) -> None:
    """Extract one depth of a model as a standalone model, and save it."""
    model = nestedseg.from_pretrained(args.model, args.depth)
    model.save_pretrained(args.out)
    print(f"depth {args.depth}, {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"is in {args.out}")


def add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--depth", type=int, required=True, metavar="D", help="depth to keep")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def export(args: argparse.Namespace) -> None:
    """Write an ONNX file or, if --out ends in .pt2, a torch.export program."""
    model = nestedseg.from_pretrained(args.model, args.depth)
    model.export(args.out, "torch" if args.out.suffix == SUFFIXES["torch"] else "onnx", None,
                 args.ensemble, args.dynamic, args.probabilities, args.half)
    print(f"{args.out} has {args.out.stat().st_size:,} bytes")


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".onnx or .pt2")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--depth", type=int, metavar="D", help="prune to this depth first")
    output.add_argument("--ensemble", action="store_true", help="export the mean of all depths")
    parser.add_argument("--dynamic", nargs="*", metavar="AXIS",
                        help="which of batch, depth, height and width may have any length "
                             "(default: all; only batch if the encoder is built for one size)")
    parser.add_argument("--probabilities", action="store_true",
                        help="output probabilities instead of logits")
    parser.add_argument("--half", action="store_true", help="compute in float16")


def summary(args: argparse.Namespace) -> None:
    """Print the parameters, MACs and output stride of each depth."""
    is_file = args.model.endswith(".json")
    if Path(args.model).is_dir() or (is_repo_id(args.model) and not is_file):
        model = nestedseg.from_pretrained(args.model)
        if not model.depths:
            raise ValueError(f"summary is only for semantic models, but {args.model} is a "
                             "detector, which has no depths to compare")
    else:
        model = nestedseg.create(args.model, classes=args.classes, in_channels=args.in_channels,
                                 **model_options(args, args.model, args.dims))
    print(model.summary(one_or_all(args.size)))


def add_summary(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL|TOPOLOGY",
                        help="a folder or repo of a model, or a topology's name or .json")
    group = add_model_options(parser)
    group.add_argument("--classes", type=int, default=1, metavar="C", help="default: 1")
    group.add_argument("--in-channels", type=int, default=3, metavar="C", help="default: 3")
    group.add_argument("--dims", type=int, choices=(2, 3), default=2,
                       help="2 for images, 3 for volumes (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs="+", metavar="N",
                        help="size of the image for the MACs, one number for all axes or one for "
                             "each (default: the encoder's, or 256, in volumes 64)")


def draw(args: argparse.Namespace) -> None:
    """Draw a topology as SVG or, if --out ends in .mmd, as a Mermaid flowchart."""
    if args.out.suffix not in (".svg", ".mmd"):
        raise ValueError(f"--out must end in .svg or .mmd, got {str(args.out)!r}")
    graph = read_graph(args.topology) if args.topology.endswith(".json") \
        else nestedseg.topology(args.topology, args.depth)
    text = graph.to_svg(args.keep) if args.out.suffix == ".svg" else graph.to_mermaid()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(f"{graph!r} is drawn in {args.out}")


def add_draw(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topology", metavar="TOPOLOGY", help="a name, or a .json file")
    parser.add_argument("--depth", type=int, default=4, metavar="L",
                        help="depth of a named topology (default: %(default)s)")
    parser.add_argument("--keep", type=int, metavar="D",
                        help="draw nodes grey that pruning to this depth removes")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".svg or .mmd")


def list_names(args: argparse.Namespace) -> None:
    """Print the names of encoders or topologies, one per line."""
    names = nestedseg.list_topologies() if args.what == "topologies" \
        else nestedseg.list_encoders("*", args.pretrained)
    print("\n".join(name for name in names if fnmatch(name, args.pattern)))


def add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("encoders", "topologies"))
    parser.add_argument("pattern", nargs="?", default="*", help='like "convnext*"')
    parser.add_argument("--pretrained", action="store_true",
                        help="only encoders with pretrained weights, with the weights' tags")
