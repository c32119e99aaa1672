"""``nestedseg publish``, and the end of ``nestedseg train --push-to-hub``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import nestedseg
from nestedseg.hub.publish import write_repo
from nestedseg.training.loop import MODEL
from nestedseg.training.report.metrics_file import read_report


def publish(args: argparse.Namespace) -> None:
    """Push the model of a training run, with a card, to the Hugging Face Hub."""
    if args.dry_run is None:
        push_run(args, args.repo, args.run_folder)
    else:
        model = nestedseg.from_pretrained(args.run_folder / MODEL)
        write_repo(model, args.dry_run, args.repo, **_facts(args, args.run_folder))
        print(f"what would be pushed to {args.repo} is in {args.dry_run}")


def push_run(args: argparse.Namespace, repo: str, run: Path) -> None:
    model = nestedseg.from_pretrained(run / MODEL)
    commit = model.push_to_hub(repo, **access(args), **_facts(args, run))
    print(f"pushed to {repo}: {commit.commit_url}")


def access(args: argparse.Namespace) -> dict[str, Any]:
    return {"private": args.private or None, "token": args.token}


def _facts(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    return {**read_report(run), "license": args.license, "dataset": args.dataset}


def add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of `nestedseg train`")
    parser.add_argument("--repo", required=True, metavar="USER/NAME",
                        help="the repo, made if it does not exist")
    parser.add_argument("--dry-run", type=Path, metavar="DIR",
                        help="write what would be pushed to a folder instead")
    add_hub_options(parser)


def add_hub_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("Hugging Face Hub")
    group.add_argument("--private", action="store_true", help="make a new repo private")
    group.add_argument("--token", metavar="TOKEN",
                       help="a token with the right to write (default: $HF_TOKEN, or the one that "
                            "`hf auth login` stored)")
    group.add_argument("--license", metavar="NAME", help="for the card, like mit or cc-by-4.0")
    group.add_argument("--dataset", metavar="NAME",
                       help="the data set that the model was trained on, for the card; without it, "
                            "the Hub lists no scores")
    return group
