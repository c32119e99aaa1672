"""Time nestedseg against its peers: python benchmarks/speed.py [--only PATTERN]

The same weights and images for each, outputs compared, runs interleaved in one process, medians.
Each row replaces its predecessor in benchmarks/results/speed.json; benchmarks/tables.py then puts
them into docs/performance.md. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from memory import held_bytes, peak_bytes
from peers import monai_pair, smp_pair
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import nestedseg
from nestedseg.meta import meta_copy

RESULTS = Path(__file__).parent / "results" / "speed.json"
LAST = torch.channels_last
SIZE = 256  # pixels
Variants = dict[str, Callable[[], Any]]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="rows whose name matches (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each (default: 15)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    results = json.loads(args.out.read_text()) if args.out.exists() else {"benchmark": "speed"}
    rows = results.setdefault("rows", {})
    names = fnmatch.filter(ROWS, args.only)
    for name in tqdm(names, unit="row"):
        torch.manual_seed(0)
        torch._dynamo.reset()
        rows[name] = ROWS[name](args.rounds) | {"machine": describe_machine()}
        results["rows"] = {key: rows[key] for key in ROWS if key in rows}
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps({k: v for k, v in rows[name].items() if k != "machine"}))


# -- measuring ------------------------------------------------------------------------------------


def timed(variants: Variants, rounds: int, warm: int = 2) -> dict[str, float]:
    """Median milliseconds of each, the runs of all interleaved."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + warm):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if index >= warm:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def largest_error(variants: Variants, reference: str) -> dict[str, float]:
    """Of each output to that of the reference, relative to its largest value."""
    exact = variants[reference]()
    return {name: float(f"{(run() - exact).abs().max() / exact.abs().max():.1e}")
            for name, run in variants.items() if name != reference}


def macs(module: nn.Module, *inputs: Any) -> float:
    """Multiply-accumulates in G, of the convolutions that run."""
    on_meta = [[x.to("meta") for x in value] if isinstance(value, list) else
               value.to("meta") if isinstance(value, Tensor) else value for value in inputs]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta_copy(module)(*on_meta)
    return round(counter.get_total_flops() / 2e9, 3)


