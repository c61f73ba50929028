"""Averages beside parameters: torch's arithmetic, exchanged in and out, saved and loaded whole."""

import copy
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList
from shaped.optim import EMA, SGD, SWA, AdamW, averaged


def test_ema_and_swa_are_those_of_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = AdamW(model.parameters(), lr=0.1)
    ema, swa = EMA(model.parameters(), 0.8), SWA(model.parameters())
    their_ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))  # type: ignore[no-untyped-call]
    their_swa = AveragedModel(model)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        for average in (ema, swa):
            average.update()
        for theirs in (their_ema, their_swa):
            theirs.update_parameters(model)

    for ours, theirs in ((ema, their_ema), (swa, their_swa)):
        for e, p in zip(ours.averages, theirs.module.parameters(), strict=True):
            torch.testing.assert_close(e, p.detach(), rtol=1e-6, atol=1e-7)


def test_averages_stand_in_for_the_parameters_within_a_block_even_if_it_fails() -> None:
    p = torch.zeros(2, requires_grad=True)
    swa = SWA([p])
    for value in (1.0, 3.0):
        p.detach().fill_(value)
        swa.update()

    def evaluate() -> None:
        with swa.applied():
            assert p.tolist() == [2.0, 2.0]
            raise RuntimeError("evaluation")

    with pytest.raises(RuntimeError, match="evaluation"):
        evaluate()
    assert p.tolist() == [3.0, 3.0]


def test_the_averages_of_an_optimizer_stand_in_too() -> None:
    p = torch.ones(2, requires_grad=True)
    optimizer = SGD([p], lr=1.0, ema_decay=0.5)
    with pytest.raises(ValueError, match="no parameter has an average"), averaged(optimizer):
        pass
    p.grad = torch.ones(2)
    optimizer.step()
    with averaged(optimizer):
        assert p.tolist() == [0.5, 0.5]

    assert p.tolist() == [0.0, 0.0]


def test_averages_resume_from_their_state() -> None:
    p = torch.ones(2)
    first, second = EMA([p], 0.5), EMA([p], 0.5)
    first.update()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    p.fill_(3.0)
    first.update()
    second.update()

    assert second.averages[0].tolist() == first.averages[0].tolist() == [2.0, 2.0]
    with pytest.raises(ValueError, match=r"expected averages of shapes \[\(2,\)\], got \[\(3,\)\]"):
        first.load_state_dict({"averages": [torch.ones(3)], "count": 1})
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        EMA([p], 1.0)


class First(ParamList):
    w: Float[Tensor, " n"]
    a: Float[Tensor, " n"]


class Sorted(ParamList):
    a: Float[Tensor, " n"]
    w: Float[Tensor, " n"]


def test_averages_of_fields_that_were_sorted_go_by_name() -> None:
    values = {"w": torch.ones(3), "a": torch.zeros(3)}
    first, second = EMA(First(**values)), EMA(Sorted(**values))  # type: ignore[arg-type]
    first.update()
    second.load_state_dict(first.state_dict())

    assert [t.tolist() for t in second.averages] == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"averages": [1.0]}, "expected averages that are tensors, got a float"),
        ({"averages": 1.0}, "expected a list of averages, got a float"),
        ({"names": -1}, "expected a list of names, got -1"),
        ({"count": -1}, r"state\['count'\] is -1; it is a whole number of at least 0"),
        ({"count": 2.5}, r"state\['count'\] is 2.5"),
        ({"names": []}, "expected averages of `w`, got those of"),
    ],
)
def test_a_state_of_averages_that_is_none_changes_nothing(change: Any, said: str) -> None:
    class One(ParamList):
        w: Float[Tensor, " n"]

    average = EMA(One(torch.ones(2)))
    average.update()
    with pytest.raises(ValueError, match=said):
        average.load_state_dict({**average.state_dict(), **change})

    assert (average.count, average.averages[0].tolist()) == (1, [1.0, 1.0])
