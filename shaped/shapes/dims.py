"""Dimension expressions: a name (`batch`), an integer, or arithmetic over them (`3*dim`, `dim//heads`, `seq-1`).

A `Dim` is text that was parsed once. It evaluates over any numbers that know + - * // %: Python ints when a batch
is bound, symbolic sizes when a function is proved.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shaped.errors import SignatureError

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}

_LARGEST_POWER = 9  # so that reading `9**9**9` does not compute it


@dataclass(frozen=True)
class Dim:
    """A dimension expression in canonical text; equal texts are equal dimensions."""

    text: str

    @staticmethod
    def parse(text: str) -> "Dim":
        """Parse `text`; raises SignatureError where it is not integer arithmetic over names."""
        try:
            node = ast.parse(text.strip(), mode="eval").body
        except SyntaxError:
            example = "write a name, an integer, or 2*dim, dim//heads"
            raise SignatureError(f"`{text}` is not a dimension: {example}") from None
        dim = Dim(_canonical(_checked(node, text)))
        try:
            return dim if dim.constant is None else Dim(str(dim.constant))
        except ZeroDivisionError:
            raise SignatureError(f"`{text}` divides by zero") from None

    @property
    def is_axes(self) -> bool:
        """Whether it is `*batch`: any number of axes under one name, to be written out before anything is evaluated."""
        return self.text.startswith("*")

    @cached_property
    def _node(self) -> ast.expr:
        assert not self.is_axes, f"{self.text} was not written out"
        return ast.parse(self.text, mode="eval").body

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names it depends on, in order of appearance."""
        if self.is_axes:
            return ()
        found = [node.id for node in ast.walk(self._node) if isinstance(node, ast.Name)]
        return tuple(dict.fromkeys(found))

    @property
    def is_name(self) -> bool:
        """Whether it is one name and nothing more."""
        return self.names == (self.text,)

    @cached_property
    def constant(self) -> int | None:
        """Its value, if it depends on no name."""
        return None if self.names or self.is_axes else int(self.evaluate({}))

    def evaluate(self, sizes: Mapping[str, Any]) -> Any:
        """Its value where each name has the value in `sizes`; KeyError names one that has none."""
        return _evaluate(self._node, sizes)

    def substitute(self, mapping: Mapping[str, "Dim"]) -> "Dim":
        """Put expressions in place of names."""
        if not any(name in mapping for name in self.names):
            return self
        return Dim.parse(_canonical(_Substitution(mapping).visit(ast.parse(self.text, mode="eval").body)))

    def solve(self, value: int, sizes: Mapping[str, int]) -> tuple[str, int] | None:
        """The one unknown name and the size that gives `value`, if it is linear in it; else None."""
        unknown = [name for name in self.names if name not in sizes]
        if len(unknown) != 1 or _is_rounded(self._node, unknown[0]):
            return None
        try:
            at = [self.evaluate({**sizes, unknown[0]: x}) for x in (0, 1, 2, 1009)]
        except ZeroDivisionError:
            return None
        slope, offset = at[1] - at[0], at[0]
        if slope == 0 or any(y != offset + slope * x for x, y in zip((2, 1009), at[2:], strict=True)):
            return None
        size, rest = divmod(value - offset, slope)
        return (unknown[0], size) if rest == 0 and size >= 0 else None

    def __str__(self) -> str:
        return self.text


def _evaluate(node: ast.expr, sizes: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, sizes)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, sizes), _evaluate(right, sizes))
    raise AssertionError(f"unchecked node {ast.dump(node)}")


def _checked(node: ast.expr, text: str) -> ast.expr:
    for part in ast.walk(node):
        match part:
            case ast.Constant(value=bool()):
                pass
            case ast.BinOp(op=ast.Pow(), right=power) if not _is_small(power):
                raise SignatureError(f"`{text}`: a power is a number from 0 to {_LARGEST_POWER}, as in size**2")
            case ast.BinOp(op=ast.FloorDiv() | ast.Mod(), right=ast.Constant(value=0)):
                raise SignatureError(f"`{text}` divides by zero")
            case ast.Constant(value=int()) | ast.Name() | ast.UnaryOp(op=ast.USub()) | ast.Load() | ast.USub():
                continue
            case ast.BinOp(op=op) if type(op) in _OPERATORS:
                continue
            case _ if type(part) in _OPERATORS:
                continue
            case ast.BinOp(op=ast.Div()) | ast.Div():
                raise SignatureError(f"`{text}` divides with /: sizes are whole numbers, write // instead")
        raise SignatureError(f"`{text}` is not a dimension: only names, integers, + - * // % and ** are allowed")
    return node


def _is_small(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= _LARGEST_POWER


def _is_rounded(node: ast.expr, name: str) -> bool:
    """Whether // or % or ** is applied to an expression in `name`, so that a value does not tell its size."""
    parts = [part for part in ast.walk(node) if isinstance(part, ast.BinOp)]
    rounding = [part for part in parts if isinstance(part.op, ast.FloorDiv | ast.Mod | ast.Pow)]
    return any(isinstance(below, ast.Name) and below.id == name for part in rounding for below in ast.walk(part))


def _canonical(node: ast.expr) -> str:
    return ast.unparse(node).replace(" ", "")


class _Substitution(ast.NodeTransformer):
    def __init__(self, mapping: Mapping[str, Dim]) -> None:
        self.mapping = mapping

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(self.mapping[node.id].text, mode="eval").body if node.id in self.mapping else node
