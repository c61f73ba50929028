"""What is checked in two processes of what they must have alike; run by processes.py."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shaped import Checkpoints, Loop, RankError, ScalarTrainer
from shaped.backends import CompileError
from shaped.data import Batches
from shaped.optim import AdamW
from shaped.ranks import join
from tests.ranks.processes import MLP, Net, alone, batch, folder, mine, mlp, new, over, raises, rank, same

ALIKE: dict[str, Callable[[], None]] = {}


def alike(function: Callable[[], None]) -> Callable[[], None]:
    ALIKE[function.__name__] = function
    return function


@alike
def ranks_that_step_by_different_updates_are_refused_and_go_on_once_they_are_alike() -> None:
    together, one = new(mesh=join(), accumulate=2), alone(accumulate=2)
    before, group = together.get_params(), together._shared.own_optimizer().param_groups[0]
    group["lr"] = 0.01 * (1 + rank())
    said = "the ranks step by different updates: lr is 0.01 on rank 0 and 0.02 on rank 1. Nothing was updated."
    raises(lambda: together.train_step(*mine(0, *batch(0))), RankError, said)
    assert together.waiting == 0
    group["lr"] = 0.01
    for name, other in (("weight_decay", 0.5), ("betas", (0.9, 0.5))):  # what comes after one of several numbers, too
        kept, group[name] = group[name], other if rank() else group[name]
        raises(lambda: together.train_step(*mine(0, *batch(0))), RankError, name)
        group[name] = kept
    for k in range(3):
        together.train_step(*mine(k, *batch(k)))
        one.train_step(*batch(k))
    group["lr"] = 0.01 * (1 + rank())
    raises(together.step_waiting, RankError, said)
    group["lr"] = 0.01
    assert together.step_waiting() == one.step_waiting() == 1
    same(together, one)
    assert not torch.equal(before[0], together.get_params()[0])


@alike
def ranks_that_take_other_steps_are_refused_whatever_shapes_they_are_of() -> None:
    first, second, one = new(mesh=join()), new(mesh=join()), alone()
    rows = mine(0, *batch(0))
    mine_first = second if rank() else first
    raises(lambda: mine_first.train_step(*rows), RankError, "the trainer is number", "on rank 0 and number")
    taken = first.loss_and_backward if rank() else first.train_step
    said = "the step is an update on rank 0 and loss_and_backward on rank 1"
    raises(lambda: taken(*rows), RankError, said)
    first.train_step(*rows)
    one.train_step(*batch(0))
    same(first, one)


@alike
def ranks_that_made_different_trainers_are_refused() -> None:
    raises(lambda: new(mesh=join(), max_norm=1.0 + rank()), ValueError, "max_norm", "rank 1")
    share = 1 + rank()
    said = "`samples` differ: 'a function (checksum ", "on rank 0, 'a function (checksum "
    raises(lambda: new(mesh=join(), samples=lambda x, y: share * x.shape[0]), ValueError, *said)
    other = "`samples` differ: 'None' on rank 0, \"'batch'\" on rank 1"
    raises(lambda: new(mesh=join(), samples="batch" if rank() else None), ValueError, other)
    factor, weights = 1.0 + rank(), torch.ones(5, dtype=torch.float64) + rank()

    def scaled(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return factor * F.cross_entropy(x @ p.w1[:, :5], y) + p.b1.sum() + p.w2.sum() + p.b2.sum()

    def weighed(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return (weights * (x @ p.w1[:, :5]).square()).mean() + y.sum() * 0.0 + p.b1.sum() + p.w2.sum() + p.b2.sum()

    raises(lambda: new(scaled, mesh=join()), ValueError, "`the proved graph` differ")
    raises(lambda: new(weighed, mesh=join()), ValueError, "`the tensor weights from outside` differ")


@alike
def a_rank_that_leaves_the_compiler_goes_on_with_those_that_stay() -> None:
    together, one = new(mesh=join(), backend="auto" if rank() == 0 else "eager"), alone()
    if rank() == 0:
        with warnings.catch_warnings(action="ignore"):
            together._backend.leave(CompileError("no compiler"))  # type: ignore[attr-defined]
    for k in range(3):
        together.train_step(*mine(k, *batch(k)))
        one.train_step(*batch(k))
    same(together, one)


@alike
def what_one_rank_loads_alone_is_refused_until_all_have_it() -> None:
    for zero in (0, 3):
        together, one = new(mesh=join(), zero=zero), alone()
        first = together.state_dict()
        together.train_step(*mine(0, *batch(0)))
        if rank() == 0:  # as scripts do that load where they save
            together.load_state_dict(first)
        said = "the ranks loaded different states (rank 0: a state of step 0 (checksum", "rank 1: nothing). Nothing was"
        raises(partial(together.train_step, *mine(0, *batch(0))), RankError, *said)
        together.load_state_dict(first)
        for k in range(3):
            together.train_step(*mine(k, *batch(k)))
            one.train_step(*batch(k))
        same(together, one)
        optimizer = together._shared.own_optimizer()
        if rank() == 1:
            optimizer.load_state_dict(optimizer.state_dict())
        raises(partial(together.train_step, *mine(0, *batch(0))), RankError, "rank 1: AdamW's state")
        if zero == 0:
            other = new(mesh=join())
            with torch.no_grad():
                first["params"]["w1"] += rank()
            other.load_state_dict(first)
            raises(partial(other.train_step, *mine(0, *batch(0))), RankError, "rank 1: a state of step 0 (checksum")


Edit = Callable[[Any], object]  # of a trainer


def _edits() -> dict[str, tuple[Edit, Edit]]:
    """What a rank's own code may do to parameters and moments, what is said of it, and how it is taken back."""

    def state(trainer: Any) -> dict[str, Tensor]:
        return trainer._shared.own_optimizer().state[trainer.params.w1]  # type: ignore[no-any-return]

    return {
        "the same `w1`: rank 1 wrote into that": (
            lambda trainer: trainer.params.w1.add_(1.0),
            lambda trainer: trainer.params.w1.sub_(1.0),
        ),
        "the same `exp_avg_sq of w1`: rank 1 wrote into that": (
            lambda trainer: state(trainer).update(exp_avg_sq=2.0 * state(trainer)["exp_avg_sq"]),
            lambda trainer: state(trainer).update(exp_avg_sq=0.5 * state(trainer)["exp_avg_sq"]),
        ),
    }


