"""One program on several ranks: how its parameters lie, what is exchanged in a step, and how errors are shared.

    whole    <- gather(part)                          zero=3: where a parameter is read, and again for the backward pass
    g        <- sum over ranks of samples*gradient    this rank's part of it where parameters lie in parts
    totals   <- sum over ranks of [samples, samples*loss, not finite, wrong, stop, ...]     one small sum a step
    g        <- g / samples, loss <- samples*loss / samples, norm <- sqrt(|g|^2) / samples

so that a step is that of one process on the batches of all ranks together, where the loss is a mean over its samples.
Whether it is taken, left out or refused follows from `totals`, which are alike on all ranks. The order of collectives
is one for all of them, whichever backend or executor runs: a rank whose batch is refused takes its turns with zeros.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.backends.agreed import AgreedStep, Passed
from shaped.backends.draws import mixed
from shaped.backends.gathering import FORWARD, GATHER, Gathering, GatherPlan, Turn
from shaped.backends.gradients import finite_flag
from shaped.backends.parts import Parts, ProgramOwner
from shaped.backends.rounding import draws_at_random
from shaped.backends.stating import stated
from shaped.backends.values import Checked, Runs
from shaped.proof import Proof, forward_graph
from shaped.ranks.exchange import KEPT, LOSS, NOT_FINITE, SAMPLES, SQUARES, WRONG, Exchange
from shaped.ranks.layout import Placement, units

_WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # what sums of narrow gradients are taken in
_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # trainers of a group, which all ranks make in one order
_BUCKET = 25 * 2**20  # bytes of gradients that are summed in one message, as DDP's buckets


EagerResult = tuple[Tensor, list[Tensor], list[Tensor]]
EagerAt = Callable[[Sequence[Tensor], Sequence[Tensor]], EagerResult]


class BatchMeans(Protocol):
    """What knows which batches are means over their samples: `SharedMeans`."""

    def hold(self, case: Any, inputs: Sequence[Any]) -> None:
        """Hold a batch to it."""


class Together(Parts):
    """How the ranks of a mesh run one program.

    Args:
        program: Its tensors are cut in place where they are to lie in parts.
        exchange: The ranks.
        sharded: Whether parameters, gradients and moments lie in parts (zero=3), or whole on each rank.
        name: The dimension of the batch that lies over the ranks.
        axis: Of the mesh, for the statement.
    """

    def __init__(self, program: ProgramOwner, exchange: Exchange, sharded: bool, name: str, axis: str = "") -> None:
        self._program, self.exchange, self.sharded, self.name = program, exchange, sharded, name
        self.layouts = {i: Placement(tuple(program.tensors[i].shape), exchange.size) for i in program.used}
        self._dtypes = {i: program.tensors[i].dtype for i in program.used}
        self.trainable, self.more = program.trainable, program.more
        self.units = self._units() if sharded else []
        self.unit_of = {i: at for at, members in enumerate(self.units) for i in members}
        self._plans: dict[GraphModule, GatherPlan] = {}
        self._random: dict[GraphModule, bool] = {}
        self._losses: dict[GraphModule, GraphModule] = {}
        self._axis = axis
        self.number = _numbers[exchange.group] = _numbers.get(exchange.group, 0) + 1
        self.means: BatchMeans | None = None
        self._seed = 0  # of the pass that is under way, where it draws
        self._under_way = False  # whether collectives of a pass have begun
        self._gathering: Gathering | None = None  # of the pass that is under way, where it can be finished

    def _units(self) -> list[list[int]]:
        """What is gathered and scattered together: of one dtype."""
        program, by = self._program, dict[torch.dtype, list[int]]()
        for i in program.used:
            by.setdefault(self._dtypes[i], []).append(i)
        found = []
        for dtype, members in by.items():
            parts = [self.flat(i).length * dtype.itemsize for i in members]
            found += [[members[at] for at in unit] for unit in units(parts)]
        return found

    @cached_property
    def statement(self) -> Proof:
        """The proof with how parameters lie and what a step sends: what a trainer shows."""
        batch = f"{self.name} over {self._axis} = {self.exchange.size}"
        lines = stated(self, batch, self._axis, len(self._program.tensors))
        return replace(self._program.proof, plan=tuple(lines))

    def widths(self, index: int) -> tuple[torch.dtype, torch.dtype]:
        """The dtypes of a parameter, and of the sum of its gradients."""
        return self._dtypes[index], self._wide(self._dtypes[index])

    def hold_mean(self, case: Any, inputs: Sequence[Any]) -> None:
        """Hold a batch of this rank to a mean over its samples, where it is one of several."""
        if self.means is not None:
            self.means.hold(case, inputs)

    @property
    def speaks(self) -> bool:
        """Whether this rank's samples count, and not those of another that has the same."""
        return True

    def admit(self, case: Any) -> None:
        """Hold a batch to what the ranks can run."""

    @property
    def share(self) -> tuple[int, int]:
        """Which share of a batch is this rank's, and of how many."""
        return self.exchange.rank, self.exchange.size

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape in which a gradient is summed."""
        return self.layouts[index].shape

    def alone(self, graph: GraphModule) -> GraphModule:
        """The part of a graph that gives the loss."""
        if graph not in self._losses:
            self._losses[graph] = forward_graph(graph)
        return self._losses[graph]

    @cached_property
    def buckets(self) -> list[list[int]]:
        """Used parameters whose gradients are summed in one message: the last first, as a backward pass makes them."""
        found: list[list[int]] = []
        filled = 0
        for i in reversed(self._program.used):
            dtype = self._wide(self._dtypes[i])
            size = math.prod(self.shape(i)) * dtype.itemsize
            fits = found and self._wide(self._dtypes[found[-1][0]]) == dtype and filled + size <= _BUCKET
            if fits:
                found[-1].append(i)
                filled += size
            else:
                found.append([i])
                filled = size
        return found

    def is_alike(self, index: int) -> bool:
        """Whether all ranks have the same of a tensor."""
        return not (self.parted and index in self.layouts)

    @property
    def named(self) -> dict[int, str]:
        """The names of the program's tensors, by identity."""
        return {id(t): name for name, t in zip(self._program.params.names, self._program.tensors, strict=True)}

    @property
    def _parts(self) -> Sequence[Tensor]:
        return self._program.plain

    @property
    def _in_full(self) -> Sequence[Tensor]:
        return [t for i, t in enumerate(self._program.tensors) if not (self.parted and i in self.layouts)]

    @property
    def _graph(self) -> GraphModule:
        return self._program.proof.graph  # type: ignore[no-any-return]

    @property
    def _lengths(self) -> list[tuple[torch.dtype, int]]:
        wide = [self._wide(self._dtypes[bucket[0]]) for bucket in self.buckets]
        return [(dtype, sum(math.prod(self.shape(i)) for i in b)) for dtype, b in zip(wide, self.buckets, strict=True)]

    def _wide(self, dtype: torch.dtype) -> torch.dtype:
        return _WIDE.get(dtype, dtype)

    @cached_property
    def order(self) -> list[Turn]:
        """The gathers and scatters of a pass, as the proved graph comes to them."""
        return self.plan(self._program.proof.graph).order()

    def plan(self, graph: GraphModule) -> GatherPlan:
        """Where a graph reads parameters that lie in parts."""
        if graph not in self._plans:
            self._plans[graph] = GatherPlan(graph, self)
        return self._plans[graph]

    # -- a pass ----------------------------------------------------------------------------------------------------

    def weighed(self, gradient: Tensor, samples: Tensor, spent: bool = False) -> Tensor:
        """samples*gradient, as it is summed: in float32 at least, and 0 where there are none.

        Args:
            gradient: Of this rank.
            samples: How many it is of.
            spent: Whether nothing else reads the gradient, so that this may take its memory.
        """
        dtype = self._wide(gradient.dtype)
        wide, weight = gradient.to(dtype), samples.to(dtype)
        made = wide.mul_(weight) if spent or dtype != gradient.dtype else wide * weight
        return made.masked_fill_(~(samples > 0), 0)

    def summed(self, gradients: list[Tensor], samples: Tensor, in_place: bool = False) -> list[Tensor]:
        """samples*gradient summed over the ranks, whole; in place, the list is emptied as its memory is given back."""
        by = dict(zip(self._program.used, gradients, strict=True))
        if in_place:
            gradients.clear()
            flats = [
                self._filled(length, bucket, by, samples)
                for length, bucket in zip(self._lengths, self.buckets, strict=True)
            ]
        else:
            flats = [torch.cat([self.weighed(by[i], samples).reshape(-1) for i in bucket]) for bucket in self.buckets]
        found: dict[int, Tensor] = {}
        for bucket, total in zip(self.buckets, self.summing.totals(flats, in_place), strict=True):
            parts = torch.split(total, [math.prod(self.shape(i)) for i in bucket])
            found |= {i: part.view(self.shape(i)) for i, part in zip(bucket, parts, strict=True)}
        return [found[i] for i in self._program.used]

    def _filled(self, of: tuple[torch.dtype, int], bucket: list[int], by: dict[int, Tensor], samples: Tensor) -> Tensor:
        flat = torch.empty(of[1], dtype=of[0], device=samples.device)
        for i, place in zip(bucket, torch.split(flat, [math.prod(self.shape(i)) for i in bucket]), strict=True):
            place.copy_(by.pop(i).reshape(-1))
        return flat.mul_(samples.to(of[0])).masked_fill_(~(samples > 0), 0)

    def run(
        self, made: Runs, graph: GraphModule, tensors: Sequence[Tensor], inputs: Sequence[Tensor], samples: Tensor
    ) -> Passed:
        """Run what computes a graph, and sum gradients over the ranks.

        Args:
            made: The graph with its values looked at, or what stands in for it.
            graph: The proved graph.
            tensors: The parameters as they lie.
            inputs: The batch.
            samples: How many it has, float64 and 0-dim.
        """
        if self.sharded and isinstance(made, Checked):
            return self.run_parts(self.gathering(graph, samples), tensors, inputs, samples)
        outputs = made.run(*(self.wholes(tensors) if self.sharded else tensors), *inputs)
        return self.passed(outputs, made.right(), samples)

    def passed(self, outputs: Sequence[Any], right: Tensor | None, samples: Tensor) -> Passed:
        """A pass that gave whole gradients, with them summed: whole, or this rank's parts."""
        used = self._program.used
        own = {i: outputs[1 + self.trainable.index(i)] for i in used}
        if self.units:
            parts: dict[int, Tensor] = {}
            for at, members in enumerate(self.units):
                found = self.scattered(at, [self.weighed(own[i], samples) for i in members])
                parts |= dict(zip(members, found, strict=True))
            gradients = [parts[i] for i in used]
        else:
            gradients = self.summed(list(own.values()), samples)
        fine = finite_flag(outputs[0], list(own.values()))
        return Passed(outputs[0], gradients, list(outputs[1:]), fine, right)

    def beside(self, at: EagerAt, graph: GraphModule, flat: Sequence[Tensor], inputs: Sequence[Tensor]) -> EagerResult:
        """What an executor over parts is held against: loss, gradients and what is written.

        Args:
            at: The user's function at other parameters.
            graph: What the executor was made of.
            flat: Its parameters, whole, and inputs.
            inputs: The batch.
        """
        return at(flat[: len(self._program.tensors)], inputs)

    def gathering(self, graph: GraphModule, samples: Tensor | None = None, forward: bool = False) -> Gathering:
        """A run of a graph on parts; `forward` where it is that of the loss alone."""
        order = [turn for turn in self.order if (turn.kind, turn.phase) == (GATHER, FORWARD)] if forward else self.order
        weight = torch.zeros_like(self.exchange.said[0]) if samples is None else samples
        return Gathering(self.plan(graph), order, weight)

    def begin(self, inputs: Sequence[Tensor] = (), forward: bool = False) -> None:
        """Say that the collectives of a pass over a batch begin now."""
        self._under_way, self._gathering = True, None

    def begin_parts(
        self, graph: GraphModule, inputs: Sequence[Tensor], samples: Tensor | None = None, forward: bool = False
    ) -> Checked:
        """The same of a pass op by op on parts, and what runs it."""
        self._under_way = True
        self._gathering = self.gathering(graph, samples, forward).hold(self._program.plain)
        return self._gathering

    def ended(self) -> None:
        """Say that all ranks are through."""
        self._under_way, self._gathering = False, None

    def in_graph(self, mode: str) -> bool:
        """Whether executors of a mode have collectives in them."""
        return self.sharded or mode not in ("forward", "loss_and_backward")

    def run_parts(
        self, gathering: Checked, tensors: Sequence[Tensor], inputs: Sequence[Tensor], samples: Tensor | None = None
    ) -> Passed:
        """Run a graph on parts, gathering on the way."""
        assert isinstance(gathering, Gathering)
        loss, *others = gathering.run(*tensors, *inputs)
        gradients = [others[self.trainable.index(i)] for i in self._program.used]
        fine = torch.isfinite(loss) if gathering.fine is None else gathering.fine & torch.isfinite(loss)
        return Passed(loss, gradients, others, fine, gathering.right())

    def settle(
        self,
        passed: Passed,
        samples: Tensor,
        right: Tensor | None,
        said: Tensor,
        waiting: tuple[Sequence[Tensor], Tensor] | None = None,
        measures: bool = False,
        in_place: bool = False,
    ) -> AgreedStep:
        """Agree on a step.

        Args:
            passed: This rank's pass.
            samples: How many samples it had.
            right: Whether its batch could be taken.
            said: What this rank says; `Exchange.said`.
            waiting: The mean gradient of batches before, and over how many samples.
            measures: Whether the squares of gradients are wanted, where they lie in parts.
            in_place: Whether the mean takes the place of the sums.
        """
        counted = (samples >= 0) & torch.isfinite(samples)
        some = counted & (samples > 0)
        zero = torch.zeros((), dtype=torch.float64, device=said.device)
        loss = torch.where(some, samples * passed.loss.double(), zero)
        own = (some & ~passed.fine) | ~counted
        sums = finite_flag(zero, passed.gradients)
        squares, kept = self._squares(passed.gradients, waiting) if measures and self.parted else (zero, zero)
        wrong = zero if right is None else (~right).to(torch.float64)
        counts = torch.where(some, samples, zero) if self.speaks else zero
        loss = loss if self.speaks else zero
        totals = self.exchange.agree(counts, loss, own | ~sums, wrong, own, squares, kept, said)
        count = totals[SAMPLES]
        divisor = torch.where(count > 0, count, torch.ones_like(count))
        divide = Tensor.div_ if in_place else Tensor.div
        gradients = [
            divide(g, divisor.to(g.dtype)).to(self._dtypes[i])
            for i, g in zip(self._program.used, passed.gradients, strict=True)
        ]
        mean = (totals[LOSS] / divisor).to(passed.loss.dtype)
        alike = (totals[WRONG] == 0) & self.exchange.alike(totals)
        return AgreedStep(mean, gradients, count, totals[NOT_FINITE] == 0, alike, totals)

    def _squares(
        self, gradients: Sequence[Tensor], waiting: tuple[Sequence[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The squares of samples*mean with these gradients in it, and without them: of this rank's parts."""
        means, weight = waiting if waiting is not None else ([None] * len(gradients), None)
        squares = kept = torch.zeros((), dtype=torch.float64, device=gradients[0].device)
        for g, mean in zip(gradients, means, strict=True):
            whole = g.double()
            if mean is not None and weight is not None:
                before = mean.double() * weight
                kept = kept + before.square().sum()
                whole = whole + before
            squares = squares + whole.square().sum()
        return squares, kept

    def norm(self, totals: Tensor, taken: Tensor, weighed: Tensor) -> Tensor:
        """The global norm of the mean that an update takes, from what was agreed on.

        Args:
            totals: Of the step.
            taken: Whether its batches are in the mean.
            weighed: Over how many samples the mean is.
        """
        squares = torch.where(taken, totals[SQUARES], totals[KEPT])
        return squares.sqrt() / torch.where(weighed > 0, weighed, torch.ones_like(weighed))

    def norm_of(self, gradients: Sequence[Tensor]) -> Tensor:
        """The global norm of gradients that lie as parameters do; collective where these lie in parts."""
        squares, _ = self._squares(gradients, None)
        return (self.exchange.total(squares.reshape(1))[0] if self.parted else squares).sqrt()

    def trial(self) -> Any:
        """For as long as something is tried on this rank alone."""
        return self.exchange.alone() if self.exchange.size > 1 else nullcontext()

    # -- draws -----------------------------------------------------------------------------------------------------

    @contextmanager
    def drawing(self, graph: GraphModule) -> Iterator[None]:
        """Let each rank draw numbers of its own within: from one number of the default generator, and its rank.

        So the default generator goes on alike on all ranks, whatever a pass draws, and is all that a run's state needs.
        """
        if graph not in self._random:
            self._random[graph] = draws_at_random(graph)
        if not self._random[graph]:
            yield
            return
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng(devices=self._devices):
            self._seed = seed
            self._seeded(seed)
            try:
                yield
            finally:
                self._seed = 0

    def _seeded(self, seed: int) -> None:
        """Draw from here on by a number that all ranks have, and by which share of the batch this one takes."""
        torch.manual_seed(mixed(seed, self.share[0]))

    @property
    def _devices(self) -> list[int]:
        device = self.exchange.said.device
        return [device.index or 0] if device.type == "cuda" else []
