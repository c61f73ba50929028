"""The symbolic world: sizes that stand for every size, tensors without data, and what torch asked of them.

Each dimension name gets its own symbol with its own size hint, so `hidden == pixels` is never true by accident. Every
question that torch or the user's Python asks about sizes goes through `_Questions.evaluate_expr`: it reads guards.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import _lru_cache_wrapper, cached_property, lru_cache, partial
from types import FrameType
from typing import Any

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanFunction
from torch import SymInt, Tensor
from torch._dynamo.source import ConstantSource
from torch._guards import SLoc
from torch.fx.experimental.symbolic_shapes import DimDynamic, GuardOnDataDependentSymNode, ShapeEnv, _lru_cache

from shaped.errors import Goal, Source, Unprovable
from shaped.proof.arithmetic import clauses, constant, divided_exactly, divisions, flat, holds, most, value_at
from shaped.proof.conditions import is_dim
from shaped.proof.demands import demanded, validates
from shaped.proof.expressions import sympy_of, term_of, without_fractions
from shaped.proof.fake import RememberingMode
from shaped.proof.isolation import note_asking
from shaped.proof.limits import hold_limits
from shaped.proof.rounded import whole
from shaped.proof.source import Place, is_users, place_of_caller
from shaped.proof.ways import Course, way_under_way
from shaped.shapes import Dim, Entry, Term


@dataclass(frozen=True)
class Plan:
    """Which symbol or number each dimension name stands for in one trace.

    A name in none of the mappings is a symbol of its own, at least 2 (tracers specialise on 0 and 1).
    """

    size_hints: Mapping[str, int]  # a size for each name, used only to pick the branch that is traced first
    constants: Mapping[str, int] = field(default_factory=dict)
    equal: Mapping[str, Dim] = field(default_factory=dict)  # assumed: classes == hidden
    multiples: Mapping[str, Dim] = field(default_factory=dict)  # dim % heads == 0, as dim := heads * (dim//heads)
    rests: Mapping[str, int] = field(default_factory=dict)  # of multiples: kernel % 2 == 1

    def quotient(self, name: str) -> str:
        """What the free symbol of a multiple is called."""
        divisor = self.multiples[name].text
        return f"{name}//{divisor}" if divisor.isalnum() else f"{name}//({divisor})"

    def is_free(self, name: str) -> bool:
        """Whether a name is a symbol of its own."""
        return (
            not any(name in taken for taken in (self.constants, self.equal, self.multiples)) and name in self.size_hints
        )


@dataclass(frozen=True)
class Question:
    """Something that was asked about sizes and could only be answered by looking at the size hints."""

    fact: sympy.Basic  # the answer as a relation that is true at the size hints
    source: Source | None  # no frame: a question outlives the trace


_CLAUSES = 8  # of a normal form; torch makes that of a question, of its negation, and of the negation of that
_DEFERS = "guard_or_defer_runtime_assert"
_CACHED = {name: method for name, method in vars(ShapeEnv).items() if hasattr(method, "cache_clear")}


class _Questions(ShapeEnv):
    """torch's shape environment, keeping each question with the user's line that led to it."""

    def __init__(self, **kwargs: Any) -> None:
        for name, method in _CACHED.items():  # torch's caches keep every environment that they were ever asked for
            plain = isinstance(method, _lru_cache_wrapper)
            cached = lru_cache(method.cache_parameters()["maxsize"]) if plain else _lru_cache
            own = cached(method.__wrapped__)
            vars(self)[name] = partial(own, self)
            vars(vars(self)[name]).update(cache_clear=own.cache_clear, cache_info=own.cache_info)
        self._defer = vars(self).pop(_DEFERS)  # ours is called instead
        super().__init__(**kwargs)
        self.asked: list[Question] = []
        self.deferred: list[Question] = []  # equalities that only data can decide
        self.answers: list[tuple[sympy.Basic, Any]] = []  # the latest, true or false, for the message of a failure
        self._settled: dict[sympy.Basic, sympy.Basic] = {}
        self.decided: dict[sympy.Basic, Any] = {}  # all that was asked, also what is so for every size of at least 2
        self.refuse: Callable[[sympy.Basic, Place | None], Exception] | None = None
        # Told of each fact that only the size hints could decide, and of each size that is read as a number.
        self.notice: Callable[[sympy.Basic, bool], None] | None = None
        way = way_under_way()
        self.course = Course(way) if way is not None else None
        self._told: list[sympy.Symbol] = []  # what stands for whole numbers of data, until these are sizes
        self.taken: dict[sympy.Symbol, Tensor] = {}  # numbers that the program read from these

    def evaluate_expr(self, orig_expr: Any, *args: Any, **kwargs: Any) -> Any:
        hold_limits()
        before = len(self.guards)
        orig_expr = self._settle(orig_expr)
        symbolic = isinstance(orig_expr, sympy.Basic) and bool(orig_expr.free_symbols)
        if isinstance(orig_expr, sympy.And | sympy.Or) and max(clauses(orig_expr)) > _CLAUSES:
            enough = isinstance(orig_expr, sympy.Or)
            fallback = kwargs.get("fallback_value")
            parts = (self.evaluate_expr(part, fallback_value=fallback) for part in orig_expr.args)
            return sympy.true if any(bool(part) == enough for part in parts) == enough else sympy.false
        number = most(orig_expr, self.backed_var_to_val) if symbolic and self.refuse is not None else None
        if number is not None:
            if self.notice is not None:
                self.notice(orig_expr, True)
            self.evaluate_expr(sympy.Ge(orig_expr, number))
            return number
        try:
            answer = super().evaluate_expr(orig_expr, *args, **kwargs)
        except GuardOnDataDependentSymNode:
            if self.course is None:
                wanted = demanded(orig_expr, self)
                if wanted is None:
                    raise
                return sympy.true if wanted else sympy.false
            if not isinstance(orig_expr, Relational | BooleanFunction):  # a number, not a question
                if all(symbol.is_integer for symbol in orig_expr.free_symbols):
                    raise
                return sympy.Float(self.course.number(place_of_caller()))
            if validates(sys._getframe(1)):
                self.course.valid(place_of_caller())
                return sympy.true
            return sympy.true if self.course.answer(orig_expr, place_of_caller()) else sympy.false
        if symbolic:
            self.decided[orig_expr] = answer
            self.answers.append((orig_expr, answer))
            del self.answers[:-64]
        if len(self.guards) > before:
            if self.course is not None:
                self.course.by_data = False
            place = place_of_caller()
            if self.refuse is not None and isinstance(answer, float | sympy.Float):
                note_asking(sys._getframe(1))
            if self.refuse is not None and isinstance(answer, int | sympy.Integer) and not isinstance(answer, bool):
                note_asking(sys._getframe(1))
                if self.notice is not None:
                    self.notice(orig_expr, True)
                raise self.refuse(orig_expr, place)  # a size was read as a plain number: range(n), int(n)
            source = place.source() if place else None
            if self.refuse is not None and source is not None and source.text.startswith("while "):
                raise self.refuse(orig_expr, place)
            for guard in self.guards[before:]:
                self.asked.append(Question(guard.expr, source))
                if self.notice is not None:
                    self.notice(guard.expr, False)
        return answer

    def guard_or_defer_runtime_assert(  # type: ignore[override]  # torch's is a cache with this signature
        self, orig_expr: Any, *args: Any, **kwargs: Any
    ) -> bool:
        count = sum(map(len, self.deferred_runtime_asserts.values()))
        answer = bool(self._defer(orig_expr, *args, **kwargs))
        if sum(map(len, self.deferred_runtime_asserts.values())) > count:
            place = place_of_caller()
            source = place.source() if place else None
            if _is_claimed(sys._getframe(1)):
                raise Unprovable(
                    "the program checks a value here, which a graph would not.", source, Goal(hint=_CHECKED)
                )
            if isinstance(orig_expr, sympy.Eq):
                self.deferred.append(Question(orig_expr, source))
        return answer

    def _get_stack_summary(self, *args: Any, **kwargs: Any) -> tuple[SLoc, str]:
        """No place in torch's words, for which it imports torch.export: a question has the user's line."""
        return SLoc(None, None), ""

    def create_unbacked_symint(self, *args: Any, **kwargs: Any) -> SymInt:
        """As torch's, and remembered."""
        made = super().create_unbacked_symint(*args, **kwargs)
        self._told.append(made.node._expr)
        return made

    def count(self, values: Mapping[str, int | SymInt]) -> list[int | SymInt]:
        """Let the whole numbers that an operation took from data be sizes, where a way has names for these."""
        symbols, found = self._told, list[int | SymInt]()
        self._told = []
        if symbols and self.course is not None and self.course.counts:
            for symbol in symbols:
                found.append(values[self.course.size(place_of_caller())])
                self.replacements[symbol] = expression(found[-1])
            self._update_version_counter()
            self.pending_fresh_unbacked_symbols = [s for s in self.pending_fresh_unbacked_symbols if s not in symbols]
        return found

    def _settle(self, expression: Any) -> Any:
        """Put numbers for floor divisions that are one for all sizes; `chunk` asks for (3*hidden - 1)//hidden."""
        if not isinstance(expression, sympy.Basic) or not expression.free_symbols:
            return expression
        if expression not in self._settled:
            numbers = {atom: number for atom in divisions(expression) if (number := constant(atom)) is not None}
            self._settled[expression] = flat(whole(expression.xreplace(numbers) if numbers else expression))
        return self._settled[expression]


