"""A proof that grows without end is given up in words."""

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer, SignatureError, Unprovable, prove
from shaped.proof import limits


class P(ParamList):
    w: Float[Tensor, " n"]


def long(p: P, x: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
    y = x @ p.w
    for _ in range(100_000):
        y = y + 1
    return y.mean()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_LOOKS", 0.0)


@pytest.mark.parametrize("ask", [prove, lambda loss: ScalarTrainer(loss, P(w=torch.ones(3)))])
def test_a_proof_that_takes_too_long_is_given_up_where_it_stood(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_PROOF_SECONDS", "0.3")
    state = torch.get_rng_state()
    with pytest.raises(Unprovable) as caught:
        ask(long)

    first, line, _, hint = str(caught.value).splitlines()
    assert first == "`long` is neither proved nor refuted: the proof was given up after 0.3 s, at this line."
    assert line.endswith("y = y + 1")
    assert hint.endswith("SHAPED_PROOF_SECONDS in the environment allows more")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_proof_that_takes_too_much_memory_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([1.0, *[1.0 + i for i in range(1000)]])
    monkeypatch.setattr(limits, "_resident", lambda: next(sizes))
    monkeypatch.setenv("SHAPED_PROOF_GIB", "5")
    with pytest.raises(Unprovable, match="the proof was given up after 5 GiB, at this line"):
        prove(long)


def test_a_limit_is_a_number_above_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_PROOF_GIB", "-1")
    with pytest.raises(SignatureError, match="SHAPED_PROOF_GIB=-1 in the environment is no number above 0"):
        prove(long)


def test_a_run_whose_tensors_are_large_tells_nothing_and_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def square(x: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
        return torch.outer(x, x)

    monkeypatch.setattr("shaped.proof.shelter._LARGEST", 100)
    assert prove(square).conditions == ()