@alike
def what_one_rank_writes_into_parameters_or_moments_is_refused_in_the_next_step_until_it_is_alike() -> None:
    together, one = new(mesh=join()), alone()
    parameters = [p.data for p in together.params]  # writes through these are not counted by torch
    for k, (said, (edit, back)) in enumerate(_edits().items()):
        together.train_step(*mine(k, *batch(k)))
        one.train_step(*batch(k))
        with torch.no_grad():
            before = parameters[0].clone()
            if rank() == 1:
                edit(together)
            for _ in range(2):
                raises(partial(together.train_step, *mine(0, *batch(0))), RankError, said, "Nothing was updated")
            if rank() == 1:
                back(together)
                parameters[0].copy_(before)
    for k in range(3):  # alike on all ranks: as one process
        with torch.no_grad():
            for trainer in (together, one):
                trainer.params[0].clamp_(-0.5, 0.5)
            dist.broadcast(together.params[0].data, 0)
            if rank() == 1:
                together.params[0].copy_(together.params[0].clone())  # its own values
        together.train_step(*mine(k, *batch(k)))
        one.train_step(*batch(k))
    same(together, one)


@alike
def what_torch_does_not_count_is_found_while_all_is_looked_at_in_turn() -> None:
    together = new(mesh=join())
    first, rows = together.state_dict(), mine(0, *batch(0))
    for _ in range(2):
        together.train_step(*rows)
    held = 4 + 2 * 4 + 4  # parameters, moments and steps

    def moved(trainer: ScalarTrainer) -> None:
        trainer._shared.own_optimizer().state[trainer.params.w2]["exp_avg"][0, 0] += 1e-6

    def moved_behind(trainer: ScalarTrainer) -> None:
        trainer.params.w1.data[0, 0] += 1e-6

    for said, edit in (("`w1`", moved_behind), ("`w2` and `exp_avg of w2`", moved)):
        if rank() == 1:
            edit(together)
        raises(lambda: [together.train_step(*rows) for _ in range(2 * held)], RankError, "the same", said)
        together.load_state_dict(first)
        for _ in range(held):
            together.train_step(*rows)


