"""Time nestedseg against its peers: python benchmarks/speed.py [--device cuda] [--only PATTERN]

All have the same weights and images; outputs are compared, runs are interleaved in one process, and
medians are taken. Each row replaces the earlier one in benchmarks/results/speed.json
(speed_cuda.json); benchmarks/tables.py then puts them into docs/performance.md. Nothing else should
run at the same time.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import statistics
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from memory import held_bytes, peak_bytes
from peers import monai_pair, smp_pair
from timing import compiled, in_channels_last, largest_error, last, macs, seconds_of, timed
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import nestedseg

RESULTS = Path(__file__).parent / "results"
ENCODERS = ("resnet34", "resnet152", "vgg19", "densenet201", "convnext_tiny")
SIZE = 256  # pixels
VOLUME = 64  # voxels along each axis
CUDA_SIZE, CUDA_BATCH = 512, 16
Row = dict[str, Any]
Measure = Callable[[], Row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=ROWS, default="cpu", help="default: %(default)s")
    parser.add_argument("--only", default="*", help="rows whose name matches (default: all)")
    parser.add_argument("--missing", action="store_true", help="only rows that have no result yet")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    out = RESULTS / ("speed.json" if args.device == "cpu" else "speed_cuda.json")
    results = json.loads(out.read_text()) if out.exists() else {"benchmark": "speed", "rows": {}}
    rows, measures = results["rows"], ROWS[args.device]
    names = [name for name in fnmatch.filter(measures, args.only)
             if not (args.missing and name in rows)]
    for name in tqdm(names, unit="row"):
        torch.manual_seed(0)
        torch._dynamo.reset()
        gc.collect()
        rows[name] = measures[name]() | {"machine": describe_machine()}
        results["rows"] = {key: rows[key] for key in measures if key in rows}
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps({k: v for k, v in rows[name].items() if k != "machine"}))


# -- a peer's module and ours ----------------------------------------------------------------------


@torch.no_grad()
def inference(name: str, peer: nn.Module, ours: nn.Module, fused: nn.Module, inputs: Any,
              dims: int = 2, compiling: bool = True, memory: bool = True) -> Row:
    """Times inference in every setting of both. Fused weights are in channels_last for images."""
    peer_last, inputs_last = in_channels_last(peer, dims), last(inputs)
    own = inputs_last if dims == 2 else inputs
    runs = {name: lambda: peer(inputs), f"{name} channels_last": lambda: peer_last(inputs_last),
            "ours": lambda: ours(inputs), "ours fused": lambda: fused(own)}
    for label, module, given in ((name, peer, inputs),
                                 (f"{name} channels_last", peer_last, inputs_last),
                                 ("ours fused", fused, own)) if compiling else ():
        run = compiled(module, freezing=True)
        runs[f"{label} compiled"] = lambda run=run, given=given: run(given)
    row = {"milliseconds": timed(runs), "error": largest_error(runs, name),
           "gmacs": {name: macs(peer, inputs), "ours": macs(ours, inputs)}}
    if memory:
        known = inputs if isinstance(inputs, list) else [inputs]
        known += inputs_last if isinstance(inputs_last, list) else [inputs_last]
        row["peak_megabytes"] = {
            label: megabytes(peak_bytes(runs[label], [*known, *tensors(module)]))
            for label, module in ((name, peer), ("ours", ours), ("ours fused", fused))}
    return row


def training(name: str, peer: nn.Module, ours: nn.Module, inputs: Any, dims: int = 2,
             compiling: bool = True) -> Row:
    """Times forward and backward, with gradients of the features, as for a trained encoder."""
    peer.train()
    ours.train()
    peer_last, ours_last = in_channels_last(peer, dims), in_channels_last(ours, dims)
    inputs_last = last(inputs)
    runs = {name: step(peer, inputs), f"{name} channels_last": step(peer_last, inputs_last),
            "ours": step(ours, inputs), "ours channels_last": step(ours_last, inputs_last)}
    if compiling:  # of volumes it takes ten minutes, and all were slower for it
        runs |= {f"{name} compiled": step(compiled(peer), inputs),
                 f"{name} channels_last compiled": step(compiled(peer_last), inputs_last),
                 "ours compiled": step(compiled(ours), inputs)}
    return {"milliseconds": timed(runs),
            "held_megabytes": {label: held(module, inputs)
                               for label, module in ((name, peer), ("ours", ours))}}


def step(module: Callable[..., Any], inputs: Any) -> Callable[[], None]:
    def run() -> None:
        outputs = module(leaves(inputs))
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        sum(output.square().mean() for output in outputs).backward()
    return run


def leaves(inputs: Any) -> Any:
    """Features that need gradients; an image does not."""
    return [x.detach().requires_grad_() for x in inputs] if isinstance(inputs, list) else inputs


def held(module: nn.Module, inputs: Any) -> float:
    """Megabytes that a forward pass in training leaves alive, its inputs not counted."""
    given = leaves(inputs)
    known = given if isinstance(given, list) else [given]
    return megabytes(held_bytes(lambda: module(given), [*known, *tensors(module)]))


def tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def megabytes(count: int) -> float:
    return round(count / 1e6, 1)


# -- the pairs ------------------------------------------------------------------------------------


class Decode(nn.Module):
    """A decoder of ours that is called like SMP's, with the image first."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.depths = decoder, decoder.graph.depths
        decoder.add_module(f"head_{decoder.graph.heads[0]}", nn.Identity())  # SMP's is apart

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.decoder(features[self.decoder.graph.encoder_row:], self.depths)[0]


