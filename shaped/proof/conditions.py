"""Side conditions: what a trace assumed about sizes, in the user's names; and assumptions that the user states.

Each question of a trace ends as one of

    implied      it follows from the sizes being at least 2 and from what was substituted; torch never asked it of us
    condition    an inequality or a divisibility: `seq <= context`, `dim % heads == 0`
    both ways    `a != b` where the program is also well-shaped when a = b: dropped, because both branches were traced
    refuted      an equality between differently named dimensions, or of a dimension and a number
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from shaped.errors import SignatureError, Source
from shaped.proof.cycles import always, plainest
from shaped.shapes import Dim
from shaped.shapes.terms import Term

_LARGEST_POWER = 9  # so that reading `9**9**9` does not compute it


@dataclass(frozen=True)
class Condition:
    """A relation over dimension names that a proof is conditional on."""

    term: Term  # seq <= context
    source: Source | None = None
    where: str = ""  # the ranks that it is about, where not all: "*batch has 0 axes"

    @staticmethod
    def parse(text: str) -> "Condition":
        """A condition from Python's notation; SignatureError where it is no relation over names."""
        return Condition(Term.parse(text))

    @property
    def text(self) -> str:
        """It as Python over the names: `seq <= context`."""
        return self.term.text

    @property
    def names(self) -> tuple[str, ...]:
        """The dimension names it speaks of."""
        return self.term.names

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is true at these sizes; what cannot be evaluated there is not shown."""
        return self.term.holds(sizes)

    def with_sizes(self, sizes: Mapping[str, int]) -> str:
        """`seq <= context, and seq = 80, context = 64`"""
        return f"{self.text}, and " + ", ".join(f"{name} = {sizes[name]}" for name in self.names)

    def __str__(self) -> str:
        return f"{self.text} where {self.where}" if self.where else self.text


@dataclass(frozen=True)
class Assumption:
    """A relation between sizes that the user states."""

    term: Term

    @staticmethod
    def parse(text: str) -> "Assumption":
        """Read `"dim % heads == 0"`: whatever a proof prints as a condition; SignatureError where it is no relation."""
        try:
            term = Term.parse(text)
        except SignatureError:
            term = None
        if term is None or not term.is_relation:
            raise SignatureError(
                f'assume: `{text}` is not one comparison; write for example "dim % heads == 0" or "seq <= context"'
            )
        _refuse_odd(term, text)
        return Assumption(term)

    @property
    def names(self) -> tuple[str, ...]:
        """The dimension names it speaks of."""
        return self.term.names

    @property
    def condition(self) -> Condition:
        return Condition(self.term)

    @cached_property
    def definition(self) -> tuple[str, Dim] | None:
        """`classes == hidden` as the name to replace and what by."""
        if self.term.op != "==":
            return None
        for side, other in (self.term.args, self.term.args[::-1]):
            if side.is_name and is_dim(other):
                return str(side), Dim.of(other)
        return None

    @cached_property
    def divisor(self) -> tuple[str, Dim] | None:
        """`dim % heads == 0` as (dim, heads)."""
        match self.term:
            case Term("==", (Term("%", (Term("name", (name,)), under)), Term("number", (0,)))) if is_dim(under):
                return name, Dim.of(under)
        return None


def meant(relation: Term) -> str:
    """What to write where a relation is meant; one with a fraction is of a size that torch takes as a number."""
    if any(part.op == "number" and isinstance(part.args[0], float) for part in relation.parts()):
        names = ", ".join(f'"{name}"' for name in relation.names)
        return f"take it as a number: static=[{names}]"
    return f'if it is meant, state it: assume=("{relation}",)'


def is_dim(term: Term) -> bool:
    """Whether a term is what an annotation may say of an axis."""
    allowed = ("number", "name", "+", "-", "*", "//", "%", "neg", "**")
    return all(part.op in allowed and not isinstance(part.args[0], float) for part in term.parts())


def _refuse_odd(term: Term, text: str) -> None:
    """Fractions that nothing rounds, powers that take for ever, divisions by zero."""
    rounding = (part for part in term.parts() if part.op in ("ceil", "floor", "int", "round"))
    rounded = {id(part) for outer in rounding for part in outer.parts()}
    for part in term.parts():
        if part.op == "/" and id(part) not in rounded:
            raise SignatureError(f"`{text}` divides with /: sizes are whole numbers, write // instead")
        if part.op in ("/", "//", "%") and part.args[1] == Term.number(0):
            raise SignatureError(f"`{text}` divides by zero")
        if part.op in ("**", "<<") and not (part.args[1].op == "number" and part.args[1].args[0] <= _LARGEST_POWER):
            raise SignatureError(f"`{text}`: a power is a number from 0 to {_LARGEST_POWER}, as in size**2")


def follows(condition: Condition, assumptions: Sequence[Assumption]) -> bool:
    """Whether a condition is one of the assumptions, or shown to be true wherever they are.

    `seq <= context` follows from `seq < context` and from `seq + 1 <= context`.
    """
    if any(condition.term == assumption.term for assumption in assumptions):
        return True
    try:
        return _shown(condition.term, [assumption.term for assumption in assumptions])
    except (ArithmeticError, ValueError, TypeError, AttributeError):  # a function that sympy has no form of
        return False


def needed(conditions: Sequence[Condition]) -> list[Condition]:
    """Those that do not follow from the others, each as plain as it can be: `n >= 5` of `n >= 3` and `n >= 5`."""
    left = in_one(conditions)
    for one in list(left):
        others = [Assumption(other.term) for other in left if other is not one and not other.where]
        if others and not one.where and follows(one, others):
            left = [other for other in left if other is not one]
    return left


def in_one(conditions: Sequence[Condition]) -> list[Condition]:
    """Those of one size together: n % 2 == 1 and ((n - 1)//2) % 3 == 0 as n % 6 == 1."""
    found = [replace(one, term=plainest(one.term)) for one in conditions if not always(one.term)]
    for one, other in itertools.combinations(found, 2):
        if one.names == other.names and one.where == other.where:
            both = plainest(Term.of("and", one.term, other.term))
            if both.op != "and":
                joined = replace(other, term=both)
                return in_one([joined if c is other else c for c in found if c is not one])
    return found


def _shown(goal: Term, known: Sequence[Term]) -> bool:
    import sympy

    from shaped.proof.arithmetic import holds
    from shaped.proof.expressions import sympy_of

    alike = [term for term in known if term.names == goal.names]
    if alike and always(Term.of("or", goal, *(Term.of("not", term) for term in alike))):
        return True
    names = {name for term in (goal, *known) for name in term.names}
    symbols = {name: sympy.Symbol(name, integer=True, positive=True) for name in names}
    wanted, *facts = (sympy_of(term, symbols) for term in (goal, *known))
    if holds(wanted, facts, dict.fromkeys(symbols.values(), 1)):
        return True
    needed = _as_nonpositive(wanted)
    others = [_as_nonpositive(fact) for fact in facts]
    differences = [sympy.expand(needed - other) for other in others if needed is not None and other is not None]
    return any(bool(difference.is_Integer and difference <= 0) for difference in differences)


def _as_nonpositive(relation: Any) -> Any:
    """The expression that an inequality says is at most 0."""
    if len(relation.args) != 2:
        return None
    left, right = relation.args
    written = {"<=": lambda: left - right, "<": lambda: left - right + 1, ">=": lambda: right - left,
               ">": lambda: right - left + 1}.get(getattr(relation, "rel_op", ""))  # fmt: skip
    return written() if written is not None else None
