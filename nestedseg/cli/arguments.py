"""Arguments that several commands share: models, devices, numbers for each axis."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

import nestedseg
from nestedseg.decoder.layers import NORMS, UPSAMPLINGS
from nestedseg.encoders import Options, describe_encoder

MODEL_HELP = "a folder, like run/model, or the id of a repo on the Hugging Face Hub, user/name"


def add_model_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("model")
    group.add_argument("--encoder", default="plain", metavar="NAME",
                       help="plain, or a timm model (default: %(default)s)")
    group.add_argument("--depth", type=int, metavar="L",
                       help="of the topology (default: as deep as the encoder allows)")
    group.add_argument("--widths", type=int, nargs="+", metavar="N",
                       default=[32, 64, 128, 256, 512],
                       help="channels of the plain encoder, finest first (default: %(default)s)")
    group.add_argument("--strides", type=_stride, nargs="+", metavar="N,N,N",
                       help="of the plain encoder: the step from each level to the next along each "
                            "axis, finest first, like 1,2,2 2,2,2 2,2,2 2,2,2 (default: all 2)")
    group.add_argument("--depth-strides", type=int, nargs="+", metavar="N",
                       help="of a timm encoder for volumes: the step along D at each halving of H "
                            "and W, finest first: 1 keeps D, for thick slices, 2 halves it "
                            "(default: all 2)")
    group.add_argument("--decoder-channels", type=int, nargs="+", metavar="N",
                       help="channels of the decoder, finest first")
    group.add_argument("--upsample", default="nearest", choices=UPSAMPLINGS,
                       help="default: %(default)s")
    group.add_argument("--norm", default="batch", choices=[*NORMS, "none"],
                       help="default: %(default)s")
    group.add_argument("--deep-supervision", action=argparse.BooleanOptionalAction,
                       help="a head at every depth (default: if the topology allows several heads)")
    return group


def _stride(text: str) -> tuple[int, ...]:
    """One step of --strides: "1,2,2" -> (1, 2, 2)."""
    return tuple(map(int, text.split(",")))


def model_options(args: argparse.Namespace, topology: str, dims: int) -> dict[str, Any]:
    encoder = {"encoder": args.encoder, "dims": dims, "encoder_channels": args.widths,
               "strides": args.strides, "depth_strides": args.depth_strides}
    return {**encoder, "depth": args.depth, "decoder_channels": args.decoder_channels,
            "upsample": args.upsample,
            "norm": None if args.norm == "none" else args.norm,
            "deep_supervision": _supervision(topology, args, Options(**encoder))}


def _supervision(topology: str, args: argparse.Namespace, encoder: Options) -> bool | None:
    """``True`` if a named topology allows several heads; a graph from a file keeps its own."""
    if args.deep_supervision is not None or topology.endswith(".json"):
        return args.deep_supervision
    levels = describe_encoder(encoder).levels
    return len(nestedseg.topology(topology, args.depth or len(levels) - 1).heads) > 1 or None


def one_or_all(values: Sequence[int] | None) -> int | tuple[int, ...] | None:
    """An option given as one number for all axes, or as one for each."""
    if values is None:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
