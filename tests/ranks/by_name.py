"""What is checked in two processes of plans by name; run by processes.py."""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import Checkpoints, Loop, NonFiniteError, ProofError, RankError, ScalarTrainer, ShapeError, dims
from shaped.data import Batches
from shaped.optim import AdamW, Muon
from shaped.ranks import join
from tests.ranks.processes import EXACT, MLP, alone, batch, dropped, folder, mlp, new, raises, rank, same

NAMED: dict[str, Callable[[], None]] = {}


def named(function: Callable[[], None]) -> Callable[[], None]:
    NAMED[function.__name__] = function
    return function


def plan(*names: str, **options: Any) -> ScalarTrainer:
    """A trainer whose hidden size 8 or whose 6 pixels lie over both ranks."""
    params = MLP.init(pixels=6, hidden=8, classes=5, seed=0, dtype=torch.float32).to(dtype=torch.float64)
    loss = options.pop("loss", mlp)
    if names:
        options |= {"mesh": join(tp=2), "shard": dict.fromkeys(names, "tp")}
    return ScalarTrainer(loss, params, optimizer=AdamW(params, lr=0.01), **options)


def follows(*names: str, backend: str = "eager", **options: Any) -> ScalarTrainer:
    """A trainer by name after some steps, held against one process."""
    one = alone(make=plan, **{name: value for name, value in options.items() if name != "sizes"})
    together = plan(*names, backend=backend, **options)
    for k in range(4):
        value, want = together.train_step(*batch(k)), one.train_step(*batch(k))
        if options.get("accumulate", 1) == 1:
            torch.testing.assert_close(value, want, rtol=EXACT, atol=EXACT)
    same(together, one)
    if together.grad_norm is not None and one.grad_norm is not None:
        torch.testing.assert_close(together.grad_norm, one.grad_norm, rtol=EXACT, atol=EXACT)
    return together


@named
def eager_ranks_by_name_step_as_one_process_on_parts_of_parameters_and_moments() -> None:
    together = follows("hidden", max_norm=0.3)
    assert [tuple(t.shape) for t in together._program.tensors] == [(6, 4), (4,), (4, 5), (5,)]
    moments = together._shared.own_optimizer().state[together._program.tensors[0]]
    assert moments["exp_avg"].shape == (6, 4)
    follows("pixels", max_norm=0.3, accumulate=2)
    assert "hidden % tp == 0" in together.proof.conditions
    assert "1 sum of [batch, classes], 40*batch bytes over tp" in str(together.proof)


@named
def compiled_ranks_by_name_step_as_one_process() -> None:
    follows("hidden", backend="compiled", max_norm=0.3, sizes="dynamic")


@named
def errors_and_nans_of_one_rank_by_name_are_those_of_all_and_change_nothing() -> None:
    together, one = plan("hidden"), alone(make=plan)
    x, y = batch(0)
    before = together.get_params()
    named_rank = () if rank() == 1 else ("on rank 1",)
    raises(lambda: together.train_step(x[:, :5] if rank() else x, y), ShapeError, *named_rank)
    raises(lambda: together.train_step(x[:3] if rank() else x, y[:3] if rank() else y), RankError, "the same rows")
    raises(lambda: together.train_step(x + rank(), y), RankError, "one batch along tp")
    raises(lambda: together.train_step(x, y + 5), Exception, "indices 0 to 4")
    raises(lambda: together.train_step(x * float("nan"), y), NonFiniteError)
    for a, b in zip(before, together.get_params(), strict=True):
        assert torch.equal(a, b)
    raises(lambda: together.params, ValueError, "get_params()")
    together.train_step(x, y)
    one.train_step(x, y)
    same(together, one)
    assert float(together.forward(x, y)) == float(together.forward(x, y))


