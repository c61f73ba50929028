"""Programs whose branches ask their data: every way is proved, or is what a run refuses."""

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ProofError, Unprovable
from shaped.proof import Decided, Setting, prove_ways
from shaped.shapes import read_signature


def decided(program: object) -> Decided:
    signature = read_signature(program)  # type: ignore[arg-type]
    dtypes = tuple(entry.spec.default_dtype() for entry in signature.entries)
    return prove_ways(Setting(signature, dtypes, (False,) * len(dtypes), torch.device("cpu"), runs=20), (), {})


def clipped(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    total = x.sum()
    if total > 1:
        return torch.ones_like(total)
    return total


def test_both_ways_of_a_branch_on_data_are_proved() -> None:
    found = decided(clipped)

    assert len(found.proofs) == 2
    assert [source.text for source in found.branches] == ["if total > 1:"]
    assert found.refusals == []


def held(x: Float[Tensor, "n m"], y: Int[Tensor, " n"]) -> Float[Tensor, "n m"]:
    if not bool(torch.isfinite(x).all()):
        raise RuntimeError("x is not finite")
    assert y.min() >= 0
    return 2 * x


def test_an_exception_about_data_is_a_check_of_values_and_no_fault() -> None:
    found = decided(held)
    start = held.__code__.co_firstlineno

    assert len(found.proofs) == 1
    assert [line - start for _, line in found.refusals] == [2, 3]


def turned(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    if x.sum() > 0:
        return x
    return x.T


def test_a_way_on_which_a_real_run_fails_is_refuted() -> None:
    with pytest.raises(ProofError) as error:
        decided(turned)

    assert error.value.source is not None
    assert error.value.source.text == "return x.T"
    assert error.value.goal.sizes


def never(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    if (x * x).sum() < 0:
        return x.T
    return x


def test_a_way_that_no_data_were_seen_to_take_refutes_nothing() -> None:
    with pytest.raises(Unprovable):
        decided(never)


def halved(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    while x.sum() > 1:
        x = x / 2
    return x


def test_a_loop_that_data_end_is_proved_for_its_first_rounds_and_named() -> None:
    found = decided(halved)

    assert len(found.proofs) == 4
    assert len(found.cut) == 1


def refused(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    if x.sum() > 1:
        raise ValueError("large")
    raise ValueError("small")


def test_a_program_that_only_raises_is_neither_proved_nor_refuted() -> None:
    with pytest.raises(Unprovable, match="raises an exception whatever is taken of its data"):
        decided(refused)


def mistaken(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    scale = None
    if x.sum() <= 0:
        scale = 2
    return x * scale  # type: ignore[operator]


def test_a_mistake_on_one_way_is_no_check_of_values() -> None:
    with pytest.raises(TypeError):
        decided(mistaken)


def test_torch_equal_is_a_question_about_sizes_and_then_about_data() -> None:
    def same(x: Float[Tensor, "n m"], y: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return x if torch.equal(x, y) else x + y

    def never(x: Float[Tensor, "n m"], y: Float[Tensor, " n"]) -> Float[Tensor, "n m"]:
        return x.T if torch.equal(x, y) else 2 * x

    assert len(decided(same).proofs) == 2
    assert len(decided(never).proofs) == 1


def test_a_floating_point_number_that_is_read_from_data_is_taken_as_one_and_its_line_is_named() -> None:
    def scaled(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return (x - float(x.min())) / x.max().item()

    def wrong(x: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
        return x - float(x.min())

    def counted(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return x[: int((x > 0).sum())]

    assert len(decided(scaled).read) == 1
    with pytest.raises(ProofError, match="does not return what it declares"):
        decided(wrong)
    with pytest.raises(Unprovable, match="depends on data"):
        decided(counted)
