"""A new executor held against eager once, at its first batch and on copies: what it returns and all that it writes.

The eager side is the user's own function under autograd, with the same update around it. What the two may differ by is
derived in two steps, the second only where the first does not explain what is found:

    gradients, values   `_ULPS` units in the last place of the largest entry
    updated state       what the update makes of gradients moved by that much, up and down
    otherwise           the bound of `rounding.py`: the graph in float64, each operation rounded at random

An update is looked at with lr at least 1, so that a schedule that starts at 0 does not hide a gradient. Generators are
put back, so that the step after it draws what it would have drawn. A batch that is not finite, or that has a value that
is refused, tells nothing: the next one is looked at.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.backends.cases import AdmittedCase
from shaped.backends.draws import Generators, Unheld, replayed
from shaped.backends.eager import Eager
from shaped.backends.executors import CompileError, Executor
from shaped.backends.inductor import Flat, whole_graph
from shaped.backends.parting import first_to_part
from shaped.backends.rounding import draws_at_random, rounding_moves
from shaped.backends.step import WHY, WRONG_VALUE
from shaped.backends.values import Checked, Runs
from shaped.errors import ShapedError, first_line
from shaped.optim.averaging import swapped

RETURNED = "the returned"  # how the names of what a loss returns beside itself begin
_OTHER = "the optimizer's tensor"
_ULPS = {torch.float32: 128.0, torch.float64: 1024.0}  # of the coarsest dtype in the graph; 4 of half precision


class Build(Protocol):
    """Makes the flat function of a graph: what is lowered, or with `runs` what stands in for the graph."""

    def __call__(self, graph: GraphModule, runs: Callable[[GraphModule], Runs] = ..., /) -> Flat:
        """The function."""


class DisagreementError(CompileError):
    """Compiled code and eager differ at the first batch by more than rounding explains; nothing has changed."""


class EagerPass:
    """The user's function and its gradients, run once; later runs give the same with the gradients moved."""

    def __init__(self, eager: Eager, inputs: Sequence[Tensor], only_loss: bool) -> None:
        self._eager, self._inputs, self._only_loss = eager, inputs, only_loss
        self._found: tuple[Tensor, list[Tensor], list[Tensor]] | None = None
        self._graph: GraphModule | None = None
        self.shift = 0.0  # by how much of its largest entry each gradient is moved

    def __call__(self, graph: GraphModule) -> "EagerPass":
        """Stand in for a graph."""
        self._graph = graph
        return self

    def run(self, *flat: Tensor) -> list[Any]:
        """As the graph, whatever the arguments: nothing has changed since they were copied."""
        program = self._eager.program
        together = program.together
        if self._found is None and together is not None and together.parted:
            at = partial(self._eager.at, only_loss=self._only_loss)
            self._found = together.beside(at, self._graph or program.proof.graph, flat, self._inputs)
        elif self._found is None:
            self._found = (self._eager.forward(self._inputs), [], []) if self._only_loss else self._differentiated(flat)
        loss, gradients, written = self._found
        for i, new in zip(program.writes, written, strict=False):
            flat[i].copy_(new)
        moved = [g + self.shift * g.abs().amax() if self.shift and g.numel() else g for g in gradients]
        by_index = dict(zip(program.used, moved, strict=False))
        return [loss, *(by_index.get(i) for i in program.trainable), *program.returned[1:]]

    def right(self) -> None:
        """Eager raises where a value cannot be taken."""

    def _differentiated(self, flat: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Loss and gradients where the step takes them, which need not be where the parameters are."""
        used = self._eager.program.used
        points = [(t, flat[i]) for i, t in zip(used, self._eager.program.used_tensors, strict=True)]
        points = [(t, point) for t, point in points if not torch.equal(t.detach(), point)]
        with swapped([t for t, _ in points], [point for _, point in points]):
            return self._eager.loss_and_backward(self._inputs)


@dataclass(frozen=True)
class FirstRun:
    """What is held: a function of state and inputs as it was lowered, and as what.

    Attributes:
        executor: The compiled callable.
        build: Makes the flat function of a graph.
        case: The batch as it was admitted, with the proved graph.
        sizes: What the executor takes first.
        state, inputs: Its arguments. They are copied.
        rows: Where rows of scalars lie in the state, `lr` first.
        returned: Names of the first results.
        kept: Names of the first tensors of the state.
        moved: Positions in the state of what an update makes of gradients; empty for a pass without one.
    """

    executor: Executor
    build: Build
    case: AdmittedCase
    sizes: Sequence[int]
    state: Sequence[Tensor]
    inputs: Sequence[Tensor]
    rows: Sequence[int]
    returned: Sequence[str]
    kept: Sequence[str]
    moved: Sequence[int]

    def copies(self) -> list[Tensor]:
        """The state to run on."""
        copies = [t.detach().clone() for t in self.state]
        for at in self.rows:
            copies[at][0].clamp_(min=1.0)
        return copies

    def after(self, function: Callable[..., Sequence[Any]]) -> "RunResult":
        """What a function of state and inputs returns, and the state as it leaves it."""
        copies = self.copies()
        with torch.no_grad():
            return RunResult(list(function(*copies, *self.inputs)), copies)


@dataclass(frozen=True)
class RunResult:
    """Results of a run, and the state as the run left it."""

    returned: list[Tensor]
    state: list[Tensor]

    def named(self, trial: FirstRun) -> dict[str, Tensor]:
        """All of it by name, without verdicts."""
        results = list(trial.returned[: len(self.returned)])
        others = [f"{_OTHER} {i}" for i in range(len(self.state) - len(trial.kept))]
        named = dict(zip([*results, *trial.kept, *others], [*self.returned[: len(results)], *self.state], strict=True))
        return {name: value for name, value in named.items() if name != WHY}


def hold(trial: FirstRun, eager: Eager, only_loss: bool) -> bool:
    """Run an executor beside eager; whether the batch told something.

    Raises:
        DisagreementError: They differ. Parameters, state, counts and generators are as before.
    """
    generators, calls = Generators(eager.program.params.device), trial.executor.calls
    try:
        with torch.inference_mode(False):
            return _hold(trial, eager, only_loss, generators)
    except torch.OutOfMemoryError:
        raise Unheld("there is no memory for an eager pass beside it") from None
    finally:
        trial.executor.calls = calls
        generators.put_back()


def _hold(trial: FirstRun, eager: Eager, only_loss: bool, generators: Generators) -> bool:
    executor, program = trial.executor, eager.program
    if executor.draws is None and draws_at_random(trial.case.sketch):
        raise Unheld("it draws otherwise than eager")
    theirs = trial.after(lambda *flat: executor([*trial.sizes, *flat]))
    refused = _refused(trial, theirs)
    generators.put_back()
    replay = (
        nullcontext()
        if executor.draws is None
        else replayed(executor.draws, [*trial.sizes, *trial.copies(), *trial.inputs])
    )
    given = [x.clone() if x.is_inference() else x for x in trial.inputs]
    found = EagerPass(eager, program.batch.filled(given, trial.case.absent), only_loss)
    try:
        with replay, program.setting.keeping():  # a compiled step runs nothing that writes into a module's lists
            mine = trial.after(trial.build(trial.case.sketch, found))
    except (ShapedError, Unheld, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a kernel or the user's code says of the values
        if refused:
            return False
        raise DisagreementError(_said(trial, f"eager refuses the batch ({first_line(error)})", "")) from error
    if refused or not _finite(trial, mine):
        return False
    generators.put_back()
    beyond = _beyond(trial, found, mine.named(trial), theirs.named(trial))
    if beyond and executor.draws is not None and executor.draws.own:
        raise Unheld("torch's own kernels draw too, in an order that is not known")
    if beyond:
        generators.put_back()
        in_parts = program.together is not None and program.together.parted
        raise DisagreementError(_report(trial, mine.named(trial), beyond, in_parts))
    return True


def _refused(trial: FirstRun, theirs: RunResult) -> bool:
    """Whether the compiled run met a value that it cannot take; a step says so with 2, a pass with False at its end."""
    if WHY in trial.returned:
        return int(theirs.returned[trial.returned.index(WHY)]) == WRONG_VALUE
    return len(theirs.returned) > len(trial.returned) and not bool(theirs.returned[-1])


def _finite(trial: FirstRun, mine: RunResult) -> bool:
    if WHY in trial.returned:
        return int(mine.returned[trial.returned.index(WHY)]) == 0
    named = zip(trial.returned, mine.returned, strict=False)
    return all(bool(v.isfinite().all()) for name, v in named if not name.startswith(RETURNED))


def _tolerance(graph: GraphModule) -> float:
    """How far rounding takes two runs apart without further question, in parts of the largest entry."""
    values = [value for node in graph.graph.nodes for value in _tensors(node.meta.get("val"))]
    dtypes = {v.dtype for v in values if v.is_floating_point()} or {torch.float32}
    return max(_ULPS.get(dtype, 4.0) * torch.finfo(dtype).eps for dtype in dtypes)


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, tuple | list) else (value,)
    return [v for v in values if isinstance(v, Tensor)]


def _beyond(trial: FirstRun, found: EagerPass, mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """What differs by more than rounding explains: the largest difference, by name."""
    part, shifted = _tolerance(trial.case.sketch), []
    if trial.moved:
        for found.shift in (part, -part):
            shifted.append(trial.after(trial.build(trial.case.sketch, found)).named(trial))
    before = RunResult([], trial.copies()).named(trial)
    updated = {name for i, name in enumerate(before) if i in trial.moved}
    apart = {}
    for name, value in mine.items():
        a, b = value.detach().double(), theirs[name].detach().double()
        if not a.numel() or torch.equal(a, b):
            continue
        if name in updated:  # an update takes a few roundings of what it reads and writes
            unit = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
            allowed = 16 * unit * (a.abs() + before[name].double().abs())
            allowed = allowed + 2 * sum((s[name].double() - a).abs() for s in shifted)
        else:
            allowed = part * torch.full_like(a, _largest(a))
        difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
        if not bool((difference <= allowed.nan_to_num()).all()):
            apart[name] = float(difference.nan_to_num(nan=torch.inf).amax())
    if not apart:
        return {}
    limits = _rounded(trial, mine)
    return {name: difference for name, difference in apart.items() if not difference <= limits[name]}


def _rounded(trial: FirstRun, mine: dict[str, Tensor]) -> dict[str, float]:
    """How far rounding may take two runs apart, by name: twice the bound for two, since this one stops a run."""
    arguments = [*trial.copies(), *trial.inputs]
    graph = whole_graph(trial.build(trial.case.graph, Checked), arguments)
    try:
        returned, written = rounding_moves(graph, arguments, len(trial.state))
    except RuntimeError:  # no memory for it in float64, or no kernel: half of the digits
        part = _tolerance(trial.case.sketch) ** 0.5
        return {name: part * _largest(value) for name, value in mine.items()}
    numbers = RunResult([torch.tensor(m) for m in returned], [torch.tensor(m) for m in written]).named(trial)
    return {name: 4 * float(move) for name, move in numbers.items()}


def _largest(value: Tensor) -> float:
    return float(value.detach().double().abs().nan_to_num(posinf=0.0, neginf=0.0).amax())


def _report(trial: FirstRun, mine: dict[str, Tensor], beyond: dict[str, float], in_parts: bool) -> str:
    shares = {name: difference / (_largest(mine[name]) or 1.0) for name, difference in beyond.items()}
    named = sorted(shares, key=lambda name: (name.startswith(_OTHER), -shares[name]))
    share = shares[named[0]]
    part = _tolerance(trial.case.sketch)
    where = ""
    if not in_parts:  # its graph is that of whole parameters
        where = first_to_part(trial.case.graph, trial.copies(), trial.inputs, (part * min(share, 1.0)) ** 0.5)
    size = f"{share:.1e} of its largest entry" if share < torch.inf else "a value that is not finite"
    differ = "differs" if len(named) == 1 else "differ"
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    return _said(trial, f"{', '.join(named[:3])}{more} {differ} from eager, the first by {size}", where)


def _said(trial: FirstRun, what: str, where: str) -> str:
    first = f" The first operation that parts is {where}." if where else ""
    return (
        f"`{trial.executor.mode}` at {trial.executor.sizes}: compiled code is not the program: {what}.{first} Nothing "
        "has changed. backend='eager' runs it, and backend='auto' goes on with it by itself; verify=False takes "
        "compiled code as it is"
    )
