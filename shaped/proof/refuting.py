"""A refutation, held against runs on real tensors: nothing is refuted unless a run fails at the sizes that are named.

What plain torch does without a word (a broadcast that a mean hides) and what an annotation within the program claims
are refuted all the same.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from shaped.errors import Goal, ProofError, ShapedError, Source, Unprovable, first_line
from shaped.proof.source import is_own, place_of_traceback
from shaped.proof.symbolic import Plan
from shaped.proof.trials import Trials
from shaped.proof.ways import way_under_way
from shaped.shapes import Term

PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109)
_FAILURES = 20  # that are held against the one on symbolic sizes
_TRIED = 100  # sizes, for two shapes that differ
_SIZED = (AssertionError, IndexError, ZeroDivisionError)  # of a program's own: what sizes may be the cause of

Sizes = Mapping[str, int]


def refuted(error: Exception, trials: Trials, several: Iterable[Sizes]) -> Exception:
    """What to raise: a ProofError with sizes at which a run fails; Unprovable where all go through; else the error."""
    if isinstance(error, ShapedError) and not isinstance(error, ProofError):
        return error
    tried = _once(several)
    if isinstance(error, ProofError) and (error.goal.silent or error.goal.operation == "claim"):
        return _named(error, _differing(error, trials, tried))
    if isinstance(error, ProofError) and trials.setting.strategy is not None:  # trials run the loss, no strategy
        return error
    failing, passed = trials.first_failure(tried)
    if isinstance(error, ProofError):
        if failing is not None:
            alike = _alike_among(error, trials, failing, tried)
            if alike is None and way_under_way() is not None:  # another fault, perhaps one of values
                return _unknown(error.source, trials, error.goal, 0)
            return _named(error, alike) if alike is not None else fails_at(failing, trials)
        return _unknown(error.source, trials, error.goal, passed) if passed else error
    if failing is not None and (passed or isinstance(error, _SIZED) or not is_own(error)):
        return fails_at(failing, trials)
    if passed or not is_own(error):
        place = place_of_traceback(error.__traceback__)
        return _unknown(place.source() if place else None, trials, Goal(said=first_line(error)), passed)
    return error


def _once(several: Iterable[Sizes]) -> Iterator[Sizes]:
    """Without repetition, which would be counted among the sizes that were tried."""
    seen = set[tuple[int, ...]]()
    for sizes in several:
        key = tuple(sizes.values())
        if key not in seen:
            seen.add(key)
            yield sizes


def _named(error: ProofError, sizes: Sizes | None) -> ProofError:
    """The error with sizes at which it shows."""
    if sizes is None:
        return error
    found = ProofError(error.title, error.source, replace(error.goal, sizes=dict(sizes)))
    found.names, found.lacking, found.between, found.steps = error.names, error.lacking, error.between, error.steps
    return found


def _differing(error: ProofError, trials: Trials, tried: Iterable[Sizes]) -> Sizes | None:
    """The first sizes, of those that somebody may have, at which two shapes that should be one are not."""
    if error.between is None:
        return None
    one, other = error.between
    for sizes in itertools.islice(tried, _TRIED):
        pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not None and b is not None]
        differ = len(one) != len(other) or any(Term.of("!=", a, b).holds(sizes) for a, b in pairs)
        if (differ or one == other) and trials.can_be(sizes):
            return sizes
    return None


def _alike_among(error: ProofError, trials: Trials, first: Sizes, tried: Iterator[Sizes]) -> Sizes | None:
    """The first sizes at which a run fails as the symbolic one does."""
    failing: Sizes | None = first
    for _ in range(_FAILURES):
        if failing is None or _alike(error, trials.failure(failing)):
            return failing
        failing, _ = trials.first_failure(tried)
    return None


def _alike(error: ProofError, failure: Exception) -> bool:
    """Whether a real run fails as the symbolic one does: in its result, or at the same line."""
    place = place_of_traceback(failure.__traceback__)
    if isinstance(failure, ShapedError) or error.source is None or place is None:
        return error.goal.operation == "result" or way_under_way() is None
    source = place.source()
    return (source.file, source.line) == (error.source.file, error.source.line)


def _unknown(source: Source | None, trials: Trials, goal: Goal, passed: int) -> Unprovable:
    name = trials.setting.signature.name
    ran = f", but ran at all of the {passed} sizes tried" if passed else ""
    title = f"`{name}` is neither proved nor refuted: this fails on symbolic sizes{ran}."
    hint = goal.hint or "write it with other operations, or declare static=(...), which proves each size as it comes"
    return Unprovable(title, source, replace(goal, hint=hint))


def fails_at(sizes: Sizes, trials: Trials) -> ProofError:
    """What a real run says at these sizes, at the line where it stops."""
    error = trials.failure(sizes)
    name = trials.setting.signature.name
    place = place_of_traceback(error.__traceback__)
    source = place.source() if place else None
    if isinstance(error, ShapedError):
        goal = Goal("result", first_line(error), sizes=dict(sizes))
        return ProofError(f"`{name}` does not return what it declares.", None, goal)
    said = first_line(error)
    if isinstance(error, AssertionError) and is_own(error):
        said = f"AssertionError: {error}".removesuffix(": ")
        return ProofError(f"`{name}` refuses some sizes itself.", source, Goal(raised=said, sizes=dict(sizes)))
    return ProofError(f"`{name}` is not well-shaped.", source, Goal(said=said, sizes=dict(sizes)))


def refuses(error: Exception) -> bool:
    """Whether it is the program's own `assert` or `raise` about sizes, which other sizes may satisfy."""
    kinds = (RuntimeError, TypeError, IndexError, LookupError, AttributeError, NameError)  # torch raises these
    return is_own(error) and not isinstance(error, kinds)


def small_sizes(names: Sequence[str], plan: Plan, skipped: int) -> dict[str, int]:
    """A prime for each name that is free, a multiple or the equal for the others."""
    sizes: dict[str, int] = {}
    primes = itertools.islice((2, 3, *PRIMES), skipped, None)
    free = [n for n in names if n not in plan.equal and n not in plan.multiples]
    for name in [*free, *plan.multiples, *plan.equal]:
        if name in plan.constants:
            sizes[name] = plan.constants[name]
        elif name in plan.equal:
            sizes[name] = plan.equal[name].evaluate(sizes)
        else:
            factor = plan.multiples[name].evaluate(sizes) if name in plan.multiples else 1
            sizes[name] = factor * next(primes, 101) + plan.rests.get(name, 0)
    return {name: sizes[name] for name in names}
