"""The tensors of a timm model, known without trying the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nestedseg.encoders.description import Options
from nestedseg.encoders.timm_encoder import parse_name
from nestedseg.encoders.timm_model import pretrained_cfg
from nestedseg.encoders.weights import shapes_of

USUAL_STRIDE = 32  # of the deepest feature; a size that is no multiple may be refused

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
    channels = {} if options.in_channels == 3 else {"in_chans": options.in_channels}
    for arguments in [channels | size for size in sizes_around(options)]:
        changed = _shapes(options.encoder, **arguments) if arguments else known
        known = {name: shape for name, shape in known.items() if changed.get(name) == shape}
    return known


def sizes_around(options: Options) -> list[dict[str, Any]]:
    """Arguments for a model that is built for sizes above and below the one it will be built for.

    Which that is, trying it shows. Windows, for example, are smaller in small images.
    """
    if options.image_size is None:
        return [{}]
    own = pretrained_cfg(options.encoder).input_size[-2:]
    least = tuple(math.ceil(side / USUAL_STRIDE) * USUAL_STRIDE for side in options.image_size)
    return [{"img_size": tuple(2 * side for side in own)}, {"img_size": least}]


def _shapes(encoder: str, **arguments: Any) -> Shapes:
    """Those of a model that is built so; a size is left out if the model cannot be told one."""
    try:
        shapes = shapes_of(encoder, arguments)
    except Exception as error:  # each model in its own way
        if isinstance(error, TypeError) and arguments.pop("img_size", None):
            return _shapes(encoder, **arguments)
        return {}
    return {f"model.{name}": tuple(shape) for name, shape in shapes.items()}
