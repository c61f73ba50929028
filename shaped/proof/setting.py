"""What is traced, and a line of what a trace finds. Light to import: the tracer is loaded with the first proof."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from shaped.errors import ShapeError, Source, Unprovable
from shaped.params import ParamList
from shaped.shapes import Signature, TensorSpec
from shaped.strategies import GradientStrategy, Pass, differentiate

INNER = "inner gradient"  # in a graph's meta: whether the program differentiates within itself
MORE = "more results"  # in a graph's meta: how many outputs at its end a loss returns beside itself
STEP = "step"  # in a node's meta: which step of the derivation it belongs to
PLAIN = "plain loss"  # in a graph's meta: which output is the user's own loss, if it is not the first
# What the trace under way checks a result with; None where nothing is traced.
_checker: ContextVar[Callable[[Any, TensorSpec], None] | None] = ContextVar("checker", default=None)
_shown: ContextVar[Callable[[Any], str] | None] = ContextVar("shown", default=None)  # and how it writes a shape


def expect(value: Any, spec: TensorSpec) -> None:
    """Within a trace, require that `value` has the shape and dtype of `spec` for all sizes; otherwise do nothing."""
    checker = _checker.get()
    if checker is not None:
        checker(value, spec)


def shape_found(tensor: Any) -> str | None:
    """Within a trace, a tensor's shape in the user's names; None elsewhere."""
    shown = _shown.get()
    return None if shown is None else shown(tensor)


@contextmanager
def checking(checker: Callable[[Any, TensorSpec], None], shown: Callable[[Any], str] | None = None) -> Iterator[None]:
    """Let `expect` use this check, and `shape_found` this way to write a shape."""
    tokens = _checker.set(checker), _shown.set(shown)
    try:
        yield
    finally:
        _checker.reset(tokens[0])
        _shown.reset(tokens[1])


@dataclass(frozen=True)
class Step:
    """One operation of the user's program: a line of the derivation."""

    operation: str
    operands: tuple[str, ...]
    result: str
    place: str  # "model.py:14"
    source: Source | None = None  # the same, with the expression

    def __str__(self) -> str:
        return f"{self.place:<16} {self.operation:<16} {', '.join(self.operands)} -> {self.result}"


@dataclass
class Setting:
    """What is traced: the function, its tensors' dtypes and device, and which of them want a gradient."""

    signature: Signature
    dtypes: tuple[torch.dtype, ...]
    mask: tuple[bool, ...]
    device: torch.device
    autocast: torch.dtype | None = None
    call: Callable[[Sequence[Any]], Any] | None = None  # instead of signature.call: a module's stateless form
    strategy: GradientStrategy | None = None  # instead of the gradients of the loss as it is written
    keeping: Callable[[], AbstractContextManager[None]] = nullcontext  # undoes what a trace leaves in a module
    roots: tuple[Any, ...] = ()  # what is called besides the signature's function: the user's loss, and modules
    # Kept around a forward pass and its backward pass, which may run parts of the program again.
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    held: tuple[Any, ...] = ()  # the real tensors that the first entries stand for, where there are any
    runs: int = 400  # on real tensors, against which a statement is held, at most
    seconds: float | None = None  # of these runs, after the first few: where nobody waits for all of them

    def context(self) -> AbstractContextManager[Any]:
        """torch.autocast where it is asked for."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast, cache_enabled=False)

    def run(self, tensors: Sequence[Any]) -> list[Any]:
        """The function's results on flat tensors, under autocast if asked for."""
        try:
            with self.context():
                result = (self.call or self.signature.call)(tensors)
        except SystemExit as error:
            if _checker.get() is None:  # no proof: it is the user's to end a run
                raise
            raise Unprovable(f"`{self.signature.name}` ends the process: sys.exit({error.code!r}).") from None
        try:
            return self.signature.returns.flatten(result)
        except ShapeError:  # no such container: refused where results are compared with what is declared
            return [result]

    def differentiate(self, tensors: Sequence[Any]) -> Pass:
        """The strategy's loss and gradients on flat tensors, parameters first."""
        assert self.strategy is not None
        owner = next(a for a in self.signature.arguments if a.kind == "parameters")
        assert owner.structure is not None
        count = len(owner.entries)
        params: ParamList = owner.structure.build(tensors[:count])
        return differentiate(self.strategy, self._loss, params, tensors[count:])

    def _loss(self, params: Sequence[Any], *inputs: Any) -> Any:
        return self.run([*params, *inputs])[0]

    def may_write(self, index: int) -> bool:
        """Whether a program may write into a tensor: into parameters that ask for no gradient, not into a batch."""
        kinds = [argument.kind for argument in self.signature.arguments for _ in argument.entries]
        return kinds[index] == "parameters" and not self.mask[index]

    @property
    def wanted(self) -> list[int]:
        """Positions of the tensors that want a gradient."""
        return [i for i, want in enumerate(self.mask) if want]

    @property
    def is_loss(self) -> bool:
        """Whether there is something to differentiate: a scalar result, alone or before others."""
        if not self.signature.result:  # of a program that holds its results itself
            return False
        first, *others = self.signature.result
        return not first.dims and bool(self.wanted) and (first.floating or not others)
