"""A function or method proved in each of its cases: alternatives of its arguments, and numbers of `*batch` axes."""

import inspect
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from shaped.check.choices import MOST, Inventor, ValueChoice, combined, has_shape
from shaped.check.instances import Instances, hints_of
from shaped.check.programs import Case, CaseProgram, Held, admits_both
from shaped.check.refusals import Refusal, Unbuilt, words
from shaped.check.targets import Target
from shaped.check.written import Fresh, axes_of, read_written
from shaped.errors import ProofError, SignatureError, Unprovable, first_line
from shaped.proof.source import place_of_traceback
from shaped.shapes import is_tensor_annotation

_RANKS = (1, 0, 2, 3)  # axes of a `*batch`
_ABOUT_DTYPES = re.compile(r"dtype|scalar type|floating|type int")
_OWNERS = ("made", "plain", "blank", "whole")  # ways to come by an instance
_PATIENCE = 30  # seconds of a process's own, after which other cases are left out
_RUNS = 100  # on real tensors, of a case after the first


@dataclass
class Examined:
    """What was proved of a target."""

    target: Target
    result: Any  # its annotation
    held: list[Held] = field(default_factory=list)
    left_out: Sequence[str] = ()
    failed: list[tuple[Case, ProofError | Unprovable]] = field(default_factory=list)  # where a shape was only tried


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
    _read: tuple[str, ...] = ()  # sizes that the last case reads as numbers

    def examine(self) -> Examined:
        """Prove every case.

        Raises:
            ProofError, Unprovable: Of the first case that is not proved.
        """
        method = self.target.kind == "method"
        new = self.target.name.endswith(".__init__")
        reasons: list[Exception] = []
        told = self.instances.factories.attributes(self.target.owner, "", []) if method and self.target.owner else {}
        owners = ("new", "new plain") if new else ("blank", *_OWNERS) if told else _OWNERS if method else ("", "plain")
        for owner in dict.fromkeys(owners):
            try:
                return self._examine(owner)
            except ProofError as error:
                if owner not in ("blank", "whole") or told:
                    raise
                reasons.append(error)  # by an instance that perhaps no constructor makes: it refutes nothing
            except Exception as error:
                reasons.append(error)
        raise _telling(reasons)

    def _examine(self, owner: str) -> Examined:
        hints = hints_of(inspect.unwrap(self.target.function))
        around = hints_of(inspect.unwrap(self.target.within)) if self.target.within is not None else {}
        names, given = frozenset(dimensions([*hints.values(), *around.values()])), self.instances.factories.given
        inventor = Inventor(names, self.instances, given, self.target.name)
        cases, left = self._cases(inventor, hints, owner)
        examined = Examined(self.target, hints.get("return"))
        self._read = ()
        refusals: list[tuple[Case, Exception]] = []
        unfit: list[tuple[Case, ProofError | Unprovable]] = []
        started = time.process_time()
        for i, case in enumerate(cases):
            if examined.held and time.process_time() - started > _PATIENCE:
                left.append(f"{len(cases) - i} of {len(cases)} cases, after {_PATIENCE} s")
                break
            try:
                examined.held.append(self._held(case, examined.result, inventor, case is cases[0]))
            except (ProofError, Unprovable) as error:
                where = _in(case, error)
                if any(_is_again(error, refusal) for other, refusal in refusals if other.said == case.said):
                    refusals.append((case, error))
                    continue
                if case.is_given and isinstance(error, ProofError) and _is_of_the_given(case, error):
                    unfit.append((case, where))  # what the factory made has as many axes as it has
                    continue
                if not any(choice.tried for choice in case.choices):
                    raise where from None
                examined.failed.append((case, where))
            except Exception as error:
                if not isinstance(error, Refusal) and not (case.said and (raises(error) or _lacks(case, error))):
                    raise
                refusals.append((case, error))
        if examined.failed:
            case, where = examined.failed[0]
            raise _untold(where, case, examined.held[0].case if examined.held else None)
        if unfit and not examined.held:
            fault = unfit[0][1]
            hint = "what the factory makes may have other axes and sizes: say which (width := 12)"
            raise Unprovable(fault.title, fault.source, replace(fault.goal, hint=hint, sizes={}))
        if not examined.held:
            first = refusals[0][1]
            raise _refusing(refusals[0][0], first) if isinstance(first, Refusal) else first
        refused = [f"{' and '.join(case.said)} ({_said(error)})" for case, error in refusals]
        refused += [f"{' and '.join([*case.said, case.axes])} ({first_line(error)})" for case, error in unfit]
        examined.left_out = list(dict.fromkeys([*refused, *left, *inventor.left_out]))
        return examined

    def _held(self, case: Case, result: Any, inventor: Inventor, first_case: bool) -> Held:
        """A case proved: with floating-point numbers where any dtype is admitted, or else with whole ones."""
        entries = [entry for choice in case.choices for entry in choice.value.entries]
        both = tuple(entry.path for entry in entries if admits_both(entry.spec))
        for whole in (False, True) if both else (False,):
            program = CaseProgram(self.target, case, result, inventor.ints, inventor.dims, self.auto, whole)
            if not first_case:
                program.runs, program.once = _RUNS, True
            program.read = [name for name in self._read if name in program.names]
            try:
                held = program.prove(self.assume, self.static)
            except Exception as error:
                if not whole or _ABOUT_DTYPES.search(str(first)):
                    first: Exception = error
                continue
            held.whole = both if whole else ()
            self._read = tuple(program.read)  # as a rule the next case reads them as well
            return held
        raise first

    def _cases(self, inventor: Inventor, hints: Mapping[str, Any], owner: str) -> tuple[list[Case], list[str]]:
        target = self.target
        first = inspect.unwrap(target.within or target.function)
        parameters = list(inspect.signature(first).parameters.values())
        parameters = parameters[1:] if target.kind != "function" else parameters
        inventor.plain = owner not in ("", "made", "new")
        options = self._options(inventor, hints_of(first), parameters, target.name.partition(".<locals>.")[0])
        if target.within is not None:
            more = list(inspect.signature(target.function).parameters.values())
            options += self._options(inventor, hints, more, target.name.replace(".<locals>", ""))
        owners: list[ValueChoice | None] = [None]
        if target.kind == "method" and target.owner is not None:
            owners = list(self._owners(inventor, target.owner, owner))
        given = [parameter for parameter, _ in options]
        every: list[Sequence[Any]] = [owners, *(some for _, some in options)]
        chosen, left = combined(every)
        combinations = [(some[0], tuple(zip(given, some[1:], strict=True))) for some in chosen]
        cases, skipped = _with_axes(combinations)
        count = left + skipped
        return cases, [f"{count} of {count + len(cases)} combinations"] if count else []

    @staticmethod
    def _options(
        inventor: Inventor, hints: Mapping[str, Any], parameters: Sequence[inspect.Parameter], owner: str
    ) -> list[tuple[inspect.Parameter, list[ValueChoice]]]:
        """What each argument of a function may be."""
        inventor.owner = owner
        inventor.left_out += [f"any *{p.name}" for p in parameters
                              if p.kind is p.VAR_POSITIONAL and has_shape(hints.get(p.name))]  # fmt: skip
        options = inventor.arguments(parameters, hints)
        return [(parameter, options[parameter.name]) for parameter in parameters if parameter.name in options]

    def _owners(self, inventor: Inventor, kind: type, owner: str) -> list[ValueChoice]:
        """What a method is called on, in a way to come by it."""
        if owner.startswith("new"):
            return [self.instances.fresh(kind, "self")]
        if owner in ("made", "plain"):
            return inventor.instance(kind, "self")
        return [self.instances.blank(inventor, kind, "self", whole=owner == "whole")]


