"""Traces under one plan after another, until one goes through."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from shaped.proof.explain import is_unprovable
from shaped.proof.plans import needed_multiple, repairs, with_multiple
from shaped.proof.setting import Setting
from shaped.proof.symbolic import Plan, World, hint
from shaped.proof.trace import Recorder, Trace, trace
from shaped.shapes import Dim


class Found(NamedTuple):
    """A trace that went through, under a plan."""

    trace: Trace
    plan: Plan


class Failure(NamedTuple):
    """One that did not."""

    error: Exception
    world: World
    recorder: Recorder


def attempts(setting: Setting, names: Sequence[str], plan: Plan, most: int, meant: bool = False) -> "Found | Failure":
    """Trace until it goes through; where the hints were unlucky, repair them and try again.

    Unlucky is: not divisible, or in the wrong order. What a repaired hint decided comes back as a question and so
    as a condition. If nothing helps, the failure of the attempt that got furthest is the one to explain.

    Args:
        meant: The hints are sizes at which a run went through, so that a rest which they leave is tried before none.
    """
    failures: list[Failure] = []
    waiting = [plan]
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
            return Found(trace(setting, world, recorder), plan)
        except _Substitution as needed:
            whole = with_multiple(plan, needed.multiple)
            rest = _as_it_was(whole, needed.multiple, world)
            waiting[:0] = [rest, whole] if meant else [whole, rest]
        except Exception as error:
            failures.append(Failure(error, world, recorder))
            if is_unprovable(error):
                break
            waiting.extend(repairs(world, plan))  # the user's own `assert seq <= 16` too may need other hints
    return max(failures, key=lambda failure: len(failure.recorder.steps))


def _as_it_was(by: Plan, multiple: tuple[str, Dim], world: World) -> Plan:
    """With the rest that the size had, where it was none: n = 4*(n//4) + 1."""
    name, divisor = multiple
    sizes = {n: hint(value) for n, value in world.values.items()}
    quotient, rest = divmod(sizes[name], divisor.evaluate(sizes))
    if rest == 0 or divisor.constant is None:
        return by
    return replace(by, rests={**by.rests, name: rest}, hints={**by.hints, name: max(quotient, 2)})


class _Substitution(BaseException):
    """Ends a trace that needs dim = heads*(dim//heads); no `except Exception` of the user's stops it."""

    def __init__(self, multiple: tuple[str, Dim]) -> None:
        self.multiple = multiple


def _substitute(world: World, fact: Any, number: bool) -> None:
    """Trace again where a divisibility was asked for: the layout questions that hang on the floor division vanish."""
    multiple = needed_multiple(fact, number, world)
    if multiple is not None:
        raise _Substitution(multiple)