@named
def what_fails_by_name_where_gradients_wait_is_an_error_on_all() -> None:
    together, one = plan("hidden", accumulate=2, max_norm=0.3), alone(make=plan, accumulate=2, max_norm=0.3)
    together.train_step(*batch(0))
    one.train_step(*batch(0))
    group = together._shared.own_optimizer().param_groups[0]
    lr, group["lr"] = group["lr"], -1.0 if rank() == 1 else group["lr"]
    raises(together.step_waiting, ValueError, "lr", *(() if rank() == 1 else ("on rank 1",)))
    group["lr"] = lr
    assert together.step_waiting() == one.step_waiting() == 1
    same(together, one)


class Layered(nn.Module):
    up: Annotated[nn.Linear, dims(in_features="pixels", out_features="hidden")]

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 8), nn.Linear(8, 5), nn.LayerNorm(6)

    def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 5"]:
        out: Tensor = self.down(torch.tanh(self.up(self.norm(x))))
        return out


def over(out: Float[Tensor, "batch 5"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(out, y)


def layered(loss: Callable[..., Any] = over, **options: Any) -> ScalarTrainer:
    """A trainer of a module; by names where it has a plan."""
    module = Layered().double()
    if "shard" in options:
        options["names"] = {"down.weight": "classes hidden"}
    return ScalarTrainer(loss, module, optimizer=AdamW(module.parameters(), lr=0.01), **options)


def module_follows(given: Callable[[int], Any], batches: Sequence[int] = range(4), **options: Any) -> ScalarTrainer:
    """A trainer of a module by name after some steps, held against one process."""
    torch.manual_seed(rank())
    each: dict[str, Any] = {"max_norm": 0.3, "accumulate": 2 if options["backend"] == "eager" else 1}  # one compile
    one, together = alone(over, layered, **each), layered(**each, **options)
    one.load_state_dict(together.state_dict())
    for k in batches:
        together.train_step(*given(k))
        one.train_step(*batch(k))
    same(together, one)
    return together


@named
def a_module_steps_as_on_one_process_by_names_that_it_declares_and_that_are_said() -> None:
    for backend in ("eager", "compiled"):
        plan: dict[str, Any] = {"mesh": join(tp=2), "shard": {"hidden": "tp"}}
        made = module_follows(batch, backend=backend, sizes="dynamic", **plan)
        assert [tuple(t.shape) for t in made._program.tensors] == [(4, 6), (4,), (5, 4), (5,), (6,), (6,)]
    assert "up.weight [hidden/tp, pixels], up.bias [hidden/tp], down.weight [classes, hidden/tp]" in str(made.proof)
    raises(lambda: layered(mesh=join(tp=2), shard={"hiden": "tp"}), TypeError, "of a module: what")


def highest(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    each = x.amax(1) - x.amin(1) + y
    return (each * p.w1.sum()).mean() + p.b1.sum() + p.w2.sum() + p.b2.sum()


def contrastive(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    h = F.normalize(torch.tanh(x @ p.w1 + p.b1) @ p.w2 + p.b2 + 0.1 * y[:, None], dim=-1)
    return F.cross_entropy(h @ h.T / 0.5, torch.arange(x.shape[0]))


@named
def a_batch_in_parts_within_steps_as_one_process_where_a_loss_is_no_mean() -> None:
    x, y = torch.randn(18, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(18) % 5
    data = Batches(x, y, batch_size=6, seed=0)
    for backend in ("eager", "compiled"):
        one, options = Loop(alone(contrastive, plan, max_norm=0.3)), {"backend": backend, "sizes": "dynamic"}
        together = Loop(plan(loss=contrastive, mesh=join(), inside=["batch"], max_norm=0.3, **options))
        for loop in (one, together):
            loop.run_epochs(data, 2)
        same(together.trainer, one.trainer)
    assert "batch over dp = 2, inside" in str(together.trainer.proof)
    assert "gather" in str(together.trainer.proof)
    raises(lambda: together.trainer.train_step(*batch(0)), ShapeError, "batch % dp == 0")
    raises(lambda: together.trainer.train_step(x[:4] + rank(), y[:4]), RankError, "one batch along dp")
    raises(lambda: plan(loss=contrastive, mesh=join()), ProofError, 'inside=["batch"]')


@named
def a_nan_in_the_part_of_one_rank_is_in_the_largest_of_all() -> None:
    together = plan("pixels", loss=highest)
    x, y = batch(0)
    want = alone(highest, plan).forward(x, y)
    torch.testing.assert_close(together.forward(x, y), want, rtol=EXACT, atol=EXACT)
    for at in (0, 5):  # gloo's maximum leaves one out that is not the first rank's
        found = x.clone()
        found[0, at] = float("nan")
        assert together.forward(found, y).isnan()


@named
def plans_that_do_not_fit_are_refused_on_all_ranks() -> None:
    mesh = join(tp=2)
    options: dict[str, Any] = {"mesh": mesh}
    raises(lambda: new(shard={"hidden": "tp"}, **options), ShapeError, "hidden % tp == 0, and hidden = 7")
    raises(lambda: new(shard={"hiden": "tp"}, **options), TypeError, "did you mean `hidden`?")
    raises(lambda: new(shard={"batch": "tp", "hidden": "tp"}, **options), TypeError, "two of its axes")
    two = join(dp=2, tp=1)
    said = "over one axis of the mesh as yet. Put them all over dp"
    raises(lambda: new(mesh=two, shard={"pixels": "dp", "hidden": "tp"}), TypeError, said)
    raises(lambda: new(shard={"pixels": "tp"}, zero=3, **options), ValueError, "no dimension of the batch")
    params = MLP.init(pixels=6, hidden=8, classes=5, seed=0)
    raises(lambda: ScalarTrainer(mlp, params, optimizer=Muon, shard={"hidden": "tp"}, **options), ValueError, "Muon")


@named
def dropout_of_parts_is_drawn_as_one_process_draws_it_and_agrees_by_name() -> None:
    losses = []
    for names in (("hidden",), ("pixels",)):  # parts of what is dropped, and whole values
        torch.manual_seed(3 + rank())  # what is drawn follows the first rank's
        together = plan(*names, loss=dropped)
        losses.append([float(together.train_step(*batch(k))) for k in range(3)])
        told: list[Any] = [None, None]
        dist.all_gather_object(told, losses[-1])
        assert told[0] == told[1]
    gap = max(abs(a - b) for a, b in zip(*losses, strict=True))
    assert gap < EXACT, "the mask depends on the plan"


@named
def a_run_by_name_goes_on_from_checkpoints_in_one_process_and_by_another_plan() -> None:
    x, y = torch.randn(19, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(19) % 5
    data = Batches(x, y, batch_size=6, seed=0)
    place = folder()
    one = Loop(alone(make=plan, max_norm=0.3))
    one.run_epochs(data, 3)
    want = one.evaluate(data)
    for names, steps in ((("hidden",), 3), (("pixels",), 6), ((), 9), (("hidden",), 12)):
        loop = Loop(plan(*names, max_norm=0.3) if names else new_whole())
        checkpoints = loop.attach(Checkpoints(f"{place}/run", every=3, keep=1))
        checkpoints.resume(loop)
        loop.run_to_step(data, steps)
        checkpoints.close()
        dist.barrier()
    same(loop.trainer, one.trainer)
    found = loop.evaluate(data)
    assert abs(found["validation/loss"] - want["validation/loss"]) <= EXACT * want["validation/loss"]
    state: dict[str, Tensor] = loop.trainer.state_dict()["params"]
    assert json.dumps([list(t.shape) for t in state.values()]) == "[[6, 8], [8], [8, 5], [5]]"


def new_whole() -> ScalarTrainer:
    """The same trainer on both ranks with whole parameters, which share the batch out."""
    params = MLP.init(pixels=6, hidden=8, classes=5, seed=0, dtype=torch.float32).to(dtype=torch.float64)
    return ScalarTrainer(mlp, params, optimizer=AdamW(params, lr=0.01), mesh=join(), max_norm=0.3)
