"""The cost model of many ranks: its counts of a small program, by hand, and its arithmetic. Nothing is timed here."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import cost_model

    yield cost_model
    for name in ("cost_model", "graph_costs"):
        sys.modules.pop(name, None)


class Line(ParamList):
    w: Float[Tensor, "inputs outputs"]


def loss(p: Line, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, ""]:
    return (x @ p.w).square().mean()


@pytest.mark.parametrize("size", [1, 2])
def test_flops_and_bytes_of_a_product_and_its_gradient_are_those_of_their_sizes(model: Any, size: int) -> None:
    trainer = ScalarTrainer(loss, Line(w=torch.ones(4, 6)), mesh="alone")
    counted = model.count(trainer, ("outputs",), size)
    at = model.numbers(model.symbols(trainer), {"batch": 1000, "inputs": 40, "outputs": 60})
    own = 60 // size  # this rank's columns
    value = lambda x: int(sympy.sympify(x).xreplace(at))  # noqa: E731
    products = [(value(one.flops), value(one.bytes)) for one in counted.fused if one.name == "mm"]

    assert (
        products == [(2 * 1000 * 40 * own, 4 * (1000 * 40 + 40 * own + 1000 * own))] * 2
    )  # x @ w, and x.T @ its gradient
    assert sum(value(one.flops) for one in counted.eager) == 2 * products[0][0]
    assert value(counted.held) == 40 * own
    assert [value(one) for one in counted.sums] == [4] * (size - 1)  # the loss, which is a mean over all columns
    assert value(counted.saved) == 4 * 1000 * own  # the product; what was given is there anyway
    between = sum(value(one.bytes) for one in counted.fused if one.name == "fused")
    assert between < sum(value(one.bytes) for one in counted.eager) - sum(moved for _, moved in products)


def test_an_operation_is_bound_by_flops_or_memory_and_a_ring_by_its_bytes_and_hops(model: Any) -> None:
    chip, link = model.Chip("a chip", 10.0, 100.0), model.Link(100.0, 1.0)
    operations = [model.Operation("mm", 50, 100), model.Operation("add", 0, 300)]

    assert model.seconds(operations, chip, {}) == 5.0 + 3.0
    assert link.ring(1000, 4, 2) == 2 * 3 * (1000 / 4 / 100 + 1)
    assert link.ring(1000, 1, 2) == 0.0


@pytest.mark.parametrize(("zero", "entries", "passes", "gathered"), [(0, 90, 2, 0), (3, 45, 3, 240)])
def test_blocks_add_what_the_second_one_adds_and_parts_divide_the_state(
    model: Any, zero: int, entries: int, passes: int, gathered: int
) -> None:
    first, second = (
        model.Counted([], [model.Operation("mm", 10 * n, 0)], [8] * n, 100 * n, 30 * n, [30] * n) for n in (1, 2)
    )
    chip, link = model.Chip("a chip", 10.0, 4.0), model.Link(100.0, 0.0)
    found = model.predict((first, second), 3, {}, model.Layout(2, 2, zero), chip, model.Links(link, link, link, link))

    assert (found.computed, found.saved, found.state, found.gathered) == (3.0, 300.0, 16 * entries, gathered)
    assert found.by_name == pytest.approx(3 * link.ring(8, 2, 2))
    assert found.by_batch == pytest.approx(link.ring(4 * 90, 2, passes))
    assert found.updated == 7 * 4 * entries / 4.0 + 4 * 4 * 90 / 4.0
    assert found.today == pytest.approx(found.computed + found.updated + found.by_name + found.by_batch)
    assert found.overlapped == pytest.approx(max(found.computed + found.by_name, found.by_batch) + found.updated)
