"""What a trainer refuses, when it is made and when it is called; nothing has changed then."""

import copy

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import (
    ExecutorError,
    GradientError,
    ParamList,
    ProofError,
    ScalarTrainer,
    ShapeError,
    SignatureError,
)
from shaped.optim import AdamW
from tests.models import MLP, batch, mlp, mlp_loss
from tests.trainer.oracle import bits, both, same

BAD_BATCHES = {
    "shape": lambda x, y: (torch.randn(5, 7), y),
    "rank": lambda x, y: (x[0], y),
    "dtype": lambda x, y: (x, y.float()),
    "missing": lambda x, y: (x,),
    "extra": lambda x, y: (x, y, y),
    "none": lambda x, y: (x, None),
    "list": lambda x, y: (x.tolist(), y),
    "device": lambda x, y: (x.to("meta"), y),
    "batches differ": lambda x, y: (x, y[:3]),
    "empty": lambda x, y: (x[:0], y[:0]),
}


@both
@pytest.mark.parametrize("fault", BAD_BATCHES)
def test_a_batch_that_breaks_the_signature_changes_nothing(backend, fault, compiled):
    trainer = compiled.with_backend(backend)
    before = bits(trainer.params)
    state = copy.deepcopy(trainer.state_dict())

    with pytest.raises(ShapeError):
        trainer.adamw_step(*BAD_BATCHES[fault](*batch()), lr=0.01)
    assert same(before, trainer.params)
    assert str(trainer.state_dict()) == str(state)


def test_the_message_names_what_is_wrong_and_who_fixed_the_axis():
    trainer = ScalarTrainer(mlp_loss, mlp())

    with pytest.raises(ShapeError) as caught:
        trainer.step(torch.randn(5, 7), torch.zeros(4, dtype=torch.int64), lr=0.1)

    assert str(caught.value) == (
        "The batch breaks its signature in 2 of 2 entries.\n"
        '  x: expected Float "batch pixels" = (5, 6), got float32 (5, 7)\n'
        "      axis pixels is 6, set by w1 (6, 8)\n"
        '  y: expected Int "batch" = (5,), got int64 (4,)\n'
        "      axis batch is 5, set by x (5, 7)"
    )


@both
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda t, x, y: t.step(x, y, lr=-1.0), "lr"),
        (lambda t, x, y: t.step(x, y, lr=float("nan")), "lr"),
        (lambda t, x, y: t.step(x, y, lr="fast"), "lr"),
        (lambda t, x, y: t.adam_step(x, y, lr=0.1, betas=(0.9, 1.0)), "beta"),
        (lambda t, x, y: t.adam_step(x, y, lr=0.1, eps=-1e-8), "eps"),
        (lambda t, x, y: t.train_step(x, y), "train_step needs an optimizer"),
    ],
)
def test_a_hyper_parameter_out_of_range_changes_nothing(backend, call, name):
    trainer = ScalarTrainer(mlp_loss, mlp(), backend=backend)
    before = bits(trainer.params)

    with pytest.raises(ValueError, match=name):
        call(trainer, *batch())
    assert same(before, trainer.params)
    assert trainer.steps == 0


def test_a_negative_weight_decay_is_refused():
    with pytest.raises(ValueError, match="weight_decay"):
        ScalarTrainer(mlp_loss, mlp()).adamw_step(*batch(), lr=0.1, weight_decay=-1.0)


def test_train_step_refuses_an_optimizer_over_other_parameters():
    with pytest.raises(ValueError, match="made for other parameters"):
        ScalarTrainer(mlp_loss, mlp(), optimizer=AdamW(mlp(seed=1)))
    with pytest.raises(ValueError, match="made for other parameters"):
        ScalarTrainer(mlp_loss, mlp(), optimizer=torch.optim.RAdam(list(mlp(seed=1))))


def first_layer(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
    return (x @ p.w1).square().mean()


def test_a_missing_gradient_is_named_before_the_first_step_unless_it_is_allowed():
    with pytest.raises(GradientError) as caught:
        ScalarTrainer(first_layer, mlp())
    assert str(caught.value) == (
        "`first_layer` does not depend on `b1`, `w2` and `b2`: the gradient is missing. Use it, freeze it, or pass "
        "allow_unused=True"
    )
    params = mlp()
    before = params.w2.clone()
    trainer = ScalarTrainer(first_layer, params, allow_unused=True)
    x, _ = batch()
    trainer.adamw_step(x, lr=0.1)

    assert torch.equal(before, params.w2)
    assert not trainer.backward(x).w2.any()


def test_constructing_refuses_what_cannot_be_trained():
    def vector(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, " batch"]:
        return x.mean(1)

    def bare(p: MLP, x) -> Float[Tensor, ""]:  # type: ignore[no-untyped-def]
        return x.mean()

    class Other(ParamList):
        w: Float[Tensor, "a b"]

    with pytest.raises(SignatureError, match="a trainer needs one scalar"):
        ScalarTrainer(vector, mlp())
    with pytest.raises(SignatureError, match="argument `x` has no annotation"):
        ScalarTrainer(bare, mlp())
    with pytest.raises(SignatureError, match="takes a MLP as `p`, and params is a Other"):
        ScalarTrainer(mlp_loss, Other.init(a=2, b=3))
    with pytest.raises(ValueError, match="params is a list; it is a ParamList or a Module"):
        ScalarTrainer(mlp_loss, [torch.zeros(2)])  # type: ignore[arg-type]
    with pytest.raises(GradientError, match="nothing to train"):
        ScalarTrainer(mlp_loss, mlp(frozen=("w1", "b1", "w2", "b2")))
    for options in (
        {"backend": "fast"},
        {"nonfinite": "ignore"},
        {"accumulate": 0},
        {"max_norm": 0.0},
        {"max_executors": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            ScalarTrainer(mlp_loss, mlp(), **options)


def test_dtypes_the_program_cannot_take_are_refused_at_the_door():
    trainer = ScalarTrainer(mlp_loss, mlp())
    x, y = batch(dtype=torch.float64)
    before = bits(trainer.params)

    with pytest.raises(ProofError, match="is not well-shaped for the dtypes x float64, y int64"):
        trainer.step(x, y, lr=0.1)
    assert same(before, trainer.params)


@both
def test_freezing_a_parameter_needs_a_new_trainer(backend):
    params = mlp()
    trainer = ScalarTrainer(mlp_loss, params, backend=backend)
    params.w1.requires_grad_(False)

    with pytest.raises(GradientError, match="requires_grad of `w1` was changed; make a new trainer for this mask"):
        trainer.step(*batch(), lr=0.1)


@both
def test_a_class_number_out_of_range_is_an_error_and_nothing_has_changed(backend):
    trainer = ScalarTrainer(mlp_loss, mlp(), backend=backend)
    before = bits(trainer.params)
    x, y = batch()

    with pytest.raises((IndexError, ExecutorError)):
        trainer.step(x, y + 7, lr=0.1)
    assert same(before, trainer.params)


def test_check_false_admits_batches_unseen():
    trainer = ScalarTrainer(mlp_loss, mlp(), check=False)
    trainer.step(*batch(), lr=0.1)

    with pytest.raises(RuntimeError):
        trainer.step(torch.randn(5, 7), batch()[1], lr=0.1)
