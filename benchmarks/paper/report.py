"""Put the results of the paper's experiments into docs/paper.md, with figures.

    python -m benchmarks.paper.report        # after python -m benchmarks.paper.run
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import insert, table
from benchmarks.paper import figures
from benchmarks.paper.claims import BASE, CLAIMS, OURS, name
from benchmarks.paper.data import DATA
from benchmarks.paper.plan import PROFILES, TABLE_1
from benchmarks.paper.printed import IOU, MEASURES, TABLE_5, TABLE_6
from benchmarks.paper.results import Results
from benchmarks.paper.run import RESULTS, ROOT, clock
from benchmarks.paper.stats import Summary, compare, summarise, together

PAGE = ROOT / "docs" / "paper.md"
INSTANCES = ROOT / "benchmarks" / "results" / "instances.json"


def main() -> None:
    for profile in PROFILES:
        results = Results(RESULTS / profile)
        text = report(results, profile, PAGE.parent) if results.rows else "Not run yet.\n"
        PAGE.write_text(insert(PAGE, f"paper-{profile}", f"\n{text}\n"), encoding="utf-8")
    PAGE.write_text(insert(PAGE, "paper-instances", f"\n{table_5(INSTANCES)}\n"), encoding="utf-8")
    print(f"written to {PAGE.relative_to(ROOT)}")


def report(results: Results, profile: str, docs: Path) -> str:
    """The part of the page for one profile; its figures are drawn into ``docs/images/paper``."""
    parts = [conditions(results), claims(results)]
    for data, each in DATA.items():
        if any(row.startswith(f"{data}/") for row in results.rows):
            parts += [f"### {each.title}", command(profile, f"{data}/{OURS}"),
                      ious(results, data), measures(results, data), costs(results, data)]
    parts.append("### Figures")
    for path, title in figures.draw_all(results, docs / "images" / "paper", profile):
        parts.append(f"![{title.partition(':')[0]}]({path.relative_to(docs).as_posix()})\n\n*{title}*")
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def conditions(results: Results) -> str:
    """On what, how much and how long."""
    trials = [len(trials) for trials in results.rows.values()]
    seconds = sum(t["times"]["all"] for trials in results.rows.values() for t in trials)
    machines, threads, versions = (", ".join(map(str, sorted(results.distinct(value)))) for value in
                                   (machine, lambda t: t["machine"]["threads"],
                                    lambda t: t["machine"]["versions"]["torch"]))
    each = " to ".join(map(str, sorted({min(trials), max(trials)})))
    return (f"{sum(trials)} trials of {len(trials)} rows, {each} of each; "
            f"{clock(seconds)} in all, on {machines}; threads: {threads}; torch {versions}. Deep "
            "supervision (DS): every head is trained, and their probabilities are averaged. ± is "
            "one standard deviation over the trials.")


def machine(trial: dict[str, Any]) -> str:
    """What it ran on."""
    where = trial["machine"]
    return where["accelerator"] if where["device"] == "cuda" else where["cpu"]


def claims(results: Results) -> str:
    """Verdict by verdict."""
    rows = [("claim", "difference, paper", "difference, ours", "95 %", "p", "ours")]
    for claim in CLAIMS:
        found = claim.test(results)
        if found:
            verdict = together([comparison for _, comparison, _ in found])
            rows.append((f"**{claim.text}**", "", "", "", "", f"**{verdict}**"))
            rows += [(text, "" if paper is None else f"{paper:+.2f}", f"{c.difference:+.2f}",
                      interval(c.low, c.high, "+.2f"), p_value(c.p), c.verdict)
                     for text, c, paper in found]
    return f"### The claims\n\nDifferences in points of IoU.\n\n{table(rows)}"


def command(profile: str, row: str) -> str:
    return ("One row again, here with another name for another row:\n\n"
            f"```sh\npython -m benchmarks.paper.run --data DIR --profile {profile} "
            f"--only {row} --out again\n```")


def ious(results: Results, data: str) -> str:
    """Tables I and IV: IoU of every architecture."""
    printed = IOU[DATA[data].printed]
    base = results.scores(f"{data}/{BASE}")
    rows = [("network", "row", "parameters", "IoU, paper", "IoU, ours", "95 %", "p, to "
             + name(data, BASE), "trials")]
    for architecture in TABLE_1:
        row = f"{data}/{architecture}"
        if row in results:
            values = results.scores(row)
            summary = summarise(values)
            p = "" if architecture == BASE or not base else p_value(compare(values, base).p)
            rows.append((name(data, architecture), f"`{row}`",
                         f"{results.of(row)[0]['parameters']:,}", plus_minus(
                             printed.get(architecture)), plus_minus(summary),
                         interval(summary.low, summary.high), p, str(summary.n)))
    paper = "" if DATA[data].title == DATA[data].printed else \
        f" The paper's column is of the data set “{DATA[data].printed}”."
    return f"IoU in per cent, over all pixels of the test images together.{paper}\n\n{table(rows)}"


def measures(results: Results, data: str) -> str:
    """Table VI: other scores of U-Net and UNet++."""
    rows = [f"{data}/{architecture}" for architecture in (BASE, OURS)]
    if not all(row in results for row in rows):
        return ""
    base, ours, p = TABLE_6[DATA[data].printed]
    values = [[results.scores(row, measure) for measure in MEASURES] for row in rows]
    lines = [("", *MEASURES.values())]
    for architecture, paper, mine in zip((BASE, OURS), (base, ours), values):
        title = name(data, architecture)
        lines += [(f"{title}, paper", *map(plus_minus, paper)),
                  (f"{title}, ours", *(plus_minus(summarise(each)) for each in mine))]
    lines += [("p, paper", *map(p_value, p)),
              ("p, ours", *(p_value(compare(b, a).p) for a, b in zip(*values)))]
    return f"Other scores in per cent (Table VI):\n\n{table(lines)}"


def costs(results: Results, data: str) -> str:
    """Fig. 5: what the depths of UNet++ cost and reach."""
    trials = results.of(f"{data}/{OURS}")
    if not trials:
        return ""
    lines = [("cut to", "parameters", "MACs", "memory for maps", "time", "IoU")]
    whole = trials[0]["costs"][-1]
    for cost in trials[0]["costs"]:
        depth = str(cost["depth"])
        seconds = statistics.median(trial["times"]["patch"][depth] for trial in trials)
        lines.append((f"L{depth}", _share(f"{cost['parameters']:,}", cost, whole, "parameters"),
                      _share(f"{cost['macs'] / 1e9:.2f} G", cost, whole, "macs"),
                      _share(f"{cost['peak_bytes'] / 1e6:.1f} MB", cost, whole, "peak_bytes"),
                      f"{1e3 * seconds:.1f} ms",
                      plus_minus(summarise(results.scores(f"{data}/{OURS}", head=depth)))))
    return (f"What is left of {name(data, OURS)} when it is cut to a depth, and what one patch "
            f"costs (Fig. 5):\n\n{table(lines)}")


def table_5(path: Path) -> str:
    """Table V: nuclei as instances, from the results of benchmarks/instances.py."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}}
    found = results["rows"]
    lines = [("network", "IoU, paper", "IoU, ours", "Dice, paper", "Dice, ours", "score, paper",
              "score, ours")]
    for title, (iou, dice, score) in TABLE_5.items():
        ours = found.get(title)
        mine = ("",) * 3 if ours is None else (f"{100 * ours['iou']:.2f}",
                                               f"{100 * ours['dice']:.2f}", f"{ours['score']:.3f}")
        lines.append((title, f"{iou:.2f}", mine[0], f"{dice:.2f}", mine[1], f"{score:.3f}",
                      mine[2]))
    return table(lines) + (budget(results) if found else "")


