"""Put the figures of benchmarks/results/*.json into the pages: python benchmarks/tables.py

With --check, nothing is changed, and a page with other figures than the results is an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pages import insert
from pages import table as _table

ROOT = Path(__file__).parents[1]


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


# -- hippocampus -----------------------------------------------------------------------------------


def hippocampus(data: dict[str, Any]) -> str:
    rows = [("UNet++ over", "depth", "Dice", "anterior", "posterior", "parameters", "MACs",
             "time per volume")]
    notes = []
    for encoder, entry in data["encoders"].items():
        results, machine = entry["results"], entry["machine"]
        for row in results["test"]:
            rows.append((encoder, str(row["depth"]),
                         *(f"{row[key]:.3f}" for key in ("dice", "anterior", "posterior")),
                         f"{row['parameters']:,}", f"{row['macs'] / 1e9:.1f} G",
                         f"{1e3 * row['seconds_per_volume']:.0f} ms"))
        cases = results["cases"]
        notes.append(f"""
Over {encoder}: depth {results['chosen_depth']} is the shallowest within {results['tolerance']} of \
the best validation Dice. Its masks, written and read again, have
the affine of their source; over the {cases['volumes']} test volumes the mean Dice is \
{cases['mean_dice']:.3f} (the worst part of a volume {cases['worst_dice']:.3f}), the median 95 %
Hausdorff distance {cases['median_hd95_mm']:.1f} mm, the mean surface Dice at \
{cases['surface_tolerance_mm']:g} mm {cases['mean_surface_dice']:.3f}. \
{len(entry['curves'])} epochs, {entry['training_seconds'] / 60:.0f} minutes on
{machine['cpu']}, threads: {machine['threads']}, under a load of {machine['load']} on \
{machine['cores']} cores. One run, seed {entry['settings']['seed']}. {entry['note']}
""")
    return f"""{_table(rows)}
Dice is that of all test voxels together, the mean of the two parts.
{"".join(notes)}"""


# -- volumes --------------------------------------------------------------------------------------


def volumes(data: dict[str, Any]) -> str:
    table = [("", "ms", "peak memory, MB", "GMAC", "parameters")]
    fastest = []
    for task, rivals in data["rows"].items():
        table += [(f"{task}, {who}", f"{row['milliseconds']:.0f}", f"{row['peak_megabytes']:.0f}",
                   f"{row['gmacs']:.1f}", f"{row['parameters']:,}")
                  for who, row in rivals.items()]
        *_, ratio = _compared({who: row["milliseconds"] for who, row in rivals.items()})
        fastest.append(f"{ratio} in {task}")
    machine, port = data["machine"], data["rows"]["inference"]["port"]["versions"]
    away = max(row["difference"] for rivals in data["rows"].values() for row in rivals.values())
    packages = ("segmentation-models-pytorch-3d", "timm-3d", "timm", "torch")
    return f"""{_table(table)}
Over {data['encoder']}, {"x".join(map(str, data["volume"]))} voxels, with the same weights: \
outputs differ by at most {away:.0e} of the largest.
Training is forward and backward. The fastest setting of the port over the fastest of
ours: {", ".join(fastest)}. Memory is what operations write, weights and the \
volume not counted. A fused model keeps the
small kernels of up-sampled inputs, which others compute from the weights: hence more of them. \
{machine['cores']} cores, {machine['cpu']}, under
a load of {machine['load']}; ours on torch {machine['versions']['torch']} and timm \
{machine['versions']['timm']}, the port on
{", ".join(f"{name} {port[name]}" for name in packages)}.
"""


# -- speed ----------------------------------------------------------------------------------------

# What was hoped for: name of a row, the settings of the peer's and of ours of which the fastest
# counts (None: of all), the ratio.
GOALS = [
    *[(f"decoder inference, {encoder}, batch {batch}", *pair) for encoder, goal in
      (("resnet34", 2.0), ("resnet152", 1.6)) for batch in (1, 4)
      for pair in ((("SMP",), ("ours", "ours fused"), goal), (None, None, 1.4))],
    *[(f"whole model, resnet34, batch {batch}", *pair) for batch in (1, 8)
      for pair in ((("SMP",), ("ours", "ours fused"), 1.8), (None, None, 1.3))],
    *[("decoder training, resnet34, batch 4", *pair)
      for pair in ((("SMP",), ("ours",), 1.6), (None, None, 1.3))],
    *[(f"volume {kind}", *pair) for kind in ("inference", "training")
      for pair in ((("MONAI",), ("ours", "ours fused"), 1.5), (None, None, 1.5))],
]


def speed(data: dict[str, Any]) -> str:
    rows = data["rows"]
    table = [("", "peer", "ms", "ours", "ms", "ratio", "hoped for")]
    for name, theirs, mine, goal in GOALS:
        found = _compared(rows[name]["milliseconds"], theirs, mine) if name in rows \
            else ("not timed", "", "", "", "")
        table.append((name, *found, f"{goal}"))
    table.append(("CUDA, bf16, inference and training", "SMP compiled", "not measured", "",
                  "no GPU", "", "1.3"))
    machine = rows["convolution"]["machine"]
    versions = machine["versions"]
    return f"""{_table(table)}
