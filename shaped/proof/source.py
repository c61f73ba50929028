"""Where in the user's program something happened: frames to lines, carets, and the expressions of operands."""

import ast
import inspect
import linecache
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from shaped.errors import Source

_HOME = Path(__file__).resolve().parents[1]
# A room whose functions are written as a user would write them: errors in them are shown at their own lines.
_USER_ROOMS = tuple(str(_HOME / room) for room in ("recipes",))
_STDLIB = sysconfig.get_paths()["stdlib"]
_LIBRARIES = ("torch", "functorch", "torchgen", "jaxtyping", "beartype", "einops", "sympy", "triton", "numpy")


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs the user's code: not torch's, the standard library's, a typing library's, or ours."""
    name = frame.f_code.co_filename
    if name.startswith("<frozen "):  # the standard library's
        return False
    if name.startswith("<"):  # a prompt, `python -c`, or code that a library generated
        return str(frame.f_globals.get("__name__", "torch")).split(".")[0] not in (*_LIBRARIES, "shaped", "builtins")
    if name.startswith(str(_HOME)):
        return name.startswith(_USER_ROOMS)
    if "site-packages" in name:
        package = name.split("site-packages", 1)[1].lstrip("/\\").replace("\\", "/").split("/")[0]
        return package not in _LIBRARIES
    return not name.startswith((_STDLIB, str(Path(torch.__file__).parent)))


def is_own(error: Exception) -> bool:
    """Whether the program itself raised it, rather than something that it called."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        if traceback.tb_next.tb_frame.f_code.co_name == "__getattr__" and traceback.tb_next.tb_next is None:
            break  # of torch's modules: an attribute that the program's own class lacks
        traceback = traceback.tb_next
    return traceback is not None and is_users(traceback.tb_frame)


