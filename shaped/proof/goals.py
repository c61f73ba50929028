"""The equation that an operation lacks, for the operations whose rule is known."""

from collections.abc import Sequence
from typing import Any

import sympy
from torch import SymInt, Tensor
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import PythonMod

from shaped.proof.arithmetic import holds
from shaped.proof.calls import Call
from shaped.proof.symbolic import World, expression
from shaped.proof.trace import same_size
from shaped.shapes import Term

MATMUL = ("matmul", "mm", "bmm", "mv")
SYMBOLS = {"matmul": "@", "add": "+", "sub": "-", "mul": "*", "div": "/"}
_ALIGNED = (*SYMBOLS, "where", "maximum", "minimum", "pow", "eq", "ne", "lt", "gt", "le", "ge", "masked_fill", "lerp")


def equation(call: Call, operands: Sequence[Tensor], world: World) -> str:
    """What is missing, for the operations whose rule is known; empty for the others."""
    if call.name in ("view", "reshape", "unflatten") and len(operands) == 1:
        return _view_goal(call, operands[0], world)
    if len(operands) < 2:
        return ""
    a, b = operands[0], operands[1]
    if call.name in MATMUL or call.name == "linear":
        if a.dim() == 0 or b.dim() == 0:
            return ""
        inner = b.shape[-1] if call.name == "linear" or b.dim() == 1 else b.shape[-2]
        if not same_size(a.shape[-1], inner):
            return f"{world.show(a.shape[-1])} = {world.show(inner)}"
        return _broadcast_goal(a.shape[:-2], b.shape[:-2], world)
    if call.name in ("cat", "concat"):
        pairs = [(x, y) for x, y in zip(a.shape, b.shape, strict=False)]
        along = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0)
        pairs = [pair for i, pair in enumerate(pairs) if i != along % max(a.dim(), 1)]
        return next((f"{world.show(x)} = {world.show(y)}" for x, y in pairs if not same_size(x, y)), "")
    if call.name in ("cross_entropy", "nll_loss"):
        classes = 1 if a.dim() > 1 else 0
        kept = [size for i, size in enumerate(a.shape) if i != classes]
        if len(kept) == b.dim():
            pairs = list(zip(kept, b.shape, strict=True))
            return next((f"{world.show(x)} = {world.show(y)}" for x, y in pairs if not same_size(x, y)), "")
        return ""
    if call.name.startswith("conv") and a.dim() == b.dim():
        return _channels(call, a, b, world)
    if call.name in _ALIGNED:
        both = [(x, y) for i, x in enumerate(operands) for y in operands[i + 1 :]]
        return next(filter(None, (_broadcast_goal(x.shape, y.shape, world) for x, y in both)), "")
    return ""


def _channels(call: Call, x: Tensor, weight: Tensor, world: World) -> str:
    """The channels that go in are those that the weight takes, in each of its groups."""
    groups = call.kwargs.get("groups", call.args[6] if len(call.args) > 6 else 1)
    axis = 0 if "transpose" in call.name else 1
    taken = weight.shape[axis] if axis == 0 else weight.shape[axis] * groups
    return "" if same_size(x.shape[1], taken) else f"{world.show(x.shape[1])} = {world.show(taken)}"


def _view_goal(call: Call, operand: Tensor, world: World) -> str:
    """`batch*hidden = 7*pixels`, or with one -1 `batch*hidden % 7 == 0`."""
    sizes = pytree.tree_leaves(call.args[1:])
    if not sizes or not all(isinstance(size, int | SymInt) for size in sizes):
        return ""
    known = [expression(size) for size in sizes if not same_size(size, -1)]
    have, want = sympy.prod(map(expression, operand.shape)), sympy.prod(known)
    if len(known) == len(sizes):
        return "" if sympy.expand(have - want) == 0 else f"{world.show(have)} = {world.show(want)}"
    if want == 0 or holds(sympy.Eq(PythonMod(have, want), 0)):
        return ""
    return world.show(sympy.Eq(PythonMod(have, want), 0, evaluate=False))


def _broadcast_goal(a: Sequence[Any], b: Sequence[Any], world: World) -> str:
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if not same_size(x, y) and not same_size(x, 1) and not same_size(y, 1):
            return f"{world.show(x)} = {world.show(y)}"
    return ""


def last_answer(world: World) -> str:
    """The last relation that torch asked for and did not get."""
    sides = lacking(world)
    if sides is None:
        return ""
    return f"{sides[0]} {'==' if any(part.op == '%' for side in sides for part in side.parts()) else '='} {sides[1]}"


def lacking(world: World) -> tuple[Term, Term] | None:
    """The two sides of the last equality that torch asked for and did not get."""
    for asked, answer in reversed(world.env.answers):
        term, unmet = world.term(asked), str(answer) == "False"
        if term.op not in ("==", "!=") or unmet != (term.op == "=="):
            continue
        left, right = term.args
        trivial = [Term.number(1)] if unmet else [Term.number(0), Term.number(1)]
        if right not in trivial or any(part.op == "%" for part in term.parts()):
            return left, right
    return None
