"""Try every timm model as an encoder: python benchmarks/encoders.py, then again with --peer smp.

With --peer smp-others, try SMP's other networks over the encoders that its UNet++ does not run
with; with --dims 3, try to make every model volumetric.

Each model is built, run at its own size and at a second one, pruned to depth 1, and built for 1 and
5 channels, on the meta device, which only computes shapes. An interrupted sweep is continued. The
table goes into docs/encoders.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import encoders_3d
import encoders_smp
import timm
import torch
from machine import describe_machine
from pages import insert
from tqdm import tqdm

import nestedseg
from nestedseg.encoders import Options, describe_encoder

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "encoders.json"
PAGE = ROOT / "docs" / "encoders.md"
SECOND = (320, 192)  # pixels; no model's own size
VOLUME = (40, 72, 104)  # voxels
WIDTHS = (4,) * 8
OK = "ok"
CHANNELS = (1, 5)
STEPS = ("own", "second", "prune", "channels_1", "channels_5")
SMP_STEPS = ("own", "padded", "second")  # it takes multiples of 32 alone, and leaves padding to us
WAYS = ("as built", "dynamic", "img_size", "resized")
Record = dict[str, Any]


def main() -> None:
    args = parse_arguments()
    kind = KINDS[args.kind]
    if not args.table:
        names = [name for name in kind.names() if fnmatch.fnmatch(name, args.pattern)]
        sweep(args.run, args.peer or kind.peer, names, args.jobs)
        kind.save(args.out, args.run)
    results = json.loads(args.out.read_text())
    if args.pattern == "*":
        PAGE.write_text(fill(args.kind, results), encoding="utf-8")
    print(kind.headline(results))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pattern", default="*", help="of model names (default: all)")
    parser.add_argument("--peer", choices=["smp", "smp-others"],
                        help="try another library in our place")
    parser.add_argument("--dims", type=int, choices=[2, 3], default=2,
                        help="3: make the models volumetric (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--run", type=Path, default=Path(f"runs/encoders-{timm.__version__}"),
                        help="holds a line for each model tried, which is not tried again")
    parser.add_argument("--out", type=Path,
                        help="default: the results' file, or one in the run with --pattern")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    args = parser.parse_args()
    args.kind = ("encoders_smp" if args.peer == "smp-others"
                 else "encoders" if args.dims == 2 else "encoders_3d")
    results = RESULTS.with_stem(args.kind)
    args.out = args.out or (results if args.pattern == "*" else args.run / results.name)
    return args


# -- one model ------------------------------------------------------------------------------------


def try_ours(name: str) -> Record:
    """Tries a model with nestedseg: its pyramid, and for each step "ok" or an error."""
    info = nestedseg.encoder_info(name)
    at_second = {} if info.any_size else {"image_size": SECOND}

    @lru_cache
    def build(device: str, **arguments: Any) -> torch.nn.Module:
        return nestedseg.create("unetpp", name, deep_supervision=True, decoder_channels=WIDTHS,
                                **arguments).eval()

    return {
        "pattern": info.pattern, "strides": info.strides, "channels": info.channels,
        "parameters": info.parameters, "size": info.image_size,
        "way": way(name, **at_second), "fixed_channels": fixed_channels(name),
        "own": attempt(lambda device: run(build(device), info.image_size)),
        "second": attempt(lambda device: run(build(device, **at_second), SECOND)),
        "prune": attempt(lambda device: run(build(device).prune(1), info.image_size)),
    } | {f"channels_{count}": attempt(lambda device, count=count: run(
            build(device, in_channels=count, depth=1), info.image_size, count))
         for count in CHANNELS}


def way(name: str, image_size: tuple[int, int] | None = None) -> str:
    """How the second size is reached."""
    probed, _ = describe_encoder(Options(name, image_size=image_size)).backbone
    if probed.runs_at is None:
        return "dynamic" if probed.arguments else "as built"
    return "img_size" if probed.arguments else "resized"


def fixed_channels(name: str) -> bool:
    """Whether other channels than three need a convolution before the model."""
    probed, _ = describe_encoder(Options(name, in_channels=1)).backbone
    return probed.in_channels != 1


def try_smp(name: str) -> Record:
    """Tries a model with segmentation_models.pytorch."""
    import segmentation_models_pytorch as smp

    @lru_cache
    def build(device: str) -> torch.nn.Module:
        return smp.UnetPlusPlus(f"tu-{name}", encoder_weights=None).eval()

    own = tuple(timm.models.get_pretrained_cfg(name).input_size[-2:])
    padded = tuple(math.ceil(side / 32) * 32 for side in own)
    return {step: attempt(lambda device, size=size: run(build(device), size))
            for step, size in zip(SMP_STEPS, (own, padded, SECOND))}


def attempt(step: Callable[[str], None]) -> str:
    """ "ok" or an error. A model that cannot run on the meta device is run on the CPU."""
    try:
        for device in ("meta", "cpu"):
            try:
                with torch.device(device), torch.no_grad():
                    step(device)
                return OK
            except Exception as error:
                if device == "cpu" or "meta" not in str(error).lower():
                    raise
    except Exception as error:  # whatever a model or a library raises is the finding
        return f"{type(error).__name__}: {error}"[:200]


def run(model: torch.nn.Module, size: tuple[int, ...], channels: int = 3) -> None:
    """Forward on one image or volume; the output must have its size."""
    shape = model(torch.zeros(1, channels, *size)).shape
    if shape != (1, 1, *size):
        raise ValueError(f"an output of shape {tuple(shape)} for an image of {size}")


def try_volumes(name: str) -> Record:
    """Tries a model in 3-D: it is rejected, with the module that is the reason, or run."""
    try:
        info = nestedseg.encoder_info(name, dims=3)
    except ValueError as error:
        return {"refused": str(error).partition("volumetric: ")[2][:200] or str(error)[:200]}

    @lru_cache
    def build(device: str) -> torch.nn.Module:
        return nestedseg.create("unetpp", name, dims=3, deep_supervision=True,
                                decoder_channels=WIDTHS).eval()

    return {"strides": info.strides, "parameters": info.parameters,
            "own": attempt(lambda device: run(build(device), VOLUME)),
            "prune": attempt(lambda device: run(build(device).prune(1), VOLUME))}


def try_smp_others(name: str) -> Record:
    """What SMP's other networks make of a model: of each, the steps that were tried."""
    encoders_smp.limit()
    own = tuple(timm.models.get_pretrained_cfg(name).input_size[-2:])
    return {network: try_network(name, kind, depth, own)
            for network, (kind, depth) in encoders_smp.NETWORKS.items()}


