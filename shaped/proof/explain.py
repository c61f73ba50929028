"""From an exception in a trace to an unsolved goal: which operation, over which operands, lacking which equality.

A hint is only given if it was tried: the changed operation was run on the same symbolic operands and went through.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import sympy
from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from shaped.errors import Goal, ProofError, Source, Unprovable
from shaped.proof.setting import Setting
from shaped.proof.source import Place, assignment_line, is_users, operand_expressions, place_of_traceback, tensors_in
from shaped.proof.symbolic import World, tracing
from shaped.proof.trace import Call, Mismatch, Recorder, ResultMismatch, expression, same_size, shape_text

_MATMUL = ("matmul", "mm", "bmm", "mv")
_SYMBOLS = {"matmul": "@", "add": "+", "sub": "-", "mul": "*", "div": "/"}


def explain(error: Exception, setting: Setting, world: World, recorder: Recorder) -> Exception:
    """What to raise instead of `error`: ours where it is about shapes, itself where it is the user's own."""
    if isinstance(error, ProofError | Unprovable):
        return error
    name = setting.signature.name
    tensors = recorder.tensors
    place = place_of_traceback(error.__traceback__)
    source = place.source() if place else None
    if isinstance(error, GuardOnDataDependentSymNode | DataDependentOutputException):
        return Unprovable(
            f"`{name}` depends on data here: a branch, or a number read with .item(), is not known from shapes.",
            source,
            Goal(hint="torch.where chooses without asking; keep the value in a tensor"),
        )
    if isinstance(error, DynamicOutputShapeException):
        return Unprovable(
            f"`{name}` makes a tensor here whose shape depends on data.",
            source,
            Goal(hint="use a mask and torch.where"),
        )
    if isinstance(error, ResultMismatch):
        return _explain_result(error, name, recorder)
    call = recorder.call
    if isinstance(error, Mismatch) and not error.goal:
        hint = "use an operation that makes a new tensor; for running statistics, put the module in eval()"
        return Unprovable(f"`{name}` cannot be one proved step: {error}.", source, Goal(hint=hint))
    if recorder.returned:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Unprovable(f"the gradient of `{name}` could not be traced.", source, Goal(said=_named(said, world)))
    if (
        call is None
        or place is None
        or call.place is None
        or place.frame is not call.place.frame
        or not _from_torch(error)
    ):
        return error.with_traceback(_user_part(error))
    return ProofError(f"`{name}` is not well-shaped.", call.place.source(), _goal(error, call, world, setting, tensors))


def _explain_result(error: ResultMismatch, name: str, recorder: Recorder) -> ProofError:
    place = recorder.call.place if recorder.call else None
    line = place.source() if place else None
    source = Source(line.file, line.line, line.text) if line else None
    title = f"`{name}` does not return what it declares."
    goal = Goal("result", f"{error.actual}, declared {error.declared}", error.goal, hint=error.hint)
    return ProofError(title, source, goal)


def _from_torch(error: Exception) -> bool:
    """Raised below the user's frames, by torch, rather than by the user's own `raise`."""
    traceback, last = error.__traceback__, None
    while traceback is not None:
        last, traceback = traceback, traceback.tb_next
    place = place_of_traceback(error.__traceback__)
    return isinstance(error, Mismatch) or (last is not None and place is not None and last.tb_frame is not place.frame)


def _user_part(error: Exception) -> Any:
    """The traceback from the user's first frame on."""
    traceback, ours = error.__traceback__, True
    while traceback is not None:
        users = is_users(traceback.tb_frame)
        if users and not ours:
            return traceback
        ours = ours and users  # the caller's own frames above `prove` come first
        traceback = traceback.tb_next
    return error.__traceback__


def _goal(error: Exception, call: Call, world: World, setting: Setting, tensors: Sequence[Tensor]) -> Goal:
    operands = call.operands
    assert call.place is not None
    texts = operand_expressions(call.place, len(operands))
    shapes = [shape_text(operand, world) for operand in operands]
    labelled = [f"{t} : {s}" for t, s in zip(texts, shapes, strict=True)] if len(texts) == len(shapes) else shapes
    symbol = f"   {_SYMBOLS[call.name]}   " if call.name in _SYMBOLS and len(operands) == 2 else ", "
    equation = _named(error.goal, world) if isinstance(error, Mismatch) else _equation(call, operands, world)
    said = "" if equation else _named(str(error).strip().splitlines()[0], world)
    if isinstance(error, Mismatch):
        said = _named(str(error), world)
    changeable = not isinstance(error, Mismatch) or "broadcast" in str(error)
    return Goal(
        operation=call.name,
        operands=symbol.join(labelled),
        equation=equation or _last_answer(world),
        said=said,
        context=tuple(_context(texts, call.place, world, setting, tensors)),
        hint=_hint(call, operands, texts, world, setting, tensors) if changeable else "",
    )


def _equation(call: Call, operands: Sequence[Tensor], world: World) -> str:
    """What is missing, for the operations whose rule is known; empty for the others."""
    if call.name in ("view", "reshape", "unflatten") and len(operands) == 1:
        return _view_goal(call, operands[0], world)
    if len(operands) < 2:
        return ""
    a, b = operands[0], operands[1]
    if call.name in _MATMUL or call.name == "linear":
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
    if call.name in _SYMBOLS or call.name in ("where", "maximum", "minimum", "pow", "eq", "lt", "gt", "le", "ge"):
        return _broadcast_goal(a.shape, b.shape, world)
    return ""


