"""The inference-only form: batch norms folded into convolutions, composed kernels computed once."""

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

# Their forward reads the weight as it is; that of a weight-standardised convolution would undo
# the folded scale.
FOLDABLE = (nn.Conv2d.forward, nn.Conv3d.forward, Conv2dSame.forward)


def fuse_decoder(decoder: Decoder) -> None:
    """Replaces the nodes, in place, by their fused form where they have one.

    A module that has been altered since it was made is left as it is, and so is its node.
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
    """What a block gives for ``x``, as `fold_batch_norms` wants it."""
    return [block(x)]


class FusedNode(nn.Module):
    """A node whose first convolution has been taken apart and composed with its edges.

    It takes over the block of ``node``, whose first layer then passes on what it is given, and
    those of its edges that are not composed.
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
                self.block.set_submodule(name, nn.Identity())
                break

    def runs(self) -> str:
        """As of a node that is not fused."""
        return "fused"

    def forward(self, *inputs: Tensor) -> Tensor:
        kernels = tuple(self.kernels.get(name) for name in self.strides)
        parts = Parts(kernels, tuple(self.strides.values()), self.beside, self.bias, self.border)
        edges = [self.edges._modules.get(name) for name in self.strides]
        return self.block(join_fast(parts, edges, inputs))


def fold_batch_norms(module: nn.Module, run: Run, name: str = "a module") -> None:
    """Folds batch norms into the convolutions before them, in place, where that is proven safe.

    Read off autograd's graph, on a copy without weights: nothing but the norm reads what the
    convolution gives, both run once, and each has one owner. Both, and all that they lie in up to
    where they meet, must be as they were made.

    Args:
        run: calls a copy of the module on the meta device, and returns its outputs.
        name: what a warning calls the module, if that fails.
    """
    try:
        pairs = foldable(module, run)
    except Exception as error:  # a model that reads values has no meta form
        warnings.warn(f"{name} is left as it is, its batch norms are not folded: it does not run "
                      f"without its weights ({type(error).__name__}: {error})", stacklevel=2)
        return
    for conv_path, norm_path in pairs:
        conv: Any = module.get_submodule(conv_path)
        norm: Any = module.get_submodule(norm_path)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
            norm.bias)
        module.set_submodule(norm_path, after(norm))


def after(norm: nn.Module) -> nn.Module:
    """What a norm does besides normalising: timm has some with an activation."""
    rest = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def foldable(module: nn.Module, run: Run) -> list[tuple[str, str]]:
    """Paths of the convolutions and batch norms that can be folded."""
    if global_alteration() is not None:
        return []
    ghost = meta_copy(module).eval()
    altered = drop_hooks(ghost)
    for parameter in ghost.parameters():
        parameter.requires_grad_()
    made: dict[Any, str] = {}  # by node of autograd's graph, of which
    read: dict[str, Any] = {}
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

    owners = Counter(child for _, child in ghost.named_modules(remove_duplicate=False))
    for path, child in ghost.named_modules():
        if owners[child] > 1:
            continue
        if type(child).forward in FOLDABLE and "weight" in child._parameters:
            child.register_forward_hook(after_convolution(path))
        elif is_known_norm(child):
            child.register_forward_pre_hook(before_norm(path))
    with torch.enable_grad():
        outputs = run(ghost)
    readers = count_readers([output.grad_fn for output in outputs])
    return [(made[node], path) for path, node in read.items() if node in made
            and calls[made[node]] == calls[path] == readers[node] == 1
            and not altered & {*up_to_meeting(made[node], path)}]


def is_known_norm(module: nn.Module) -> bool:
    """Whether it is a batch norm by torch, timm or this library, with statistics of its own."""
    by = type(module).forward.__module__.partition(".")[0]
    return (isinstance(module, _BatchNorm) and module.running_mean is not None
            and by in ("torch", "timm", "nestedseg"))


def drop_hooks(module: nn.Module) -> set[str]:
    """Removes all hooks, and gives the paths of the modules that were altered."""
    altered = set()
    for path, child in module.named_modules():
        if alteration(child, (type(child),)) is not None:
            altered.add(path)
        for hooks in (child._forward_hooks, child._forward_pre_hooks, child._backward_hooks,
                      child._backward_pre_hooks):
            hooks.clear()
    return altered


def up_to_meeting(first: str, second: str) -> Iterator[str]:
    """The paths of two modules, and of all that they lie in below what they both lie in."""
    one, two = first.split("."), second.split(".")
    common = len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, two))])
    for parts in (one, two):
        yield from (".".join(parts[:end]) for end in range(common + 1, len(parts) + 1))


def count_readers(outputs: Sequence[Any]) -> Counter[Any]:
    """How often each node of autograd's graph is read, an output counting as one reader.

    Outputs that no weight leads to have no node.
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
