"""A proof that begins at the sizes of a run, where the first proof does not admit them.

The sizes are the size hints: the trace takes the branches that the run took, and stands for all sizes that take them.
So each size stays the multiple, and the rest, that it was: n = 4*(n//4) + 1. Larger sizes of the same rests come first,
since a branch of small ones alone is seldom what is missing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from shaped.errors import ProofError
from shaped.proof.attempts import FoundTrace, attempt_at
from shaped.proof.branches import equal_at
from shaped.proof.conditions import Condition
from shaped.proof.plans import sizes_of, without_small_quotients
from shaped.proof.setting import Setting
from shaped.proof.statement import Alternative
from shaped.proof.symbolic import Plan
from shaped.shapes import Term

_PERIODS = (120, 24)  # larger sizes of the same rests are this far apart; fewer of them for more than three names
_HIGHER = (5, 7, 11, 13)
_SMALL = 10  # sizes below are tried as numbers, one at a time
_EQUALITIES = 3  # that one proof takes from the sizes it begins at

Sizes = Mapping[str, int]


class Equality(Exception):
    """A program needs two sizes to be equal; `asked` is the question that said so, `fact` what it comes to."""

    def __init__(self, fact: Any, asked: Any, error: ProofError) -> None:
        super().__init__(str(fact))
        self.fact = fact
        self.asked = asked
        self.error = error


@dataclass
class Beginning:
    """Proofs of one function from sizes at which a run went through.

    Attributes:
        plan: What is assumed and static.
        parameters: Names that no alternative fixes: a model of one position broadcasts over any sequence, and nobody
            means it.
        conditions: What a trace needs; Equality where two sizes have to be equal.
    """

    setting: Setting
    names: Sequence[str]
    plan: Plan
    parameters: AbstractSet[str]
    conditions: Callable[[FoundTrace], list[Condition]]
    _known: dict[str, Alternative | Equality | None] = field(default_factory=dict)  # what was found of each branch

    def at(self, sizes: Sizes) -> list[Alternative]:
        """Proofs that were found on the way to one whose conditions admit these sizes; that one is the last."""
        found: list[Alternative] = []
        for plan in {repr(plan): plan for plan in self._starts(sizes)}.values():
            proved = self._proved(plan, sizes)
            found += [] if proved is None else [proved]
            if proved is not None and proved.admits(sizes):
                break
        return found

    def _starts(self, sizes: Sizes) -> Iterator[Plan]:
        """All sizes larger; those of 1 as numbers and the others larger, or as they are; small ones as numbers."""
        free = [name for name in self.plan.size_hints if self.plan.is_free(name)]
        larger = dict(zip(free, (_PERIODS[len(free) > 3] * n for n in _HIGHER), strict=False))
        ones, small = ({n: sizes[n] for n in free if sizes[n] <= most} for most in (1, 2))
        single = sorted((name for name in free if sizes[name] < _SMALL), key=sizes.__getitem__)
        starts = [({}, larger), (ones, larger), (ones, {}), *(({n: sizes[n]}, larger) for n in single), (small, {})]
        for fixed, more in starts:
            size_hints = {name: sizes[name] + more.get(name, 0) for name in self.plan.size_hints}
            for name, divisor in self.plan.multiples.items():
                size_hints[name] = sizes[name] // divisor.evaluate(sizes)
            yield replace(self.plan, size_hints=size_hints, constants={**self.plan.constants, **fixed})

    def _proved(self, plan: Plan, sizes: Sizes) -> Alternative | None:
        for _ in range(_EQUALITIES + 1):
            found = attempt_at(self.setting, self.names, plan)
            if found is None or not self.parameters.isdisjoint(self._changed(found.plan)):
                return None
            key = _branches_of(found)
            if key not in self._known:
                self._known[key] = self._stating(found)
            known = self._known[key]
            if isinstance(known, Alternative):
                return known
            equal = self._equal(known.fact, found, sizes) if known is not None else None
            if equal is None:
                return None
            plan = equal
        return None

    def _stating(self, found: FoundTrace) -> Alternative | Equality | None:
        """What a trace needs, or the first two sizes that have to be equal."""
        try:
            return Alternative([*self._stated(found.plan), *self.conditions(found)], found.trace, found.plan)
        except Equality as needed:
            return needed
        except ProofError:
            return None

    def _equal(self, fact: Any, found: FoundTrace, sizes: Sizes) -> Plan | None:
        """The plan under which the two sides are equal as they are at these sizes."""
        plans = equal_at(fact.args[0] - fact.args[1], 0, found.trace.world, found.plan)
        here = sizes_of(self.names, found.plan)
        alike = (plan for plan in plans or () if sizes_of(self.names, plan) == here == dict(sizes))
        return next(map(without_small_quotients, alike), None)

    def _changed(self, plan: Plan) -> set[str]:
        """Names that a plan fixes to a number, or to other names, beyond what is assumed."""
        return (plan.constants.keys() - self.plan.constants.keys()) | (plan.equal.keys() - self.plan.equal.keys())

    def _stated(self, plan: Plan) -> list[Condition]:
        """`n == 1`, `m == 2*n + 1`."""
        changed = [name for name in self.names if name in self._changed(plan)]
        terms = [
            Term.number(plan.constants[name]) if name in plan.constants else plan.equal[name].term for name in changed
        ]
        return [Condition(Term.of("==", Term.name(name), term)) for name, term in zip(changed, terms, strict=True)]


def _branches_of(found: FoundTrace) -> str:
    """What was answered on the way; traces that answered the same need the same."""
    plan, world = found.plan, found.trace.world
    facts = sorted({world.show(question.fact) for question in found.trace.questions})
    return repr((plan.constants, plan.equal, plan.multiples, plan.rests, facts))
