"""A 3-D model in a process of its own, for volumes.py: volume_worker.py WHO TASK SIDE FOLDER

It prints a line of JSON about the model, and then runs the task once for each line that it reads.
The first process, the port's, writes its weights and its output to the folder, for the others. The
environment of the port only needs the packages that the port needs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from memory import peak_bytes
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ENCODER = "resnet18"


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    who, task, side, folder = sys.argv[1:]
    torch.manual_seed(0)
    model, x = prepare(who, torch.randn(1, 1, *[int(side)] * 3), Path(folder))
    away = difference(model, x, Path(folder))
    run = TASKS[task](model, x)
    print(json.dumps({"difference": away, **facts(model, x, run)}), file=answers, flush=True)
    for _ in sys.stdin:
        run()
        print(file=answers, flush=True)


def prepare(who: str, x: Tensor, folder: Path) -> tuple[nn.Module, Tensor]:
    """The model with the port's weights, and the volume, in the requested setting."""
    library, _, setting = who.partition(" ")
    model = MODELS[library]()
    weights = folder / "weights.pt"
    if not weights.exists():
        model.train()(x)  # its batch norms are no longer identities, which fold exactly
        torch.save(model.state_dict(), weights)
    state = torch.load(weights)
    names = names_in_port() if library == "ours" else {name: name for name in state}
    model.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})
    model.eval()
    if setting == "fused":
        return model.fuse(), x
    if setting == "channels_last":
        return (model.to(memory_format=torch.channels_last_3d),
                x.contiguous(memory_format=torch.channels_last_3d))
    return model, x


def port() -> nn.Module:
    import segmentation_models_pytorch_3d as smp
    return smp.UnetPlusPlus(ENCODER, encoder_weights=None, in_channels=1)


def ours() -> nn.Module:
    """The default topology and widths of SMP's UNet++, and so of its port."""
    from peers import smp_pair

    import nestedseg
    _, flat = smp_pair(ENCODER)
    same = {key: flat.config[key] for key in ("decoder_channels", "upsample", "head_kernel")}
    return nestedseg.create(flat.graph, ENCODER, dims=3, in_channels=1, **same)


def names_in_port() -> dict[str, str]:
    """The port's name of each of our tensors.

    They are SMP's, so one of SMP's flat models says it, whose tensors hold their own number.
    """
    import segmentation_models_pytorch as smp

    import nestedseg
    theirs = smp.UnetPlusPlus(ENCODER, encoder_weights=None, in_channels=1).state_dict()
    numbered = {name: torch.full_like(tensor, number)
                for number, (name, tensor) in enumerate(theirs.items())}
    config = {"_model_class": "UnetPlusPlus", "encoder_name": ENCODER, "in_channels": 1}
    ours = nestedseg.convert.from_smp(numbered, config=config).state_dict()
    names = [*theirs]
    return {name: names[int(tensor.flatten()[0])] for name, tensor in ours.items()}


@torch.no_grad()
def difference(model: nn.Module, x: Tensor, folder: Path) -> float:
    """The difference from the output of the first process, relative to its largest value."""
    path = folder / "output.pt"
    if not path.exists():
        torch.save(model(x), path)
    expected = torch.load(path)
    return ((model(x) - expected).abs().max() / expected.abs().max()).item()


def inference(model: nn.Module, x: Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        model(x)
    return run


def training(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward."""
    model.train()

    def run() -> None:
        model.zero_grad()
        model(x).square().mean().backward()
    return run


MODELS = {"port": port, "ours": ours}
TASKS = {"inference": inference, "training": training}


def facts(model: nn.Module, x: Tensor, run: Callable[[], None]) -> dict[str, Any]:
    """Parameters, multiply-accumulates of a forward pass, the task's peak memory, versions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    known = [x, *model.parameters(), *model.buffers()]
    return {"parameters": sum(p.numel() for p in model.parameters()),
            "gmacs": round(counter.get_total_flops() / 2e9, 2),
            "peak_megabytes": round(peak_bytes(run, known) / 1e6, 1),
            "versions": describe_machine()["versions"]}


if __name__ == "__main__":
    main()
