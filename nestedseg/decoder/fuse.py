"""The inference-only form of a model: batch norms folded into convolutions, kernels composed once.

`SegmentationModel.fuse` uses it. Folding is decided on a copy on the meta device: if that copy
cannot be run, nothing is folded, and the model still computes the same numbers.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from nestedseg.decoder.compiler import Decoder
from nestedseg.decoder.lowering import Parts, join_fast
from nestedseg.decoder.meta import meta_copy
from nestedseg.decoder.nodes import NodeModule
from nestedseg.decoder.untouched import alteration, global_alteration

Run = Callable[[nn.Module], Sequence[Tensor]]

# Convolutions whose forward uses the weight unchanged. A weight-standardised convolution, for
# example, would normalise the folded scale away again.
FOLDABLE = (nn.Conv2d.forward, nn.Conv3d.forward, Conv2dSame.forward)


def fuse_decoder(decoder: Decoder) -> None:
    """Fuses a decoder in place: folds batch norms, and makes a `FusedNode` of each node it can.

    Modules that a user has altered stay as they are, and so do the nodes that contain them.
    """
    for name in decoder.graph.nodes:
        node = decoder.node(name)
        if not isinstance(node, NodeModule):
            continue
        dtype = next((weight.dtype for weight in node.block.parameters()), None)
        x = torch.empty(1, node.in_channels, *[4] * node.dims, dtype=dtype, device="meta")
        fold_batch_norms(node.block, partial(run_alone, x), f"node {name!r}")
        if node.obstacle() is None and alteration(node, (NodeModule,)) is None:
            decoder.add_module(name, FusedNode(node))


def run_alone(x: Tensor, block: nn.Module) -> list[Tensor]:
    """A block's output for ``x`` as a list, the form that `fold_batch_norms` expects."""
    return [block(x)]


class FusedNode(nn.Module):
    """A node whose first convolution is split by input and composed with the edges, once.

    It takes over the block of ``node``, with an identity in the place of the first layer, and the
    edges that are not composed.
    """

    beside: Tensor | None
    bias: Tensor | None
    border: Tensor | None

    def __init__(self, node: NodeModule) -> None:
        super().__init__()
        self.block, first = node.block, node.block.first
        parts = Parts.of(first, [*node.edges.values()])
        self.strides = dict(zip(node.edges, parts.strides))  # of all inputs, in their order
        self.kernels = nn.ParameterDict()
        self.edges = nn.ModuleDict()
        for (name, edge), kernel in zip(node.edges.items(), parts.kernels):
            if kernel is None:
                self.edges[name] = edge
            else:
                self.kernels[name] = nn.Parameter(kernel.contiguous())
        for name in ("beside", "bias", "border"):
            value = getattr(parts, name)
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        for name, module in self.block.named_modules():
            if module is first:
                self.block.set_submodule(name, Done())
                break

    def runs(self) -> str:
        """See `NodeModule.runs`."""
        return "fused"

    def forward(self, *inputs: Tensor) -> Tensor:
        kernels = tuple(self.kernels.get(name) for name in self.strides)
        parts = Parts(kernels, tuple(self.strides.values()), self.beside, self.bias, self.border)
        edges = [self.edges._modules.get(name) for name in self.strides]
        return self.block(join_fast(parts, edges, inputs))


def fold_batch_norms(module: nn.Module, run: Run, name: str = "a module") -> None:
    """Folds batch norms into the convolutions before them, in place, where that is proven safe.

    The proof is read from autograd's graph of one run on a copy without weights: only the norm
    reads the convolution's output, both run exactly once, and each appears in one place in the
    module. Both, and the modules around each that do not contain the other, must be unaltered.
    Whatever is not proven stays as it is.

    Args:
        module: in eval mode.
        run: calls a copy of the module on the meta device, and returns its outputs.
        name: what a warning calls the module, if that fails.
    """
    try:
        pairs = foldable(module, run)
    except Exception as error:  # for example, its forward depends on values
        if any(isinstance(child, _BatchNorm) for child in module.modules()):
            warnings.warn(
                f"the batch norms of {name} are not folded, because it does not run on the meta "
                f"device ({type(error).__name__}: {error}). The outputs are the same, but are not "
                "computed faster", stacklevel=4)  # where fuse is called
        return
    for conv_path, norm_path in pairs:
        conv: Any = module.get_submodule(conv_path)
        norm: Any = module.get_submodule(norm_path)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
            norm.bias)
        module.set_submodule(norm_path, after(norm))


def after(norm: nn.Module) -> nn.Module:
    """What is left of a folded norm: some of timm's norms contain an activation too."""
    rest = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    return nn.Sequential(*rest) if rest else Done()


class Done(nn.Module):
    """Stands in the place of a layer whose work is done elsewhere. It is no nn.Identity, because a
    user may have altered that class."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def foldable(module: nn.Module, run: Run) -> list[tuple[str, str]]:
    """The paths of each convolution and batch norm that can be folded together."""
    if global_alteration() is not None:
        return []
    copy = meta_copy(module).eval()
    altered = drop_hooks(copy)
    for parameter in copy.parameters():
        parameter.requires_grad_()
    made: dict[Any, str] = {}  # the convolution whose output each node of autograd's graph is
    read: dict[str, Any] = {}  # the node of autograd's graph that each norm reads
    calls: Counter[str] = Counter()

    def after_convolution(path: str) -> Callable[..., None]:
        def hook(conv: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls[path] += 1
            made[output.grad_fn] = path
        return hook

    def before_norm(path: str) -> Callable[..., None]:
        def hook(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[path] += 1
            read[path] = args[0].grad_fn
        return hook

    owners = Counter(child for _, child in copy.named_modules(remove_duplicate=False))
    for path, child in copy.named_modules():
        if owners[child] > 1:
            continue
        if type(child).forward in FOLDABLE and "weight" in child._parameters:
            child.register_forward_hook(after_convolution(path))
        elif is_known_norm(child):
            child.register_forward_pre_hook(before_norm(path))
    with torch.enable_grad():
        outputs = run(copy)
    readers = count_readers([output.grad_fn for output in outputs])
    return [(made[node], path) for path, node in read.items() if node in made
            and calls[made[node]] == calls[path] == readers[node] == 1
            and not altered & {*up_to_meeting(made[node], path)}]


def is_known_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm of torch, timm or this library that has running statistics."""
    by = type(module).forward.__module__.partition(".")[0]
    return (isinstance(module, _BatchNorm) and module.running_mean is not None
            and by in ("torch", "timm", "nestedseg"))


def drop_hooks(module: nn.Module) -> set[str]:
    """Removes all hooks, and returns the paths of the modules that were altered."""
    altered = set()
    for path, child in module.named_modules():
        if alteration(child, (type(child),)) is not None:
            altered.add(path)
        for hooks in (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks,
                      child._backward_pre_hooks):
            hooks.clear()
    return altered


def up_to_meeting(first: str, second: str) -> Iterator[str]:
    """The paths of two modules and of their parents, up to the module that contains both."""
    one, two = first.split("."), second.split(".")
    common = len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, two))])
    for parts in (one, two):
        yield from (".".join(parts[:end]) for end in range(common + 1, len(parts) + 1))


def count_readers(outputs: Sequence[Any]) -> Counter[Any]:
    """How many times each node of autograd's graph is read; being an output counts as one.

    ``None`` among the outputs stands for an output that depends on no weight.
    """
    readers = Counter(node for node in outputs if node is not None)
    waiting = list(readers)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                readers[node] += 1
                if readers[node] == 1:
                    waiting.append(node)
    return readers
