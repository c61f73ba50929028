"""What a program demands of its data: proved for what goes on, and asserted in the step.

PYTEST_DONT_REWRITE: the programs' own assertions are what is read here.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, ScalarTrainer, prove
from shaped.errors import ShapedError, Unprovable


class Table(ParamList):
    w: Float[Tensor, "dim classes"]


Rows = Float[Tensor, "n dim"]
Labels = Int[Tensor, " n"]
Scalar = Float[Tensor, ""]


def raised(p: Table, x: Rows, y: Labels) -> Scalar:
    if y.max() >= p.w.shape[1]:
        message = "a class beyond"
        raise ValueError(message)
    return F.cross_entropy(x @ p.w, y)


def number(p: Table, x: Rows, y: Labels) -> Scalar:
    assert y.max().item() < p.w.shape[1], "a class beyond"
    return F.cross_entropy(x @ p.w, y)


def either(p: Table, x: Rows, y: Labels) -> Scalar:
    z = x @ p.w
    if torch.isnan(z).any() or not (y < p.w.shape[1]).all():
        raise RuntimeError
    return F.cross_entropy(z, y)


def chained(p: Table, x: Rows, y: Labels) -> Scalar:
    assert 0 <= y.min() < 10 and bool((y < p.w.shape[1]).all())  # noqa: PT018
    return F.cross_entropy(x @ p.w, y)


def otherwise(p: Table, x: Rows, y: Labels) -> Scalar:
    if (y < p.w.shape[1]).all():
        z = x @ p.w
    else:
        raise ValueError
    return F.cross_entropy(z, y)


@pytest.mark.parametrize("loss", [raised, number, either, chained, otherwise])
def test_a_question_of_which_one_side_only_raises_is_a_check_of_values(loss: Any, interpreted: Any) -> None:
    proof = prove(loss)
    right, wrong = (torch.rand(4, 3), torch.tensor([0, 1, 2, 2])), (torch.rand(4, 3), torch.tensor([0, 1, 2, 7]))

    line = loss.__code__.co_firstlineno + (2 if loss is either else 1)
    assert proof.conditions == ()
    assert f"data         values that are refused at test_demands.py:{line} are left out" in str(proof)
    for backend in ("eager", "compiled"):
        trainer = ScalarTrainer(loss, Table.init(dim=3, classes=5, seed=0), backend=backend)  # type: ignore[arg-type]
        trainer.step(*right, lr=0.1)
        before = trainer.params.w.clone()
        with pytest.raises((ShapedError, ValueError, AssertionError, RuntimeError, IndexError)):
            trainer.step(*wrong, lr=0.1)
        assert torch.equal(before, trainer.params.w)
        trainer.step(*right, lr=0.1)


def goes_on(x: Rows) -> Rows:
    if x.max() > 3:
        x = x / 3
    return x


def first_of_two(x: Rows) -> Rows:
    if x.max() > 3 and x.min() < 0:
        raise ValueError
    return x


def first_enough(x: Rows) -> Rows:
    assert x.max() > 3 or x.min() < 0
    return x


def chain_refused(x: Rows) -> Rows:
    if 0 < x.max() < 3:
        raise ValueError
    return x


def raised_later(x: Rows) -> Rows:
    if x.max() > 3:
        for one in range(2):
            x = x * one
        raise ValueError
    return x


def given_on(x: Rows) -> Rows:
    assert min(x.max(), x.min()) < 3
    return x


@pytest.mark.parametrize("program", [goes_on, first_of_two, first_enough, chain_refused, raised_later, given_on])
def test_where_either_answer_may_go_on_nothing_is_demanded(program: Callable[..., Any]) -> None:
    with pytest.raises(Unprovable, match="depends on data"):
        prove(program)


def test_a_demand_that_hangs_on_sizes_too_is_none_of_them() -> None:
    def below(x: Rows) -> Rows:
        assert x.sum() < x.shape[0]
        return x

    assert prove(below).conditions == ()


def positive(x: Tensor) -> Tensor:
    assert x.min() > 0
    return x.log()


def caught(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    try:
        assert x.sum() > 0
    except AssertionError:
        return x + y
    return x


def raised_and_caught(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    try:
        if x.sum() > 0:
            raise ValueError("too large")
    except (TypeError, ValueError):
        return x + y
    return x


def caught_above(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    try:
        return positive(x)
    except Exception:
        return x + y


def suppressed(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    with contextlib.suppress(AssertionError):
        return positive(x)
    return x + y


@pytest.mark.parametrize("function", [caught, raised_and_caught, caught_above, suppressed])
def test_what_the_program_catches_itself_is_no_demand(function: Callable[..., Any]) -> None:
    with pytest.raises(Unprovable, match="depends on data here"):
        prove(function)


def asks(x: Rows) -> float:
    return 2.0 if x.sum() > 0 else 3.0


def counts(x: Rows) -> int:
    return len([*range(x.shape[0])])


def leaves(x: Rows) -> float:
    return float(x.detach().numpy().sum())


@pytest.mark.parametrize(
    ("ask", "said"), [(asks, "depends on data"), (counts, "a plain number"), (leaves, "leaves torch")]
)
@pytest.mark.parametrize("bare", [False, True])
def test_what_no_proof_knows_is_not_taken_for_an_exception_of_the_program(ask: Any, said: str, bare: bool) -> None:
    """The handler would be all that is traced, and no call of the program goes there."""

    def careful(p: Table, x: Rows) -> Scalar:
        factor = 1.0
        with contextlib.suppress(Exception):
            factor = ask(x)
        return (x @ p.w).mean() * factor

    def careless(p: Table, x: Rows) -> Scalar:
        try:
            factor = ask(x)
        except:  # noqa: E722
            factor = 1.0
        return (x @ p.w).mean() * factor

    with pytest.raises(Unprovable, match=said):
        prove(careless if bare else careful)


def test_what_no_handler_takes_is_a_demand() -> None:
    def imports(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        try:
            return positive(x)
        except ImportError:
            return x + y

    try:
        proof = prove(imports)
    except Exception:  # one around the proof is none of the program's
        raise
    assert len(proof.demands) == 1
