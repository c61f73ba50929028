"""Side conditions: what a trace assumed about sizes, in the user's names; and assumptions that the user states.

Each question of a trace ends as one of

    implied      it follows from the sizes being at least 2 and from what was substituted; torch never asked it of us
    condition    an inequality or a divisibility: `seq <= context`, `dim % heads == 0`
    both ways    `a != b` where the program is also well-shaped when a = b: dropped, because both branches were traced
    refuted      an equality between differently named dimensions, or of a dimension and a number
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import CodeType
from typing import Any

from shaped.errors import SignatureError, Source
from shaped.shapes import Dim

_KNOWN = {"__builtins__": {}, "max": max, "min": min, "sqrt": math.sqrt, "log2": math.log2, "int": int,
          "ceil": math.ceil, "floor": math.floor, "round": round}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("==", operator.eq), ast.NotEq: ("!=", operator.ne), ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le), ast.Gt: (">", operator.gt), ast.GtE: (">=", operator.ge),
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """A relation over dimension names that a proof is conditional on."""

    text: str  # Python over the names: "seq <= context"
    source: Source | None = None
    where: str = ""  # the ranks that it is about, where not all: "*batch has 0 axes"

    @cached_property
    def _code(self) -> CodeType:
        return compile(self.text, "<condition>", "eval")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The dimension names it speaks of."""
        nodes = ast.walk(ast.parse(self.text, mode="eval"))
        tree = list(nodes)
        functions = {node.func.id for node in tree if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        return tuple(dict.fromkeys(n.id for n in tree if isinstance(n, ast.Name) and n.id not in functions))

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true at these sizes. The text is our own print of a size expression, never the user's code."""
        try:
            return bool(eval(self._code, _KNOWN, dict(sizes)))
        except (ZeroDivisionError, NameError):  # a name: a function of sizes that we cannot evaluate, so not shown
            return False

    def with_sizes(self, sizes: Mapping[str, int]) -> str:
        """`seq <= context, and seq = 80, context = 64`"""
        return f"{self.text}, and " + ", ".join(f"{name} = {sizes[name]}" for name in self.names)

    def __str__(self) -> str:
        return f"{self.text} where {self.where}" if self.where else self.text


@dataclass(frozen=True)
class Assumption:
    """A relation that the user states: one comparison of two dimension expressions."""

    left: Dim
    relation: str
    right: Dim

    @staticmethod
    def parse(text: str) -> "Assumption":
        """Read `"dim % heads == 0"`; SignatureError where it is no comparison of dimension expressions."""
        try:
            node = ast.parse(text.strip(), mode="eval").body
        except SyntaxError:
            node = None
        if not isinstance(node, ast.Compare) or len(node.ops) != 1 or type(node.ops[0]) not in _COMPARE:
            raise SignatureError(
                f'assume: `{text}` is not one comparison; write for example "dim % heads == 0" or "seq <= context"'
            )
        left, right = (Dim.parse(ast.unparse(side)) for side in (node.left, node.comparators[0]))
        return Assumption(left, _COMPARE[type(node.ops[0])][0], right)

    @property
    def names(self) -> tuple[str, ...]:
        """The dimension names it speaks of."""
        return tuple(dict.fromkeys(self.left.names + self.right.names))

    @property
    def condition(self) -> Condition:
        return Condition(f"{_spaced(self.left)} {self.relation} {_spaced(self.right)}")

    @property
    def definition(self) -> tuple[str, Dim] | None:
        """`classes == hidden` as the name to replace and what by."""
        if self.relation != "==":
            return None
        if self.left.is_name:
            return self.left.text, self.right
        return (self.right.text, self.left) if self.right.is_name else None

    @property
    def divisor(self) -> tuple[str, Dim] | None:
        """`dim % heads == 0` as (dim, heads)."""
        node = ast.parse(self.left.text, mode="eval").body
        if self.relation != "==" or self.right.constant != 0:
            return None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Name):
            return node.left.id, Dim.parse(ast.unparse(node.right))
        return None


def follows(condition: Condition, assumptions: Sequence[Assumption]) -> bool:
    """Whether a condition is one of the assumptions, or weaker than one by a constant.

    Compared as left - right: `seq <= context` follows from `seq < context` and from `seq + 1 <= context`.
    """
    try:
        wanted = Assumption.parse(condition.text)
    except SignatureError:
        return False
    if any(wanted == a or wanted.condition.text == a.condition.text for a in assumptions):
        return True
    return any(_weaker(wanted, assumption) for assumption in assumptions)


def _weaker(wanted: Assumption, known: Assumption) -> bool:
    import sympy

    goal, fact = _as_nonpositive(wanted), _as_nonpositive(known)
    if goal is None or fact is None:
        return False
    difference = sympy.expand(goal - fact)
    return bool(difference.is_Integer and difference <= 0)


def _as_nonpositive(a: Assumption) -> Any:
    """The expression that the relation says is at most 0."""
    import sympy

    names = {name: sympy.Symbol(name, integer=True) for name in a.names}
    left, right = (side.evaluate(names) for side in (a.left, a.right))
    return {"<=": left - right, "<": left - right + 1, ">=": right - left, ">": right - left + 1}.get(a.relation)


def _spaced(dim: Dim) -> str:
    return dim.text.replace("%", " % ")
