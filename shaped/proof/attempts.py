"""Traces under one plan after another, until one goes through."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from shaped.errors import ProofError, Unprovable
from shaped.proof.explain import explain, is_unprovable
from shaped.proof.goals import lacking, last_answer
from shaped.proof.isolation import hush
from shaped.proof.plans import divided, larger, needed_multiple, repairs, sizes_of, splits, with_multiple
from shaped.proof.setting import Setting
from shaped.proof.symbolic import Plan, World, size_hint
from shaped.proof.trace import Recorder, Trace, trace
from shaped.shapes import Dim, Term

_DIVISIONS = 6  # traces from one set of sizes
_FIXED = 4  # names that may have one size only in a program that was written for any


class FoundTrace(NamedTuple):
    """A trace that went through, under a plan."""

    trace: Trace
    plan: Plan


class Failure(NamedTuple):
    """One that did not."""

    error: Exception
    world: World
    recorder: Recorder


def attempts(setting: Setting, names: Sequence[str], plan: Plan, most: int) -> "FoundTrace | Failure":
    """Trace until it goes through; where the size hints were unlucky, repair them and try again.

    Unlucky is: not divisible, or in the wrong order. What a repaired size hint decided comes back as a question and so
    as a condition. A repair that gets further is repaired before others are tried: `h % 8 == 0`, and then `w % 8 == 0`.
    If nothing helps, the failure of the attempt that got furthest is the one to explain.
    """
    failures: list[Failure] = []
    waiting = [plan]
    furthest = (0, 0)
    seen: set[str] = set()
    while waiting and len(seen) < most:
        plan = waiting.pop(0)
        if repr(plan) in seen:
            continue
        seen.add(repr(plan))
        world = World(names, plan)
        recorder = Recorder(world)
        if len(plan.multiples) <= len(names):
            world.env.notice = partial(_substitute, world)
        try:
            return FoundTrace(trace(setting, world, recorder), plan)
        except _Substitution as needed:
            whole = with_multiple(plan, needed.multiple)
            waiting[:0] = larger(world, plan) or [whole, _as_it_was(whole, needed.multiple, world)]
        except Exception as error:
            failures.append(Failure(error, world, recorder))
            if is_unprovable(error):
                break
            reached = len(recorder.steps), getattr(error, "held", 0)
            first = 0 if reached > furthest else len(waiting)
            furthest = max(reached, furthest)
            # The user's own `assert seq <= 16` too may need other size hints.
            waiting[first:first] = [*larger(world, plan), *repairs(world, plan)]
        finally:
            world.env.notice = None  # what explains a failure asks sizes too
            hush()
    return max(failures, key=lambda failure: len(failure.recorder.steps))


def explained(failure: Failure, setting: Setting, names: Sequence[str]) -> Exception:
    """What to say of a failure; with the names that stand for one size only, where it goes through with these."""
    error = explain(failure.error, setting, failure.world, failure.recorder)
    if isinstance(error, ProofError | Unprovable):
        error.steps = tuple(failure.recorder.steps)
    if not isinstance(error, ProofError) or error.goal.hint or error.goal.equation != last_answer(failure.world):
        return error
    fixed = _of_one_size(failure, setting, names)
    if fixed:
        sizes = " and ".join(f"{size} for {name}" for name, size in fixed.items())
        error.goal = replace(error.goal, hint=f"write {sizes} in the annotations: with that it goes through")
    return error


def _of_one_size(failure: Failure, setting: Setting, names: Sequence[str]) -> dict[str, int]:
    """The numbers that torch wants for some names, one after the other, with which a trace goes through; else none."""
    fixed: dict[str, int] = {}
    plan = failure.world.plan
    while len(fixed) < _FIXED:
        match lacking(failure.world):
            case (Term("name", (name,)), Term("number", (int(size),))) | (
                Term("number", (int(size),)),
                Term("name", (name,)),
            ) if name in names and plan.is_free(name):
                fixed[name] = size
            case _:
                break
        hints = {other: size for other, size in plan.size_hints.items() if other not in fixed}
        plan = replace(plan, size_hints=hints, constants={**plan.constants, **fixed})
        found = attempts(setting, names, plan, 2)
        if isinstance(found, FoundTrace):
            return fixed
        failure = found
    return {}


def attempt_at(setting: Setting, names: Sequence[str], plan: Plan) -> FoundTrace | None:
    """Trace at the sizes that a plan has, each of them divided as it is there, until it goes through."""
    waiting, seen = [plan], set[str]()
    sizes = sizes_of(names, plan)
    while waiting and len(seen) < _DIVISIONS:
        plan = waiting.pop(0)
        if repr(plan) in seen or sizes is None or sizes_of(names, plan) != sizes:
            continue
        seen.add(repr(plan))
        world = World(names, plan, grants=True)
        world.env.notice = partial(_divide, world, sizes)
        try:
            return FoundTrace(trace(setting, world, Recorder(world)), plan)
        except _Substitution as needed:
            waiting[:0] = filter(None, [divided(plan, needed.multiple, sizes)])
        except Exception as error:
            if is_unprovable(error):
                break
            waiting.extend(splits(world, plan, sizes))
        finally:
            world.env.notice = None
    return None


def _as_it_was(by: Plan, multiple: tuple[str, Dim], world: World) -> Plan:
    """With the rest that the size had, where it was none: n = 4*(n//4) + 1."""
    name, divisor = multiple
    sizes = {n: size_hint(value) for n, value in world.values.items()}
    quotient, rest = divmod(sizes[name], divisor.evaluate(sizes))
    if rest == 0 or divisor.constant is None:
        return by
    return replace(by, rests={**by.rests, name: rest}, size_hints={**by.size_hints, name: max(quotient, 2)})


class _Substitution(BaseException):
    """Ends a trace that needs dim = heads*(dim//heads); no `except Exception` of the user's stops it."""

    def __init__(self, multiple: tuple[str, Dim]) -> None:
        self.multiple = multiple


def _substitute(world: World, fact: Any, number: bool) -> None:
    """Trace again where a divisibility was asked for: the layout questions that hang on the floor division vanish."""
    multiple = needed_multiple(fact, number, world)
    if multiple is not None:
        raise _Substitution(multiple)


def _divide(world: World, sizes: Mapping[str, int], fact: Any, number: bool) -> None:
    """The same at sizes that stay, where they can be said to be divided."""
    multiple = needed_multiple(fact, number, world)
    if multiple is not None and divided(world.plan, multiple, sizes) is not None:
        raise _Substitution(multiple)
