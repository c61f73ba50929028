"""What a result is declared to be, held against what a run returns; and the shapes that were found."""

import itertools
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union, get_args, get_origin

from torch import Tensor

from shaped.check.choices import has_shape
from shaped.check.unknown import Unknown, undecided
from shaped.check.written import ANY, ONES, Fresh, read_written, with_ranks
from shaped.errors import Goal, ProofError, SignatureError, first_line
from shaped.proof import Setting, expect
from shaped.proof.setting import shape_found
from shaped.shapes import Dim, TensorSpec, is_tensor_annotation

_RUNS, _SECONDS = 40, 5.0
_ENOUGH = 3  # sizes at which a run returns what is no such result


@dataclass
class Result:
    """A declared result; parts that are no tensors with shapes are taken as they come."""

    hint: Any  # None where nothing is declared
    ranks: dict[str, int] = field(default_factory=dict)  # of the `*batch` that arguments have
    found: str = ""  # as the last trace found it

    def hold(self, value: Any) -> tuple[()]:
        """Check a result within a run. What is wrong ends the run."""
        self._fresh = Fresh("any")
        self._hold(value, self.hint)
        shown = _shown(value)
        self.found = self.found if shown is None else shown
        return ()

    def _hold(self, value: Any, hint: Any) -> None:
        if type(value) is Unknown and has_shape(hint):
            value.read()
        if not has_shape(hint):
            return
        if isinstance(value, types.CoroutineType):
            value.close()
            raise undecided("the result is a coroutine, which nobody awaits here.")
        if is_tensor_annotation(hint):
            self._tensor(value, [hint])
            return
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is typing.Annotated:
            self._hold(value, arguments[0])
        elif origin in (Union, types.UnionType):
            self._union(value, arguments)
        elif origin is tuple and Ellipsis not in arguments:
            parts = tuple(value) if isinstance(value, tuple | list) and len(value) == len(arguments) else None
            for i, argument in enumerate(arguments):
                self._hold(value if parts is None else parts[i], argument)
        elif isinstance(value, Mapping) and len(arguments) == 2:
            for part in value.values():
                self._hold(part, arguments[1])
        elif isinstance(origin, type) and issubclass(origin, Mapping) and _is_plain(value):
            expect(value, _DICT)
        elif isinstance(value, list | tuple | types.GeneratorType):
            for part in value:
                self._hold(part, arguments[0])
        elif value is None or isinstance(value, Tensor):
            expect(value, _LIST)
        else:
            raise undecided(f"the result is a {type(value).__name__}, which is not looked into.")

    def _union(self, value: Any, alternatives: Sequence[Any]) -> None:
        if isinstance(value, Tensor):
            tensors = [alternative for alternative in alternatives if is_tensor_annotation(alternative)]
            if tensors and Tensor not in alternatives:
                self._tensor(value, tensors)
            return
        if value is None and type(None) in alternatives:
            return
        others = [alternative for alternative in alternatives if not is_tensor_annotation(alternative)]
        shaped = [alternative for alternative in others if has_shape(alternative)]
        fitting = [alternative for alternative in shaped if _fits(value, alternative)]
        if len(fitting) > 1:
            raise undecided(f"the result is a {type(value).__name__}, of which several are declared.")
        if fitting:
            self._hold(value, fitting[0])
        elif not [alternative for alternative in others if alternative is not type(None)]:
            expect(value, _TENSOR)
        elif len(shaped) == len([alternative for alternative in others if alternative is not type(None)]):
            self._hold(value, shaped[0])  # which says that it is none
        elif value is None and not any(alternative in (Any, object) for alternative in others):
            expect(value, _TENSOR)

    def _tensor(self, value: Any, hints: Sequence[Any]) -> None:
        """One of these; where several are declared, the one with as many axes."""
        specs = []
        for hint in hints:
            try:
                specs += [self._spec(reading.spec, value) for reading in read_written(hint, "the result", self._fresh)]
            except SignatureError:
                return
        fitting = [spec for spec in specs if isinstance(value, Tensor) and len(spec.dims) == value.dim()]
        ones = [s for s in fitting if all(d.text != "1" or n == 1 for d, n in zip(s.dims, value.shape, strict=True))]
        expect(value, (ones or fitting or specs)[0])

    def _spec(self, spec: TensorSpec, value: Any) -> TensorSpec:
        """A declared spec with its `*batch` written out, those that no argument has by the value's own axes."""
        rest = [dim for dim in spec.dims if not dim.is_axes or _name(dim) in self.ranks]
        written = sum(self.ranks[_name(dim)] - 1 for dim in rest if dim.is_axes) + len(rest)
        free = max(0, value.dim() - written) if isinstance(value, Tensor) else 0
        dims: list[Dim] = []
        for dim in spec.dims:
            if dim in rest:
                dims += with_ranks(TensorSpec((dim,), (), ""), self.ranks).dims if dim.is_axes else [dim]
            else:
                dims += [Dim(self._fresh.name()) for _ in range(free)]
                free = 0
        return TensorSpec(tuple(dims), spec.dtypes, spec.kind)


