"""The condition that excludes sizes at which a program was seen to fail.

What a trace asks and what its shape functions check is not all that torch refuses: a normalisation over one entry, an
index into an axis that is too short. Where real runs fail at sizes that the conditions admit, a relation between the
sizes of the program is looked for that is false at each of those and true wherever a run went through. More is assumed
so, never less: what was proved stays proved.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from torch.utils._sympy.functions import PythonMod

from shaped.proof.conditions import Condition
from shaped.proof.rounded import whole
from shaped.proof.symbolic import World
from shaped.shapes import Term

_LEAST = 9  # numbers that a size is compared with are below
_PERIODS = (2, 3, 4)
_SIZES = 14  # of a program that are compared with each other
_MOST = 3  # conditions that are added

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class _Candidate:
    term: Term
    excluded: int  # which failures it is false at, a bit each
    lost: int  # and which runs that went through

    @property
    def effort(self) -> tuple[bool, bool, int, str]:
        return self.term.op == "or", self.term.op == "!=", len(self.term.text), self.term.text


def excluding(failing: Sequence[Sizes], passing: Sequence[Sizes], relations: Sequence[Term]) -> list[Condition] | None:
    """The fewest and shortest relations that exclude all that failed and nothing else; None if there are none."""
    found = [one for term in relations if (one := _tried(term, failing, passing)).excluded]
    exact = [one for one in found if not one.lost]
    chosen = _covering(exact, len(failing))
    if chosen is None:
        pairs = (
            _Candidate(Term.of("or", a.term, b.term), a.excluded & b.excluded, 0)
            for a, b in itertools.combinations(found, 2)
            if not a.lost & b.lost and a.excluded & b.excluded
        )
        chosen = _covering([*exact, *pairs], len(failing))
    if chosen is None or _equates({one.term for one in chosen}) or any(_is_one(one.term) for one in chosen):
        return None
    return [Condition(one.term) for one in chosen]


def _is_one(term: Term) -> bool:
    """`n == 1` of a name, which says that n is none: only beside another way is it a condition."""
    return term.op == "==" and term.args[0].is_name and term.args[1] == Term.number(1)


def _equates(terms: Collection[Term]) -> bool:
    """Whether sizes would have to be equal, each as large as the next in a circle: names that differ never are."""
    larger: dict[Term, set[Term]] = {}
    for term in terms:
        match term:
            case Term("==", (Term("%", (m, n)), Term("number", (0,)))) | Term(">=", (m, n)) | Term("<=", (n, m)):
                larger.setdefault(m, set()).add(n)
    for start in larger:
        reached, waiting = set[Term](), [*larger[start]]
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += larger.get(one, ())
        if start in reached:
            return True
    return False


def _tried(term: Term, failing: Sequence[Sizes], passing: Sequence[Sizes]) -> _Candidate:
    false_at: Callable[[Sequence[Sizes]], int] = lambda some: sum(  # noqa: E731
        1 << i for i, sizes in enumerate(some) if not term.holds(sizes)
    )
    return _Candidate(term, false_at(failing), false_at(passing))


def _covering(candidates: Sequence[_Candidate], count: int) -> list[_Candidate] | None:
    """Candidates that together exclude all of them, the one that excludes most first."""
    left, chosen = (1 << count) - 1, list[_Candidate]()
    while left and len(chosen) < _MOST:
        best = min(candidates, key=lambda one: (-(one.excluded & left).bit_count(), one.effort), default=None)
        if best is None or not best.excluded & left:
            return None
        chosen.append(best)
        left &= ~best.excluded
    return None if left else chosen


def relations(world: World) -> Iterator[Term]:
    """What may be asked of the sizes of a program, in the user's names."""
    names = [symbol for symbol, name in world.symbols.items()]
    sizes = [*names, *(whole(size) for size in world.mode.sizes if not size.is_Symbol)][:_SIZES]
    facts: list[Any] = [question.fact for question in world.env.asked]
    facts += [sympy.Ge(size, least) for size in sizes for least in range(1, _LEAST)]
    facts += [sympy.Eq(size, 1, evaluate=False) for size in names]
    facts += [sympy.Ge(size, 0) for size in sizes if not size.is_Symbol]
    facts += [sympy.Ge(a, b) for a, b in itertools.permutations(sizes, 2)]
    facts += [sympy.Ne(size, number) for size in sizes for number in range(_LEAST)]
    facts += [
        sympy.Eq(PythonMod(size, n), rest, evaluate=False) for size in sizes for n in _PERIODS for rest in range(n)
    ]
    facts += [sympy.Eq(PythonMod(a, b), 0, evaluate=False) for a, b in itertools.permutations(names, 2)]
    yield from dict.fromkeys(world.term(fact) for fact in facts if fact not in (sympy.true, sympy.false))
