"""Hints: a change to one operand with which the whole program goes through.

Each is tried before it is given: the program runs again on symbolic sizes with the operand changed at that one call, to
its end and with the declared result. What goes through one operation only is no hint.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from shaped.proof.calls import Call
from shaped.proof.goals import MATMUL
from shaped.proof.misplaced import corrections
from shaped.proof.setting import Setting
from shaped.proof.source import Operand, Place
from shaped.proof.symbolic import World
from shaped.proof.trace import Recorder, Replacement, run_forward

_REDUCTIONS = {"mean", "sum", "amax", "amin", "std", "var", "norm", "prod", "logsumexp", "softmax"}
_LONGEST = 96  # characters of a call that is shown whole
_TRIED = 24  # changes


@dataclass(frozen=True)
class Change:
    """Another operand: how it is written, and what it is in a run's own tensors (the operand, and params ++ inputs)."""

    operand: Operand
    text: str
    apply: Callable[[Tensor, Sequence[Tensor]], Tensor]
    whole: str = ""  # instead of the operation with the operand in it


def hint_for(call: Call, operands: Sequence[Operand], world: World, setting: Setting, silent: bool = False) -> str:
    """A change that lets the program go through; nothing if none of those tried does."""
    if call.place is None:
        return ""
    written = {operand.text for operand in operands}
    changes = (c for c in _changes(call, operands, setting) if c.whole or c.text not in written)
    if silent:  # an axis in front would keep the pairs, and only silence the question
        changes = (c for c in changes if not c.text.endswith((".T", ".unsqueeze(0)", ".unsqueeze(1)")))
    for _, change in zip(range(_TRIED), changes, strict=False):
        again = World(world.names, world.plan)
        recorder = Recorder(again, Replacement(call.number, change.operand.index, change.apply))
        try:
            run_forward(setting, again, recorder)
        except Exception:  # as wrong as before, or wrong further on
            continue
        shape = f"{change.text} has shape {recorder.replaced}" if recorder.replaced else ""
        shown = change.whole or _written(call.place, change)
        return f"{shape}; did you mean {shown} ?" if shape and shown != change.text else f"did you mean {shown} ?"
    return ""


def hint_for_view(call: Call, operands: Sequence[Operand], world: World, setting: Setting) -> str:
    """A transpose before or after a view with which the program goes through and no axis takes another's place."""
    text = call.place.text() if call.place is not None else None
    if text is None or "\n" in text or not operands:
        return ""
    for _, (shown, instead) in zip(range(_TRIED), corrections(operands[0], text), strict=False):
        again = World(world.names, world.plan)
        replacement = Replacement(call.number, 0, lambda t, _: t, instead)
        try:
            run_forward(setting, again, Recorder(again, replacement))
        except Exception:
            continue
        return f"a transpose moves them; did you mean {shown} ?"
    return ""


def _changes(call: Call, operands: Sequence[Operand], setting: Setting) -> Iterator[Change]:
    """Likely corrections, the likeliest first: another parameter, a transpose more or less, an axis more or less."""
    named = [operand for operand in operands if operand.text]
    last_first = list(reversed(named))
    for operand in last_first:
        if operand.text.endswith((".T", ".mT")):
            yield Change(operand, operand.text.removesuffix(".mT").removesuffix(".T"), lambda t, _: t.mT)
    if len(operands) > 1 or call.name in ("linear", "embedding"):
        for operand in last_first:
            yield from _other_parameters(operand, setting)
    transposes = [
        Change(operand, f"{operand.simple}.T", lambda t, _: t.mT)
        for operand in last_first
        if operand.tensor.dim() == 2 and len(operands) > 1 and not operand.text.endswith((".T", ".mT"))
    ]
    axes = [*_axes_less(last_first), *_axes_more(last_first)]
    product = call.name in MATMUL or call.name == "linear"
    yield from [*transposes, *axes] if product else [*axes, *transposes]
    for operand in last_first:
        yield from _permutations(operand)
    dtypes = {operand.tensor.dtype for operand in operands}
    for operand in last_first if len(dtypes) > 1 or call.name in ("embedding", "cross_entropy", "nll_loss") else ():
        for dtype, text in ((torch.float32, "float"), (torch.int64, "long"), (torch.float64, "double")):
            if operand.tensor.dtype is not dtype:
                yield Change(operand, f"{operand.simple}.{text}()", partial(_cast, dtype))
    if call.name == "view" and named and call.place is not None and ".view(" in (call.place.text() or ""):
        whole = (call.place.text() or "").replace(".view(", ".reshape(")
        yield Change(named[0], named[0].text, lambda t, _: t.contiguous(), whole)


