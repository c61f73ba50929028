"""Before something is refuted: sizes at which plain torch really fails.

torch's shape functions refuse a few things that its kernels run. So a refutation names sizes at which the program was
run on real numbers and failed, or gave another result than it declares.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shaped.errors import ProofError, Unprovable
from shaped.proof.conditions import Condition
from shaped.proof.rehearsal import draw_sizes, really_fails
from shaped.proof.setting import Setting
from shaped.proof.symbolic import Plan, World
from shaped.proof.trace import run_forward

PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109)
_STARTS = 3  # sets of primes
_DRAWS = 12  # and of drawn sizes


@dataclass(frozen=True)
class Refuting:
    """What is tried: sizes that the initial plan and what is assumed admit."""

    setting: Setting
    names: Sequence[str]
    static: Mapping[str, int]
    assumed: Sequence[Condition]
    plan: Plan

    def with_sizes(self, error: ProofError) -> ProofError | Unprovable:
        """Add sizes at which it fails; Unprovable where plain torch runs at all that are tried.

        What torch lets pass in silence, and claims of annotations within the program, are looked at without data.
        """
        ran: Mapping[str, int] | None = None
        if not (error.goal.silent or error.goal.operation == "claim"):
            for sizes in self._candidates():
                fails = really_fails(self.setting, sizes)
                if fails:
                    return self._at(error, sizes)
                ran = sizes if fails is False else ran
        if ran is not None:
            name, at = self.setting.signature.name, ", ".join(f"{n} = {ran[n]}" for n in self.names)
            title = f"`{name}` is neither proved nor refuted: torch's shape functions refuse it, and at {at} it runs."
            hint = "static=(...) proves each size of a dimension as it comes"
            return Unprovable(title, error.source, replace(error.goal, equation="", context=(), hint=hint))
        for sizes in map(self._primes, range(_STARTS)):
            try:
                run_forward(self.setting, World(self.names, Plan({}, constants=sizes)))
            except Exception:
                return self._at(error, sizes)
        return error

    def _at(self, error: ProofError, sizes: Mapping[str, int]) -> ProofError:
        ordered = {name: sizes[name] for name in self.names}
        return ProofError(error.title, error.source, replace(error.goal, sizes=ordered))

    def _candidates(self) -> Iterator[Mapping[str, int]]:
        """Primes, then small sizes."""
        yield from map(self._primes, range(_STARTS))
        drawn = (draw_sizes(self.names, self.static, self.assumed, seed) for seed in range(_DRAWS))
        yield from (sizes for sizes in drawn if sizes is not None)

    def _primes(self, skipped: int) -> dict[str, int]:
        """A prime for each name that is free, a multiple or the equal for the others."""
        sizes: dict[str, int] = {}
        primes = itertools.islice((2, *(3, *PRIMES)), skipped, None)
        plan = self.plan
        for name in [
            *[n for n in self.names if n not in plan.equal and n not in plan.multiples],
            *plan.multiples,
            *plan.equal,
        ]:
            if name in plan.constants:
                sizes[name] = plan.constants[name]
            elif name in plan.equal:
                sizes[name] = plan.equal[name].evaluate(sizes)
            else:
                factor = plan.multiples[name].evaluate(sizes) if name in plan.multiples else 1
                sizes[name] = factor * next(primes, 101)
        return sizes
