"""Time volumes against the unofficial 3-D port of segmentation_models.pytorch.

The port pins an old timm, so it has an environment of its own:

    python -m venv ENV
    ENV/bin/pip install segmentation-models-pytorch-3d
    python benchmarks/volumes.py --peer-python ENV/bin/python
    python benchmarks/tables.py                        # puts the figures into docs/volumes.md

UNet++ over ResNet-18 with SMP's topology and widths, the port's random weights in both, on one
volume with one channel. Each model is in a process of its own; their runs are interleaved. Nothing
else should run at the same time. MONAI's BasicUNetPlusPlus is in speed.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import describe_machine
from timing import timed
from volume_worker import ENCODER

FOLDER = Path(__file__).parent
RIVALS = {"inference": ("port", "port channels_last", "ours", "ours channels_last", "ours fused"),
          "training": ("port", "port channels_last", "ours", "ours channels_last")}


def main() -> None:
    args = parse_arguments()
    results = {"benchmark": "volumes", "encoder": ENCODER, "volume": [args.side] * 3,
               "rows": {task: measure(task, args) for task in RIVALS},
               "machine": describe_machine()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["rows"], indent=1), f"\nwritten to {args.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, metavar="ENV/bin/python",
                        help="Python of the environment with segmentation-models-pytorch-3d")
    parser.add_argument("--side", type=int, default=64, help="voxels (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=300,
                        help="for each row, beyond seven runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "volumes.json")
    return parser.parse_args()


def measure(task: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """For each implementation: median milliseconds, and what its process prints about it."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        workers = {who: stack.enter_context(Worker(
            args.peer_python if who.startswith("port") else sys.executable, who, task,
            str(args.side), folder)) for who in RIVALS[task]}
        times = timed({who: worker.run for who, worker in workers.items()}, args.seconds)
        return {who: {"milliseconds": times[who], **worker.facts}
                for who, worker in workers.items()}


class Worker:
    """A model in a process of its own, which runs its task on demand."""

    def __init__(self, python: str, who: str, *arguments: str) -> None:
        self.who = who
        self.process = subprocess.Popen(
            [python, str(FOLDER / "volume_worker.py"), who, *arguments], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Worker:
        self.facts = json.loads(self._answer())
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.kill()
        self.process.communicate()

    def run(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.who!r} has ended")
        return line


if __name__ == "__main__":
    main()