def _cast(dtype: torch.dtype, tensor: Tensor, _: Sequence[Tensor]) -> Tensor:
    return tensor.to(dtype)


def _other_parameters(operand: Operand, setting: Setting) -> Iterator[Change]:
    entries = setting.signature.entries
    path = next((e.path for e in entries if operand.text.endswith(f".{e.path}") or operand.text == e.path), None)
    if path is None:
        return
    owner = operand.text.removesuffix(path)
    wanted = next(entry.spec for entry in entries if entry.path == path)
    for position, entry in enumerate(entries):
        alike = len(entry.spec.dims) == operand.tensor.dim() and entry.spec.dtypes == wanted.dtypes
        if entry.path != path and alike and "." not in entry.path and (bool(owner) == _is_parameter(setting, position)):
            yield Change(operand, f"{owner}{entry.path}", partial(_taken, position))


def _taken(position: int, _: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    return tensors[position]


def _is_parameter(setting: Setting, position: int) -> bool:
    kinds = [argument.kind for argument in setting.signature.arguments for _ in argument.entries]
    return kinds[position] == "parameters"


def _axes_less(operands: Sequence[Operand]) -> Iterator[Change]:
    most = max((operand.tensor.dim() for operand in operands), default=0)
    for operand in operands:
        if 0 < operand.tensor.dim() == most and operand.tensor.shape[-1] == 1:
            yield Change(operand, f"{operand.simple}.squeeze(-1)", lambda t, _: t.squeeze(-1))


def _axes_more(operands: Sequence[Operand]) -> Iterator[Change]:
    most = max((operand.tensor.dim() for operand in operands), default=0)
    for operand in operands:
        kept = _with_keepdim(operand)
        if kept is not None:
            yield kept
        rank = operand.tensor.dim()
        if 0 < rank < max(most, 2) and len(operands) > 1:
            for axis in (-1, 1, 0):
                yield Change(operand, f"{operand.simple}.unsqueeze({axis})", partial(_unsqueezed, axis))


def _unsqueezed(axis: int, tensor: Tensor, _: Sequence[Tensor]) -> Tensor:
    return tensor.unsqueeze(axis)


def _with_keepdim(operand: Operand) -> Change | None:
    """`x.mean(-1)` as `x.mean(-1, keepdim=True)`, where the operand is written so."""
    node = operand.node
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _REDUCTIONS):
        return None
    arguments = [*node.args, *(k.value for k in node.keywords if k.arg in ("dim", "axis"))]
    axes = [_number(argument) for argument in arguments]
    if not axes or axes[-1] is None or any(k.arg == "keepdim" for k in node.keywords):
        return None
    text = f"{operand.text[:-1]}, keepdim=True)"
    return Change(operand, text, partial(_unsqueezed, axes[-1]))


def _number(node: ast.expr) -> int | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, int) else None


def _permutations(operand: Operand) -> Iterator[Change]:
    rank = operand.tensor.dim()
    if rank < 3:
        return
    for a, b in ((-1, -2), (1, 2), (0, 1)):
        yield Change(operand, f"{operand.simple}.transpose({a}, {b})", partial(_transposed, a, b))
    if rank == 4:
        for order in ((0, 3, 1, 2), (0, 2, 3, 1)):
            yield Change(operand, f"{operand.simple}.permute{order}", partial(_permuted, order))


def _transposed(a: int, b: int, tensor: Tensor, _: Sequence[Tensor]) -> Tensor:
    return tensor.transpose(a, b)


def _permuted(order: Sequence[int], tensor: Tensor, _: Sequence[Tensor]) -> Tensor:
    return tensor.permute(*order)


def _written(place: Place, change: Change) -> str:
    """The operation with the other operand in it, the rest as the user wrote it; the operand alone if that is long."""
    text, node = place.text(), change.operand.node
    if text is None or node is None or "\n" in text or node.end_col_offset is None:
        return change.text
    start, end = node.col_offset - 1, node.end_col_offset - 1  # the tree is that of "(text)"
    if isinstance(node, ast.BinOp) and text[start - 1 : start] == "(" and text[end : end + 1] == ")":
        start, end = start - 1, end + 1  # the operand brings its own parentheses
    whole = text[:start] + change.text + text[end:]
    return whole if len(whole) <= _LONGEST else change.text
