"""A proof runs a program many times; what it prints is heard once."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import prove


def spoken(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    print("rank", x.dim())
    return x[: x.shape[0]] if x.shape[0] > 4 else x


def told(text: str, x: Tensor) -> Tensor:
    print(text, x.dim())
    return x * 2


def by_another(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    return told("rank", x)


@pytest.mark.parametrize("function", [spoken, by_another])
def test_what_a_program_prints_is_heard_once(function: Callable[..., Any], capsys: pytest.CaptureFixture[str]):
    proof = prove(function)

    assert proof.conditions == ()
    assert capsys.readouterr().out == "rank 2\n"
    assert "print" not in vars(sys.modules[__name__])


def test_a_call_outside_of_a_proof_prints_as_before(capsys: pytest.CaptureFixture[str]):
    spoken(torch.zeros(2, 3))

    assert capsys.readouterr().out == "rank 2\n"
