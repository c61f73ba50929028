"""`train_steps`: several steps in one call, which are those of as many calls."""

from functools import cache

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shaped import NonFiniteError, ScalarTrainer, ShapeError
from shaped.optim import SGD, AdamW, Muon, ScheduleFree
from tests.models import MLP, batch, mlp, mlp_loss
from tests.trainer.oracle import bits, both, same

OPTIMIZERS = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: AdamW([{"params": list(p)[:2]}, {"params": list(p)[2:], "lr": 0.05}], lr=0.01),
    "clipped, averaged": lambda p: AdamW(p, lr=torch.tensor(0.01), max_norm=0.5, ema_decay=0.9),
    "leads": lambda p: ScheduleFree(p, lr=0.01),
    "Muon": Muon,
    "torch's": lambda p: torch.optim.RAdam(list(p)),
}
BATCHES = [batch(seed=seed) for seed in range(5)]
SIZES = [tuple(t[: 3 if i == 3 else None] for t in batch(seed=i)) for i in range(6)]


def pair(make, backend="compiled", loss=mlp_loss, **options) -> list[ScalarTrainer]:
    """Two trainers of the same start."""
    made = []
    for params in (mlp(), mlp()):
        optimizer = make if make is Muon else make(params)
        made.append(ScalarTrainer(loss, params, backend=backend, optimizer=optimizer, **options))
    return made


@cache
def of(backend: str) -> list[ScalarTrainer]:
    """Two trainers that several tests share: what is done to one is done to the other, so that they stay equal."""
    return pair(OPTIMIZERS["SGD"], backend)


def stepped(trainer: ScalarTrainer, batches) -> Tensor:
    return torch.stack([trainer.train_step(*one) for one in batches])


@pytest.mark.parametrize(
    ("rule", "backend"),
    [
        *((rule, "eager") for rule in OPTIMIZERS),
        ("SGD", "compiled"),
        *(
            pytest.param(rule, "compiled", marks=pytest.mark.slow)
            for rule in OPTIMIZERS
            if rule not in ("SGD", "torch's")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*steps on the eager backend")
def test_many_steps_are_bit_for_bit_those_of_as_many_calls(backend, rule):
    one, other = of(backend) if rule == "SGD" else pair(OPTIMIZERS[rule], backend)

    assert torch.equal(one.train_steps(BATCHES), stepped(other, BATCHES))
    assert same(bits(one.params), other.params)
    assert str(one.state_dict()) == str(other.state_dict())


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("eager", {"accumulate": 2}),
        ("eager", {"nonfinite": "skip"}),
        ("eager", {"max_norm": 0.1}),
        pytest.param("compiled", {"accumulate": 2, "nonfinite": "skip", "max_norm": 0.1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_they_follow_the_options_and_other_sizes_of_a_trainer(backend, options):
    one, other = pair(OPTIMIZERS["AdamW"], backend, sizes="dynamic", **options)
    batches = list(SIZES)
    if "nonfinite" in options:
        batches[3] = (batches[3][0] * float("nan"), batches[3][1])

    assert torch.equal(one.train_steps(batches).nan_to_num(), stepped(other, batches).nan_to_num())
    assert same(bits(one.params), other.params)
    assert (one.steps, one.skipped, one.waiting) == (other.steps, other.skipped, other.waiting)


def test_batches_come_from_any_iterable_by_position_by_name_or_alone():
    one, other = pair(OPTIMIZERS["SGD"], "eager")
    named = [{"x": x, "y": y} for x, y in BATCHES]

    assert torch.equal(one.train_steps(iter(named)), other.train_steps(list(pair) for pair in BATCHES))
    assert one.train_steps([]).shape == (0,)


@both
def test_an_error_in_the_middle_says_what_was_stepped_and_it_stays(backend):
    one, other = of(backend)
    x, y = BATCHES[3]
    for wrong, error in (((x * float("nan"), y), NonFiniteError), ((x[:, :5], y), ShapeError)):
        with pytest.raises(error) as caught:
            one.train_steps([*BATCHES[:3], wrong, BATCHES[4]])
        stepped(other, BATCHES[:3])

        assert caught.value.__notes__ == ["train_steps: 3 batches were stepped before this, and stay so"]
        assert same(bits(one.params), other.params)
        assert one.steps == other.steps


@both
def test_what_changes_between_two_calls_or_two_drawn_batches_is_seen(backend):
    one, other = of(backend)
    scheduled = [0.1, 0.1, 0.05, 0.01, 0.2]

    def drawn(trainer):
        assert trainer.optimizer is not None
        for lr, pair in zip(scheduled, BATCHES, strict=True):
            trainer.optimizer.param_groups[0]["lr"] = lr
            yield pair

    assert torch.equal(one.train_steps(drawn(one)), torch.cat([stepped(other, [b]) for b in drawn(other)]))
    for trainer in (one, other):
        assert trainer.optimizer is not None
        trainer.optimizer.param_groups[0]["momentum"] = 0.5
        for p in trainer.params:
            p.data = p.detach() * 2
    assert torch.equal(one.train_steps(BATCHES), stepped(other, BATCHES))
    assert same(bits(one.params), other.params)


class Trained:
    """Where a loss finds the trainer that trains it."""

    trainer: ScalarTrainer


def scaled(p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    calls = Trained.trainer._shared.counters.calls if hasattr(Trained, "trainer") else 0
    return mlp_loss(p, x, y) * (1 + calls)


@pytest.mark.slow
def test_what_a_loss_reads_from_outside_is_looked_at_at_each_of_them():
    found = []
    for many, trainer in zip((True, False), pair(OPTIMIZERS["SGD"], loss=scaled, verify=False), strict=True):
        Trained.trainer = trainer
        found.append(trainer.train_steps(BATCHES[:3]) if many else stepped(trainer, BATCHES[:3]))
        del Trained.trainer

    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("batches", "error", "said"),
    [
        (torch.zeros(3, 4), ValueError, "batches is a Tensor"),
        ({"x": 1}, ValueError, "batches is a dict"),
        (3, ValueError, "batches is a int"),
        ([3], ShapeError, "a batch is a int"),
    ],
)
def test_what_is_no_list_of_batches_is_refused(batches, error, said):
    trainer = pair(OPTIMIZERS["SGD"], "eager")[0]

    with pytest.raises(error, match=said):
        trainer.train_steps(batches)
    with pytest.raises(ValueError, match="train_step needs an optimizer"):
        ScalarTrainer(mlp_loss, mlp()).train_steps(batch(seed=1) for _ in iter(int, 1))