def try_network(name: str, kind: str, depth: int, own: tuple[int, ...]) -> Record:
    @lru_cache
    def build(device: str) -> torch.nn.Module:
        return encoders_smp.build(name, kind, depth)

    def at_padded(device: str) -> None:
        run(build(device), encoders_smp.padded(own, build(device), kind, depth))

    record = {"own": attempt(encoders_smp.in_time(lambda device: run(build(device), own)))}
    if record["own"] != OK and build.cache_info().currsize:  # it was built: another size may do
        record["padded"] = attempt(encoders_smp.in_time(at_padded))
    return record


def refused_by_smp() -> list[str]:
    """The models that do not run in SMP's UNet++ of depth 5 at their own size."""
    models = json.loads(RESULTS.read_text())["models"]
    return [name for name, record in models.items() if "own" in record["smp_failed"]]


PEERS = {None: try_ours, "smp": try_smp, "smp-others": try_smp_others, "3d": try_volumes}


# -- all of them ----------------------------------------------------------------------------------


def sweep(folder: Path, peer: str | None, names: list[str], jobs: int) -> None:
    """Tries the models that have no line yet, and adds a line for each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = log_path(folder, peer)
    done = read_log(path)
    waiting = [(peer, name) for name in names if name not in done]
    # processes are replaced now and then, because torch caches the shapes of each model
    pools = get_context("spawn")
    with (path.open("a") as log, pools.Pool(jobs, quiet, maxtasksperchild=50) as pool,
          tqdm(total=len(names), initial=len(names) - len(waiting), unit="model") as progress):
        for name, record in pool.imap_unordered(try_one, waiting):
            log.write("\n" + json.dumps({"name": name} | record))
            log.flush()
            progress.set_postfix_str(name)
            progress.update()


def quiet() -> None:
    torch.set_num_threads(1)  # each process has a core
    warnings.simplefilter("ignore")


def try_one(task: tuple[str | None, str]) -> tuple[str, Record]:
    peer, name = task
    start = time.perf_counter()
    try:
        record = PEERS[peer](name)
    except Exception as error:
        record = {"own": f"{type(error).__name__}: {error}"[:200]}
    return name, record | {"seconds": round(time.perf_counter() - start, 1)}


def log_path(folder: Path, peer: str | None) -> Path:
    return folder / f"{peer or 'nestedseg'}.jsonl"


def read_log(path: Path) -> dict[str, Record]:
    """The records by name. A line that was being written when the sweep was killed is left out."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record.pop("name")] = record
    return records