@alike
def what_the_loss_reads_and_its_mode_are_the_same_on_all_ranks_in_each_step() -> None:
    settings = {"scale": 1.0}
    shift = torch.zeros((), dtype=torch.float64)

    def scaled(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return settings["scale"] * F.cross_entropy(torch.tanh(x @ p.w1 + p.b1 + shift) @ p.w2 + p.b2, y)

    together, rows = new(scaled, mesh=join()), mine(0, *batch(0))
    together.train_step(*rows)
    settings["scale"] = 2.0  # on all
    together.train_step(*rows)
    settings["scale"] = 2.0 + rank()
    said = "what the loss reads is `settings['scale']` = 2.0 on rank 0 and `settings['scale']` = 3.0 on rank 1"
    raises(partial(together.train_step, *rows), RankError, said)
    settings["scale"] = 1.0
    together.train_step(*rows)
    if rank() == 1:
        shift.add_(1.0)
    raises(partial(together.train_step, *rows), RankError, "the same `shift from outside`: rank 1 wrote into that")

    torch.manual_seed(0)
    net = Net().double()
    trainer = ScalarTrainer(over, net, mesh=join())
    trainer.adamw_step(*rows, lr=0.01)
    net.train(rank() == 0)
    said = "the mode of the module is train() on rank 0 and eval() on rank 1"
    raises(partial(trainer.adamw_step, *rows, lr=0.01), RankError, said)


@alike
def groups_of_other_parameters_and_states_from_before_are_refused() -> None:
    def made(before: bool, *first: int) -> ScalarTrainer:
        params = MLP.init(pixels=6, hidden=7, classes=5, seed=0).to(dtype=torch.float64)
        others = [p for i, p in enumerate(params) if i not in first]
        groups = [{"params": [params[i] for i in first]}, {"params": others}]
        optimizer = AdamW(groups if first else params, lr=0.01)
        if before:
            ScalarTrainer(mlp, params, optimizer=optimizer, mesh="alone").train_step(*batch(1))
        return ScalarTrainer(mlp, params, optimizer=optimizer, mesh=join())

    rows = mine(0, *batch(0))
    other = made(False, 2 * rank(), 2 * rank() + 1)
    raises(lambda: other.train_step(*rows), RankError, "the parameters of group 0 is `w1` and `b1` (checksum ")
    one_sided = made(rank() == 1)
    raises(lambda: one_sided.train_step(*rows), RankError, "do not have the same `exp_avg of ", "Nothing was updated")


@alike
def ranks_that_round_otherwise_go_on_and_save_with_one_state() -> None:
    with warnings.catch_warnings(action="ignore"):
        together = new(mesh=join(), dtype=torch.float32, backend="eager" if rank() else "compiled", sizes="dynamic")
    loop, place = Loop(together), folder()
    checkpoints = loop.attach(Checkpoints(f"{place}/run", every=2))
    x, y = torch.randn(48, 6, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 5
    loop.run_epochs(Batches(x, y, batch_size=8, seed=0), 1)
    checkpoints.close()
    assert checkpoints.steps()[-1] == 6


class Order(TorchDispatchMode):
    """The collectives of an eager step, with what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_c10d_functional" in str(func) and "wait" not in str(func):
            self.seen.append(f"{func} {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


@alike
def all_executors_and_the_eager_step_have_one_order_of_collectives() -> None:
    """Of a batch of one row, of several, in this size alone or in any; on all ranks."""
    for zero in (0, 3):
        orders = []
        for sizes, rows in (("dynamic", 4), ("dynamic", 1), ("static", 4), ("static", 2)):
            made = new(mesh=join(), zero=zero, backend="compiled", sizes=sizes, max_norm=0.3)
            x, y = [t[: rows + rank()] for t in batch(3)]
            graph, _ = made._backend.step_graph([x, y], made._shared.own_optimizer())  # type: ignore[attr-defined]
            sent = [n for n in graph.graph.nodes if "_c10d_functional" in str(n.target) and "wait" not in str(n.target)]
            orders.append([f"{n.target} {tuple(n.args[0].meta['val'].shape)}" for n in sent])
        eager = new(mesh=join(), zero=zero, max_norm=0.3)
        with Order() as order:
            eager.train_step(*mine(3, *batch(3)))
        told: list[Any] = [None, None]
        dist.all_gather_object(told, [*orders, [seen.replace("all_reduce_.", "all_reduce.") for seen in order.seen]])
        assert orders[0]
        assert all(of == orders[0] for ranks in told for of in ranks), told