def in_channels_last(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(memory_format=LAST)


def compiled(module: nn.Module, **options: Any) -> Callable[..., Any]:
    return torch.compile(copy.deepcopy(module), options=options or None)


# -- against segmentation_models.pytorch ----------------------------------------------------------


def features_of(peer: nn.Module, batch: int) -> list[Tensor]:
    """What the encoder gives for images of noise, the image itself first, as SMP has it."""
    with torch.no_grad():
        return list(peer.encoder(torch.randn(batch, 3, SIZE, SIZE)))


class Decode(nn.Module):
    """A decoder of ours called as SMP's is, with the image first."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        head = f"head_{decoder.graph.heads[0]}"
        decoder.add_module(head, nn.Identity())  # SMP's is no part of its decoder
        self.depths = decoder.graph.depths

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.decoder(features[1:], self.depths)[0]


def decoders(encoder: str, batch: int) -> tuple[nn.Module, nn.Module, nn.Module, list[Tensor]]:
    """SMP's, ours, ours fused, and features."""
    peer, ours = smp_pair(encoder)
    fused = ours.fuse(memory_format=LAST)
    return (peer.decoder, Decode(ours.decoder), Decode(fused.decoder), features_of(peer, batch))


def decoder_inference(encoder: str, batch: int) -> Callable[[int], Row]:
    @torch.no_grad()
    def measure(rounds: int) -> Row:
        peer, ours, fused, features = decoders(encoder, batch)
        last = [x.contiguous(memory_format=LAST) for x in features]
        peer_last = in_channels_last(peer)
        runs = {
            "SMP": lambda: peer(features), "SMP channels_last": lambda: peer_last(last),
            "ours": lambda: ours(features), "ours fused": lambda: fused(last),
        }
        for name, module, x in (("SMP compiled", peer, features),
                                ("SMP channels_last compiled", peer_last, last),
                                ("ours fused compiled", fused, last)):
            run = compiled(module, freezing=True)
            runs[name] = lambda run=run, x=x: run(x)
        return {"milliseconds": timed(runs, rounds), "error": largest_error(runs, "SMP"),
                "gmacs": {"SMP": macs(peer, features), "ours": macs(ours, features)},
                "peak_megabytes": {name: round(peak_bytes(runs[name], [
                    *features, *last, *module.parameters(), *module.buffers()]) / 1e6, 1)
                    for name, module in (("SMP", peer), ("ours", ours), ("ours fused", fused))}}
    return measure


def whole_inference(encoder: str, batch: int) -> Callable[[int], Row]:
    @torch.no_grad()
    def measure(rounds: int) -> Row:
        peer, ours = smp_pair(encoder)
        fused = ours.fuse(memory_format=LAST)
        peer_last = in_channels_last(peer)
        x = torch.randn(batch, 3, SIZE, SIZE)
        last = x.contiguous(memory_format=LAST)
        runs = {
            "SMP": lambda: peer(x), "SMP channels_last": lambda: peer_last(last),
            "ours": lambda: ours(x), "ours fused": lambda: fused(last),
        }
        for name, module in (("SMP compiled", peer), ("SMP channels_last compiled", peer_last),
                             ("ours fused compiled", fused)):
            run, images = compiled(module, freezing=True), x if name == "SMP compiled" else last
            runs[name] = lambda run=run, images=images: run(images)
        return {"milliseconds": timed(runs, rounds), "error": largest_error(runs, "SMP"),
                "gmacs": {"SMP": macs(peer, x), "ours": macs(ours, x)}}
    return measure


def decoder_training(encoder: str, batch: int) -> Callable[[int], Row]:
    def measure(rounds: int) -> Row:
        peer, ours, _, features = decoders(encoder, batch)
        peer.train()
        ours.train()
        last = [x.contiguous(memory_format=LAST) for x in features]
        peer_last, ours_last = in_channels_last(peer), in_channels_last(ours)
        runs = {
            "SMP": step(peer, features), "SMP channels_last": step(peer_last, last),
            "ours": step(ours, features), "ours channels_last": step(ours_last, last),
            "SMP compiled": step(compiled(peer), features),
            "SMP channels_last compiled": step(compiled(peer_last), last),
            "ours channels_last compiled": step(compiled(ours_last), last),
        }
        return {"milliseconds": timed(runs, rounds),
                "held_megabytes": {name: held(module, features)
                                   for name, module in (("SMP", peer), ("ours", ours))}}
    return measure


def step(module: Callable[..., Tensor], features: Sequence[Tensor]) -> Callable[[], None]:
    """Forward and backward to the features, as for an encoder that is trained too."""
    def run() -> None:
        inputs = [x.detach().requires_grad_() for x in features]
        module(inputs).square().mean().backward()
    return run


def held(module: nn.Module, features: Sequence[Tensor]) -> float:
    """Megabytes that a forward pass in training leaves alive, the features not counted."""
    inputs = [x.detach().requires_grad_() for x in features]
    known = [*inputs, *module.parameters(), *module.buffers()]
    return round(held_bytes(lambda: module(inputs), known) / 1e6, 1)


# -- against MONAI --------------------------------------------------------------------------------


@torch.no_grad()
def volume_inference(rounds: int) -> Row:
    peer, ours = monai_pair()
    fused = ours.fuse()
    fused_last = ours.fuse(memory_format=torch.channels_last_3d)
    peer_last = copy.deepcopy(peer).to(memory_format=torch.channels_last_3d)
    x = torch.randn(1, 1, 64, 64, 64)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    runs = {"MONAI": lambda: peer(x)[0], "MONAI channels_last": lambda: peer_last(last)[0],
            "ours": lambda: ours(x), "ours fused": lambda: fused(x),
            "ours fused channels_last": lambda: fused_last(last)}
    for name, module, images in (("MONAI compiled", peer, x), ("ours fused compiled", fused, x)):
        run = compiled(module, freezing=True)
        runs[name] = lambda run=run, images=images: (
            out[0] if isinstance(out := run(images), list) else out)
    return {"milliseconds": timed(runs, rounds), "error": largest_error(runs, "MONAI"),
            "gmacs": {"MONAI": macs(peer, x), "ours": macs(ours, x),
                      "ours fused": macs(fused, x)},
            "peak_megabytes": {name: round(peak_bytes(runs[name], [
                x, *module.parameters(), *module.buffers()]) / 1e6, 1)
                for name, module in (("MONAI", peer), ("ours", ours), ("ours fused", fused))}}


def volume_training(rounds: int) -> Row:
    peer, ours = (model.train() for model in monai_pair())
    peer_last, ours_last = (copy.deepcopy(model).to(memory_format=torch.channels_last_3d)
                            for model in (peer, ours))
    x = torch.randn(1, 1, 64, 64, 64)
    last = x.contiguous(memory_format=torch.channels_last_3d)

    def training(model: nn.Module, images: Tensor) -> Callable[[], None]:
        def run() -> None:
            out = model(images)
            (out[0] if isinstance(out, list) else out).square().mean().backward()
        return run

    runs = {"MONAI": training(peer, x), "MONAI channels_last": training(peer_last, last),
            "ours": training(ours, x), "ours channels_last": training(ours_last, last)}
    return {"milliseconds": timed(runs, rounds), "held_megabytes": {
        name: round(held_bytes(lambda model=model: model(x), [
            x, *model.parameters(), *model.buffers()]) / 1e6, 1)
        for name, model in (("MONAI", peer), ("ours", ours))}}


# -- ourselves ------------------------------------------------------------------------------------


@torch.no_grad()
def pruned(rounds: int) -> Row:
    """Time and MACs of each depth, of a fused UNet++ over the plain encoder."""
    model = nestedseg.create("unetpp", deep_supervision=True).eval()
    x = torch.randn(1, 3, SIZE, SIZE).contiguous(memory_format=LAST)
    models = {f"L{depth}": model.prune(depth).fuse(memory_format=LAST) for depth in model.depths}
    return {"milliseconds": timed({name: lambda m=m: m(x) for name, m in models.items()}, rounds),
            "gmacs": {name: macs(m, x) for name, m in models.items()}}


@torch.no_grad()
def convolution(rounds: int) -> Row:
    """A large 3x3 convolution, for what share of the device's speed a decoder reaches."""
    x = torch.randn(4, 256, 64, 64).contiguous(memory_format=LAST)
    weight = torch.randn(256, 256, 3, 3).contiguous(memory_format=LAST)
    found = timed({"conv3x3": lambda: F.conv2d(x, weight, padding=1)}, 2 * rounds)
    return {"milliseconds": found, "gmacs": {"conv3x3": round(4 * 256 ** 2 * 64 ** 2 * 9 / 1e9, 3)}}


@torch.no_grad()
def consumers(rounds: int) -> Row:
    """Four readers of one map: a convolution each, or one with their channels stacked."""
    found: dict[str, float] = {}
    for batch in (1, 4):
        x = torch.randn(batch, 64, 128, 128).contiguous(memory_format=LAST)
        weights = [torch.randn(64, 64, 3, 3).contiguous(memory_format=LAST) for _ in range(4)]
        stacked = torch.cat(weights).contiguous(memory_format=LAST)
        found |= {f"{name}, batch {batch}": value for name, value in timed({
            "apart": lambda x=x, weights=weights: [F.conv2d(x, w, padding=1) for w in weights],
            "stacked": lambda x=x, w=stacked: F.conv2d(x, w, padding=1)}, rounds).items()}
    return {"milliseconds": found}


ROWS: dict[str, Callable[[int], Row]] = {
    "convolution": convolution,
    **{f"decoder inference, {encoder}, batch {batch}": decoder_inference(encoder, batch)
       for encoder in ("resnet34", "resnet152") for batch in (1, 4)},
    **{f"whole model, resnet34, batch {batch}": whole_inference("resnet34", batch)
       for batch in (1, 4)},
    "decoder training, resnet34, batch 4": decoder_training("resnet34", 4),
    "volume inference": volume_inference,
    "volume training": volume_training,
    "pruned": pruned,
    "consumers": consumers,
}


if __name__ == "__main__":
    main()