def _name(dim: Dim) -> str:
    """Of `*batch`; none of `...`, which in a result is whatever comes."""
    return "" if dim.text == f"*{ANY}" else dim.text[1:].removesuffix(ONES)


_TENSOR = TensorSpec((Dim("tensor"),), (), "Tensor")  # what only a tensor could be
_LIST = TensorSpec((Dim("list"),), (), "list")
_DICT = TensorSpec((Dim("dict"),), (), "dict")


def _is_plain(value: Any) -> bool:
    """Whether it is surely no mapping."""
    return value is None or isinstance(value, Tensor | list | tuple | int | float | str)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that an annotation with shapes names: a pair, a list, a dictionary."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, tuple) and Ellipsis not in arguments:
        return len(value) == len(arguments)
    return isinstance(origin, type) and isinstance(value, origin)


def _shown(value: Any) -> str | None:
    """A result's shapes in names: `[batch, 3]`, `([batch], scalar)`; None outside of a trace."""
    if isinstance(value, Tensor):
        shape = shape_found(value)
        return "scalar" if shape == "[]" else shape
    if isinstance(value, tuple | list):
        parts = [_shown(part) for part in value[:8]]
        return None if None in parts else f"({', '.join(map(str, parts))}{', ...' if len(value) > 8 else ''})"
    if isinstance(value, Mapping):
        parts = [_shown(part) for part in value.values()]
        return None if None in parts else f"{{{', '.join(f'{k}: {s}' for k, s in zip(value, parts, strict=True))}}}"
    return "None" if value is None else type(value).__name__


def wrong_by_runs(
    setting: Setting, relations: Sequence[str], static: Mapping[str, int], names: Sequence[str]
) -> ProofError | None:
    """What refutes a program that no trace comes to the end of: it leaves torch, or asks data.

    It returns on real tensors what is no such result, at some sizes and at none that were tried what is one. Whatever
    else stops a run, such as an exception of its own, refutes nothing here.
    """
    from shaped.proof.conditions import Assumption
    from shaped.proof.trials import Trials

    assumed = [Assumption.parse(text) for text in relations]
    trials = Trials(replace(setting, runs=_RUNS, seconds=_SECONDS), names, static)
    every = (some for some in trials.sizes({}, {}) if all(one.condition.holds(some) for one in assumed))
    tried = list(itertools.islice(every, _RUNS))
    outcomes = trials.outcomes(tried)
    wrong = [some for some, passes in zip(tried, outcomes, strict=True)
             if passes is False and _is_of_result(trials.failure(some))]  # fmt: skip
    if any(outcomes) or len(wrong) < _ENOUGH:
        return None
    sizes = min(wrong, key=lambda some: sum(some.values()))
    goal = Goal("result", f"{first_line(trials.failure(sizes))} (of a run on real tensors)", sizes=dict(sizes))
    return ProofError(f"`{setting.signature.name}` does not return what it declares.", None, goal)


def _is_of_result(error: Exception) -> bool:
    """Whether it came up as a result was held against what is declared."""
    return any(frame.f_code is Result.hold.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))
