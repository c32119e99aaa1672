"""Make the best model of each data set ready to publish: its report, its card, and the command.

    python -m benchmarks.paper.models --data DIR --profile quick --repo USER

Of the row with the best mean IoU, the trial with the best validation IoU. The folders of the
models, under runs/paper, must still be there.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import nestedseg
from benchmarks.paper.data import DATA, read_sets
from benchmarks.paper.plan import PROFILES
from benchmarks.paper.results import Results
from benchmarks.paper.run import RESULTS, ROOT
from nestedseg.hub.publish import write_repo
from nestedseg.training.history import Epoch
from nestedseg.training.loop import MODEL
from nestedseg.training.report.metrics_file import read_report
from nestedseg.training.report.semantic import write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="as of benchmarks.paper.run")
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument("--repo", default="user", help="whose repos; default: %(default)s")
    args = parser.parse_args()
    results = Results(RESULTS / args.profile)
    for data in DATA:
        trial = best_trial(results, data)
        if trial is not None:
            run = ROOT / "runs" / "paper" / args.profile / file_name(trial)
            write_card(run, trial, args.data / data, f"{args.repo}/nestedseg-{data}")


def best_trial(results: Results, data: str) -> dict[str, Any] | None:
    """Of the best row of a data set, the trial that its validation images prefer."""
    rows = [row for row in results.rows if row.startswith(f"{data}/")]
    if not rows:
        return None
    best = max(rows, key=lambda row: statistics.mean(results.scores(row)))
    return max(results.of(best), key=lambda trial: max(e["score"] for e in trial["curves"]))


def write_card(run: Path, trial: dict[str, Any], data: Path, repo: str) -> None:
    """The report of a run, and in ``run/repo`` what would be published."""
    facts = trial["trial"]
    protocol = PROFILES[facts["profile"]].protocols[data.name]
    validation = read_sets(data, data.name, protocol)["validation"]
    history = [Epoch(**curve, seconds=seconds)
               for curve, seconds in zip(trial["curves"], trial["times"]["epochs"])]
    model = nestedseg.from_pretrained(run / MODEL)
    write_report(run, model, validation, history, facts["protocol"]["settings"])
    write_repo(model, run / "repo", repo, dataset=DATA[data.name].title, **read_report(run))
    print(f"{facts['row']}, trial {facts['number']}: {run / 'repo'}\n"
          f"    nestedseg publish {run} --repo {repo}")


def file_name(trial: dict[str, Any]) -> str:
    return f"{trial['trial']['row'].replace('/', '.')}.{trial['trial']['number']}"


if __name__ == "__main__":
    main()
