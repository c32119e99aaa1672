"""Run the paper's experiments; what is done is not done again, what was killed goes on.

    python -m benchmarks.paper.run --data DIR                 # DIR holds em/, nuclei/, hippocampus/
    python -m benchmarks.paper.run --data DIR --only em/unetpp-ds --trials 1
    accelerate launch --multi_gpu --num_processes 4 -m benchmarks.paper.run --data DIR

Each trial is one JSON file under benchmarks/results/paper. Processes that work on one plan, started
together or apart, take different trials. `python -m benchmarks.paper.report` makes the page.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper import trial as one
from benchmarks.paper.data import read_sets
from benchmarks.paper.plan import PROFILES, Row, Trial, plan
from nestedseg.base.extras import require
from nestedseg.data import LabelledImages

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "paper"
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # set by accelerate launch


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        trials = plan(PROFILES[args.profile], args.trials, args.only,
                      [folder.name for folder in args.data.iterdir()])
        if not trials:
            raise ValueError(f"{args.data} holds no data set of these rows")
        if args.list:
            print("\n".join(dict.fromkeys(str(trial.row) for trial in trials)))
        else:
            start(args, trials)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{error}") from error


def start(args: argparse.Namespace, trials: Sequence[Trial]) -> None:
    """Run them, so that on a CPU the same seed gives the same numbers."""
    process, processes = stand_alone(args.device)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True, warn_only=args.device == "cuda")
    Runner(args.data, args.out / args.profile, args.runs / args.profile,
           args.encoder_weights).run(trials, process, processes)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="holds a folder for each data set, and these "
                                                 "images/ and labels/")
    add("--profile", choices=PROFILES, default="quick", help="default: %(default)s")
    add("--trials", type=int, help="of each row; default: the profile's")
    add("--only", nargs="+", default=["*"], metavar="ROW", help="em/unetpp-ds, 'nuclei/*', ...")
    add("--list", action="store_true", help="print the rows, and do nothing")
    add("--device", choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--threads", type=int, default=1, help="of each process; another number gives other "
                                               "digits (default: %(default)s)")
    add("--encoder-weights", type=Path, metavar="DIR",
        help="holds ENCODER.safetensors; backbones that it has start from them")
    add("--out", type=Path, default=RESULTS, help="folder for results (default: %(default)s)")
    add("--runs", type=Path, default=ROOT / "runs" / "paper",
        help="folder for checkpoints and models (default: %(default)s)")
    return parser.parse_args(arguments)


def stand_alone(device: str) -> tuple[int, int]:
    """This process's number, and how many there are; from here on it trains by itself.

    Whole trials are shared out, not their batches: so a trial's numbers do not depend on how many
    processes there are. Of several CUDA devices it sees its own alone.
    """
    process, local, processes = (int(os.environ.get(name, default)) for name, default in
                                 (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    for name in LAUNCHED:
        os.environ.pop(name, None)
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif processes > 1:
        torch.cuda.set_device(local % torch.cuda.device_count())
    return process, processes


class Runner:
    """Works through a plan.

    Args:
        data: holds a folder for each data set.
        out: for the JSON files.
        runs: for checkpoints and models.
        weights: see `benchmarks.paper.trial.run`.
    """

    def __init__(self, data: Path, out: Path, runs: Path, weights: Path | None = None):
        self.data, self.out, self.runs, self.weights = data, out, runs, weights
        self._read: dict[Any, dict[str, LabelledImages]] = {}
        self._seconds: dict[Row, list[float]] = defaultdict(list)

    def run(self, trials: Sequence[Trial], process: int = 0, processes: int = 1) -> None:
        """Every trial that is not done, nor being done by another process.

        Raises:
            ValueError: there is a result of the same name with other settings.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        for trial in filter(self.done, trials):
            self._note(trial, self.check(trial))
        # tqdm's disable=None: no bar where the output is no terminal.
        bar = require("tqdm").tqdm(total=len(trials), disable=True if process else None,
                                   bar_format="{desc} |{bar}| {n}/{total} {elapsed}{postfix}")
        with bar:
            for trial in trials:
                left = [each.row for each in trials if not self.done(each)]
                bar.n = len(trials) - len(left)
                bar.set_postfix_str(f"about {clock(self._time(left) / processes)} left")
                with claimed(self.runs / trial.name) as mine:
                    if mine and not self.done(trial):
                        self._note(trial, self._run(trial, bar))
            bar.n = sum(map(self.done, trials))

    def path(self, trial: Trial) -> Path:
        return self.out / f"{trial.name}.json"

    def done(self, trial: Trial) -> bool:
        return self.path(trial).exists()

    def check(self, trial: Trial) -> dict[str, Any]:
        """The result of a trial that is done.

        Raises:
            ValueError: it was done with other settings.
        """
        path = self.path(trial)
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["trial"] != json.loads(json.dumps(one.facts(trial, self.weights))):
            raise ValueError(f"{path} is of a trial with other settings; move it away, or choose "
                             "another folder with --out")
        return result

    def _run(self, trial: Trial, bar: Any) -> dict[str, Any]:
        result = one.run(trial, self._sets(trial), self.runs / trial.name, self.path(trial),
                         self.weights, lambda line: bar.set_description_str(f"{trial}: {line}"))
        bar.write(f"{trial}: {clock(result['times']['all'])}")
        return result

    def _sets(self, trial: Trial) -> dict[str, LabelledImages]:
        data, protocol = trial.row.data, trial.protocol
        key = data, protocol.images, protocol.side
        if key not in self._read:
            self._read[key] = read_sets(self.data / data, data, protocol)
        return self._read[key]

    def _note(self, trial: Trial, result: dict[str, Any]) -> None:
        self._seconds[trial.row].append(result["times"]["all"])

    def _time(self, rows: Sequence[Row]) -> float:
        """Seconds for a trial of each, by those of the same row, else by the mean; nan before."""
        known = {row: statistics.mean(times) for row, times in self._seconds.items()}
        mean = statistics.mean(known.values()) if known else math.nan
        return sum(known.get(row, mean) for row in rows)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has the trial of a folder for itself; a killed one has it no more."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


if __name__ == "__main__":
    main()
