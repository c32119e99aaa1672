"""Exports a model as one file that runs without this library: ONNX, or a torch.export program.

Both are written from one trace of the fused model, because onnxruntime too computes its composed
kernels faster than up-sampling, concatenating and convolving.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as torch_config
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from nestedseg.base.errors import choose
from nestedseg.base.extras import require
from nestedseg.base.version import __version__
from nestedseg.hub.storage import drafted
from nestedseg.models.network import Network
from nestedseg.models.summary import image_size

OPSET = 18  # of ONNX: the version that torch writes directly, without converting afterwards
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
MAX_ONNX_BYTES = 1536 * 2 ** 20  # of weights; a protobuf is limited to 2 GiB, with the graph
MAX_HALF = torch.finfo(torch.float16).max


def write(model: Network, path: Path, format: str, depth: int | None, ensemble: bool,
          dynamic: Sequence[str] | None, probabilities: bool, half: bool) -> None:
    """See `SegmentationModel.export`."""
    check_format(format, path)
    axes = choose_axes(model, dynamic)
    fused = choose_output(model, depth, ensemble).cpu().fuse(torch.float32)
    check_weights(fused, format, half)
    program = trace_program(Deployed(fused.half() if half else fused, probabilities), axes)
    facts = file_metadata(fused, probabilities)
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafted(path) as draft:
        if format == "onnx":
            write_onnx(program, draft, axes, facts)
        else:
            torch.export.save(program, draft, extra_files=facts)


# -- what is asked for -----------------------------------------------------------------------------


def check_format(format: str, path: Path) -> None:
    """Checks the format, the file's suffix, and that the packages for the format are installed.

    Raises:
        ValueError: unknown format, or a file with another suffix.
        ImportError: the extra "export" is not installed.
    """
    suffix = SUFFIXES[choose("format", format, SUFFIXES)]
    if path.suffix != suffix:
        raise ValueError(f"a file of the format {format!r} ends in {suffix}, got {str(path)!r}")
    if format == "onnx":
        for module in ("onnx", "onnxscript"):
            require(module, "export")


def choose_axes(model: Network, dynamic: Sequence[str] | None) -> dict[str, int]:
    """The axes that may have any length in the file, by name, and their places in the image.

    Raises:
        ValueError: an unknown name, or height or width of a model that is built for one size.
    """
    dims, fixed = model.config["dims"], model.config["image_size"]
    spatial = ("depth", "height", "width")[-dims:]
    places = {"batch": 0} | {name: place for place, name in enumerate(spatial, start=2)}
    if dynamic is None:
        dynamic = ["batch"] if fixed else list(places)
    for name in dynamic:
        choose("dynamic axis", name, places)
        if fixed and name in spatial:
            raise ValueError(f"{name!r} cannot be dynamic: encoder {model.config['encoder']!r} is "
                             f"built for images of {tuple(fixed)}; use dynamic=('batch',), or "
                             "create the model with another image_size")
    return {name: place for name, place in places.items() if name in dynamic}


def choose_output(model: Network, depth: int | None,
                  ensemble: bool) -> Network:
    """A copy of the model that returns one depth, pruned to it, or the ensemble of all depths.

    Raises:
        ValueError: both are asked for, or an ensemble of one head.
        GraphError: there is no head at this depth.
    """
    if ensemble and depth is not None:
        raise ValueError(f"ensemble=True is the mean of all depths, and cannot be combined with "
                         f"depth={depth}; give one of the two")
    if ensemble and len(model.depths) == 1:
        raise ValueError("an ensemble needs several heads, but the model has only one, at depth "
                         f"{model.depths[0]}; create it with deep_supervision=True, and train it")
    output = "ensemble" if ensemble else model.output if depth is None else depth
    if output != "ensemble":
        return model.prune(output if isinstance(output, int) else model.depths[-1])
    whole = copy.deepcopy(model)
    whole.output = output
    return whole


def check_weights(model: Network, format: str, half: bool) -> None:
    """Checks that the file can hold the weights.

    Raises:
        ValueError: they are too many for the format, or too large for float16.
    """
    weights = [weight for weight in model.state_dict().values() if weight.is_floating_point()]
    size = sum(weight.numel() for weight in weights) * (2 if half else 4)
    if format == "onnx" and size > MAX_ONNX_BYTES:
        raise ValueError(f"the model has {size / 2 ** 30:.1f} GiB of weights, but an ONNX file is "
                         "limited to 2 GiB; use format='torch', half=True or a smaller depth")
    if half and any(((weight.abs() > MAX_HALF) & weight.isfinite()).any() for weight in weights):
        raise ValueError(f"the model has weights larger than {MAX_HALF:g}, the largest number of "
                         "float16; use half=False")


# -- tracing ---------------------------------------------------------------------------------------


class Deployed(nn.Module):
    """The module that is traced: float32 in and out, whatever the dtype of the model.

    ``(N, in_channels, *spatial)`` -> ``(N, classes, *spatial)``.
    """

    def __init__(self, model: Network, probabilities: bool) -> None:
        super().__init__()
        self.model = model
        self.dtype = next(model.parameters()).dtype
        self.probabilities = probabilities

    def forward(self, image: Tensor) -> Tensor:
        run = self.model.predict if self.probabilities else self.model
        return run(image.to(self.dtype)).float()


def trace_program(deployed: Deployed, axes: Mapping[str, int]) -> ExportedProgram:
    """The torch.export program of a module, valid for any length of the given axes.

    Raises:
        ValueError: the model cannot be traced, for example because the encoder's forward pass
            depends on the size of the image.
    """
    lengths = ({place: Dim.DYNAMIC for place in axes.values()},)
    try:
        with torch.no_grad(), torch_config.patch(  # type: ignore[attr-defined]  # added when loaded
                backed_size_oblivious=True):
            program = torch.export.export(deployed, (example(deployed.model, axes, cells=4),),
                                          dynamic_shapes=lengths, strict=False)
        # Before each run torch would check the assumptions about strides and lengths that it made
        # while tracing. Some do not hold for all sizes although the program does. They are removed,
        # and the program is compared with the model at another size instead.
        program._guards_code = []
        program.range_constraints.update(dict.fromkeys(program.range_constraints,
                                                       ValueRanges(1, int_oo)))
        compare(program.module(), deployed, example(deployed.model, axes, cells=1))
    except Exception as error:  # torch and timm's models raise many kinds of errors here
        reason = str(error).strip().partition("\n")[0]
        encoder = deployed.model.config["encoder"]
        raise ValueError(f"the model over {encoder!r} cannot be traced with the dynamic axes "
                         f"{tuple(axes)}: {reason}. Try fewer dynamic axes") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


@torch.no_grad()
def compare(program: nn.Module, deployed: Deployed, image: Tensor) -> None:
    """Checks that a program computes for an image what the model computes.

    Raises:
        ValueError: the outputs differ in shape, or by more than 1 % of the largest.
    """
    got, expected = program(image), deployed(image)
    if got.shape != expected.shape \
            or not (got - expected).abs().max() <= 0.01 * expected.abs().max():
        raise ValueError("its forward pass is a different one for images of "
                         f"{tuple(image.shape[2:])}")


def example(model: Network, axes: Mapping[str, int], cells: int) -> Tensor:
    """An image whose dynamic axes have different lengths and need padding.

    Args:
        model: the model that takes the image.
        axes: the dynamic axes, by name, and their places.
        cells: pixels of the deepest level along the first axis; each further axis has one more.
    """
    config = model.config
    shape = [1, config["in_channels"], *(config["image_size"] or image_size(model))]
    least = [1, 1, *map(max, config["pad_multiple"], config["pad_smallest"])]
    for more, place in enumerate(axes.values()):
        shape[place] = (cells + more) * least[place] - (least[place] > 1)
    return torch.arange(math.prod(shape), dtype=torch.float32).sin().reshape(shape)


# -- writing ---------------------------------------------------------------------------------------


def file_metadata(model: Network, probabilities: bool) -> dict[str, str]:
    """The metadata of the file: strings, and JSON for values that are not strings."""
    config = model.config
    facts = {key: config[key] for key in ("topology", "encoder", "task", "class_names",
                                          "preprocessing")}
    facts |= {"depths": model.depths, "input": "image", "output": output_name(probabilities),
              "nestedseg_version": __version__}
    return {key: fact if isinstance(fact, str) else json.dumps(fact)
            for key, fact in facts.items() if fact is not None}


def output_name(probabilities: bool) -> str:
    return "probabilities" if probabilities else "logits"


def write_onnx(program: ExportedProgram, path: Path, axes: Mapping[str, int],
               facts: Mapping[str, str]) -> None:
    """Writes a program as ONNX, with its weights inside the file."""
    model = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False,
                              input_names=[facts["input"]], output_names=[facts["output"]],
                              dynamic_shapes=({place: name for name, place in axes.items()},))
    assert model is not None  # with dynamo=True
    model.model.metadata_props.update(facts)
    model.save(path, external_data=False)
