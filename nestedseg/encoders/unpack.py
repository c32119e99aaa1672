"""``B, C, H, W = x.shape``, which a volume's five sizes do not fit, written again with a depth.

Blocks of ten of timm's families have such a line (metaformer, fastvit, resnest, efficientvit_mit,
...): without this module 63 models fewer could be made volumetric. The source of the timm that is
installed is changed and compiled, for the unpacking is Python's own and calls nothing that
`ForVolumes` could translate; what comes of it is plain code, which torch compiles and exports.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Any

UNPACKED = re.compile(r"^\s*\(?\w+, (?:\w+, ([Hh], [Ww])|([Hh], [Ww]), \w+)\)? = "
                      r"\w+\.(?:shape|size\(\))$", re.MULTILINE)


@cache
def with_depth(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function for volumes; itself where it unpacks no shape, or does more with the sides.

    Height and width must stay beside each other, as in ``x.reshape(B, groups, -1, H, W)`` and
    ``H * W``: code that uses one without the other says something about images alone.
    """
    try:
        text = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):  # built in, or generated
        return function
    sides = {found[1] or found[2] for found in UNPACKED.finditer(text)}
    if len(sides) != 1 or function.__closure__:
        return function
    high, wide = sides.pop().split(", ")
    beside = re.compile(rf"(\(|[,=] ){high}(, | \* ){wide}(?=[),]| =|$)", re.MULTILINE)
    if re.search(rf"\b({high}|{wide})\b", beside.sub("", text)):
        return function
    scope: dict[str, Any] = {}
    text = beside.sub(rf"\1_depth\2{high}\2{wide}", text)
    exec(compile(text, inspect.getfile(function), "exec"), function.__globals__, scope)
    return scope[function.__name__]
