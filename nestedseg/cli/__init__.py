"""The command line: ``nestedseg train``, ``predict``, ``publish`` and so on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

import nestedseg
from nestedseg.cli import demo, models, predict, publish, train

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0; 1 where it could not do all that it was asked for; 2 where the
    user's input is at fault; 130 after Ctrl-C; 141 where the reader of a pipe has gone."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except BrokenPipeError:  # as in `nestedseg list encoders | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        print(f"nestedseg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "; the same command with --resume continues after the last whole epoch" \
            if args.run is train.train else ""
        print(f"\nnestedseg: stopped{hint}", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser; each command's function is in ``run``, its own parser in ``parser``."""
    parser = argparse.ArgumentParser(
        prog="nestedseg", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Nested U-Nets for image segmentation: train, prune and use them.")
    parser.add_argument("--version", action="version", version=nestedseg.__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str,
                run: Callable[[argparse.Namespace], int | None]) -> argparse.ArgumentParser:
        text = run.__doc__ or ""
        added = commands.add_parser(name, help=text[0].lower() + text[1:].rstrip("."),
                                    description=text)
        added.set_defaults(run=run, parser=added)
        return added

    train.add_train(command("train", train.train))
    predict.add_predict(command("predict", predict.predict))
    models.add_prune(command("prune", models.prune))
    models.add_export(command("export", models.export))
    publish.add_publish(command("publish", publish.publish))
    models.add_summary(command("summary", models.summary))
    models.add_draw(command("draw", models.draw))
    models.add_list(command("list", models.list_names))
    demo.add_demo(command("demo", demo.demo))
    return parser
