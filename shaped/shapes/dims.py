"""Dimension expressions: a name (`batch`), an integer, or arithmetic over them (`3*dim`, `dim//heads`, `seq-1`).

A `Dim` is a term with its text. It evaluates over any numbers that know + - * // %: Python ints when a batch
is bound, symbolic sizes when a function is proved.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shaped.errors import SignatureError
from shaped.shapes.terms import Term, from_tree

_ALLOWED = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Pow)
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
        return Dim.of(from_tree(_checked(node, text)), text)

    @staticmethod
    def of(term: Term, text: str = "") -> "Dim":
        """A dimension from a term that is integer arithmetic over names; a number where it depends on none."""
        try:
            term = term if term.names else Term.number(int(term.evaluate({})))
            if any(part.op in ("//", "%") and part.args[1] == Term.number(0) for part in term.parts()):
                raise ZeroDivisionError
        except ZeroDivisionError:
            raise SignatureError(f"`{text or term}` divides by zero") from None
        dim = Dim(str(term).replace(" ", ""))
        dim.__dict__["term"] = term
        return dim

    @property
    def is_axes(self) -> bool:
        """Whether it is `*batch`: any number of axes under one name, to be written out before anything is evaluated."""
        return self.text.startswith("*")

    @cached_property
    def term(self) -> Term:
        """What is computed."""
        assert not self.is_axes, f"{self.text} was not written out"
        return Term.parse(self.text)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names it depends on, in order of appearance."""
        return () if self.is_axes else self.term.names

    @property
    def is_name(self) -> bool:
        """Whether it is one name and nothing more."""
        return not self.is_axes and self.term.is_name

    @cached_property
    def constant(self) -> int | None:
        """Its value, if it depends on no name."""
        return None if self.names or self.is_axes else int(self.evaluate({}))

    def evaluate(self, sizes: Mapping[str, Any]) -> Any:
        """Its value where each name has the value in `sizes`; KeyError names one that has none."""
        return self.term.evaluate(sizes)

    def substitute(self, mapping: Mapping[str, "Dim"]) -> "Dim":
        """Put expressions in place of names."""
        if not any(name in mapping for name in self.names):
            return self
        return Dim.of(self.term.substitute({name: dim.term for name, dim in mapping.items()}))

    def solve(self, value: int, sizes: Mapping[str, int]) -> tuple[str, int] | None:
        """The one unknown name and the size that gives `value`, if it is linear in it; else None."""
        unknown = [name for name in self.names if name not in sizes]
        if len(unknown) != 1 or _is_rounded(self.term, unknown[0]):
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
            case ast.BinOp(op=op) if type(op) in _ALLOWED:
                continue
            case _ if type(part) in _ALLOWED:
                continue
            case ast.BinOp(op=ast.Div()) | ast.Div():
                raise SignatureError(f"`{text}` divides with /: sizes are whole numbers, write // instead")
        raise SignatureError(f"`{text}` is not a dimension: only names, integers, + - * // % and ** are allowed")
    return node


def _is_small(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= _LARGEST_POWER


def _is_rounded(term: Term, name: str) -> bool:
    """Whether // or % or ** is applied to an expression in `name`, so that a value does not tell its size."""
    return any(part.op in ("//", "%", "**") and name in part.names for part in term.parts())
