"""A function or method proved in each of its cases: alternatives of its arguments, and numbers of `*batch` axes."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from shaped.check.choices import MOST, Inventor, ValueChoice, combined
from shaped.check.instances import Instances, hints_of
from shaped.check.programs import Case, CaseProgram, Held, Unbuilt, admits_both
from shaped.check.targets import Target
from shaped.check.written import Fresh, axes_of, read_written
from shaped.errors import ProofError, SignatureError, Unprovable
from shaped.shapes import is_tensor_annotation

_RANKS = (1, 0, 2, 3)  # axes of a `*batch`
_ABOUT_DTYPES = re.compile(r"dtype|scalar type|floating|type int")
_RUNS = 100  # on real tensors, of a case after the first


@dataclass
class Examined:
    """What was proved of a target."""

    target: Target
    result: Any  # its annotation
    held: list[Held] = field(default_factory=list)
    left_out: Sequence[str] = ()
    failed: list[ProofError | Unprovable] = field(default_factory=list)  # where a shape was only tried


@dataclass
class Prover:
    """Proves one target.

    Args:
        instances: How instances are made.
        assume: Relations to take as given, for the cases that have their names.
        static: Names with their sizes, None for one of our choice.
        auto: Take a dimension that the program reads as a number at some numbers, as integers are.
    """

    target: Target
    instances: Instances
    assume: Sequence[str] = ()
    static: Mapping[str, int | None] = field(default_factory=dict)
    auto: bool = False

    def examine(self) -> Examined:
        """Prove every case.

        Raises:
            ProofError, Unprovable: Of the first case that is not proved.
        """
        if self.target.kind != "method":
            return self._examine("")
        if self.target.name.endswith(".__init__"):
            return self._examine("new")
        try:
            return self._examine("made")
        except Unbuilt as error:
            reason: Exception = error.error if isinstance(error.error, Unprovable) else error
        except (Unprovable, SignatureError) as error:
            reason = error
        try:  # a method that reads nothing of its instance
            return self._examine("blank")
        except (Unbuilt, Unprovable, SignatureError, AttributeError, TypeError):
            raise reason from None

    def _examine(self, owner: str) -> Examined:
        hints = hints_of(inspect.unwrap(self.target.function))
        inventor = Inventor(frozenset(dimensions(hints.values())), self.instances, self.instances.factories.given)
        cases, left = self._cases(inventor, hints, owner)
        examined = Examined(self.target, hints.get("return"))
        for case in cases:
            runs = _RUNS if case is not cases[0] else None
            try:
                examined.held.append(self._held(case, examined.result, inventor, runs))
            except (ProofError, Unprovable) as error:
                where = _in(case, error)
                if not any(choice.tried for choice in case.choices):
                    raise where from None
                examined.failed.append(where)
        if examined.failed:
            raise _without_shape(examined.failed[0], examined.held[0].case if examined.held else None)
        examined.left_out = list(dict.fromkeys([*left, *inventor.left_out]))
        return examined

    def _held(self, case: Case, result: Any, inventor: Inventor, runs: int | None) -> Held:
        """A case proved: with floating-point numbers where any dtype is admitted, or else with whole ones."""
        entries = [entry for choice in case.choices for entry in choice.value.entries]
        both = tuple(entry.path for entry in entries if admits_both(entry.spec))
        for whole in (False, True) if both else (False,):
            program = CaseProgram(self.target, case, result, inventor.ints, inventor.dims, self.auto, whole)
            program.runs = runs or program.runs
            try:
                held = program.prove(self.assume, self.static)
            except (ProofError, Unprovable, Unbuilt) as error:
                if not whole or _ABOUT_DTYPES.search(str(first)):
                    first: Exception = error
                continue
            held.whole = both if whole else ()
            return held
        raise first

    def _cases(self, inventor: Inventor, hints: Mapping[str, Any], owner: str) -> tuple[list[Case], list[str]]:
        target = self.target
        parameters = list(inspect.signature(inspect.unwrap(target.function)).parameters.values())
        parameters = parameters[1:] if target.kind != "function" else parameters
        options = inventor.arguments(parameters, hints)
        owners: list[ValueChoice | None] = [None]
        if owner in ("blank", "new") and target.owner is not None:
            owners = [self.instances.blank(inventor, target.owner, "self", whole=owner == "blank")]
        elif owner == "made" and target.owner is not None:
            owners = list(self.instances(inventor, target.owner, "self"))
        given = [parameter for parameter in parameters if parameter.name in options]
        every: list[Sequence[Any]] = [owners, *(options[parameter.name] for parameter in given)]
        chosen, left = combined(every)
        combinations = [(some[0], tuple(zip(given, some[1:], strict=True))) for some in chosen]
        cases, skipped = _with_axes(combinations)
        count = left + skipped
        return cases, [f"{count} of {count + len(cases)} combinations"] if count else []


def _in(case: Case, error: ProofError | Unprovable) -> ProofError | Unprovable:
    """The error of a case, which says what was chosen."""
    axes = "" if set(case.ranks.values()) == {_RANKS[0]} else case.axes  # one axis is what is tried first
    where = " and ".join(filter(None, [*case.said, axes]))
    if not where:
        return error
    changed = type(error)(f"{error.title[:-1]} where {where}{error.title[-1]}", error.source, error.goal)
    changed.names, changed.lacking = error.names, error.lacking
    return changed


def _without_shape(error: ProofError | Unprovable, passing: Case | None = None) -> Unprovable:
    """A tensor whose annotation has no shape: what fails for some refutes nothing; where it goes through is said."""
    through = f"; it goes through where {' and '.join(passing.said)}" if passing is not None else ""
    hint = "a Tensor without a shape may have any: annotate it" + through
    return Unprovable(error.title, error.source, replace(error.goal, hint=hint, sizes={}))


Combination = tuple[ValueChoice | None, tuple[tuple[inspect.Parameter, ValueChoice], ...]]


def _with_axes(combinations: Sequence[Combination]) -> tuple[list[Case], int]:
    """Cases for each number of `*batch` axes: all of them for the first combination, as many as may be for the others.

    Where several have any number of axes, they have as many as each other first.
    """
    cases: list[Case] = []
    skipped = 0
    for i, (owner, arguments) in enumerate(combinations):
        values = [choice.value for choice in [*([owner] if owner else []), *(choice for _, choice in arguments)]]
        names = list(dict.fromkeys(n for value in values for e in value.entries for n in axes_of(e.spec)))
        alike = [(rank,) * len(names) for rank in _RANKS] if names else [()]
        every, left = combined([_RANKS] * len(names))
        ranks = [*alike, *(some for some in every if some not in alike)]
        room = max(1, (MOST - len(cases)) // max(1, len(combinations) - i)) if i else MOST
        skipped += left + len(ranks) - len(ranks[:room])
        cases += [Case(arguments, owner, dict(zip(names, some, strict=True))) for some in ranks[:room]]
    return cases, skipped


def dimensions(hints: Any) -> Iterator[str]:
    """Every name of an axis in some annotations."""
    for hint in hints:
        if not is_tensor_annotation(hint):
            yield from dimensions(get_args(hint))
            continue
        try:
            for reading in read_written(hint, "", Fresh()):
                yield from (name for dim in reading.spec.dims for name in dim.names)
        except SignatureError:
            continue
