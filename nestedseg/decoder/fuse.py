"""The inference-only form of a model: batch norms folded into convolutions, kernels composed once.

`SegmentationModel.fuse` uses it. Folding is decided on a copy on the meta device: if that copy
cannot be run, nothing is folded, and the model still computes the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
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

Run = Callable[[nn.Module], Sequence[Tensor]]

# Convolutions whose forward uses the weight unchanged. A weight-standardised convolution, for
# example, would normalise the folded scale away again.
FOLDABLE = (nn.Conv2d.forward, nn.Conv3d.forward, Conv2dSame.forward)


def fuse_decoder(decoder: Decoder) -> None:
    """Fuses a decoder in place: folds batch norms, and makes a `FusedNode` of each node it can."""
    for name in decoder.graph.nodes:
        node = decoder.node(name)
        dtype = next((weight.dtype for weight in node.block.parameters()), None)
        x = torch.empty(1, node.in_channels, *[4] * node.dims, dtype=dtype, device="meta")
        fold_batch_norms(node.block, partial(run_alone, x))
        if node.has_fast_form:
            decoder.add_module(name, FusedNode(node))


def run_alone(x: Tensor, block: nn.Module) -> list[Tensor]:
    """A block's output for ``x`` as a list, the form that `fold_batch_norms` expects."""
    return [block(x)]


class FusedNode(nn.Module):
    """A node whose first convolution is split by input and composed with the edges, once.

    It takes over the edges and the block of ``node``, and removes the weights that it has composed.
    """

    runs = "fused"
    beside: Tensor | None
    bias: Tensor | None
    border: Tensor | None

    def __init__(self, node: NodeModule) -> None:
        super().__init__()
        self.edges, self.block = node.edges, node.block
        edges, first = self.edges.items(), self.block.first
        assert isinstance(first, (nn.Conv2d, nn.Conv3d))
        parts = Parts.of(first, [edge for _, edge in edges])
        self.kernels = nn.ParameterDict()
        for (name, edge), kernel in zip(edges, parts.kernels):
            if kernel is not None:
                self.kernels[name] = nn.Parameter(kernel.contiguous())
                edge.drop_weights()
        for name in ("beside", "bias", "border"):
            value = getattr(parts, name)
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        for name, module in self.block.named_modules():
            if module is first:
                self.block.set_submodule(name, nn.Identity())
                break

    def forward(self, *inputs: Tensor) -> Tensor:
        kernels = tuple(self.kernels.get(name) for name in self.edges)
        parts = Parts(kernels, self.beside, self.bias, self.border)
        return self.block.finish(join_fast(parts, tuple(self.edges.values()), inputs))


def fold_batch_norms(module: nn.Module, run: Run) -> None:
    """Folds batch norms into the convolutions before them, in place, where that is proven safe.

    The proof is read from autograd's graph of one run on a copy without weights: only the norm
    reads the convolution's output, both run exactly once, and each appears in one place in the
    module. Whatever is not proven stays as it is.

    Args:
        module: in eval mode.
        run: calls a copy of the module on the meta device, and returns its outputs.
    """
    for conv_path, norm_path in foldable(module, run):
        conv: Any = module.get_submodule(conv_path)
        norm: Any = module.get_submodule(norm_path)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
            norm.bias)
        module.set_submodule(norm_path, after(norm))


def after(norm: nn.Module) -> nn.Module:
    """What is left of a folded norm: some of timm's norms contain an activation too."""
    rest = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def foldable(module: nn.Module, run: Run) -> list[tuple[str, str]]:
    """The paths of each convolution and batch norm that can be folded together."""
    copy = meta_copy(module).eval()
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
        elif isinstance(child, _BatchNorm) and child.track_running_stats:
            child.register_forward_pre_hook(before_norm(path))
    with torch.enable_grad():
        try:
            outputs = run(copy)
        except Exception:  # for example, its forward depends on values: then nothing is folded
            return []
    readers = count_readers([output.grad_fn for output in outputs])
    return [(made[node], path) for path, node in read.items() if node in made
            and calls[made[node]] == calls[path] == readers[node] == 1]


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
