"""What a program demands of its data: `assert ids.max() < n`, `if loss.isnan(): raise ...`.

One side of such a question only raises, so the program is proved for the other. The demand becomes an assertion of the
graph, which a step checks as it checks indices, and the statement names it.
"""

import ast
import builtins
import dis
import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._sympy.symbol import SymT, symbol_is_type

from shaped.proof.setting import Setting
from shaped.proof.source import Place, is_own, is_users, place_of_caller, place_of_traceback
from shaped.proof.ways import way_under_way

Span = tuple[int, int, int, int]  # first line and column, last line and column
_SIMPLE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass, ast.Import, ast.ImportFrom)
_ASKING = ("POP_JUMP", "JUMP_IF", "TO_BOOL", "UNARY_NOT")  # instructions that ask for a truth value
_EACH = {"bool": (True, False), "all": (True,), "any": (False,)}  # what asks each of its entries the same


@dataclass(frozen=True)
class Demand:
    """A statement that raises unless data are as it says."""

    file: str
    first: int  # of its lines
    last: int
    text: str

    def __str__(self) -> str:
        return f"{self.file.rpartition('/')[2]}:{self.first}"


_met: ContextVar[dict[Demand, None] | None] = ContextVar("met", default=None)


@contextmanager
def demanding() -> Iterator[dict[Demand, None]]:
    """Gather the demands of one proof."""
    known = _met.get()
    if known is not None:
        yield known
        return
    found: dict[Demand, None] = {}
    token = _met.set(found)
    try:
        yield found
    finally:
        _met.reset(token)


def is_demand(error: Exception) -> bool:
    """Whether it is the program's own exception at a line that demands something of data."""
    place, found = place_of_traceback(error.__traceback__), _met.get()
    if not found or place is None or not is_own(error):
        return False
    return any(one.file == place.file and one.first <= place.line <= one.last for one in found)


def as_bool(x: Tensor) -> bool:
    """`bool(x)`: where only one answer lets the program go on, that one, and an assertion."""
    known = not isinstance(x, FakeTensor) or x.constant is not None or x.numel() != 1
    place = place_of_caller() if not known and way_under_way() is None else None
    wanted = _wanted(place) if place is not None else None
    if wanted is None:
        return Tensor.__bool__(x)
    right = x.detach().reshape(()) != 0
    return _asserted(right if wanted else ~right, place, wanted)


def as_item(x: Tensor) -> Any:
    """`x.item()`, remembered with the number that stands for it."""
    number: Any = x.item()
    if isinstance(number, SymInt | torch.SymFloat) and isinstance(x, FakeTensor):
        env: Any = x.fake_mode.shape_env
        env.taken[number.node.expr] = x.detach().reshape(())
    return number


