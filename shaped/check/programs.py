"""One case as a program over tensors: its instance is made, it is called, its result is held; and its proof."""

import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shaped.check.choices import ValueChoice, has_shape, whole
from shaped.check.devices import OnTheCPU
from shaped.check.refusals import Refusal, Unbuilt, is_refusal
from shaped.check.results import Result, wrong_by_runs
from shaped.check.targets import Target
from shaped.check.trying import at_numbers, numbers_for, others_for
from shaped.check.within import Within, in_order
from shaped.check.written import names_of, spelled, with_ranks
from shaped.errors import ProofError, SignatureError, Unprovable, first_line, listing
from shaped.proof import ROUNDS, Decided, Proof, Setting, Uncounted, prove_setting, prove_ways
from shaped.shapes import Argument, Container, Dim, Signature, TensorSpec, Term

_SECONDS = 10.0  # of runs on real tensors, for one proof
_TIES = 4  # sizes that a program needs to be equal
_ROUNDS = 6  # of finding the names that it reads as numbers
_ENOUGH = 2  # sets of numbers for several names
_BEYOND = ("list index out of range", "tuple index out of range", "pop from empty list")
_COUNTED = 6  # whole numbers that data tell


@dataclass(frozen=True)
class Case:
    """Values for all arguments, and how many axes each `*batch` has."""

    arguments: tuple[tuple[inspect.Parameter, ValueChoice], ...]
    owner: ValueChoice | None  # what a method is called on
    ranks: Mapping[str, int]

    @property
    def choices(self) -> list[ValueChoice]:
        """What it is called on and with."""
        return [*([self.owner] if self.owner else []), *(choice for _, choice in self.arguments)]

    @property
    def is_given(self) -> bool:
        """Whether something of it was made once for all, of sizes that no annotation tells."""
        return any(choice.given for choice in self.choices)

    @property
    def said(self) -> tuple[str, ...]:
        """What was chosen."""
        return tuple(text for choice in self.choices for text in choice.said)

    @property
    def lengths(self) -> set[int]:
        """How long its lists are."""
        return {int(found[1]) for text in self.said if (found := re.match(r"len\(.+\) = (\d+)$", text))}

    @property
    def axes(self) -> str:
        """`*batch has 2 axes`."""
        parts = [f"{spelled(n)} has {r} ax{'i' if r == 1 else 'e'}s" for n, r in self.ranks.items()]
        return " and ".join(parts)


@dataclass
class Held:
    """A case that is proved, perhaps at several numbers where it reads some."""

    case: Case
    proofs: list[Proof]
    ties: Mapping[str, Dim]  # sizes that have to be equal: in_dim = input_dim
    found: str  # the result's shape
    refused: list[str] = field(default_factory=list)  # numbers at which it is not proved, and why
    branches: list[str] = field(default_factory=list)  # lines at which data decide: each way was proved
    refusals: list[str] = field(default_factory=list)  # lines that raise because of data
    counted: Mapping[str, str] = field(default_factory=dict)  # sizes that data tell: where
    numbers: list[str] = field(default_factory=list)  # lines that read a number from data
    whole: tuple[str, ...] = ()  # tensors of any dtype that were taken as int64


