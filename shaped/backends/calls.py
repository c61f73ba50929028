"""Which calls of a generated step become one: its text is read, and what stands in a row in it is one call of a driver.

The compiler writes a step as Python: a line for each buffer, each kernel, each product, each name that ends. What this
file knows of them are buffers of fixed sizes, kernels, products into a buffer, other names for a buffer, and ends of
names. A row of those is a `Segment`, which `driver.py` writes in C++; every other line stays as it is, between them.
Buffers that only one segment uses are its own. What a line of Python reads, returns or made stays a tensor, made anew
in each step, so that nothing that leaves a step is ever written by the next.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
DRIVEN = "driven"  # the function that takes a step


@dataclass(frozen=True)
class View:
    """A tensor in a buffer: from which byte on, and how. The dtype is None where the text does not say."""

    buffer: str
    at: int = 0
    dtype: torch.dtype | None = None
    sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Launch:
    """A kernel by its name, or a product by torch's, and what it is given; a product's result comes first."""

    name: str
    views: tuple[View, ...]
    numbers: tuple[float, ...] = ()


@dataclass
class Segment:
    """Calls in a row.

    Attributes:
        calls: In order.
        given: The Python names of tensors that it is called with.
        tensors: By buffer: at which place it is given, and from which byte of it on.
        own: Bytes of each buffer that is its own.
    """

    calls: list[Launch] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    tensors: dict[str, tuple[int, int]] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)


@dataclass
class _Line:
    """A line of the text: it makes a buffer, names one, ends a name, calls; or is something else, which binds names."""

    node: ast.stmt
    kind: str
    name: str = ""
    view: View | None = None
    call: Launch | None = None
    reads: tuple[str, ...] = ()  # buffers
    binds: tuple[str, ...] = ()


class _Unread(Exception):
    """The text is not of the form that is known."""


def read(
    text: str, kernels: Mapping[str, Sequence[str]], arguments: Sequence[Any], products: Sequence[str]
) -> tuple[str, list[Segment]] | None:
    """The segments of a step and the function `driven` that calls them; None where it has none.

    Args:
        text: The generated module; `call` in it takes a list and empties it.
        kernels: What each takes, as C++ types.
        arguments: Tensors as the list has them.
        products: Those of `PRODUCTS` that a driver may call.
    """
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name == "call"
    ]
    if len(functions) != 1 or any(isinstance(n, ast.Name) and n.id == "self" for n in ast.walk(functions[0])):
        return None
    reader = _TextReader(kernels, arguments, products)
    try:
        lines = [line for node in functions[0].body for line in reader.lines(node)]
    except _Unread:
        return None
    return _driven(lines)


class _TextReader:
    """Reads lines in order, and knows what each name stands for."""

    def __init__(self, kernels: Mapping[str, Sequence[str]], arguments: Sequence[Any], products: Sequence[str]) -> None:
        self._kernels, self._arguments, self._products = kernels, arguments, products
        self._names: dict[str, View] = {}

    def lines(self, node: ast.stmt) -> Iterator[_Line]:
        if isinstance(node, ast.Delete) and all(isinstance(target, ast.Name) for target in node.targets):
            for target in node.targets:
                assert isinstance(target, ast.Name)
                ended = self._names.get(target.id, View(target.id))
                yield _Line(ast.Delete([target]), "ends", target.id, ended)
            return
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
            if isinstance(target, ast.Name):
                kind, view = self._value(node.value, target.id)
                if view is not None:
                    self._name(target.id, view)
                    yield _Line(node, kind, target.id, view)
                    return
            elif isinstance(target, ast.Tuple | ast.List) and ast.unparse(node.value) == "args":
                yield self._unpacked(node, target)
                return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and (call := self._call(node.value)):
            yield _Line(node, "calls", call=call)
            return
        yield self._other(node)

    def _other(self, node: ast.stmt) -> _Line:
        named = [one for one in ast.walk(node) if isinstance(one, ast.Name)]
        reads = tuple(self._names[one.id].buffer for one in named if one.id in self._names)
        for one in named:
            if isinstance(one.ctx, ast.Store):
                self._name(one.id, View(one.id))
        return _Line(node, "other", reads=reads, binds=tuple(o.id for o in named if isinstance(o.ctx, ast.Store)))

    def _unpacked(self, node: ast.Assign, target: ast.Tuple | ast.List) -> _Line:
        """The arguments by name."""
        if len(target.elts) != len(self._arguments):
            raise _Unread
        names = [one.id for one in target.elts if isinstance(one, ast.Name)]
        if len(names) != len(self._arguments):
            raise _Unread
        for name, like in zip(names, self._arguments, strict=True):
            known = isinstance(like, Tensor) and like.device.type == "cpu"
            known = known and all(type(n) is int for n in (*like.shape, *like.stride()))
            shape = (like.dtype, tuple(like.shape), tuple(like.stride())) if known else ()
            self._name(name, View(name, 0, *shape))
        return _Line(node, "other", binds=tuple(names))

    def _name(self, name: str, view: View) -> None:
        if name in self._names:
            raise _Unread
        self._names[name] = view

    def _value(self, node: ast.expr, name: str) -> tuple[str, View | None]:
        """What an assignment makes or names."""
        if isinstance(node, ast.Name):
            return "names", self._names.get(node.id)
        if not isinstance(node, ast.Call) or node.keywords:
            return "", None
        if ast.unparse(node.func) == "empty_strided_cpu" and len(node.args) == 3:
            sizes, strides = map(_numbers, node.args[:2])
            dtype = getattr(torch, ast.unparse(node.args[2]).removeprefix("torch."), None)
            if sizes is None or strides is None or not isinstance(dtype, torch.dtype):
                return "", None
            return "makes", View(name, 0, dtype, sizes, strides)
        view = self._view(node)
        return "names", view if view is None or view.buffer in self._buffers() else None

    def _buffers(self) -> set[str]:
        return {view.buffer for view in self._names.values()}

    def _view(self, node: ast.expr) -> View | None:
        """A tensor that is given to a call; a name that the function does not make is one of the module's."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id, View(node.id))
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "reinterpret_tensor" or len(node.args) != 4:
            return None
        base, sizes, strides = self._view(node.args[0]), _numbers(node.args[1]), _numbers(node.args[2])
        skipped = _numbers(ast.Tuple([node.args[3]]))
        if base is None or sizes is None or strides is None or skipped is None or node.keywords:
            return None
        if base.dtype is None:
            return None if skipped[0] else View(base.buffer, base.at, None, sizes, strides)
        return View(base.buffer, base.at + skipped[0] * base.dtype.itemsize, base.dtype, sizes, strides)

    def _call(self, node: ast.Call) -> Launch | None:
        views = [self._view(one) for one in node.args]
        given = [view for view in views if view is not None]
        if len(given) != len(views):
            return None
        if isinstance(node.func, ast.Name):
            takes = self._kernels.get(node.func.id, ())
            fits = len(takes) == len(given) and all(taken.endswith("*") for taken in takes) and not node.keywords
            return Launch(node.func.id, tuple(given)) if fits and takes else None
        root, _, name = ast.unparse(node.func).partition(".")
        if root != "extern_kernels" or name not in self._products:
            return None
        named = {str(one.arg): one.value for one in node.keywords}
        out = self._view(named.pop("out", ast.Constant(None)))
        numbers = [_number(named.pop(key, ast.Constant(1))) for key in ("beta", "alpha")] if "add" in name else []
        whole = None if out is None else (out, *given)
        if whole is None or named or len(whole) != (4 if numbers else 3) or any(number is None for number in numbers):
            return None
        plain = all(v.dtype is whole[0].dtype and v.sizes for v in whole) and whole[0].dtype in FLOATING
        return Launch(name, whole, tuple(float(n) for n in numbers if n is not None)) if plain else None


FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _numbers(node: ast.expr) -> tuple[int, ...] | None:
    if not isinstance(node, ast.Tuple) or not all(
        isinstance(one, ast.Constant) and type(one.value) is int for one in node.elts
    ):
        return None
    return tuple(ast.literal_eval(node)) if node.elts else ()


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if type(value) in (int, float) else None


# A thread that torch has not met takes as many for a product as there are cores, until something asks how many it may:
# then as many as `torch.set_num_threads` said. Of another number the sums are in another order.
_THREADS = "torch.get_num_threads()"


# -- segments ----------------------------------------------------------------------------------------------------------


def _driven(lines: Sequence[_Line]) -> tuple[str, list[Segment]] | None:
    rows = _rows(lines)
    if not any(isinstance(row, list) for row in rows):
        return None
    visible = _visible(rows)
    live: dict[str, View] = {}
    body: list[ast.stmt] = [*ast.parse(_THREADS).body]
    segments: list[Segment] = []
    for row in rows:
        if isinstance(row, _Line):
            body.append(row.node)
            live.update({name: View(name) for name in row.binds})
            if row.view is not None:
                live.pop(row.name, None)
                live.update({} if row.kind == "ends" else {row.name: row.view})
            continue
        segment, before, after = _segment(row, visible, live)
        names: list[ast.expr] = [ast.Name(name, ast.Load()) for name in segment.given]
        called = ast.Call(ast.Name(f"drive{len(segments)}", ast.Load()), names, [])
        body += [*before, ast.Expr(called), *after]
        segments.append(segment)
    arguments = ast.arguments([], [ast.arg("args")], None, [], [], None, [])
    function = ast.FunctionDef(DRIVEN, arguments, body, [])
    return ast.unparse(ast.fix_missing_locations(ast.Module([function], []))), segments