def budget(results: Mapping[str, Any]) -> str:
    """What the rows of Table V were trained with."""
    settings, machine = results["settings"], results["machine"]
    start = settings["encoder_weights"] or "random"
    pictures = settings["images"]
    minutes = [row["training_seconds"] / 60 for row in results["rows"].values()]
    return (f"\nOver {settings['encoder']} with {start} weights, {settings['steps']} steps of "
            f"{settings['batch']} images, {min(minutes):.0f} to {max(minutes):.0f} minutes a row "
            f"with {machine['threads']} of {machine['cores']} cores under a load of "
            f"{machine['load']}; {pictures['training']} images to train on, "
            f"{pictures['validation']} to choose a threshold by, {pictures['test']} to test on. "
            f"One run of each, seed {settings['seed']}.")


# -- numbers as text -------------------------------------------------------------------------------


def plus_minus(value: Summary | tuple[float, float] | None) -> str:
    if value is None:
        return ""
    mean, sd = (value.mean, value.sd) if isinstance(value, Summary) else value
    return f"{mean:.2f}" if math.isnan(sd) else f"{mean:.2f} ± {sd:.2f}"


def interval(low: float, high: float, form: str = ".2f") -> str:
    return "" if math.isnan(low) else f"{low:{form}} … {high:{form}}"


def p_value(p: float) -> str:
    if math.isnan(p):
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _share(text: str, cost: dict[str, int], whole: dict[str, int], key: str) -> str:
    """A cost, and its share of that of the whole network."""
    return f"{text} ({100 * cost[key] / whole[key]:.0f} %)"


if __name__ == "__main__":
    main()
