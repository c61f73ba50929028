"""Executors for one size, for all sizes, and made ahead."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ExecutorError, ParamList, ScalarTrainer
from tests.models import GPT, batch, gpt_loss, mlp, mlp_loss


def trainer(sizes: str = "auto", **options: object) -> ScalarTrainer:
    return ScalarTrainer(mlp_loss, mlp(), backend="compiled", sizes=sizes, **options)  # type: ignore[arg-type]


def train(trainer: ScalarTrainer, *sizes: int) -> None:
    for size in sizes:
        trainer.adamw_step(*batch(size), lr=0.01)


@pytest.mark.smoke
@pytest.mark.usefixtures("interpreted")
def test_a_loop_with_a_smaller_last_batch_makes_two_executors_whatever_sizes_follow():
    run = trainer()
    train(run, 5, 5, 3, 5, 5, 3, 4, 7, 2)

    assert [e.sizes for e in run.executors] == [
        "pixels = 6, hidden = 8, classes = 3, batch = 5",
        "any batch; pixels = 6, hidden = 8, classes = 3",
    ]
    assert [e.calls for e in run.executors] == [4, 5]
    assert [e.reason for e in run.executors] == ["the first", "another size"]


@pytest.mark.usefixtures("interpreted")
def test_static_sizes_make_an_executor_for_each_and_dynamic_sizes_one_for_all():
    static, dynamic = trainer("static"), trainer("dynamic")
    for run in (static, dynamic):
        train(run, 5, 3, 4)

    assert (len(static.executors), len(dynamic.executors)) == (3, 1)
    for p, q in zip(static.params, dynamic.params, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.usefixtures("interpreted")
def test_a_size_of_one_is_traced_apart():
    run = trainer("dynamic")
    train(run, 5, 1, 4, 1)

    assert [e.sizes.split(";")[0][:9] for e in run.executors] == ["any batch", "pixels = "]


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_executors_of_all_sizes_serve_every_mode():
    run = trainer("dynamic")
    for size in (5, 3):
        run.forward(*batch(size))
        run.loss_and_backward(*batch(size))

    assert [(e.mode, e.calls) for e in run.executors] == [("forward", 2), ("loss_and_backward", 2)]


class Square(ParamList):
    w: Float[Tensor, " k"]


def branching(p: Square, x: Float[Tensor, "rows k"], y: Float[Tensor, "columns k"]) -> Float[Tensor, ""]:
    if x.shape[0] == y.shape[0]:
        return ((x + y) @ p.w).square().mean()
    return (x @ p.w).square().mean() + (y @ p.w).square().mean()


@pytest.mark.usefixtures("interpreted")
def test_sizes_that_take_another_branch_get_an_executor_of_their_own():
    params = Square(torch.ones(3))
    run = ScalarTrainer(branching, params, backend="compiled", sizes="dynamic")
    for rows, columns in [(4, 5), (6, 2), (5, 5), (4, 4)]:
        x, y = torch.randn(rows, 3), torch.randn(columns, 3)

        torch.testing.assert_close(run.forward(x, y), branching(params, x, y).detach())
    assert len(run.executors) == 3


@pytest.mark.smoke
def test_compiled_code_for_all_sizes_is_that_of_each_size():
    run = trainer("dynamic")
    plain = ScalarTrainer(mlp_loss, mlp())
    for size in (5, 3, 40, 2):
        x, y = batch(size)
        torch.testing.assert_close(run.adamw_step(x, y, lr=0.01), plain.adamw_step(x, y, lr=0.01))

    assert [(e.how, e.calls) for e in run.executors] == [("inductor", 4)]
    for p, q in zip(run.params, plain.params, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.slow
def test_a_gpt_compiled_for_all_batches_and_lengths_is_the_eager_one():
    params = GPT.init(vocab=11, context=12, dim=8, blocks=1, seed=0)
    run = ScalarTrainer(gpt_loss, params, backend="compiled", sizes="dynamic")
    plain = ScalarTrainer(gpt_loss, params.values())
    for size, length in [(3, 8), (2, 12), (5, 7), (3, 5)]:
        tokens = torch.randint(0, 11, (size, length), generator=torch.Generator().manual_seed(size))
        mine, theirs = run.step(tokens, tokens, lr=0.1), plain.step(tokens, tokens, lr=0.1)

        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert len(run.executors) == 1


@pytest.mark.usefixtures("interpreted")
def test_what_compiles_for_each_size_only_gets_an_executor_for_each_with_the_reason(monkeypatch):
    def refuse(*arguments: object) -> None:
        raise NotImplementedError("no symbols here")

    monkeypatch.setattr("shaped.backends.inductor._symbol", refuse)
    run = trainer()
    train(run, 5, 3, 5, 4)

    assert len(run.executors) == 3
    assert str(run.executors).count("not for all sizes: the compiler refused the step: no symbols here") == 2
    with pytest.raises(ExecutorError, match="no symbols here"):
        train(trainer("dynamic"), 5)


class Weights(ParamList):
    w: Float[Tensor, " d"]


def over_axes(p: Weights, x: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
    return (x @ p.w).square().mean()


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_each_number_of_axes_has_an_executor_for_its_sizes():
    params = Weights(torch.ones(3))
    run = ScalarTrainer(over_axes, params, backend="compiled", sizes="dynamic")
    for shape in [(4, 3), (2, 5, 3), (6, 3), (3, 2, 3), (3,)]:
        x = torch.randn(shape)

        torch.testing.assert_close(run.forward(x), over_axes(params, x).detach())
    assert [e.calls for e in run.executors] == [2, 2, 1]


# -- ahead of the data -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("ahead", [lambda t: t.precompile(batch=5), lambda t: t.precompile((5, 6), (5,))])
def test_precompiling_leaves_nothing_to_compile_and_changes_nothing(ahead):
    run = trainer()
    before = str(run.state_dict())
    made = ahead(run)

    assert len(made) == 1
    assert str(run.state_dict()) == before
    train(run, 5, 5)
    assert [(e.mode, e.calls) for e in run.executors] == [("AdamW", 2)]


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_precompiling_takes_a_method_and_batches_that_wait():
    run = trainer(accumulate=2)
    run.precompile(batch=5, method="adam_step")
    run.precompile(batch=5, method="forward")

    assert [e.mode for e in run.executors] == ["Adam", "gather", "forward"]
    run.adam_step(*batch(), lr=0.1)
    run.adam_step(*batch(), lr=0.1)
    run.forward(*batch())
    assert len(run.executors) == 3


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t: t.precompile(), "give a size for each of `batch`, which the parameters do not fix"),
        (lambda t: t.precompile(batch=5, rows=2), "and not for `rows`"),
        (lambda t: t.precompile((5, 6)), "give 2 shapes"),
        (lambda t: t.precompile(batch=5, method="fit"), "method is 'fit'"),
        (lambda t: t.precompile(batch=5, method="train_step"), "train_step needs an optimizer"),
        (lambda t: t.with_backend("eager").precompile(batch=5), "the eager backend compiles nothing"),
    ],
)
def test_precompiling_what_there_is_not_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(trainer())


@pytest.mark.usefixtures("interpreted")
def test_a_full_cache_says_what_to_do():
    run = trainer("static", max_executors=1)
    train(run, 5)

    with pytest.raises(ExecutorError, match=r"max_executors is 1\. Pad batches to few sizes, use sizes='dynamic'"):
        train(run, 3)


def test_sizes_must_be_one_of_three():
    with pytest.raises(ValueError, match="sizes is 'any'; it is 'static', 'dynamic' or 'auto'"):
        trainer("any")