# -- what is reported -----------------------------------------------------------------------------


def save(out: Path, folder: Path) -> None:
    """Writes one file from the logs of both libraries, one line per model."""
    ours, smp = (read_log(log_path(folder, peer)) for peer in (None, "smp"))
    models = {name: compact(name, ours[name], smp.get(name)) for name in sorted(ours)}
    head = {"benchmark": "encoders", "second_size": SECOND, "summary": summarise(models),
            "minutes": {name: round(sum(r["seconds"] for r in log.values()) / 60)
                        for name, log in (("nestedseg", ours), ("smp", smp))},
            "machine": describe_machine()}
    write(out, head, models)


def save_3d(out: Path, folder: Path) -> None:
    """Writes one file from the log in 3-D."""
    log = read_log(log_path(folder, "3d"))
    models = {name: encoders_3d.compact(family_of(name), log[name]) for name in sorted(log)}
    write(out, {"benchmark": "encoders_3d", "volume": VOLUME,
                "summary": encoders_3d.summarise(models),
                "minutes": round(sum(record["seconds"] for record in log.values()) / 60),
                "machine": describe_machine()}, models)


def save_smp(out: Path, folder: Path) -> None:
    """One file of what the log of SMP's other networks holds."""
    log = read_log(log_path(folder, "smp-others"))
    models = {name: encoders_smp.compact(log[name]) for name in sorted(log)}
    write(out, {"benchmark": "encoders_smp", "summary": encoders_smp.summarise(models),
                "minutes": round(sum(record["seconds"] for record in log.values()) / 60),
                "machine": describe_machine()}, models)


def write(out: Path, head: dict[str, Any], models: dict[str, Record]) -> None:
    """Writes a JSON file with one line per model."""
    lines = [f'  {json.dumps(name)}: {json.dumps(record)}' for name, record in models.items()]
    text = json.dumps(head, indent=1).removesuffix("\n}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + ',\n "models": {\n' + ",\n".join(lines) + "\n }\n}\n")
    print(f"written to {out}")


def family_of(name: str) -> str:
    """The module of timm that defines a model."""
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def compact(name: str, ours: Record, smp: Record | None) -> Record:
    """The reportable part of a record: of its steps only those that failed."""
    kept = {key: ours.get(key) for key in ("pattern", "strides", "channels", "parameters", "size",
                                           "way")}
    record = {"family": family_of(name), **kept, "failed": failures(ours, STEPS)}
    if ours.get("fixed_channels"):
        record["fixed_channels"] = True
    return record if smp is None else record | {"smp_failed": failures(smp, SMP_STEPS)}


def failures(record: Record, steps: Iterable[str]) -> dict[str, str]:
    return {step: record.get(step, "not reached") for step in steps if record.get(step) != OK}


def summarise(models: dict[str, Record]) -> dict[str, Any]:
    """Counts over models."""
    tried = [r["smp_failed"] for r in models.values() if "smp_failed" in r]
    return {
        "models": len(models),
        "ran": {step: sum(step not in r["failed"] for r in models.values()) for step in STEPS},
        "second_size": {kind: sum(r["way"] == kind and "second" not in r["failed"]
                                  for r in models.values()) for kind in WAYS},
        "smp": {"models": len(tried)} | {step: sum(step not in failed for failed in tried)
                                         for step in SMP_STEPS},
    }


def headline(results: dict[str, Any]) -> str:
    """The counts, as sentences."""
    summary = results["summary"]
    models, ran, second = summary["models"], summary["ran"], summary["second_size"]
    native = sum(second.values()) - second["resized"]
    size = "x".join(map(str, SECOND))
    text = (f"Of {models:,} models {ran['own']:,} build and run at their own size, "
            f"{ran['prune']:,} pruned to depth 1, {ran['channels_1']:,} with one channel and "
            f"{ran['channels_5']:,} with five. At {size} pixels {native:,} run natively "
            f"({second['as built']:,} as built, {second['dynamic']} dynamic, "
            f"{second['img_size']} built for the size) and {second['resized']} by resizing.")
    if smp := summary["smp"]["models"]:
        text += (f" segmentation_models.pytorch's UNet++ builds and runs "
                 f"{summary['smp']['own']:,} of {smp:,} at their own size "
                 f"({summary['smp']['padded']:,} with that padded to a multiple of 32 first) and "
                 f"{summary['smp']['second']:,} at {size}.")
    return text


