"""Numbers and optional inputs: values that change at each step, and inputs that some batches leave out."""

from typing import Any, cast

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shaped import GradientError, ParamList, ProofError, ScalarTrainer, ShapeError, SignatureError, Unprovable, prove
from tests.trainer.oracle import both

pytestmark = pytest.mark.usefixtures("interpreted")


class Line(ParamList):
    w: Float[Tensor, "d k"]


def annealed(
    p: Line,
    x: Float[Tensor, "b d"],
    beta: float,
    keep: Bool[Tensor, " b"] | None = None,
    t: Float[Tensor, ""] = 1.0,  # type: ignore[assignment]
) -> Float[Tensor, ""]:
    each = (x @ p.w / t).square().mean(1)
    return (each if keep is None else each * keep).mean() + beta * p.w.square().sum()


def line() -> Line:
    return Line.init(d=3, k=2, seed=0)


X, KEEP = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([True, False, True, True, False])


@both
def test_numbers_that_change_at_each_step_and_optional_inputs_compile_nothing_again(backend):
    trainer, plain = ScalarTrainer(annealed, line(), backend=backend), line()
    calls = [((0.0,), {}), ((0.5, KEEP), {}), ((2,), {"t": 2.0}), ((), {"beta": 0.25, "keep": KEEP}), ((0.1, None), {})]

    for arguments, named in cast(Any, calls):
        expected = cast(Any, annealed)(plain, X, *arguments, **cast(Any, named))
        gradient = torch.autograd.grad(expected, [plain.w])[0]
        torch.testing.assert_close(trainer.step(X, *arguments, **named, lr=0.1), expected.detach())
        plain = Line(w=(plain.w - 0.1 * gradient).detach().requires_grad_())
    torch.testing.assert_close(trainer.params.w, plain.w)

    assert [e.reason for e in trainer.executors] == (["the first", "other inputs"] if backend == "compiled" else [])


def test_a_number_takes_the_dtype_of_the_parameters():
    params = Line(w=line().w.detach().double())
    trainer = ScalarTrainer(annealed, params)

    assert trainer.forward(X.double(), 0.1).item() == cast(Any, annealed)(trainer.params, X.double(), 0.1).item()


@pytest.mark.parametrize("value", ["a", True, 1j])
def test_what_is_no_such_number_is_a_shape_error_that_names_it(value):
    trainer = ScalarTrainer(annealed, line())

    with pytest.raises(ShapeError, match="beta"):
        trainer.forward(X, value)


def test_an_input_that_is_not_optional_cannot_be_left_out():
    trainer = ScalarTrainer(annealed, line())

    with pytest.raises(ShapeError, match="got a NoneType"):
        trainer.forward(None, 0.5)
    with pytest.raises(ShapeError, match="`beta` is missing"):
        trainer.forward(X)


def test_whole_numbers_fit_their_dtype():
    def powers(p: Line, x: Float[Tensor, "b d"], n: Int[Tensor, ""]) -> Float[Tensor, ""]:
        return (x @ p.w).mean() * n

    trainer = ScalarTrainer(powers, line())

    assert trainer.forward(X, 2) == 2 * trainer.forward(X, 1)
    with pytest.raises(ShapeError, match=r"n is 2\.5, and declared Int"):
        trainer.forward(X, 2.5)
    with pytest.raises(ShapeError, match="which is no torch"):
        trainer.forward(X, 2**63)


def test_a_program_that_asks_for_a_number_says_that_it_is_an_input():
    def branches(p: Line, x: Float[Tensor, "b d"], beta: float) -> Float[Tensor, ""]:
        return (x @ p.w).mean() * (2 if beta > 0 else 1)

    with pytest.raises(Unprovable, match="`beta` is an input, of another value in each call"):
        ScalarTrainer(branches, line())


def test_a_program_that_needs_an_optional_input_is_refused_before_any_batch():
    def needs(p: Line, x: Float[Tensor, "b d"], keep: Float[Tensor, " b"] | None = None) -> Float[Tensor, ""]:
        return ((x @ p.w) * keep[:, None]).mean()  # type: ignore[index]

    with pytest.raises(SignatureError, match="does not run without `keep`"):
        ScalarTrainer(needs, line())
    with pytest.raises(SignatureError, match="does not run without `keep`"):
        prove(needs)


def test_a_program_that_is_wrong_without_an_optional_input_is_refuted():
    def wrong(p: Line, x: Float[Tensor, "b d"], keep: Float[Tensor, " b"] | None = None) -> Float[Tensor, ""]:
        return (x @ p.w.T).mean() if keep is None else ((x @ p.w) * keep[:, None]).mean()

    with pytest.raises(ProofError, match="`wrong` is not well-shaped without `keep`"):
        prove(wrong)


def test_a_parameter_that_only_some_batches_use_is_an_error_at_the_others():
    class Two(ParamList):
        w: Float[Tensor, "d k"]
        v: Float[Tensor, " k"]

    def gated(p: Two, x: Float[Tensor, "b d"], keep: Float[Tensor, " b"] | None = None) -> Float[Tensor, ""]:
        return (x @ p.w).mean() if keep is None else ((x @ p.w + p.v) * keep[:, None]).mean()

    with pytest.raises(GradientError, match="does not depend on `v`"):
        ScalarTrainer(gated, Two.init(d=3, k=2))
    with pytest.raises(GradientError, match="without `keep` `gated` depends on other parameters"):
        ScalarTrainer(gated, Two.init(d=3, k=2), allow_unused=True).forward(X)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Float[Tensor, "b 3"], keep: Bool[Tensor, " b"] | None = None) -> Float[Tensor, "b 2"]:
        hidden = self.inner(x)
        return hidden if keep is None else hidden * keep[:, None]


def over_output(out: Float[Tensor, "b 2"], y: Float[Tensor, "b 2"], beta: float) -> Float[Tensor, ""]:
    return (out - y).square().mean() * beta


def test_a_module_may_take_optional_inputs_and_its_loss_numbers():
    trainer, y = ScalarTrainer(over_output, Net()), torch.ones(5, 2)

    assert trainer.forward(X, None, y, 2.0) == 2 * trainer.forward(X, y=y, beta=1.0)
    assert trainer.forward(X, KEEP, y, 1.0) != trainer.forward(X, None, y, 1.0)


def test_accumulation_counts_batches_that_leave_inputs_out():
    def rows(x: Any, beta: Any, keep: Any, t: Any) -> Any:
        return x.shape[0] if keep is None else keep.sum()

    trainer = ScalarTrainer(annealed, line(), accumulate=2, samples=rows)
    trainer.step(X, 0.0, KEEP, lr=0.1)
    trainer.step(X[:4], 0.0, lr=0.1)

    assert (trainer.count(X, 0.0, KEEP), trainer.count(X, 0.0), trainer.steps) == (3, 5, 1)