OF_DATA = "as many as data has"  # instead of torch's u0, in messages
_CHECKED = "torch._assert_async(condition.all(), message) is checked wherever the program runs"


def _is_claimed(frame: FrameType | None) -> bool:
    """Whether it is the user's code that says `torch._check`, and no shape function of torch's."""
    for within in (False, True):
        while frame is not None and (frame.f_code.co_filename == torch.__file__) == within:
            frame = frame.f_back
    return frame is not None and is_users(frame)


# For what Python makes a plain number of, whatever we do.
_SHARE = re.compile(r"\b(0\.\d+)\*")  # 0.1*n
_INSTEAD = {"sqrt": "name the side instead of its square", "int": "write n // 2 for int(n / 2)"}


class NegativeSize(RuntimeError):
    """A tensor's size is below 0 at the size hints."""


class World:
    """Symbols for one trace, made from a plan, and the fake tensors over them.

    Args:
        names: The dimensions.
        plan: What each stands for.
        grants: Whether a result may have a declared size by a condition: `min(n, m)//2` where `m//2` is declared.
    """

    def __init__(self, names: Sequence[str], plan: Plan, grants: bool = False) -> None:
        self.names = tuple(names)
        self.plan = plan
        self._grants = grants
        self.begin()

    def begin(self) -> None:
        """Make symbols; forget those of a run that was broken off."""
        before: _Questions | None = getattr(self, "env", None)
        self.env = _Questions(duck_shape=False)
        self.env.notice = before.notice if before is not None else None
        self.env.refuse = self._specialised
        self.mode = RememberingMode(self.env, self._count)
        self.symbols: dict[sympy.Symbol, str] = {}  # torch's symbol to the name it stands for
        self.values: dict[str, int | SymInt] = {}
        self.size_hints: dict[sympy.Symbol, int] = {}
        self._terms: dict[Any, Term] = {}
        for name in self.names:
            self._value(name)

    def _count(self) -> list[int | SymInt]:
        return self.env.count(self.values)

    def _value(self, name: str) -> int | SymInt:
        if name in self.values:
            return self.values[name]
        plan = self.plan
        value: Any
        if name in plan.constants:
            value = plan.constants[name]
        elif name in plan.equal:
            value = self._evaluate(plan.equal[name])
        elif name in plan.multiples:
            quotient = plan.quotient(name)
            divisor = self._evaluate(plan.multiples[name])
            self.values[quotient] = self._symbol(quotient, plan.constants.get(quotient), plan.size_hints[name])
            value = divisor * self.values[quotient] + plan.rests.get(name, 0)
        else:
            value = self._symbol(name, None, plan.size_hints[name])
        self.values[name] = value
        return self.values[name]

    def _evaluate(self, dim: Dim) -> Any:
        return dim.evaluate({name: self._value(name) for name in dim.names})

    def _symbol(self, name: str, constant: int | None, size_hint: int) -> int | SymInt:
        if constant is not None:
            return constant
        source = ConstantSource(f"dim_{len(self.symbols)}")
        symbol = self.env.create_symbol(size_hint, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
        self.symbols[symbol] = name
        self.size_hints[symbol] = size_hint
        return self.env.create_symintnode(symbol, hint=size_hint, source=source)

    def tensors(
        self, entries: Sequence[Entry], dtypes: Sequence[torch.dtype], mask: Sequence[bool], device: torch.device
    ) -> list[Tensor]:
        """A fake tensor for each entry."""
        with self.mode:
            made = [
                torch.empty([self._evaluate(dim) for dim in entry.spec.dims], dtype=dtype, device=device)
                for entry, dtype in zip(entries, dtypes, strict=True)
            ]
        return [tensor.requires_grad_(want) for tensor, want in zip(made, mask, strict=True)]

    def _specialised(self, expression: sympy.Basic, place: Place | None) -> Unprovable:
        size = self.show(expression)
        names = sorted({name for s in expression.free_symbols for name in self._names(s)})
        static = "".join(f'"{name}", ' for name in names).rstrip() if len(names) == 1 else str(tuple(names))[1:-1]
        text = (place.text() if place else None) or ""
        if place is not None and place.source().text.startswith("while "):
            size = ", ".join(names)
        instead = next((how for call, how in _INSTEAD.items() if f"{call}(" in text), "keep to tensor operations")
        if (part := _SHARE.search(size)) and abs(round(1 / float(part[1])) * float(part[1]) - 1) < 1e-9:
            instead = f"write {names[0]} // {round(1 / float(part[1]))}, in whole numbers"
        error = Unprovable(
            f"`{size}` is used as a plain number here, so this holds for one size only.",
            place.source() if place else None,
            Goal(hint=f"declare it: static=({static}) proves each size of it as it comes; or {instead}"),
        )
        error.names = tuple(names)
        return error

    def _names(self, symbol: Any) -> tuple[str, ...]:
        """The dimension names behind a symbol: its own, or those of a quotient `dim//heads`."""
        name = self.symbols.get(symbol, "")
        base = next((n for n in self.plan.multiples if self.plan.quotient(n) == name), None)
        return (base, *self.plan.multiples[base].names) if base is not None else (name,) if name else ()

    def names_in(self, sizes: Iterable[Any]) -> list[str]:
        """The dimension names in some sizes, in the statement's order."""
        symbols = [symbol for size in sizes for symbol in size.node.expr.free_symbols]
        found = {name for symbol in symbols for name in self._names(symbol)}
        return [name for name in self.names if name in found]

    def term(self, value: Any) -> Term:
        """A size or a relation over sizes as a term over the user's names."""
        fact = expression(value)
        if fact not in self._terms:
            if isinstance(fact, sympy.Or):
                order = list(self.symbols)
                parts = sorted(fact.args, key=lambda part: min(map(order.index, part.free_symbols)))
                self._terms[fact] = Term.of("or", *map(self.term, parts))
            else:
                self._terms[fact] = term_of(without_fractions(whole(fact)).xreplace(self._names_of_symbols))
        return self._terms[fact]

    def show(self, value: Any) -> str:
        """A size or a relation over sizes in the user's names: `4*dim`; what data decides in words."""
        fact = expression(value)
        of_data = sorted(fact.free_symbols - set(self.symbols), key=str)
        words = {s: sympy.Symbol(f"{OF_DATA} ({n})" if n > 1 else OF_DATA) for n, s in enumerate(of_data, 1)}
        return str(self.term(fact.xreplace(words)))

    def dim(self, size: Any) -> Dim | None:
        """A size as a dimension expression; None where it is none: a maximum, a square root."""
        term = self.term(size)
        return Dim.of(term) if is_dim(term) else None

    def expression(self, dim: Dim) -> Any:
        """A dimension expression over this world's symbols."""
        return dim.evaluate({name: expression(self.values[name]) for name in dim.names})

    def fact(self, term: Term) -> Any:
        """A relation over names as one over this world's symbols."""
        return sympy_of(term, {name: expression(self.values[name]) for name in term.names})

    def asks(self, fact: sympy.Basic) -> bool:
        """Whether a relation over this world's symbols is so, asked as torch asks."""
        return bool(self.env.evaluate_expr(fact))

    def hold_sizes(self) -> None:
        """A size below 0 is an error that torch's shape functions do not see: ask that each is at least 0."""
        asked = [question.fact for question in self.env.asked]
        for size, source in list(self.mode.sizes.items()):
            size = whole(size)
            fact = sympy.Ge(size, 0)
            if (
                size.is_nonnegative
                or not size.free_symbols <= set(self.size_hints)
                or holds(fact)
                or holds(fact, asked)
            ):
                continue
            negative = bool(size.subs(self.size_hints) < 0)
            self.env.asked.append(Question(sympy.Lt(size, 0) if negative else fact, source))
            if negative:
                raise NegativeSize(f"a tensor has the size {self.show(size)}, which is negative")

    def hold_data(self) -> None:
        """Refuse what holds for some data only: as many entries as a mask keeps, equal to a dimension."""
        if self.env.deferred:
            question = self.env.deferred[0]
            hint = "give both sides the same mask; or keep the whole tensor and use torch.where"
            raise Unprovable("how many entries a mask keeps depends on data, and here it must fit.", question.source,
                             Goal(hint=hint))  # fmt: skip

    def translate(self, fact: Any, other: "World") -> Any:
        """A fact about this world's symbols in those of another; None where a name stands for nothing there."""
        hold_limits()
        written = {}
        for symbol in fact.free_symbols:
            value = other.values.get(self.symbols.get(symbol, ""))
            if value is None:
                return None
            written[symbol] = sympy.sympify(
                value.node._expr if isinstance(value, SymInt) else value
            )  # whatever it asked
        try:
            return fact.xreplace(written) if written else fact
        except (ZeroDivisionError, AssertionError):  # torch's remainder takes no size below 0: (n - 2) % 3 at n = 1
            return None

    def same(self, a: Any, b: Any) -> bool:
        """Whether two sizes are equal for all values, also by what was asked to divide; asks nothing itself."""
        a, b = flat(whole(expression(a))), flat(whole(expression(b)))
        if bool(a == b) or bool(sympy.expand(a - b) == 0) or holds(sympy.Eq(a, b)) or sympy.simplify(a - b) == 0:
            return True
        divisible = [question.fact for question in self.env.asked if isinstance(question.fact, sympy.Eq)]
        return bool(sympy.expand(divided_exactly(a, divisible) - divided_exactly(b, divisible)) == 0)

    def granted(self, a: Any, b: Any) -> bool:
        """Ask that two rounded sizes are equal, `n//2 == m//2`, where this world may and they are at its size hints."""
        fact = sympy.Eq(flat(whole(expression(a))), flat(whole(expression(b))), evaluate=False)
        if not self._grants or not divisions(fact) or value_at(fact, self.size_hints) != sympy.true:
            return False
        self.env.asked.append(Question(fact, None))
        return True

    @cached_property
    def _names_of_symbols(self) -> dict[Any, Any]:
        """What stands for each symbol when it is shown."""
        quotients = {self.plan.quotient(name): (name, dim) for name, dim in self.plan.multiples.items()}
        replaced = {}
        for symbol, name in self.symbols.items():
            base, divisor = quotients.get(name, (name, None))
            replaced[symbol] = sympy.Symbol(base, positive=True, integer=True)
            if divisor is not None:
                names = {n: sympy.Symbol(n, positive=True, integer=True) for n in divisor.names}
                multiple = replaced[symbol] - self.plan.rests.get(base, 0)
                replaced[symbol] = multiple / divisor.evaluate(names)
        return replaced


def expression(size: Any) -> sympy.Basic:
    """The sympy form of a number or a symbolic size."""
    return sympy.sympify(size.node.expr if isinstance(size, SymInt) else size)


def size_hint(size: Any) -> int:
    """A size's number in this trace."""
    return size if isinstance(size, int) else int(size.node.hint)