def _is_again(error: ProofError | Unprovable, refusal: Exception) -> bool:
    """Whether an alternative is refused as it was with another number of axes."""
    known = refusal.error if isinstance(refusal, Refusal) else refusal
    if not isinstance(known, ProofError | Unprovable) or not error.goal.raised:
        return False
    return (known.goal.raised, str(known.source)) == (error.goal.raised, str(error.source))


def _is_of_the_given(case: Case, error: ProofError) -> bool:
    """Whether what a factory made may be at fault: it has the axes that it has, and its sizes, or none is to blame."""
    goal, lacking = error.goal, error.lacking
    numbers = lacking is not None and not any(side.names for side in lacking)  # 2 = 3, of which one may be its own
    return not goal.silent and (
        bool(case.ranks) or numbers or not (goal.sizes or goal.operation in ("claim", "result"))
    )


def _telling(reasons: Sequence[Exception]) -> Exception:
    """Of the reasons why a method could not be proved on an instance of each kind, the one to give."""
    made, plain = reasons[:2]
    for error in (made, plain):
        if not isinstance(error, Unbuilt):
            return error
    inner = made.error if isinstance(made, Unbuilt) else made
    return inner if isinstance(inner, Unprovable) else made


def raises(error: Exception) -> bool:
    """Whether the program's own `raise` refuses what it is given, sizes apart."""
    place = place_of_traceback(error.__traceback__)
    return place is not None and place.source().text.startswith("raise ") and not isinstance(error, Unbuilt)


def _lacks(case: Case, error: Exception) -> bool:
    """Whether it is for want of an attribute that its class lets be absent, and nobody said that the function does."""
    absent = any(text.endswith(" absent") and "." in text for text in case.said)
    return absent and isinstance(error, TypeError | AttributeError) and "NoneType" in str(error)


def _refusing(case: Case, refusal: Refusal) -> Unprovable:
    """The program refuses every alternative that was made for it, whatever the sizes: others may be what it wants."""
    error = _in(case, refusal.error)
    hint = "say what is meant: --make 'Net(Config(dim=8))', or --make 'name=...'"
    return Unprovable(error.title, error.source, replace(error.goal, hint=hint, sizes={}))


def _said(error: Exception) -> str:
    if isinstance(error, ProofError | Unprovable) and error.goal.raised:
        return error.goal.raised
    return str(error) if isinstance(error, Refusal) else words(error)


def _in(case: Case, error: ProofError | Unprovable) -> ProofError | Unprovable:
    """The error of a case, which says what was chosen."""
    axes = "" if set(case.ranks.values()) == {_RANKS[0]} else case.axes  # one axis is what is tried first
    where = " and ".join(filter(None, [*case.said, axes]))
    if not where:
        return error
    changed = type(error)(f"{error.title[:-1]} where {where}{error.title[-1]}", error.source, error.goal)
    changed.names, changed.lacking, changed.steps = error.names, error.lacking, error.steps
    return changed


def _untold(error: ProofError | Unprovable, case: Case, passing: Case | None = None) -> Unprovable:
    """What no annotation tells: what fails for some values of it refutes nothing; where it goes through is said."""
    through = f"; it goes through where {' and '.join(passing.said)}" if passing is not None else ""
    shapeless = any(choice.tried and choice.value.spec is not None for choice in case.choices)
    what = "a Tensor without a shape may have any" if shapeless else "what no annotation tells was only tried"
    goal = replace(error.goal, hint=f"{what}: annotate it{through}", sizes={})
    return Unprovable(error.title, error.source, goal)


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