def demanded(fact: sympy.Basic, env: Any) -> bool | None:
    """The answer to a question about numbers that were read from data, `ids.max().item() < n`; None if it is open."""
    place = place_of_caller()
    wanted = _wanted(place) if place is not None else None
    told = {symbol for symbol in fact.free_symbols if symbol_is_type(symbol, SymT.UNBACKED_INT)}
    if wanted is None or not told <= set(env.taken) or not isinstance(fact, sympy.core.relational.Relational):
        return None
    symbols = sorted(fact.free_symbols, key=str)
    values = [env.taken[s] if s in told else env.create_symintnode(s, hint=int(env.size_hint(s))) for s in symbols]
    right = sympy.lambdify(symbols, fact, modules=[{"FloorDiv": lambda a, b: a // b}, "math"])(*values)
    return _asserted(right if wanted else ~right, place, wanted)


def validates(frame: FrameType | None) -> bool:
    """Whether a distribution of torch's asks whether its arguments are valid, of which one side only raises."""
    while frame is not None and not is_users(frame):
        if str(frame.f_globals.get("__name__", "")).startswith("torch.distributions."):
            return frame.f_code.co_name in ("__init__", "_validate_sample")
        frame = frame.f_back
    return False


def _asserted(right: Tensor, place: Place | None, wanted: bool) -> bool:
    statement = _statement(place) if place is not None else None
    assert statement is not None
    assert place is not None
    demand = Demand(place.file, statement.lineno, statement.end_lineno or statement.lineno,
                    linecache.getline(place.file, statement.lineno).strip())  # fmt: skip
    found = _met.get()
    if found is not None:
        found[demand] = None
    torch._assert_async(right, f"the program refuses these values: {demand.text}   ({demand})")  # type: ignore[call-overload]
    return wanted


def _wanted(place: Place) -> bool | None:
    """What the question that is asked at an instruction has to be, so that the program goes on."""
    statement, span = _statement(place), _span(place)
    if statement is None or span is None or _is_caught(statement, place.frame):
        return None
    if isinstance(statement, ast.Assert):
        value = True
    elif _raises(statement.body):
        value = False
    elif _raises(statement.orelse):
        value = True
    else:
        return None
    return _of(statement.test, span, value, place)


def _of(test: ast.expr, span: Span, value: bool, place: Place) -> bool | None:
    """The same of the part of a test that is asked: in `a and not b`, which is to be so, b is not to be."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _of(test.operand, span, not value, place)
    if isinstance(test, ast.BoolOp):
        each = isinstance(test.op, ast.And) == value  # or else one of them is enough, and those before were not
        asked = next((part for part in test.values if _covers(_node_span(part), span)), None)
        return _of(asked, span, value, place) if asked is not None and (each or asked is test.values[-1]) else None
    if not _covers(_node_span(test), span):
        return None
    if _name(place, place.instruction).startswith(_ASKING):
        return value if value or not isinstance(test, ast.Compare) or len(test.ops) == 1 else None
    called = test.func.id if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) else ""
    return value if value in _EACH.get(called, ()) and _node_span(test) == span else None


def _raises(body: list[ast.stmt]) -> bool:
    """Whether statements do nothing but end in a `raise`."""
    return bool(body) and isinstance(body[-1], ast.Raise) and all(isinstance(one, _SIMPLE) for one in body[:-1])


def _is_caught(statement: ast.Assert | ast.If, frame: FrameType | None) -> bool:
    """Whether the program itself goes on after what a statement raises, so that it demands nothing."""
    raised = "AssertionError" if isinstance(statement, ast.Assert) else ""
    if isinstance(statement, ast.If):
        last = [body[-1] for body in (statement.body, statement.orelse) if _raises(body)]
        cause = last[0].exc if last and isinstance(last[0], ast.Raise) else None
        cause = cause.func if isinstance(cause, ast.Call) else cause
        raised = cause.id if isinstance(cause, ast.Name) else ""
    while frame is not None and frame.f_globals.get("__name__") != Setting.__module__:  # which calls the program
        if is_users(frame):
            text = "".join(linecache.getlines(frame.f_code.co_filename))
            for first, last_line, caught in _guarded(text):
                if first <= frame.f_lineno <= last_line and any(_catches(name, raised) for name in caught):
                    return True
        frame = frame.f_back
    return False


@lru_cache(maxsize=32)
def _guarded(text: str) -> tuple[tuple[int, int, tuple[str, ...]], ...]:
    """First and last line of what stands under `try` or `suppress`, and which exceptions do not leave it."""
    try:
        nodes = [*ast.walk(ast.parse(text))]
    except (SyntaxError, ValueError):
        return ()
    found: list[tuple[ast.Try | ast.With, list[ast.expr | None]]] = [
        (node, [handler.type for handler in node.handlers if not _raises(handler.body)])
        for node in nodes
        if isinstance(node, ast.Try)
    ]
    for node in nodes:
        calls = [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
        names = [
            part
            for c in calls
            if isinstance(c, ast.Call) and ast.unparse(c.func).endswith("suppress")
            for part in c.args
        ]
        found += [(node, [*names])] if isinstance(node, ast.With) else []
    each = [
        (node, [part for t in types for part in (t.elts if isinstance(t, ast.Tuple) else [t])]) for node, types in found
    ]
    return tuple(
        (node.body[0].lineno, node.body[-1].end_lineno or 0, tuple("" if t is None else ast.unparse(t) for t in types))
        for node, types in each
        if types
    )


def _catches(name: str, raised: str) -> bool:
    """Whether a handler for `name`, of all where it is empty, takes an exception; of what is not known it does."""
    handler, kind = getattr(builtins, name, None), getattr(builtins, raised, None)
    if not isinstance(handler, type) or not isinstance(kind, type):
        return name in ("", raised) or not raised or name in ("Exception", "BaseException")
    return issubclass(kind, handler)


def _statement(place: Place) -> ast.Assert | ast.If | None:
    """The `assert` or `if` whose test an instruction is a part of."""
    span = _span(place)
    tests = _tests("".join(linecache.getlines(place.file))) if span is not None else ()
    return next((one for one in tests if span is not None and _covers(_node_span(one.test), span)), None)


@lru_cache(maxsize=32)
def _tests(text: str) -> tuple[ast.Assert | ast.If, ...]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.Assert | ast.If))


def _name(place: Place, instruction: int) -> str:
    return dis.opname[place.frame.f_code.co_code[instruction]]


def _span(place: Place) -> Span | None:
    """Where the expression stands that is asked; a jump has the place of the whole test, so what is before it."""
    at = place.instruction
    if _name(place, at).startswith(_ASKING):
        at -= 2
        while at > 0 and _name(place, at) == "CACHE":
            at -= 2
    positions = enumerate(place.frame.f_code.co_positions())
    first, last, start, end = next((p for i, p in positions if i == at // 2), (None,) * 4)
    return None if first is None or last is None or start is None or end is None else (first, start, last, end)


def _node_span(node: ast.expr) -> Span:
    return node.lineno, node.col_offset, node.end_lineno or node.lineno, node.end_col_offset or 0


def _covers(outer: Span, inner: Span) -> bool:
    return outer[:2] <= inner[:2] and inner[2:] <= outer[2:]
