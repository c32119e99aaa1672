"""A norm and an activation as a function that depends only on its input.

A map that the backward pass computes again must equal the map of the forward pass, whatever has
happened to the model since: another mode, another batch, a new hook. So the modules are not called
again. In the forward pass they are recorded as a function, with their settings and tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from nestedseg.decoder.kernels import GroupNorm, group_norm
from nestedseg.decoder.untouched import alteration, global_alteration


class Stateless(NamedTuple):
    """A function of maps, and the other tensors that it reads."""

    function: Callable[..., Tensor]
    reads: tuple[Tensor, ...] = ()


# By class of the module: what makes a function from its settings. Subclasses may do anything.
ACTIVATIONS: dict[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    nn.ReLU: lambda act: F.relu,
    nn.LeakyReLU: lambda act: partial(F.leaky_relu, negative_slope=act.negative_slope),
    nn.ELU: lambda act: partial(F.elu, alpha=act.alpha),
    nn.SiLU: lambda act: F.silu,
    nn.Mish: lambda act: F.mish,
    nn.GELU: lambda act: partial(F.gelu, approximate=act.approximate),
    nn.PReLU: lambda act: partial(F.prelu, weight=act.weight),
}
NORMS: dict[type[nn.Module], Callable[[Any], Callable[[Tensor], Tensor]]] = {
    nn.Identity: lambda norm: lambda x: x,
    GroupNorm: lambda norm: partial(group_norm, groups=norm.num_groups, weight=norm.weight,
                                    bias=norm.bias, eps=norm.eps),
    **dict.fromkeys((nn.BatchNorm2d, nn.BatchNorm3d), lambda norm: partial(
        F.batch_norm, running_mean=None, running_var=None, weight=norm.weight, bias=norm.bias,
        training=True, eps=norm.eps)),
}


def stateless(norm: Any, act: Any) -> Stateless | None:
    """``act(norm(x))`` as it is computed now; ``None`` if it depends on more than ``x``.

    A batch norm in eval mode reads its running statistics, which another batch may change, and an
    altered module may do anything.
    """
    if alteration(norm, NORMS) or alteration(act, ACTIVATIONS) or global_alteration():
        return None
    if getattr(norm, "running_mean", None) is not None and not norm.training:
        return None
    normalise, activate = NORMS[type(norm)](norm), ACTIVATIONS[type(act)](act)
    reads = (getattr(norm, "weight", None), getattr(norm, "bias", None),
             getattr(act, "weight", None))
    return Stateless(lambda x: activate(normalise(x)),
                     tuple(tensor for tensor in reads if tensor is not None))