def _view_goal(call: Call, operand: Tensor, world: World) -> str:
    """`batch*hidden = 7*pixels`, or with one -1 `batch*hidden % 7 == 0`."""
    sizes = pytree.tree_leaves(call.args[1:])
    if not sizes or not all(isinstance(size, int | SymInt) for size in sizes):
        return ""
    known = [expression(size) for size in sizes if not same_size(size, -1)]
    have, want = sympy.prod(map(expression, operand.shape)), sympy.prod(known)
    if len(known) == len(sizes):
        return f"{world.show(have)} = {world.show(want)}"
    return f"{world.show(have)} % {world.show(want)} == 0" if want != 0 else ""


def _broadcast_goal(a: Sequence[Any], b: Sequence[Any], world: World) -> str:
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if not same_size(x, y) and not same_size(x, 1) and not same_size(y, 1):
            return f"{world.show(x)} = {world.show(y)}"
    return ""


def _last_answer(world: World) -> str:
    """The last equality that torch asked for and did not get."""
    for asked, answer in reversed(world.env.answers):
        text = world.show(asked)
        if text.count("==") == 1 and answer is not True and str(answer) == "False" and not text.endswith("== 1"):
            return text.replace("==", "=").replace(" % ", " mod ") if " % " not in text else text
        if text.count("!=") == 1 and str(answer) == "True" and not text.endswith(("!= 1", "!= 0")):
            return text.replace("!=", "=")
        if " % " in text and text.count("!=") == 1 and str(answer) == "True":
            return text.replace("!=", "==")
    return ""


def _context(
    texts: Sequence[str], place: Place, world: World, setting: Setting, tensors: Sequence[Tensor]
) -> Iterator[tuple[str, str, str]]:
    entries = {id(t): (i, entry) for i, (t, entry) in enumerate(zip(tensors, setting.signature.entries, strict=True))}
    seen: set[int] = set()
    found: list[tuple[int, tuple[str, str, str]]] = []
    for text, tensor in tensors_in(list(texts), place.frame):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if id(tensor) in entries:
            position, entry = entries[id(tensor)]
            where = f"declared at {Source(*entry.origin)}" if entry.origin else ""
            found.append((position, (entry.path, shape_text(tensor, world), where)))
        else:
            line = assignment_line(place.frame, text, place.line + 1) if text.isidentifier() else None
            found.append(
                (len(entries), (text, shape_text(tensor, world), f"from {Source(place.file, line)}" if line else ""))
            )
    yield from (row for _, row in sorted(found, key=lambda pair: pair[0]))


def _hint(
    call: Call,
    operands: Sequence[Tensor],
    texts: Sequence[str],
    world: World,
    setting: Setting,
    tensors: Sequence[Tensor],
) -> str:
    """A change to one operand that makes the operation go through, tried on the symbolic operands."""
    if len(texts) != len(operands) or len(operands) < 2:
        return ""
    for index, text, changed in _changes(call, operands, texts, setting, tensors):
        outcome = _try(call, operands[index], changed, world)
        if outcome is None:
            continue
        new = [text if i == index else old for i, old in enumerate(texts)]
        symbol = _SYMBOLS.get(call.name)
        shown = f" {symbol} ".join(new) if symbol and len(new) == 2 else f"{call.name}({', '.join(new)})"
        return f"{text} has shape {shape_text(changed, world)}; did you mean {shown} ?"
    return ""


def _changes(
    call: Call, operands: Sequence[Tensor], texts: Sequence[str], setting: Setting, tensors: Sequence[Tensor]
) -> Iterator[tuple[int, str, Tensor]]:
    """Likely corrections: a transpose more or less, a missing axis, another parameter in its place."""
    for index in reversed(range(min(2, len(operands)))):
        operand, text = operands[index], texts[index]
        simple = text if text.replace(".", "").replace("_", "").isalnum() else f"({text})"
        if operand.dim() == 2:
            bare = text.removesuffix(".T").removesuffix(".mT")
            with tracing():
                yield index, bare if bare != text else f"{simple}.T", operand.mT
        other = operands[1 - index]
        if call.name not in _MATMUL and operand.dim() == other.dim() - 1 and operand.dim() > 0:
            with tracing():
                yield index, f"{simple}.unsqueeze(-1)", operand.unsqueeze(-1)
    for index in reversed(range(min(2, len(operands)))):
        path = next(
            (e.path for e, t in zip(setting.signature.entries, tensors, strict=True) if t is operands[index]), None
        )
        owner = texts[index].removesuffix(path) if path and texts[index].endswith(path) else None
        if not owner:
            continue
        for entry, tensor in zip(setting.signature.entries, tensors, strict=True):
            if entry.path != path and tensor.dim() == operands[index].dim() and "." not in entry.path:
                yield index, f"{owner}{entry.path}", tensor


def _try(call: Call, old: Tensor, new: Tensor, world: World) -> Any:
    def swap(leaf: Any) -> Any:
        return new if leaf is old else leaf

    args, kwargs = pytree.tree_map(swap, (call.args, call.kwargs))
    try:
        with tracing(), world.mode:
            return call.function(*args, **kwargs)
    except Exception:
        return None


def _named(message: str, world: World) -> str:
    """torch's words with its symbols in the user's names."""
    for symbol, name in sorted(world.symbols.items(), key=lambda pair: -len(str(pair[0]))):
        message = message.replace(str(symbol), name)
    return message
