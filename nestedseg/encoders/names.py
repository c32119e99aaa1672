"""The tensors of a timm model, known without trying the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nestedseg.encoders.description import Options
from nestedseg.encoders.timm_encoder import parse_name
from nestedseg.encoders.timm_model import pretrained_cfg
from nestedseg.encoders.weights import shapes_of

Shapes = Mapping[str, tuple[int, ...]]


def timm_shapes(options: Options) -> Shapes:
    """Names and shapes, as in an encoder without a stem, of all tensors of the whole timm model.

    An encoder has those that its levels need, some of them in other shapes. None where timm cannot
    build the model without memory.

    Raises:
        ValueError: there is no such model.
    """
    parse_name(options.encoder)
    return _shapes(options.encoder)


def certain_shapes(options: Options, known: Shapes) -> Shapes:
    """Those of the known shapes that an encoder has whatever trying it would show.

    Channels and sizes of images change the shapes of some tensors; in 3-D any may change.
    """
    if options.dims == 3:
        return {}
    arguments: dict[str, Any] = {}
    if options.in_channels != 3:
        arguments["in_chans"] = options.in_channels
    if options.image_size is not None:
        own = pretrained_cfg(options.encoder).input_size[-2:]
        arguments["img_size"] = tuple(2 * side for side in own)
    changed = _shapes(options.encoder, **arguments) if arguments else known
    return {name: shape for name, shape in known.items() if changed.get(name) == shape}


def _shapes(encoder: str, **arguments: Any) -> Shapes:
    """Those of a model that is built so; a size is left out if the model cannot be told one."""
    try:
        shapes = shapes_of(encoder, arguments)
    except Exception as error:  # each model in its own way
        if isinstance(error, TypeError) and arguments.pop("img_size", None):
            return _shapes(encoder, **arguments)
        return {}
    return {f"model.{name}": tuple(shape) for name, shape in shapes.items()}
