"""The conditions of a statement, held against runs on real tensors at small sizes.

A proof comes from one trace: under its conditions the program is right. Where runs fail at sizes that these admit, what
excludes them is added. Where runs go through at sizes that they refuse, the program is proved once more from there, and
the statement is one or the other: `m <= n or n == 1`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shaped.proof.conditions import Condition
from shaped.proof.cycles import always
from shaped.proof.missing import excluding, relations
from shaped.proof.symbolic import Plan, size_hint
from shaped.proof.trace import Trace
from shaped.proof.trials import Trials
from shaped.shapes import Term

_ALTERNATIVES = 6  # proofs that are tried from sizes that the first does not admit
_FRUITLESS = 4  # of these
_GUESSES = 4  # at what excludes the sizes at which runs fail
_TABLE = 8  # the least number of entries that a bound on one size is read off runs for
_DEEP = 40  # operations; programs of more are stated as they were traced first

_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Alternative:
    """Conditions under which a program was proved, and the trace that they come from."""

    conditions: Sequence[Condition]
    found: Trace
    plan: Plan

    def admits(self, sizes: Sizes) -> bool:
        """Whether its conditions hold at these sizes."""
        return all(condition.holds(sizes) for condition in self.conditions)

    @property
    def own(self) -> Sizes:
        """The sizes that it was traced with."""
        return {name: size_hint(value) for name, value in self.found.world.values.items()}

    @property
    def admits_its_own(self) -> bool:
        """Whether its conditions hold at the sizes that it was traced with."""
        return self.admits(self.own)


class Fails(Exception):
    """At these sizes a run fails, and no relation between sizes tells them from those that go through."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(str(sizes))
        self.sizes = sizes


def held(
    first: Alternative | None, trials: Trials, tried: Iterable[Sizes], again: Callable[[Sizes], Sequence[Alternative]]
) -> Alternative:
    """The proof with the conditions to state.

    Args:
        first: The proof that was found; None where the program itself refuses the sizes that were traced.
        trials: The runs.
        tried: Sizes that satisfy what is assumed.
        again: Proofs from the sizes of a run that went through, the last of which may admit these; others are of larger
            ones.

    Raises:
        Fails: No conditions were found.
    """
    sizes = list(tried)
    outcomes = trials.outcomes(sizes)
    passing = [some for some, passes in zip(sizes, outcomes, strict=True) if passes]
    failing = [some for some, passes in zip(sizes, outcomes, strict=True) if passes is False]
    proved: list[Alternative] = []
    if first is not None:
        passing, failing, bounds = _bounded(first, passing, failing, trials)
        sound = _sound(first, passing, failing, trials, bounds)
        if sound is None:
            raise Fails(min(filter(first.admits, failing), key=_total))
        proved.append(sound)
    lost = [some for some in passing if not any(one.admits(some) for one in proved)]
    fruitless = 0
    for _ in range(_ALTERNATIVES if trials.operations <= _DEEP else 0):
        if not lost or fruitless == _FRUITLESS:
            break
        before = len(proved)
        start = max(lost, key=_generality)
        for other in again(start):
            if any(one.admits(other.own) for one in proved) and not other.admits(start):
                continue
            sound = _sound(other, passing, failing, trials)
            proved += [] if sound is None else [sound]
        fruitless += len(proved) == before
        lost = [some for some in lost if some is not start and not any(one.admits(some) for one in proved)]
    if not proved or (failing and not passing and not any(one.admits_its_own for one in proved)):
        raise Fails(min(failing, key=_total, default={}))
    return either(proved, passing)


