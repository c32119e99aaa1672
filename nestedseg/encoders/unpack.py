"""``B, C, H, W = x.shape``, which a volume's five sizes do not fit, compiled again with a depth.

Only where H and W stay beside each other, as in ``x.reshape(B, groups, -1, H, W)`` and ``H * W``:
code that uses one without the other says something about images that cannot be said of volumes.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

DEPTH = "_depth"
SIDES = ("h", "w")


@cache
def with_depth(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for volumes; itself where it unpacks no shape, or does more with the sides."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # built in, or generated
        return function
    sides = {pair for node in ast.walk(tree) if (pair := unpacked(node))}
    if len(sides) != 1 or function.__closure__:
        return function
    adder = AddDepth(*sides)
    tree = ast.fix_missing_locations(adder.visit(tree))
    if adder.alone:
        return function
    tree.body[0].decorator_list = []
    scope: dict[str, Any] = {}
    exec(compile(tree, inspect.getfile(function), "exec"), function.__globals__, scope)
    return scope[function.__name__]


def unpacked(node: ast.AST) -> tuple[str, str] | None:
    """The names of height and width, where four sizes are unpacked."""
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)):
        return None
    value = node.value.func if isinstance(node.value, ast.Call) else node.value
    names = [getattr(target, "id", "") for target in node.targets[0].elts]
    if len(names) != 4 or getattr(value, "attr", "") not in ("shape", "size"):
        return None
    pairs = [pair for pair in pairwise(names) if tuple(map(str.lower, pair)) == SIDES]
    return pairs[0] if pairs else None


class AddDepth(ast.NodeTransformer):
    """Puts the depth before each height and width; ``alone`` is whether one was without the other.
    """

    def __init__(self, sides: tuple[str, str]) -> None:
        self.sides, self.alone = sides, False

    def _among(self, nodes: list[ast.expr]) -> list[ast.expr]:
        result: list[ast.expr] = []
        for node, after in zip(nodes, [*nodes[1:], None]):
            if tuple(getattr(n, "id", "") for n in (node, after)) == self.sides:
                result += [ast.Name(DEPTH, node.ctx), node]
            elif result and getattr(node, "id", "") == self.sides[1] \
                    and getattr(result[-1], "id", "") == self.sides[0]:
                result.append(node)
            else:
                result.append(self.visit(node))
        return result

    def visit_Tuple(self, node: ast.Tuple) -> ast.Tuple:
        node.elts = self._among(node.elts)
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.func, node.args = self.visit(node.func), self._among(node.args)
        node.keywords = [self.visit(keyword) for keyword in node.keywords]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        ends = getattr(node.left, "id", ""), getattr(node.right, "id", "")
        if isinstance(node.op, ast.Mult) and ends == self.sides:  # how many voxels there are
            depth = ast.Name(DEPTH, ast.Load())
            return ast.BinOp(ast.BinOp(depth, ast.Mult(), node.left), ast.Mult(), node.right)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        self.alone |= node.id in self.sides
        return node
