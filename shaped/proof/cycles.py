"""Relations over one size, decided: beyond some size they come round again.

    value(n + period) == value(n) + step        for every n from `start` on

is so of numbers, of the size, and of sums, differences, multiples, quotients and rests by numbers, maxima and minima of
what it is so of. A relation between two of them is then the same at n and at n + period, and it is enough to look at
each size once around.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from shaped.shapes.terms import RELATIONS, Term

_MOST = 6000  # sizes that are looked at; what comes round later is not decided


@dataclass(frozen=True)
class _Cycle:
    """From `start` on, `period` more of the size is `step` more of the value."""

    period: int = 1
    step: int = 0
    start: int = 0

    def every(self, period: int) -> int:
        """The step of a longer period."""
        return self.step * (period // self.period)


def always(term: Term) -> bool:
    """Whether a relation over one size is shown to be true of each from 1 on."""
    return decided(term) is True


def decided(term: Term) -> bool | None:
    """Whether a relation over one size is true of each from 1 on; None where that is not decided here."""
    truth = _truth(term)
    return None if truth is None else all(truth.values)


@dataclass(frozen=True)
class _Truth:
    """Whether a relation is true of 1, 2, ...; from `start` on it comes round after `period` sizes."""

    values: tuple[bool, ...]
    period: int
    start: int

    def at(self, size: int) -> bool:
        if size > len(self.values):
            size -= -(-(size - len(self.values)) // self.period) * self.period
        return self.values[size - 1]


@lru_cache(maxsize=1024)
def _truth(term: Term) -> _Truth | None:
    if len(term.names) != 1 or not term.is_relation:
        return None
    name = term.names[0]
    cycle = _cycle(term, lambda part, size: part.evaluate({name: size}))
    if cycle is None or cycle.start + cycle.period > _MOST:
        return None
    values = tuple(term.holds({name: size}) for size in range(1, cycle.start + cycle.period + 1))
    return _Truth(values, cycle.period, cycle.start)


def plainest(term: Term) -> Term:
    """A relation over one size as `n >= 3`, `n <= 65`, `n % 4 == 1` or `n % 2 == 0 and n >= 6`, where it is one."""
    term = _forward(term)
    truth = None if _is_plain(term) else _truth(term)
    if truth is None or all(truth.values) or not any(truth.values):
        return term
    name = Term.name(term.names[0])
    for form in _forms(name, truth):
        other = _truth(form)
        if other is not None and _same(truth, other):
            return form
    return term


def _forward(term: Term) -> Term:
    """n <= 131072 for -n >= -131072, however large."""
    match term:
        case Term(">" | ">=" | "<" | "<=" as op, (Term("neg", (Term("name") as size,)), Term("number", (int(bound),)))):
            strict = {">": 1, "<": -1}.get(op, 0)  # -n > -8 is n <= 7
            return _is("<=" if op in (">", ">=") else ">=", size, -bound - strict)
    return term


def _is_plain(term: Term) -> bool:
    """`n > 25`, `n % 4 != 1`: as the program has it."""
    if term.op not in RELATIONS or term.args[1].op != "number":
        return False
    size = term.args[0]
    return size.is_name or (
        size.op == "%" and size.args[0].is_name and size.args[1].op == "number" and term.op in ("==", "!=")
    )


def _forms(name: Term, truth: _Truth) -> list[Term]:
    first = truth.values.index(True) + 1
    last = len(truth.values) - truth.values[::-1].index(True)
    out = truth.values.index(False) + 1
    round_ = truth.values[-truth.period :]
    period = next(
        p for p in range(1, truth.period + 1) if truth.period % p == 0 and round_ == round_[:p] * (truth.period // p)
    )
    rests = [size % period for size in range(len(truth.values) - period + 1, len(truth.values) + 1) if truth.at(size)]
    forms = [_is(">=", name, first), _is("<=", name, last), _is("==", name, first), _is("!=", name, out)]
    if len(rests) == 1 or (len(rests) == period - 1 and period > 1):
        kind, rest = ("==", rests[0]) if len(rests) == 1 else ("!=", (set(range(period)) - set(rests)).pop())
        resting = _is(kind, Term.of("%", name, Term.number(period)), rest)
        forms += [resting] + [Term.of("and", resting, _is(">=", name, first))] * (kind == "==")
    return forms


def _same(a: _Truth, b: _Truth) -> bool:
    most = max(a.start, b.start) + math.lcm(a.period, b.period)
    return most <= 2 * _MOST and all(a.at(size) == b.at(size) for size in range(1, most + 1))


def _is(op: str, size: Term, number: int) -> Term:
    return Term.of(op, size, Term.number(number))


def _cycle(term: Term, value: Callable[[Term, int], int]) -> _Cycle | None:
    """How a term over one size comes round; None where it does not, or late."""
    if term.op == "name":
        return _Cycle(1, 1, 1)
    if term.op == "number":
        return _Cycle() if isinstance(term.args[0], int) else None
    parts = [_cycle(part, value) for part in term.args]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    period, start = math.lcm(*(part.period for part in known)), max(part.start for part in known)
    steps = [part.every(period) for part in known]
    if period + start > _MOST:
        return None
    match term.op:
        case "and" | "or" | "not":
            return _Cycle(period, 0, start)
        case "neg":
            return _Cycle(period, -steps[0], start)
        case "+":
            return _Cycle(period, sum(steps), start)
        case "-":
            return _Cycle(period, steps[0] - steps[1], start)
        case "*" if 0 in steps and any(part.op == "number" for part in term.args):
            by = next(part.args[0] for part in term.args if part.op == "number")
            return _Cycle(period, by * sum(steps), start)
        case "//" | "%" if term.args[1].op == "number" and term.args[1].args[0] > 0:
            by = term.args[1].args[0]
            longer = by // math.gcd(by, steps[0])
            return _Cycle(period * longer, steps[0] * longer // by if term.op == "//" else 0, start)
        case "max" | "min":
            return _of_extreme(term, known, period, start, value)
    if term.op in RELATIONS:
        later = _parted(term.args[0], term.args[1], steps[0] - steps[1], period, start, value)
        return _Cycle(period, 0, later)
    return None


def _of_extreme(
    term: Term, parts: Sequence[_Cycle], period: int, start: int, value: Callable[[Term, int], int]
) -> _Cycle:
    """Beyond some size it is always the operand that grows most, or least."""
    steps = [part.every(period) for part in parts]
    step = max(steps) if term.op == "max" else min(steps)
    for i, one in enumerate(term.args):
        for j, other in enumerate(term.args[:i]):
            start = max(start, _parted(one, other, steps[i] - steps[j], period, start, value))
    return _Cycle(period, step, start)


def _parted(one: Term, other: Term, step: int, period: int, start: int, value: Callable[[Term, int], int]) -> int:
    """The size from which on the difference of two has the sign that it keeps."""
    if step == 0 or period + start > _MOST:
        return start
    apart = (value(one, size) - value(other, size) for size in range(max(start, 1), max(start, 1) + period))
    furthest = max(-d if step > 0 else d for d in apart)  # on the wrong side, or at 0
    return max(start, 1) + period * max(0, furthest // abs(step) + 1)