def _rows(lines: Sequence[_Line]) -> list[_Line | list[_Line]]:
    """Lines that stay, and rows of those that become a segment: of two calls at least."""
    rows: list[_Line | list[_Line]] = []
    row: list[_Line] = []
    for line in (*lines, None):
        if line is not None and line.kind != "other":
            row.append(line)
            continue
        worth = sum(one.kind == "calls" for one in row) > 1
        rows += [row] if worth else row
        rows += [] if line is None else [line]
        row = []
    return rows


def _visible(rows: Sequence[_Line | list[_Line]]) -> set[str]:
    """Buffers that Python must know as tensors."""
    visible: set[str] = set()
    used: dict[str, int] = {}
    for row in rows:
        if isinstance(row, _Line):
            views = (row.view, *(() if row.call is None else row.call.views))
            visible.update(row.reads, row.binds, (view.buffer for view in views if view is not None))
    made = {line.name for row in rows if isinstance(row, list) for line in row if line.kind == "makes"} - visible
    for number, row in enumerate(rows):
        if isinstance(row, list):
            for view in (view for line in row if line.call is not None for view in line.call.views):
                if view.buffer not in made or used.setdefault(view.buffer, number) != number:
                    visible.add(view.buffer)
    return visible


def _segment(
    row: Sequence[_Line], visible: set[str], live: dict[str, View]
) -> tuple[Segment, list[ast.stmt], list[ast.stmt]]:
    """A segment, the lines that must run before it, and those after it; `live` are the names that Python has."""
    segment, before, after = Segment(), [], []
    there = dict(live)
    used = {view.buffer for line in row if line.call is not None for view in line.call.views}
    for line in row:
        if line.view is None:
            continue
        if line.view.buffer not in visible:
            if line.kind == "makes":
                segment.own[line.name] = _bytes(line.view)
        elif line.kind == "makes":
            before.append(line.node)
            there[line.name] = live[line.name] = line.view
        elif line.kind == "names":
            after.append(line.node)
            live[line.name] = line.view
        else:  # at once, where it can be: its memory may be needed
            (before if line.view.buffer not in used and not after else after).append(line.node)
            live.pop(line.name, None)
    first = {view.buffer: (name, view.at) for name, view in reversed(there.items())}
    segment.calls = [line.call for line in row if line.call is not None]
    for buffer in dict.fromkeys(view.buffer for call in segment.calls for view in call.views):
        if buffer in visible:
            name, at = first.get(buffer, (buffer, 0))  # or one of the module's
            segment.tensors[buffer] = len(segment.given), at
            segment.given.append(name)
    return segment, before, after


def _bytes(view: View) -> int:
    assert view.dtype is not None
    reach = sum((size - 1) * stride for size, stride in zip(view.sizes, view.strides, strict=True))
    return 0 if 0 in view.sizes else (1 + reach) * view.dtype.itemsize