@dataclass(frozen=True)
class Place:
    """An instruction of the user's program, with the frame it ran in."""

    frame: FrameType
    instruction: int
    line: int

    @property
    def file(self) -> str:
        return self.frame.f_code.co_filename

    def positions(self) -> tuple[int, int, int, int] | None:
        """First line, last line, first column, last column (in characters) of the expression."""
        found = next(
            (p for i, p in enumerate(self.frame.f_code.co_positions()) if i == self.instruction // 2), (None,) * 4
        )
        if any(part is None for part in found):
            return None
        first, last, start, end = (int(part) for part in found if part is not None)
        return first, last, _characters(self.file, first, start), _characters(self.file, last, end)

    def expression(self) -> ast.expr | None:
        """The expression as a tree whose positions are those of `text()`."""
        text = self.text()
        if text is None:
            return None
        try:
            return ast.parse(f"({text})", mode="eval").body
        except SyntaxError:
            return None

    def text(self) -> str | None:
        """The source of the expression."""
        where = self.positions()
        if where is None:
            return None
        first, last, start, end = where
        lines = [linecache.getline(self.file, n).rstrip("\n") for n in range(first, last + 1)]
        if first == last:
            return lines[0][start:end]
        return "\n".join([lines[0][start:], *lines[1:-1], lines[-1][:end]])

    def source(self) -> Source:
        """The line with marks under the expression, as Python's own tracebacks draw them."""
        where = self.positions()
        raw = linecache.getline(self.file, where[0] if where else self.line).rstrip("\n")
        if where is None:
            return Source(self.file, self.line, raw.strip())
        first, last, start, end = where
        indent = len(raw) - len(raw.lstrip())
        end = end if first == last else len(raw)
        marks = [" "] * (start - indent) + ["~"] * (end - start)
        expression = self.expression()
        if first == last and isinstance(expression, ast.BinOp):
            left_end = _end(expression.left) - 1  # without the parenthesis that `expression` adds
            operator = raw[start:end].find(_symbol(expression), left_end)
            for i in range(operator, operator + len(_symbol(expression))):
                marks[start - indent + i] = "^"
        return Source(self.file, first, raw.strip(), "".join(marks).rstrip())


def place_of_traceback(traceback: TracebackType | None) -> Place | None:
    """The deepest user frame of an exception."""
    found = None
    while traceback is not None:
        if is_users(traceback.tb_frame):
            found = Place(traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def place_of_caller() -> Place | None:
    """The innermost user frame of the running stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_users(frame):
            return Place(frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return None


@dataclass(frozen=True)
class Operand:
    """A tensor that an operation was called on, and how it is written there."""

    index: int  # among the tensors of the call
    tensor: Tensor
    node: ast.expr | None = None  # its positions are those in "(text)", the text being the operation's
    text: str = ""  # empty where it cannot be told

    @property
    def simple(self) -> str:
        """The text as something that `.T` can be written after."""
        plain = isinstance(self.node, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
        return self.text if plain else f"({self.text})"


def operands_of(place: Place | None, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Operand]:
    """The tensors of a call, each with its expression where the source tells it."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    known: dict[int, tuple[ast.expr, str]] = {}
    text = place.text() if place is not None else None
    if place is not None and text is not None:
        itself = _calls(place, name)
        for node, value in _pairs(place, name, args, kwargs):
            there = _look_up(node, place.frame)
            computed = there is None and itself and not isinstance(node, ast.Constant | ast.Name)
            if isinstance(value, Tensor) and (there is value or computed):
                known[id(value)] = (node, ast.get_source_segment(f"({text})", node) or "")
    return [Operand(i, tensor, *known.get(id(tensor), (None, ""))) for i, tensor in enumerate(tensors)]


def _calls(place: Place, name: str) -> bool:
    """Whether the source calls the operation itself, or a module that hands it its arguments; not what calls others."""
    expression = place.expression()
    if not isinstance(expression, ast.Call):
        return True
    function, called = expression.func, _look_up(expression.func, place.frame)
    if isinstance(called, torch.nn.Module):
        return not any(called.children())
    written = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name.strip("_") in (written.strip("_"), getattr(called, "__name__", ""))


def _pairs(place: Place, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[ast.expr, Any]]:
    """Expressions of the source beside the values that the operation got for them."""
    match place.expression():
        case ast.BinOp(left=left, right=right):
            reflected = name.startswith(("__r", "r")) and name.removeprefix("__").removesuffix("__") in _REFLECTED
            yield from zip((right, left) if reflected else (left, right), args, strict=False)
        case ast.Compare(left=left, comparators=[right]):
            yield from zip((left, right), args, strict=False)
        case ast.Call(func=func, args=nodes, keywords=keywords):
            owner = _look_up(func.value, place.frame) if isinstance(func, ast.Attribute) else None
            method = isinstance(func, ast.Attribute) and (owner is None or isinstance(owner, Tensor))
            before = [func.value] if isinstance(func, ast.Attribute) and method else []
            for node, value in zip([*before, *nodes], args, strict=False):
                if isinstance(node, ast.List | ast.Tuple) and isinstance(value, list | tuple):
                    yield from zip(node.elts, value, strict=False)
                elif not isinstance(node, ast.Starred):
                    yield node, value
            rest = iter(args[len(before) + len(nodes) :])
            for keyword in keywords:  # torch's Python functions pass some on by position
                name = keyword.arg or ""
                yield keyword.value, kwargs[name] if name in kwargs else next(rest, None)
        case ast.Subscript(value=value, slice=index):
            yield from zip((value, index), args, strict=False)
        case ast.Attribute(value=value):
            yield from zip((value,), args, strict=False)


_REFLECTED = {f"r{name}" for name in ("add", "sub", "mul", "div", "truediv", "matmul", "pow", "floordiv", "mod")}


def tensors_in(expressions: list[str], frame: FrameType) -> Iterator[tuple[str, Tensor]]:
    """The named tensors that operand expressions are made of: `p.w2` and its value for `p.w2.T`."""
    for text in expressions:
        try:
            tree = ast.parse(f"({text})", mode="eval").body
        except SyntaxError:
            continue
        waiting: list[ast.AST] = [tree]
        while waiting:
            node = waiting.pop(0)
            value = _look_up(node, frame) if isinstance(node, ast.expr) else None
            if isinstance(value, Tensor):
                yield ast.unparse(node), value
            else:
                waiting.extend(ast.iter_child_nodes(node))


def sizes_in(place: Place) -> Iterator[Any]:
    """The symbolic numbers among the names and attributes of an expression."""
    tree = place.expression()
    for node in ast.walk(tree) if tree is not None else ():
        value = _look_up(node, place.frame) if isinstance(node, ast.Name | ast.Attribute) else None
        if isinstance(value, torch.SymInt | torch.SymFloat):
            yield value


def assignment_line(frame: FrameType, name: str, before: int) -> int | None:
    """The last line before `before` that assigns `name` in the frame's function; None for an argument."""
    try:
        lines, start = inspect.getsourcelines(frame.f_code)
        tree = ast.parse(inspect.cleandoc("\n" + "".join(lines)) if lines[0][0].isspace() else "".join(lines))
    except (OSError, SyntaxError, TypeError, IndexError):
        return None
    start = max(start, 1)
    found = [
        start + node.lineno - 1
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
    ]
    return max((line for line in found if line < before), default=None)


def _look_up(node: ast.expr, frame: FrameType) -> Any:
    """The value of a name, or of an attribute or item of something that is no tensor (reading it runs no operation)."""
    match node:
        case ast.Name(id=name):
            return frame.f_locals.get(name, frame.f_globals.get(name))
        case ast.Attribute(value=value, attr=attr):
            owner = _look_up(value, frame)
            return None if owner is None or isinstance(owner, Tensor) else getattr(owner, attr, None)
        case ast.Subscript(value=value, slice=ast.Constant(value=key)):
            owner = _look_up(value, frame)
            if owner is None or isinstance(owner, Tensor):
                return None
            try:
                return owner[key]
            except (KeyError, IndexError, TypeError):
                return None
    return None


def _characters(file: str, line: int, column: int) -> int:
    """co_positions counts utf-8 bytes."""
    return len(linecache.getline(file, line).encode()[:column].decode(errors="ignore"))


def _end(node: ast.expr) -> int:
    return node.end_col_offset or 0


_SYMBOLS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.MatMult: "@", ast.Pow: "**", ast.FloorDiv: "//",
    ast.Mod: "%", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
}  # fmt: skip


def _symbol(expression: ast.BinOp) -> str:
    return _SYMBOLS.get(type(expression.op), "@")
