"""Put the figures of benchmarks/results/*.json into the README: python benchmarks/tables.py

With --check, change nothing and fail where the README says other figures than the results.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def em_quick(data: dict[str, Any]) -> str:
    results, machine = data["results"], data["machine"]
    rows = [("", "IoU", "Dice", "membrane IoU", "parameters", "MACs", "time per slice")]
    for name, scores in results["baselines"].items():
        rows.append((name, *_scores(scores), "", "", ""))
    for row in results["test"]:
        rows.append((f"UNet++, depth {row['depth']}", *_scores(row), f"{row['parameters']:,}",
                     f"{row['macs'] / 1e9:.1f} G", f"{1e3 * row['seconds_per_image']:.0f} ms"))
    best = max(row["validation_iou"] for row in results["test"])
    return f"""{_table(rows)}
Depth {results['chosen_depth']} is the shallowest within {results['tolerance']} of the best \
validation IoU ({best:.3f}). On the test slices
it is {results['margin_over_otsu']:.3f} IoU above the better of the two Otsu rows. Trained for \
{len(data['curves'])} epochs, {data['training_seconds'] / 60:.0f} minutes on
{machine['cores']} cores ({machine['cpu']}) under a load of {machine['load']}; a load above the \
cores means that other programs shared
them. One run, seed {data['settings']['seed']}: differences of a few thousandths mean nothing.
"""


def _scores(scores: dict[str, float]) -> tuple[str, ...]:
    return tuple(f"{scores[key]:.3f}" for key in ("iou", "dice", "membrane_iou"))


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [rows[0], (":--", *["--:"] * (len(rows[0]) - 1)), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES = {"em_quick": em_quick}


def fill(text: str) -> str:
    """The text with the table of each result between its two markers."""
    for name, render in TABLES.items():
        data = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
        block = f"<!-- {name} -->\n{render(data)}<!-- /{name} -->"
        text, found = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text,
                              flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"the README must hold the markers of {name} once, not {found} times")
    return text


def main() -> None:
    text = README.read_text(encoding="utf-8")
    if "--check" not in sys.argv:
        README.write_text(fill(text), encoding="utf-8")
    elif fill(text) != text:
        raise SystemExit("the README's figures are not those of benchmarks/results; "
                         "run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