def _bounded(
    proof: Alternative, passing: list[Sizes], failing: list[Sizes], trials: Trials
) -> tuple[list[Sizes], list[Sizes], list[Term]]:
    """Where all that fails is larger than all that runs, by one size: `seq <= 32`, of a table of so many positions."""
    wrong = [some for some in failing if proof.admits(some)]
    bounds: list[Term] = []
    for name in trials.names if wrong and passing else ():
        good, bad = max(passing, key=lambda some: some[name]), min(wrong, key=lambda some: some[name])
        least, most = good[name], bad[name]
        while least < most - 1:
            tried = {**good, name: (least + most) // 2}
            (passes,) = trials.outcomes([tried]) if trials.assumed(tried) and proof.admits(tried) else (None,)
            if passes is None:
                break
            (passing if passes else failing).append(tried)
            least, most = (tried[name], most) if passes else (least, tried[name])
        if least == most - 1 and least >= _TABLE:
            bounds.append(Term.of("<=", Term.name(name), Term.number(least)))
    return passing, failing, bounds


def _sound(
    proof: Alternative,
    passing: Sequence[Sizes],
    failing: Sequence[Sizes],
    trials: Trials,
    bounds: Sequence[Term] = (),
) -> Alternative | None:
    """A proof with what excludes the sizes at which a run failed; None where no relation does.

    Such a relation is a guess from runs, so it is held against others, at sizes that it admits.
    """
    for _ in range(_GUESSES):
        wrong = [some for some in failing if proof.admits(some)]
        if not wrong:
            return proof
        right = [some for some in passing if proof.admits(some)]
        more = excluding(wrong, right, [*bounds, *relations(proof.found.world)]) if right else None
        if more is None:
            return None
        guess = replace(proof, conditions=[*proof.conditions, *more])
        sizes = trials.further(guess.admits)
        outcomes = trials.outcomes(sizes)
        if False not in outcomes:
            return guess
        passing = [*passing, *(some for some, passes in zip(sizes, outcomes, strict=True) if passes)]
        failing = [*failing, *(some for some, passes in zip(sizes, outcomes, strict=True) if passes is False)]
    return None


def either(proved: Sequence[Alternative], passing: Sequence[Sizes]) -> Alternative:
    """What all alternatives ask, and that one of them holds; with the first one's trace."""
    useful = [one for one in proved if one.admits_its_own or any(map(one.admits, passing))] or list(proved)
    kept = list(useful)
    for one in reversed(useful):
        if any(_covers(other, one) for other in kept if other is not one):
            kept.remove(one)
    if len(kept) == 1:
        return kept[0]
    texts = [{c.text for c in one.conditions} for one in kept]
    common = set.intersection(*texts)
    shared = [c for c in kept[0].conditions if c.text in common]
    rest = _shortened([[c for c in one.conditions if c.text not in common] for one in kept])
    one_of = Condition(_joined("or", [_joined("and", [c.term for c in some]) for some in rest if some]))
    if not all(rest) or _always(one_of.term):
        return replace(kept[0], conditions=shared)
    return replace(kept[0], conditions=[*shared, one_of])


def _covers(other: Alternative, one: Alternative) -> bool:
    """Whether another asks no more than this one: word by word, or of one size."""
    if {c.text for c in other.conditions} <= {c.text for c in one.conditions}:
        return True
    if not one.conditions or not other.conditions:
        return False
    more, less = (_joined("and", [c.term for c in some.conditions]) for some in (one, other))
    return _always(Term.of("or", Term.of("not", more), less))


def _shortened(several: Sequence[Sequence[Condition]]) -> list[list[Condition]]:
    """m != 3 or m == 3 and k > 4 as m != 3 or k > 4."""
    alone = [some[0].term for some in several if len(some) == 1]

    def otherwise(condition: Condition) -> bool:
        return any(_always(Term.of("or", term, condition.term)) for term in alone)

    return [list(some) if len(some) == 1 else [c for c in some if not otherwise(c)] for some in several]


def _always(term: Term) -> bool:
    """Whether a relation is true of all sizes: over one size, or one part of it is another's opposite."""
    if term.op == "or" and len(term.args) == 2:
        one, other = term.args
        if one.op == _OPPOSITE.get(other.op) and one.args == other.args:
            return True
    return always(term)


def _joined(op: str, terms: Sequence[Term]) -> Term:
    return terms[0] if len(terms) == 1 else Term.of(op, *terms)


def _total(sizes: Sizes) -> tuple[int, int, int, str]:
    """The plainest sizes first: distinct ones, of at least 2, and small."""
    values = list(sizes.values())
    return values.count(1), len(values) - len(set(values)), sum(values), str(values)


def _generality(sizes: Sizes) -> tuple[int, int, int]:
    """No sizes of 1, no two that are equal, and none that is small, as far as can be."""
    values = list(sizes.values())
    return -values.count(1), len(set(values)), min((n for n in values if n > 1), default=0)
