"""One program on several ranks: how its parameters lie, what is exchanged in a step, and how errors are shared.

    whole    <- gather(part)                          zero=3: where a parameter is read, and again for the backward pass
    g        <- sum over ranks of samples*gradient    this rank's part of it where parameters lie in parts
    totals   <- sum over ranks of [samples, samples*loss, not finite, wrong, stop, ...]     one small sum a step
    g        <- g / samples, loss <- samples*loss / samples, norm <- sqrt(|g|^2) / samples

so that a step is that of one process on the batches of all ranks together, where the loss is a mean over its samples.
Whether it is taken, left out or refused follows from `totals`, which are alike on all ranks. The order of collectives
is one for all of them, whichever backend or executor runs: a rank whose batch is refused takes its turns with zeros.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule

from shaped.backends.agreed import AgreedStep, Passed
from shaped.backends.draws import mixed
from shaped.backends.gathering import FORWARD, GATHER, Gathering, GatherPlan, Turn
from shaped.backends.gradients import finite_flag
from shaped.backends.rounding import draws_at_random
from shaped.backends.turns import Turns
from shaped.backends.values import Checked, Runs
from shaped.optim import FusedOptimizer
from shaped.optim.foreign import Foreign, name_of
from shaped.ranks.exchange import KEPT, LOSS, NOT_FINITE, SAMPLES, SQUARES, WRONG, Exchange
from shaped.ranks.layout import Placement, units

_WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # what sums of narrow gradients are taken in
_BUCKET = 25 * 2**20  # bytes of gradients that are summed in one message, as DDP's buckets


class ProgramOwner(Protocol):
    """The program that is run together."""

    tensors: list[Tensor]
    plain: list[Tensor]
    used: list[int]
    trainable: list[int]
    more: int

    @property
    def proof(self) -> Any: ...
    @property
    def params(self) -> Any: ...


class Together(Turns):
    """How the ranks of a mesh run one program.

    Args:
        program: Its tensors are cut in place where they are to lie in parts.
        exchange: The ranks.
        sharded: Whether parameters, gradients and moments lie in parts (zero=3), or whole on each rank.
        name: The dimension of the batch that lies over the ranks.
    """

    def __init__(self, program: ProgramOwner, exchange: Exchange, sharded: bool, name: str) -> None:
        self._program, self.exchange, self.sharded, self.name = program, exchange, sharded, name
        self.layouts = {i: Placement(tuple(program.tensors[i].shape), exchange.size) for i in program.used}
        self._dtypes = {i: program.tensors[i].dtype for i in program.used}
        self.trainable, self.more = program.trainable, program.more
        self.units = self._units() if sharded else []
        self.unit_of = {i: at for at, members in enumerate(self.units) for i in members}
        self._plans: dict[GraphModule, GatherPlan] = {}
        self._random: dict[GraphModule, bool] = {}
        self._under_way = False  # whether collectives of a pass have begun
        self._gathering: Gathering | None = None  # of the pass that is under way, where it can be finished

    def _units(self) -> list[list[int]]:
        """What is gathered and scattered together: of one dtype."""
        program, found = self._program, list[list[int]]()
        names = [program.params.names[i] for i in program.used]
        sizes = [program.tensors[i].numel() * program.tensors[i].element_size() for i in program.used]
        for unit in units(names, sizes):
            by: dict[torch.dtype, list[int]] = {}
            for at in unit:
                i = program.used[at]
                by.setdefault(self._dtypes[i], []).append(i)
            found.extend(by.values())
        return found

    @cached_property
    def buckets(self) -> list[list[int]]:
        """Used parameters whose gradients are summed in one message: the last first, as a backward pass makes them."""
        found: list[list[int]] = []
        filled = 0
        for i in reversed(self._program.used):
            dtype = self._wide(self._dtypes[i])
            size = self.layouts[i].numel * dtype.itemsize
            fits = found and self._wide(self._dtypes[found[-1][0]]) == dtype and filled + size <= _BUCKET
            if fits:
                found[-1].append(i)
                filled += size
            else:
                found.append([i])
                filled = size
        return found

    @property
    def _parts(self) -> Sequence[Tensor]:
        return self._program.plain

    @property
    def _graph(self) -> GraphModule:
        return self._program.proof.graph  # type: ignore[no-any-return]

    @property
    def _lengths(self) -> list[tuple[torch.dtype, int]]:
        wide = [self._wide(self._dtypes[bucket[0]]) for bucket in self.buckets]
        return [(dtype, sum(self.layouts[i].numel for i in b)) for dtype, b in zip(wide, self.buckets, strict=True)]

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

    # -- parts -----------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Let each rank keep its parts alone; a parameter stays the same object, over other memory."""
        for i, layout in self.layouts.items() if self.sharded else ():
            tensor = self._program.tensors[i]
            tensor.data = layout.cut(tensor.detach(), self.exchange.rank)

    def take(self, optimizer: FusedOptimizer) -> None:
        """Take over an optimizer: it keeps this rank's parts of the state that it has.

        Raises:
            ValueError: It cannot step parameters as they lie.
        """
        self.refuse(optimizer)
        of = {id(self._program.tensors[i]): layout for i, layout in self.layouts.items() if self.sharded}
        for p, entry in optimizer.state.items():
            layout = of.get(id(p))
            if layout is None:
                continue
            for name, value in entry.items():
                if name != "step" and isinstance(value, Tensor) and tuple(value.shape) == layout.shape:
                    entry[name] = layout.cut(value, self.exchange.rank)

    def gathered(self, unit: int, parts: Sequence[Tensor]) -> list[Tensor]:
        """The whole parameters of a unit."""
        members, size = self.units[unit], self.exchange.size
        if len(parts) == 1:
            return [self.layouts[members[0]].whole(self.exchange.gather(parts[0]))]
        flat = self.exchange.gather(torch.cat(list(parts)))
        rows, lengths = flat.view(size, -1), [self.layouts[i].length for i in members]
        each = torch.split(rows, lengths, 1)
        return [self.layouts[i].whole(own.reshape(-1)) for i, own in zip(members, each, strict=True)]

    def scattered(self, unit: int, weighed: Sequence[Tensor]) -> list[Tensor]:
        """This rank's parts of samples*gradient, summed over the ranks."""
        members, size = self.units[unit], self.exchange.size
        flat = [self.layouts[i].flat(g) for i, g in zip(members, weighed, strict=True)]
        if len(flat) == 1:
            return [self.exchange.scatter(flat[0])]
        lengths = [self.layouts[i].length for i in members]
        rows = torch.cat([one.view(size, -1) for one in flat], 1)
        return list(torch.split(self.exchange.scatter(rows.reshape(-1)), lengths))

    def hollow(self, index: int, part: Tensor) -> Tensor:
        """A tensor of the whole's shape and dtype without values of its own."""
        return part.new_zeros(()).expand(self.layouts[index].shape)

    def whole(self, index: int, part: Tensor) -> Tensor:
        """A whole tensor of an entry's layout from this rank's part; itself where there are no parts. Collective."""
        if not self.sharded or index not in self.layouts:
            return part
        with torch.no_grad():
            return self.layouts[index].whole(self.exchange.gather(part.detach())).clone()

    # -- a pass ----------------------------------------------------------------------------------------------------

    def weighed(self, gradient: Tensor, samples: Tensor) -> Tensor:
        """samples*gradient, as it is summed: in float32 at least, and 0 where there are none."""
        wide = gradient.to(self._wide(gradient.dtype))
        return torch.where(samples > 0, wide * samples.to(wide.dtype), torch.zeros_like(wide))

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
        for bucket, total in zip(self.buckets, self.exchange.totals(flats, in_place), strict=True):
            parts = torch.split(total, [self.layouts[i].numel for i in bucket])
            found |= {i: part.view(self.layouts[i].shape) for i, part in zip(bucket, parts, strict=True)}
        return [found[i] for i in self._program.used]

    def _filled(self, of: tuple[torch.dtype, int], bucket: list[int], by: dict[int, Tensor], samples: Tensor) -> Tensor:
        flat = torch.empty(of[1], dtype=of[0], device=samples.device)
        for i, place in zip(bucket, torch.split(flat, [self.layouts[i].numel for i in bucket]), strict=True):
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
        used, rows = self._program.used, [1 + self.trainable.index(i) for i in self._program.used]
        if self.sharded and isinstance(made, Checked):
            return self.run_parts(self.gathering(graph, samples), tensors, inputs)
        if self.sharded:
            outputs = made.run(*self.wholes(tensors), *inputs)
            own = dict(zip(used, [outputs[row] for row in rows], strict=True))
            parts: dict[int, Tensor] = {}
            for at, members in enumerate(self.units):
                found = self.scattered(at, [self.weighed(own[i], samples) for i in members])
                parts |= dict(zip(members, found, strict=True))
            gradients = [parts[i] for i in used]
        else:
            outputs = made.run(*tensors, *inputs)
            own = dict(zip(used, [outputs[row] for row in rows], strict=True))
            gradients = self.summed(list(own.values()), samples)
        fine = finite_flag(outputs[0], list(own.values()))
        return Passed(outputs[0], gradients, list(outputs[1:]), fine, made.right())

    def wholes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All parameters whole at once."""
        found = list(tensors)
        for at, members in enumerate(self.units):
            for i, whole in zip(members, self.gathered(at, [tensors[i] for i in members]), strict=True):
                found[i] = whole
        return found

    def gathering(self, graph: GraphModule, samples: Tensor | None = None, forward: bool = False) -> Gathering:
        """A run of a graph on parts; `forward` where it is that of the loss alone."""
        order = [turn for turn in self.order if (turn.kind, turn.phase) == (GATHER, FORWARD)] if forward else self.order
        weight = torch.zeros_like(self.exchange.said[0]) if samples is None else samples
        return Gathering(self.plan(graph), order, weight)

    def begin(self) -> None:
        """Say that the collectives of a pass begin now."""
        self._under_way, self._gathering = True, None

    def begin_parts(self, graph: GraphModule, samples: Tensor | None = None, forward: bool = False) -> Gathering:
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

    def run_parts(self, gathering: Gathering, tensors: Sequence[Tensor], inputs: Sequence[Tensor]) -> Passed:
        """Run a graph on parts, gathering on the way."""
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
        squares, kept = self._squares(passed.gradients, waiting) if measures and self.sharded else (zero, zero)
        wrong = zero if right is None else (~right).to(torch.float64)
        totals = self.exchange.agree(
            torch.where(some, samples, zero), loss, own | ~sums, wrong, own, squares, kept, said
        )
        count = totals[SAMPLES]
        divisor = torch.where(count > 0, count, torch.ones_like(count))
        divide = Tensor.div_ if in_place else Tensor.div
        gradients = [
            divide(g, divisor.to(g.dtype)).to(self._dtypes[i])
            for i, g in zip(self._program.used, passed.gradients, strict=True)
        ]
        mean = (totals[LOSS] / divisor).to(passed.loss.dtype)
        return AgreedStep(mean, gradients, count, totals[NOT_FINITE] == 0, totals[WRONG] == 0, totals)

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
        return (self.exchange.total(squares.reshape(1))[0] if self.sharded else squares).sqrt()

    def refuse(self, optimizer: FusedOptimizer) -> None:
        """Refuse an optimizer that cannot step parameters as they lie.

        Raises:
            ValueError: Naming what it does, and what to do.
        """
        name, options = type(optimizer).__name__, optimizer.options
        if not self.sharded:
            if options.store == "stochastic":
                raise ValueError(
                    f"{name} was made with store='stochastic', which rounds the same parameter otherwise on each rank: "
                    "use zero=3, where each part is on one rank alone, or store='split'"
                )
            return
        if isinstance(optimizer, Foreign):
            raise ValueError(
                f"the step of {name_of(optimizer.inner)} may look at whole parameters; with zero=3 a rank has parts "
                "of them: use one of shaped.optim, or zero=0"
            )
        whole = [rule.name for rule in map(optimizer.rule_of, optimizer.param_groups) if not rule.elementwise]
        if whole:
            raise ValueError(
                f"{name} steps by {whole[0]}, which looks at whole parameters, and with zero=3 a rank has parts of "
                "them: use zero=0"
            )
        if options.moments == "8bit":
            raise ValueError(
                f"{name} was made with moments='8bit', whose scales are those of 256 neighbours, and with zero=3 a "
                "part may begin among them: use zero=0, or whole moments"
            )

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
            torch.manual_seed(mixed(seed, self.exchange.rank))
            yield

    @property
    def _devices(self) -> list[int]:
        device = self.exchange.said.device
        return [device.index or 0] if device.type == "cuda" else []
