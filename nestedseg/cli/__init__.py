"""The command line: ``nestedseg train``, ``predict``, ``publish`` and so on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import nestedseg
from nestedseg.cli import demo, models, predict, publish, score, train

EXAMPLES = """\
examples:
  nestedseg demo --out demo
  nestedseg train --images train/images --labels train/labels --binary --out run
  accelerate launch -m nestedseg train --images ... --labels ... --out run
  nestedseg predict run/model images --out masks --depth 2
  nestedseg score masks/masks labels
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    It is 0 on success, 1 if a part of the work failed, 2 for an error in the user's input (with
    ``--traceback`` the error is raised instead), 130 after Ctrl-C, and 141 if the reader of a pipe
    has gone.
    """
    args = build_parser().parse_args(argv)
    try:
        import_modules(args.modules + args.more_modules)
        return args.run(args) or 0
    except BrokenPipeError:  # as in `nestedseg list encoders | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        if args.traceback:
            raise
        print(f"nestedseg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; rerun the same command with --resume to continue after the last whole epoch" \
            if args.run is train.train else ""
        print(f"\nnestedseg: stopped{hint}", file=sys.stderr)
        return 130


def import_modules(names: Sequence[str]) -> None:
    """Imports modules of the user's, from the current folder too."""
    if names and "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: no file there stands in for an installed package
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # it is there, and imports another that is not
                raise
            raise ImportError(f"--import {name}: there is no such module; give the name of one "
                              "that is installed, or of a file in this folder, without its "
                              ".py") from error


def build_parser() -> argparse.ArgumentParser:
    """The parser. It sets ``run`` to the function of a command, ``parser`` to its own parser."""
    parser = argparse.ArgumentParser(
        prog="nestedseg", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Nested U-Nets for image segmentation: train, prune and use them.")
    parser.add_argument("--version", action="version", version=nestedseg.__version__)
    _add_general_options(parser, "modules", traceback=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str,
                run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        text = run.__doc__ or ""
        added = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."),
                                    description=text)
        _add_general_options(added, "more_modules", traceback=argparse.SUPPRESS)
        added.set_defaults(run=run, parser=added)
        return added

    train.add_train(command("train", train.train))
    predict.add_predict(command("predict", predict.predict))
    score.add_score(command("score", score.score))
    models.add_prune(command("prune", models.prune))
    models.add_export(command("export", models.export))
    publish.add_publish(command("publish", publish.publish))
    models.add_summary(command("summary", models.summary))
    models.add_draw(command("draw", models.draw))
    models.add_list(command("list", models.list_names))
    demo.add_demo(command("demo", demo.demo))
    return parser


def _add_general_options(parser: argparse.ArgumentParser, modules: str, traceback: Any) -> None:
    """What may stand before or after a command, whose parser must not undo what stood before."""
    group = parser.add_argument_group("general")
    group.add_argument("--import", action="append", default=[], dest=modules, metavar="MODULE",
                       help="import it first, from the current folder too: for topologies that it "
                            "registers; may be given again")
    group.add_argument("--traceback", action="store_true", default=traceback,
                       help="show where in the code an error arose, not just what it says")