def page(results: dict[str, Any]) -> list[str]:
    """Counts, table and exceptions."""
    models = results["models"]
    return [headline(results), table(models), exceptions(models)]


def page_3d(results: dict[str, Any]) -> list[str]:
    """Counts and table."""
    return [encoders_3d.headline(results), encoders_3d.table(results["models"])]


def page_smp(results: dict[str, Any]) -> list[str]:
    """Counts."""
    return [encoders_smp.headline(results)]


def fill(name: str, results: dict[str, Any]) -> str:
    """The text of the page, with the tables of some results between its markers of this name."""
    return insert(PAGE, name, "\n" + "\n\n".join(filter(None, KINDS[name].page(results))) + "\n\n")


def table(models: dict[str, Record]) -> str:
    """A Markdown table with one row for each family of models, which is a module of timm."""
    families: dict[str, list[Record]] = {}
    for record in models.values():
        families.setdefault(record["family"], []).append(record)
    header = ("family", "models", "strides", "own size", *WAYS, "SMP own size", "SMP padded",
              "SMP second size")
    lines = [header, (":--", "--:", ":--", *["--:"] * (len(header) - 3))]
    lines += [row(family, records) for family, records in sorted(families.items())]
    lines += [row("**all**", list(models.values()), strides=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(family: str, records: list[Record], strides: bool = True) -> tuple[str, ...]:
    summary = summarise(dict(enumerate(records)))
    kinds = Counter(pattern_text(record) for record in records).most_common() if strides else ()
    counts = [len(records), summary["ran"]["own"], *summary["second_size"].values()]
    counts += [summary["smp"][step] if summary["smp"]["models"] else "" for step in SMP_STEPS]
    texts = [str(count or "") for count in counts]
    return family, texts[0], "; ".join(kind for kind, _ in kinds), *texts[1:]


def pattern_text(record: Record) -> str:
    if record["pattern"] == "isotropic":
        return "one → 4, 8, 16, 32"
    return ", ".join(map(str, record["strides"] or []))


def exceptions(models: dict[str, Record]) -> str:
    """The models that failed, are resized, or have fixed channels, by name."""
    failed = [f"- `{name}`: {step}: {reason}" for name, record in models.items()
              for step, reason in record["failed"].items()]
    resized = [f"`{name}`" for name, record in models.items() if record["way"] == "resized"]
    fixed = [f"`{name}`" for name, record in models.items() if record.get("fixed_channels")]
    parts = ["Failed:\n\n" + "\n".join(failed) if failed else "",
             f"Resized ({len(resized)}): {', '.join(resized)}." if resized else "",
             f"Three channels only, so a 1x1 convolution comes before other numbers "
             f"({len(fixed)}): {', '.join(fixed)}." if fixed else "",
             smp_reasons(models)]
    return "\n\n".join(filter(None, parts))


def smp_reasons(models: dict[str, Record]) -> str:
    """Why the peer rejects models at their own size, without numbers and names."""
    reasons = Counter(re.sub(r"[\d\[(`'\"].*", "…", record["smp_failed"]["own"], flags=re.DOTALL)
                      for record in models.values() if record.get("smp_failed", {}).get("own"))
    lines = [f"- {count}: {reason}" for reason, count in reasons.most_common()]
    return "segmentation_models.pytorch's refusals at the own size:\n\n" + "\n".join(lines) \
        if lines else ""


class Kind(NamedTuple):
    """A sweep: what is tried unless a peer is asked for, and how results are stored and shown."""

    peer: str | None
    names: Callable[[], list[str]]
    save: Callable[[Path, Path], None]
    page: Callable[[dict[str, Any]], list[str]]
    headline: Callable[[dict[str, Any]], str]


KINDS = {
    "encoders": Kind(None, timm.list_models, save, page, headline),
    "encoders_3d": Kind("3d", timm.list_models, save_3d, page_3d, encoders_3d.headline),
    "encoders_smp": Kind("smp-others", refused_by_smp, save_smp, page_smp, encoders_smp.headline),
}


if __name__ == "__main__":
    main()