def decoders(encoder: str, batch: int) -> tuple[nn.Module, nn.Module, nn.Module, list[Tensor]]:
    """SMP's, ours, ours fused, and the encoder's features of noise."""
    peer, ours = smp_pair(encoder)
    fused = ours.fuse(memory_format=torch.channels_last)
    with torch.no_grad():
        features = list(peer.encoder(torch.randn(batch, 3, SIZE, SIZE)))
    return peer.decoder, Decode(ours.decoder), Decode(fused.decoder), features


def decoder_inference(encoder: str, batch: int) -> Measure:
    return lambda: inference("SMP", *decoders(encoder, batch))


def decoder_training(encoder: str, batch: int) -> Measure:
    def measure() -> Row:
        peer, ours, _, features = decoders(encoder, batch)
        return training("SMP", peer, ours, features)
    return measure


def whole_inference(architecture: str, encoder: str, batch: int) -> Measure:
    """Whole models, compiled too unless that takes minutes."""
    def measure() -> Row:
        peer, ours = smp_pair(encoder, architecture)
        x = torch.randn(batch, 3, SIZE, SIZE)
        return inference("SMP", peer, ours, ours.fuse(memory_format=torch.channels_last), x,
                         compiling=encoder == "resnet34", memory=False)
    return measure


def whole_training(encoder: str, batch: int) -> Measure:
    return lambda: training("SMP", *smp_pair(encoder), torch.randn(batch, 3, SIZE, SIZE),
                            compiling=False)


def monai_inputs(dims: int) -> Tensor:
    return torch.randn(1, 1, *[SIZE if dims == 2 else VOLUME] * dims)


def monai_inference(dims: int) -> Measure:
    """MONAI's models, compiled too for volumes only: the 2-D one takes minutes to compile."""
    def measure() -> Row:
        peer, ours = monai_pair(dims)
        fused = ours.fuse(memory_format=torch.channels_last) if dims == 2 else ours.fuse()
        return inference("MONAI", peer, ours, fused, monai_inputs(dims), dims,
                         compiling=dims == 3)
    return measure


def monai_training(dims: int) -> Measure:
    return lambda: training("MONAI", *monai_pair(dims), monai_inputs(dims), dims, compiling=False)


# -- ourselves ------------------------------------------------------------------------------------


@torch.no_grad()
def pruned() -> Row:
    """Time and MACs of each depth, of a fused UNet++ over the plain encoder."""
    model = nestedseg.create("unetpp", deep_supervision=True).eval()
    x = last(torch.randn(1, 3, SIZE, SIZE))
    models = {f"L{depth}": model.prune(depth).fuse(memory_format=torch.channels_last)
              for depth in model.depths}
    return {"milliseconds": timed({name: lambda m=m: m(x) for name, m in models.items()}),
            "gmacs": {name: macs(m, x) for name, m in models.items()}}


@torch.no_grad()
def convolution() -> Row:
    """A large 3x3 convolution, for what share of the device's speed a decoder reaches."""
    x, weight = last(torch.randn(4, 256, 64, 64)), last(torch.randn(256, 256, 3, 3))
    return {"milliseconds": timed({"conv3x3": lambda: F.conv2d(x, weight, padding=1)}),
            "gmacs": {"conv3x3": round(4 * 256 ** 2 * 64 ** 2 * 9 / 1e9, 3)}}


@torch.no_grad()
def consumers() -> Row:
    """Four readers of one map: a convolution each, or one with their channels stacked."""
    runs = {}
    for batch in (1, 4):
        x = last(torch.randn(batch, 64, 128, 128))
        weights = [last(torch.randn(64, 64, 3, 3)) for _ in range(4)]
        stacked = last(torch.cat(weights))
        runs[f"apart, batch {batch}"] = lambda x=x, weights=weights: [
            F.conv2d(x, w, padding=1) for w in weights]
        runs[f"stacked, batch {batch}"] = lambda x=x, w=stacked: F.conv2d(x, w, padding=1)
    return {"milliseconds": timed(runs)}