class CaseProgram:
    """A case, ready to be traced.

    Args:
        ints: Integers that were invented.
        dims: The names in the signature's annotations.
        auto: Take a dimension that the program reads as a number at some numbers, too.
        whole: Take int64 where any dtype is admitted, instead of a floating one.
    """

    def __init__(
        self, target: Target, case: Case, hint: Any, ints: Sequence[str], dims: frozenset[str], auto: bool,
        whole: bool = False,
    ) -> None:  # fmt: skip
        self.target, self.case, self.ints, self.dims = target, case, tuple(ints), dims
        self.auto, self.whole, self.runs = auto, whole, 400
        self.result = Result(hint, dict(case.ranks))
        self.within = Within(target) if target.within is not None else None
        self.ties: dict[str, Dim] = {}
        self.copied = False  # whether it is given copies, since it writes into its arguments
        self.once = False  # prove it at one set of numbers
        self.built = 0  # how often all values could be made
        self.read: list[str] = []  # names of sizes that are taken at some numbers
        self.branches: dict[str, None] = {}
        self.refusals: dict[str, None] = {}
        self.numbers: dict[str, None] = {}
        self.counted: dict[str, str] = {}  # names of sizes that data tell, with the line at which they do
        self.told: list[str] = []  # the names of these, in whichever attempt
        self.untold: Unprovable | None = None  # what is said where these lead nowhere

    def prove(self, assume: Sequence[str], static: Mapping[str, int | None]) -> Held:
        """Prove it, with sizes tied and integers as numbers where the program needs that.

        Raises:
            ProofError, Unprovable: It is not.
            Unbuilt: Its values could not be made.
        """
        while True:
            try:
                return self._numbered(assume, static)
            except ProofError as error:
                if (self.case.said or self.case.is_given or not self.names) and self.refuses(error):
                    raise Refusal(error) from None
                tie = self._tie(error) if len(self.ties) < _TIES else None
                if tie is None:
                    self._hold_built(error)
                    self._hold_tied(error)
                    raise error if self.within is None else self.within.blamed(error) from None
                self.ties |= tie
            except Exception as error:
                if not self.built:
                    raise Unbuilt(error) from error
                if self.case.said and isinstance(error, Unprovable) and self.refuses(error):
                    raise Refusal(error) from None
                sized = {name: size for name, size in static.items() if size is not None}
                shown = wrong_by_runs(*self._asked(assume, sized), self.names) if self._may_run(error) else None
                raise shown or self.untold or error from None

    def _may_run(self, error: Exception) -> bool:
        """Whether a result of real tensors that is no such result refutes what no trace comes to the end of."""
        nothing_tried = not any(choice.tried for choice in self.case.choices)
        return isinstance(error, Unprovable) and nothing_tried and self.within is None and has_shape(self.result.hint)

    def _numbered(self, assume: Sequence[str], static: Mapping[str, int | None]) -> Held:
        """Prove it for all integers, or at some numbers for those that it reads."""
        sizes = {name: size for choice in self.case.choices for name, size in choice.sizes}
        given = sizes | {name: size for name, size in static.items() if size is not None}
        names = self.read = list(dict.fromkeys([*(name for name, size in static.items() if size is None), *self.read]))
        why: Exception | None = None
        for _ in range(_ROUNDS):
            try:
                first = self._once(assume, {**given, **numbers_for(names, 0, self.told)})
                pinned = self._pinned(first, (*names, *given))
                if not pinned:
                    break
                names += pinned
                continue
            except ProofError as error:
                if self._tie(error) is not None:
                    raise
                if names and why is None and self._is_shown(error):
                    return self._elsewhere(error, assume, given, names)
                if self._is_shown(error):
                    raise why or error from None
                reason: Exception = _unshown(error)
            except Exception as error:
                if isinstance(error, Unprovable) and error.writes and not self.copied:
                    self.copied = True  # what a call does to its arguments is no matter of shapes
                    continue
                reason = error
            if names and set(names) <= set(self.ints) and is_refusal(reason):  # of these numbers, before sizes are
                with suppress(Exception):
                    return self._elsewhere(reason, assume, given, names)
            may = None if self.auto else {*self.ints, *self.told}
            named = [n for n in getattr(reason, "names", ()) if (may is None or n in may) and n not in (*names, *given)]
            why = why if named else why or reason
            more = named or [n for n in self._sizes(reason, names) if n not in (*names, *given)]
            if not more:
                return self._elsewhere(why or reason, assume, given, names)
            names += more
        else:
            raise Unprovable(f"`{self.target.name}` reads too many sizes as plain numbers.")
        held = self._with_lines(Held(self.case, first, dict(self.ties), self.result.found))
        return self._others(held, assume, given, names)

    def _pinned(self, proofs: Sequence[Proof], known: Sequence[str]) -> list[str]:
        """Integers that a proof holds to one number: the program asks Python whether each is one."""
        alone = [(text, names_of(text)) for proof in proofs for text in proof.conditions if "==" in text]
        return [n for n in self.ints if n not in (*known, *self.dims) and any(some == {n} for _, some in alone)]

    def _sizes(self, reason: Exception, known: Sequence[str]) -> list[str]:
        """What else may be taken at some numbers, where symbolic ones lead nowhere: integers, then every size."""
        if isinstance(reason, Unprovable) and (reason.untold or reason.absent):
            return []
        ints = [name for name in self.names if name in self.ints]
        if set(ints) - set(known):
            return ints
        return self.names if self.auto and self.built else []

    @property
    def names(self) -> list[str]:
        """The names of all sizes, in order."""
        every = (name for entry in self.signature.entries for dim in entry.spec.dims for name in dim.names)
        return list(dict.fromkeys(every))

    def _is_shown(self, error: ProofError) -> bool:
        """Whether a refutation names sizes at which a run on real tensors fails, or needs none."""
        goal = error.goal
        taken = {*self.read, *(name for name in self.ints if name not in self.dims and name in goal.sizes)}
        if taken and error.source is not None and error.source.text.startswith(("raise ", "assert ")):
            return False  # the program's own refusal of numbers that were taken for it
        if self.case.lengths and any(text in said for text in _BEYOND for said in (goal.said, goal.raised)):
            return False  # a list of our making is as long as it is
        return bool(goal.sizes or goal.silent or goal.operation == "claim" or not goal.raised) or not self.names

    def refuses(self, error: ProofError | Unprovable) -> bool:
        """Whether it is an `assert` of the program's own that fails at every size: what it refuses is no size."""
        if not error.goal.raised:
            return False
        for size in (1, 2, 3):
            try:
                self._once((), dict.fromkeys(self.names, size))
            except ProofError as other:
                if other.goal.raised != error.goal.raised or str(other.source) != str(error.source):
                    return False
            except Exception:
                return False
            else:
                return False
        return True

    def _elsewhere(
        self, error: Exception, assume: Sequence[str], given: Mapping[str, int], names: Sequence[str]
    ) -> Held:
        """Prove it at other numbers than the first, where it is refused; the first error if it is at all of them."""
        if not names or (isinstance(error, Unprovable) and error.untold) or not self._may_refuse(error, names):
            raise error
        held = self._others(Held(self.case, [], dict(self.ties), ""), assume, given, names)
        if not held.proofs:
            raise error
        held.found = self.result.found
        self._with_lines(held)
        held.refused.insert(0, f"{at_numbers(numbers_for(names, 0, self.told))}: {_reason(error)}")
        return held

    def _may_refuse(self, error: Exception, names: Sequence[str]) -> bool:
        """Whether a number may be left out. Nobody chooses what data tell: only the program's own `raise` may."""
        return not set(self.told) & set(names) or is_refusal(error)

    def _others(self, held: Held, assume: Sequence[str], given: Mapping[str, int], names: Sequence[str]) -> Held:
        for i in others_for(names, self.told):
            if self.once and held.proofs:
                break
            numbers = numbers_for(names, i, self.told)
            if len(names) > 1 and len(held.proofs) >= _ENOUGH:
                break
            try:
                held.proofs += self._once(assume, {**given, **numbers})
            except (ProofError, Unprovable) as error:
                if not self._may_refuse(error, names):
                    raise
                held.refused.append(f"{at_numbers(numbers)}: {_reason(error)}")
            except Exception as error:  # the program's own refusal of a number
                if not self._may_refuse(error, names):
                    raise
                held.refused.append(f"{at_numbers(numbers)}: {first_line(error)}")
        return held

    def _once(self, assume: Sequence[str], static: Mapping[str, int]) -> list[Proof]:
        """A proof, or one for each way that data may take."""
        self.counted = {}  # what was in the way for other numbers may not be for these
        try:
            proof = prove_setting(*self._asked(assume, static))
            self.refusals |= dict.fromkeys(proof.demands)
            return [proof]
        except Unprovable as error:
            if not (error.on_data or error.counts):
                raise
        decided = self._decided(assume, static)
        cut = {f"{Path(file).name}:{line}" for file, line in decided.cut}
        lines = [f"{source} (asked up to {ROUNDS} times)" if str(source) in cut else str(source)
                 for source in decided.branches]  # fmt: skip
        self.branches |= dict.fromkeys(lines)
        self.refusals |= dict.fromkeys(f"{Path(file).name}:{line}" for file, line in decided.refusals)
        self.numbers |= dict.fromkeys(f"{Path(file).name}:{line}" for file, line in sorted(decided.read))
        self.counted |= {name: f"{Path(file).name}:{line}" for name, (file, line) in decided.counted.items()}
        return decided.proofs

    def _decided(self, assume: Sequence[str], static: Mapping[str, int]) -> Decided:
        """Each way of its data; where whole numbers that these tell are in the way, with a size for each number."""
        try:
            return prove_ways(*self._asked(assume, static))
        except Unprovable as error:
            if not error.counts:
                raise
            self.untold = error
        free = [name for i in range(1, 99) if (name := f"data{i}") not in self.names][:_COUNTED]
        for count in range(max(1, len(self.told)), _COUNTED + 1):
            self.told = free[:count]
            self.counted = dict.fromkeys(self.told, "")
            try:
                return prove_ways(*self._asked(assume, static), free[:count])
            except Uncounted:
                continue
        raise self.untold or Unprovable(f"`{self.target.name}` takes more than {_COUNTED} whole numbers from data.")

    def _asked(self, assume: Sequence[str], static: Mapping[str, int]) -> tuple[Setting, list[str], dict[str, int]]:
        """What is to be proved, and what of the relations and numbers is about it."""
        signature, names = self.signature, set(self.names)
        dtypes = tuple(self._dtype(entry.spec) for entry in signature.entries)
        setting = Setting(
            signature, dtypes, (False,) * len(dtypes), torch.device("cpu"),
            call=self.call, runs=self.runs, seconds=_SECONDS,
        )  # fmt: skip
        relations = [text for text in assume if names_of(text) <= names]
        return setting, relations, {name: size for name, size in static.items() if name in names}

    def _dtype(self, spec: TensorSpec) -> torch.dtype:
        return torch.int64 if self.whole and admits_both(spec) else spec.default_dtype()

    def _with_lines(self, held: Held) -> Held:
        held.branches, held.refusals, held.numbers = list(self.branches), list(self.refusals), list(self.numbers)
        held.counted = self.counted
        return held

    @property
    def values(self) -> list[Container]:
        """How each value is made, the sizes tied and `*batch` written out."""
        return [choice.value.map(lambda s: with_ranks(s, dict(self.case.ranks)).rename(self.ties))
                for choice in self.case.choices]  # fmt: skip

    @property
    def signature(self) -> Signature:
        """What the trace needs to know: tensors in, and nothing of the result, which `call` holds itself."""
        function = inspect.unwrap(self.target.function)
        code = getattr(function, "__code__", None)
        origin = (code.co_filename, code.co_firstlineno) if code is not None else None
        values = [_declared(value, origin) for value in self.values]
        values += [whole(name, name).value for name in self.counted]
        arguments = tuple(Argument(value.path, "container", value.entries, value) for value in values)
        return Signature(self.target.name, function, arguments, Container("result", "tuple"))

    def call(self, tensors: Sequence[Any]) -> Any:
        """Make the values, call the function, and hold what it returns."""
        with OnTheCPU():
            return self._called(tensors)

    def _called(self, tensors: Sequence[Any]) -> Any:
        tensors = [tensor.clone() for tensor in tensors] if self.copied else tensors
        values, first = self._made(tensors), []
        self.built += 1
        if self.case.owner is not None:
            first.append(values.pop(0))
        elif self.target.kind == "class":
            first.append(self.target.owner)
        arguments = list(zip((parameter for parameter, _ in self.case.arguments), values, strict=True))
        function = self.target.function
        if self.within is not None:
            function, arguments = self.within.taken(first, arguments)
            first = []
        positional, keywords = in_order(arguments)
        return self.result.hold(inspect.unwrap(function)(*first, *positional, **keywords))

    def _made(self, tensors: Sequence[Any]) -> list[Any]:
        values, at = [], 0
        for value in self.values:
            count = len(value.entries)
            values.append(value.build(tensors[at : at + count]))
            at += count
        return values

    def _tie(self, error: ProofError) -> dict[str, Dim] | None:
        """An equality that is asked of sizes whose relation no annotation tells, as one to be stated.

        An integer that is no name in the signature's annotations is what an input's axis says; an input's axis that is
        none of the integers is what a module was made for. Two integers that would have to be equal are a fault.
        """
        if error.lacking is None:
            return None
        for one, other in (error.lacking, error.lacking[::-1]):
            name = one.args[0] if one.is_name else ""
            if not name or name in (*self.ties, *self.counted, *other.names) or other.op == "/":
                continue
            others = set(other.names)
            if not others and self.case.is_given and name not in self.ints:
                return _tied(name, other)  # what the factory's has
            if not others and other.evaluate({}) in self.case.lengths:
                return _tied(name, other)  # as many as a list has, of which no annotation tells
            if name in self.ints and name not in self.dims and not others & set(self.ints):
                return _tied(name, other)
            if name not in self.ints and others and others <= set(self.ints) - self.dims:
                return _tied(name, other)
        return None

    def _hold_built(self, error: ProofError) -> None:
        """Raise Unbuilt where it is a constructor that fails at the sizes of a refutation."""
        if error.goal.operation == "claim":
            return  # an attribute is not what its annotation says
        if not self.built:
            raise Unbuilt(error) from error
        entries, names = self.signature.entries, set(self.names)
        if not names <= set(error.goal.sizes) or not names:
            return
        try:
            self._made([_zeros(entry.spec, error.goal.sizes, self._dtype(entry.spec)) for entry in entries])
        except Exception as failure:
            raise Unbuilt(failure) from failure

    def _hold_tied(self, error: ProofError) -> None:
        """Raise Unprovable where an axis lacks the number that an integer was taken at, which no annotation ties."""
        made = [name for name in self.read if name in self.ints and name not in self.dims]
        if made and error.lacking and any(a.is_name and not b.names for a, b in (error.lacking, error.lacking[::-1])):
            hint = f"its module was made at numbers for {listing(made)}: give an axis that is as long the same name"
            raise Unprovable(error.title, error.source, replace(error.goal, hint=hint, sizes={}))


def _declared(value: Container, origin: Any) -> Container:
    return replace(value, origin=origin, parts=tuple(_declared(part, origin) for part in value.parts))


def _zeros(spec: TensorSpec, sizes: Mapping[str, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros([int(dim.evaluate(sizes)) for dim in spec.dims], dtype=dtype)


def admits_both(spec: TensorSpec) -> bool:
    """Whether an annotation admits floating-point numbers and whole ones: `Shaped`, `Num`."""
    return torch.int64 in spec.dtypes and spec.floating


def _tied(name: str, other: Term) -> dict[str, Dim] | None:
    try:
        return {name: Dim.of(other)}
    except (SignatureError, ValueError, KeyError, TypeError):
        return None


def _unshown(error: ProofError) -> Unprovable:
    """What the program refuses on symbolic sizes, and no run on real tensors does."""
    hint = error.goal.hint or "no run on real tensors could be made that shows it"
    return Unprovable(error.title, error.source, replace(error.goal, hint=hint))


def _reason(error: Exception) -> str:
    goal = error.goal if isinstance(error, ProofError | Unprovable) else None
    return (goal and (goal.raised or goal.equation or goal.said)) or first_line(error)