Each row is of the fastest setting among those named; where none is named in the goal, among all
that were timed. {machine['cores']} cores, {machine['cpu']}, torch {versions['torch']}, timm \
{versions['timm']}, segmentation-models-pytorch
{versions['segmentation-models-pytorch']}, MONAI {versions['monai']}; {SIZE_NOTE}

![ratios of the peers' times to ours](images/speed.svg)

Whole models, the fastest of the settings that are listed further below, compiled ones only where
they stand there:

{_others(rows)}
What a program computes before its first model, in milliseconds of the processor:

{_starts(rows)}
All that was timed, in milliseconds:

{_all_times(rows)}
{_memory(rows)}
{_pruned(rows)}
{_share(rows)}
{_consumers(rows)}
"""


SIZE_NOTE = "images of 256x256, volumes of 64x64x64."
APART = ("convolution", "consumers", "pruned", "starts")  # rows that no peer is in


def ratios(rows: dict[str, Any]) -> dict[str, float]:
    """Of each row with a peer, the fastest setting of the peer over the fastest of ours."""
    return {name: float(_compared(row["milliseconds"])[-1].strip("*"))
            for name, row in rows.items() if name not in APART}


def _compared(times: dict[str, float], theirs: Any = None, mine: Any = None) -> tuple[str, ...]:
    """Peer, its time, ours, its time, the ratio."""
    peer = _fastest(times, theirs or [key for key in times if not key.startswith("ours")])
    ours = _fastest(times, mine or [key for key in times if key.startswith("ours")])
    return (peer, f"{times[peer]:.0f}", ours, f"{times[ours]:.0f}",
            f"**{times[peer] / times[ours]:.2f}**")


def _fastest(times: dict[str, float], names: Any) -> str:
    return min((name for name in names if name in times), key=times.get)


def _others(rows: dict[str, Any]) -> str:
    known = {name for name, *_ in GOALS}
    return _table([("", "peer", "ms", "ours", "ms", "ratio"), *[
        (name, *_compared(row["milliseconds"])) for name, row in rows.items()
        if name not in APART and name not in known]])


def _starts(rows: dict[str, Any]) -> str:
    times = rows["starts"]["milliseconds"]
    return _table([("", "ms"), *[(f"`{name}`", f"{value:.0f}") for name, value in times.items()]])


def _all_times(rows: dict[str, Any]) -> str:
    lines = [(name, ", ".join(f"{variant} {value:.0f}" for variant, value
                              in row["milliseconds"].items()),
              ", ".join(f"{who} {value:.2f}" for who, value in row.get("gmacs", {}).items()),
              f"{max(row['error'].values()):.0e}" if "error" in row else "")
             for name, row in rows.items() if name not in APART]
    return _table([("", "ms", "GMAC", "largest error"), *lines])


def _memory(rows: dict[str, Any]) -> str:
    table = [("", "peer, MB", "ours, MB", "ratio", "hoped for")]
    for name, row in rows.items():
        for key, what in (("held_megabytes", "held for the backward pass"),
                          ("peak_megabytes", "peak")):
            for ours in ("ours", "ours fused"):
                if ours in row.get(key, {}):
                    peer = next(iter(row[key]))
                    table.append((f"{name}, {what}, {ours}", str(row[key][peer]),
                                  str(row[key][ours]), f"{row[key][ours] / row[key][peer]:.2f}",
                                  "≤ 0.60" if "decoder training" in name else "< 1"))
    return "Memory that operations write, weights and inputs not counted:\n\n" + _table(table)


def _pruned(rows: dict[str, Any]) -> str:
    row = rows["pruned"]
    times, macs = row["milliseconds"], row["gmacs"]
    deepest = list(times)[-1]
    table = [("UNet++, plain encoder, fused", "ms", "share of time", "share of MACs")]
    table += [(name, f"{times[name]:.1f}", f"{times[name] / times[deepest]:.2f}",
               f"{macs[name] / macs[deepest]:.2f}") for name in times]
    return "Pruned models:\n\n" + _table(table)


def _share(rows: dict[str, Any]) -> str:
    def speed_of(name: str, variant: str, macs: str) -> float:
        row = rows[name]
        return 2 * row["gmacs"][macs] / row["milliseconds"][variant] * 1e3  # GFLOP/s

    peak = speed_of("convolution", "conv3x3", "conv3x3")
    lines = []
    for name, row in rows.items():
        if name.startswith("decoder inference"):
            best = _fastest(row["milliseconds"], [v for v in row["milliseconds"] if "fused" in v])
            lines.append(f"{name.removeprefix('decoder inference, ')}: "
                         f"{speed_of(name, best, 'ours') / peak:.2f}")
    return ("Share of the speed of one large convolution (256 to 256 channels, 64x64, batch 4: "
            f"{peak:.0f} GFLOP/s) that the fused decoder reaches: {'; '.join(lines)}. "
            "Hoped for: 0.7.\n")


def _consumers(rows: dict[str, Any]) -> str:
    times = rows["consumers"]["milliseconds"]
    parts = [f"{times[f'apart, batch {batch}']:.1f} ms apart and "
             f"{times[f'stacked, batch {batch}']:.1f} ms stacked at batch {batch}"
             for batch in (1, 4)]
    return ("Convolutions of four readers of one map (64 channels, 128x128), which could share one "
            f"with their channels stacked: {', '.join(parts)}. So they do not.\n")


# -- peers -----------------------------------------------------------------------------------------


def peers(speed: dict[str, Any], encoders: dict[str, Any], others: dict[str, Any]) -> str:
    rows, started = speed["rows"], speed["rows"]["starts"]["milliseconds"]
    times = ratios(rows)
    held = {name: row["held_megabytes"] for name, row in rows.items() if "held_megabytes" in row}

    def relative(what: str, smp: float | None, monai: float | None) -> tuple[str, ...]:
        return (f"[{what}](docs/performance.md#measured)", _proven("1"),
                *(_proven(f"{ratio:.2f}") if ratio else "" for ratio in (smp, monai)))

    table = [
        ("", "nestedseg", "SMP", "MONAI"),
        *_encoders(encoders["summary"], others["summary"]),
        *(relative(what, times[name], None) for name, what in SMP_ROWS.items()),
        relative("memory that this training holds", _held(held[
            "whole model training, resnet34, batch 4"]), None),
        *(relative(what, None, times[name]) for name, what in MONAI_ROWS.items()),
        relative("memory that this training holds", None, _held(held["volume training"])),
        relative("time, making UNet++ over ResNet-34",
                 started["smp.UnetPlusPlus('tu-resnet34', encoder_weights=None)"]
                 / started["nestedseg.create('unetpp', 'resnet34')"], None),
        relative("time, importing what the first model needs",
                 *(started[f"import {name}"] / started["import nestedseg; nestedseg.create"]
                   for name in ("segmentation_models_pytorch", "monai.networks.nets"))),
    ]
    machine = rows["convolution"]["machine"]
    compiled = [what.removeprefix("time, ") for name, what in (SMP_ROWS | MONAI_ROWS).items()
                if any("compiled" in setting for setting in rows[name]["milliseconds"])]
    return f"""{_table(table)}
"padded": images are padded to what SMP's network divides by. Of the \
{others['summary']['models']} encoders that its UNet++ of
depth 5 refuses, {others['summary']['networks']['own']['DPT, depth 4']} run in its DPT. Time and \
memory are the peer's over ours: above 1 ours takes less,
below 1 more. Models have the same weights, and each runs in the fastest setting that was tried: as
built, in channels_last, in inference ours fused too, and compiled in these rows alone: \
{"; ".join(compiled)}.
Where a field is empty, the peer has no such thing. \
{machine['cores']} cores, {machine['cpu']}, torch {machine['versions']['torch']}.
"""


SMP_ROWS = {"whole model, resnet34, batch 8": "time, UNet++ over ResNet-34, 8 images",
            "whole model, resnet34, batch 1": "time, the same, 1 image",
            "whole model training, resnet34, batch 4": "time, training it on 4 images"}
MONAI_ROWS = {"volume inference": "time, MONAI's UNet++, a volume",
              "volume training": "time, training it"}


def _encoders(ours: dict[str, Any], others: dict[str, Any]) -> list[tuple[str, ...]]:
    """How many of timm's models run as encoders: in SMP's UNet++, and in more of its networks."""
    smp = ours["smp"]
    rows = [
        (f"[timm's {ours['models']:,} models](docs/encoders.md#every-model-of-timm) that run as "
         "encoders of UNet++, SMP's of depth 5", "encoders", smp["own"], smp["padded"]),
        ("the same, SMP's UNet++ or U-Net of depth 3 to 5, or DPT", "encoders_smp",
         smp["own"] + others["own"], smp["own"] + others["padded"]),
    ]
    return [(what, _counted("encoders", f"{ours['ran']['own']:,}"),
             f"{_counted(results, f'{own:,}')}, {_counted(results, f'padded {padded:,}')}", "")
            for what, results, own, padded in rows]


def _counted(results: str, figure: str) -> str:
    return f"[{figure}](benchmarks/results/{results}.json)"


def _proven(figure: str) -> str:
    return _counted("speed", figure)


def _held(megabytes: dict[str, float]) -> float:
    peer = next(name for name in megabytes if name != "ours")
    return megabytes[peer] / megabytes["ours"]


# -- loading ---------------------------------------------------------------------------------------


def loading(data: dict[str, Any]) -> str:
    patches, machine = data["patches"], data["patches"]["machine"]
    table = [("files", "way", "patches per second", "of those kept in memory")]
    for name, rates in patches["results"].items():
        kept = rates["kept in memory"]
        table += [(name, way, f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}",
                   f"{100 * rate / kept:.0f} %") for way, rate in rates.items()]
    side = patches["patch"]
    text = f"""Random patches of {side} x {side} pixels, mirrored, of varied brightness, \
normalised, per second of one
processor core; medians of interleaved runs. Peers' patches are changed alike. \
{machine['cpu']}, load {machine['load']}.

{_table(table)}"""
    if "memory" not in data:
        return text
    rows = [("picture", "peak memory", "of which before the prediction", "time")]
    rows += [(f"{row['height']:,} x {row['width']:,}", f"{row['peak_mib']:,} MiB",
              f"{row['imported_mib']:,} MiB", f"{row['seconds']:.0f} s")
             for row in data["memory"]["results"]]
    return f"""{text}
`nestedseg predict` of a GeoTIFF with 4 bands of 16 bits, 2 classes, and a small model:

{_table(rows)}"""


# -------------------------------------------------------------------------------------------------

# By its markers: the page of a table, what renders it, and the results that it is made from.
TABLES = {"em_quick": (ROOT / "docs" / "pruning.md", em_quick, ["em_quick"]),
          "hippocampus": (ROOT / "docs" / "volumes.md", hippocampus, ["hippocampus"]),
          "loading": (ROOT / "docs" / "performance.md", loading, ["loading"]),
          "peers": (ROOT / "README.md", peers, ["speed", "encoders", "encoders_smp"]),
          "speed": (ROOT / "docs" / "performance.md", speed, ["speed"]),
          "volumes": (ROOT / "docs" / "volumes.md", volumes, ["volumes"])}


def results_of(name: str) -> Path:
    return ROOT / "benchmarks" / "results" / f"{name}.json"


def measured() -> list[str]:
    """The tables whose results are there."""
    return [name for name, (*_, sources) in TABLES.items()
            if all(results_of(source).exists() for source in sources)]


def fill(name: str) -> tuple[Path, str]:
    """A page, and its text with the table of some results between its two markers."""
    page, render, sources = TABLES[name]
    results = [json.loads(results_of(source).read_text()) for source in sources]
    return page, insert(page, name, render(*results))


def main() -> None:
    for name in measured():
        page, text = fill(name)
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
        elif text != page.read_text(encoding="utf-8"):
            raise SystemExit(f"{page.relative_to(ROOT)} has other figures than benchmarks/results; "
                             "run python benchmarks/tables.py")


if __name__ == "__main__":
    main()