OURS = "import nestedseg; nestedseg.create"  # loads torch and timm; the import alone loads neither
PEER = "import segmentation_models_pytorch as smp"
STARTS = {
    "import torch, timm": "",
    "import nestedseg": "",
    OURS: "",
    "import segmentation_models_pytorch": "",
    "import monai.networks.nets": "",
    "nestedseg.create('unetpp', 'resnet34')": OURS,
    "nestedseg.create('unetpp', 'resnet152')": OURS,
    "smp.UnetPlusPlus('tu-resnet34', encoder_weights=None)": PEER,
    "smp.UnetPlusPlus('tu-resnet152', encoder_weights=None)": PEER,
}


def starts() -> Row:
    """The processor's time for an import or a first model, each in a program of its own.

    Imports and models take one thread, so that on an idle machine this is the time that passes.
    """
    clock = "import time; start = time.process_time()"
    found: dict[str, list[float]] = {code: [] for code in STARTS}
    for _ in range(5):
        for code, before in STARTS.items():
            lines = (before or "pass", clock, code, "print(time.process_time() - start)")
            found[code].append(1e3 * seconds_of("; ".join(lines)))
    return {"milliseconds": {code: round(statistics.median(v), 1) for code, v in found.items()}}


# -- on CUDA --------------------------------------------------------------------------------------


def on_cuda(architecture: str, encoder: str, train: bool) -> Measure:
    """Whole models in bfloat16 autocast and channels_last, compiled or not; peak memory of each."""
    def measure() -> Row:
        peer, ours = (in_channels_last(model).cuda() for model in smp_pair(encoder, architecture))
        x = last(torch.randn(CUDA_BATCH, 3, CUDA_SIZE, CUDA_SIZE, device="cuda"))
        modules = {"SMP": peer, "ours": ours}
        if not train:
            modules["ours fused"] = ours.fuse(memory_format=torch.channels_last)
        modules |= {f"{name} compiled": torch.compile(module) for name, module in modules.items()}
        runs = {name: autocast(module, x, train) for name, module in modules.items()}
        row: Row = {"milliseconds": timed(runs), "peak_megabytes": {
            name: cuda_peak(run) for name, run in runs.items()}}
        return row if train else row | {"error": largest_error(runs, "SMP"),
                                        "gmacs": {"SMP": macs(peer, x), "ours": macs(ours, x)}}
    return measure


def autocast(module: Callable[..., Any], x: Tensor, train: bool) -> Callable[[], Any]:
    def run() -> Any:
        with torch.autocast("cuda", torch.bfloat16), nullcontext() if train else torch.no_grad():
            output = module(x)
        if train:
            output.float().square().mean().backward()
        return output
    if train:
        getattr(module, "_orig_mod", module).train()
    return run


def cuda_peak(run: Callable[[], Any]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return megabytes(torch.cuda.max_memory_allocated() - before)


@torch.no_grad()
def cuda_convolution() -> Row:
    x = last(torch.randn(16, 256, 128, 128, device="cuda", dtype=torch.bfloat16))
    weight = last(torch.randn(256, 256, 3, 3, device="cuda", dtype=torch.bfloat16))
    return {"milliseconds": timed({"conv3x3": lambda: F.conv2d(x, weight, padding=1)}),
            "gmacs": {"conv3x3": round(16 * 256 ** 2 * 128 ** 2 * 9 / 1e9, 3)}}


ROWS: dict[str, dict[str, Measure]] = {
    "cpu": {
        "convolution": convolution,
        **{f"decoder inference, {encoder}, batch {batch}": decoder_inference(encoder, batch)
           for encoder in ("resnet34", "resnet152") for batch in (1, 4)},
        "decoder training, resnet34, batch 4": decoder_training("resnet34", 4),
        "volume inference": monai_inference(3),
        "volume training": monai_training(3),
        "image inference, MONAI's UNet++": monai_inference(2),
        "image training, MONAI's UNet++": monai_training(2),
        "pruned": pruned,
        "starts": starts,
        "consumers": consumers,
        **{f"whole model, {encoder}, batch {batch}": whole_inference("UnetPlusPlus", encoder, batch)
           for batch in (1, 8) for encoder in ENCODERS},
        **{f"whole U-Net, {encoder}, batch 1": whole_inference("Unet", encoder, 1)
           for encoder in ENCODERS},
        "whole model training, resnet34, batch 4": whole_training("resnet34", 4),
    },
    "cuda": {
        "convolution": cuda_convolution,
        **{f"{architecture}, {encoder}, {'training' if train else 'inference'}":
           on_cuda(architecture, encoder, train) for architecture in ("UnetPlusPlus", "Unet")
           for encoder in ENCODERS for train in (False, True)},
    },
}


if __name__ == "__main__":
    main()
