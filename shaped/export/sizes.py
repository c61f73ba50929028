"""Sizes to try: those that the conditions admit, unlike each other if possible, and those where programs branch."""

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from shaped.proof import Proof

Sizes = Mapping[str, int]
_TRIED = 5000  # tuples of sizes
_SIZES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 24, 32, 64, 1)


def example(proof: Proof, known: Sizes, free: Sequence[str], fits: Callable[[Sizes], bool]) -> Sizes | None:
    """The plainest sizes: at least 2, unlike each other and unlike what is known, in the branch that was traced."""
    taken = {*known.values(), 0, 1}
    found = [some for some in _tuples(proof, known, free, fits) if all(c.holds(some) for c in proof.branch)]
    return min(found, key=lambda some: _likeness(some, free, taken), default=None)


def others(proof: Proof, known: Sizes, free: Sequence[str], fits: Callable[[Sizes], bool], first: Sizes) -> list[Sizes]:
    """Sizes to hold an exported program at: the first, larger ones, one at a time of 1, and other branches' sizes."""
    found = list(_tuples(proof, known, free, fits))
    chosen: list[Sizes] = [first]
    elsewhere = [[some for some in found if not relation.holds(some)] for relation in proof.branch]
    plain = [[some for some in beyond if all(some[name] > 1 for name in free)] for beyond in elsewhere]
    for beyond in (*plain, *elsewhere):  # a relation that is asked of larger sizes says more than `batch >= 2`
        chosen += _nearest(beyond, first, free)
    for name in free:  # every name alone at 1, and then at another size
        chosen += _nearest([some for some in found if some[name] == 1], first, free)
        chosen += _nearest([some for some in found if some[name] not in (1, first[name])], first, free)
    chosen += [max(found, key=lambda some: sum(some[name] for name in free))] if found else []
    chosen += [min(found, key=lambda some: sum(some[name] for name in free))] if found else []
    unique = {tuple(some[name] for name in free): some for some in chosen}
    return list(unique.values())


def _nearest(found: Sequence[Sizes], first: Sizes, free: Sequence[str]) -> list[Sizes]:
    """The one that differs from the first in the fewest names."""
    ranked = sorted(found, key=lambda some: (sum(some[n] != first[n] for n in free), sum(some[n] for n in free)))
    return ranked[:1]


def _tuples(proof: Proof, known: Sizes, free: Sequence[str], fits: Callable[[Sizes], bool]) -> list[Mapping[str, int]]:
    """Sizes of the free names that the proof admits."""
    values = dict.fromkeys((*_SIZES, *(size for size in known.values() if size <= 64)))
    every: Iterable[tuple[int, ...]] = itertools.product(values, repeat=len(free))
    if len(values) ** len(free) > _TRIED:
        draw = random.Random(0)
        pool = list(values)
        drawn = (tuple(draw.choice(pool) for _ in free) for _ in range(_TRIED))
        alone = (tuple(v if i == j else 3 + j for j in range(len(free))) for i in range(len(free)) for v in pool)
        every = itertools.chain(alone, drawn)
    tuples = ({**known, **dict(zip(free, some, strict=True))} for some in every)
    return [some for some in tuples if all(c.holds(some) for c in proof.side_conditions) and fits(some)]


def _likeness(some: Sizes, free: Sequence[str], taken: set[int]) -> tuple[int, int, int]:
    sizes = [some[name] for name in free]
    return len(sizes) - len(set(sizes)), sum(size in taken for size in sizes), sum(sizes)
