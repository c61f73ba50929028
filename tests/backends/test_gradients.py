"""Whether everything is finite, and the gradients of an eager step: the fast ways say what the plain ones say."""

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shaped import ParamList, ScalarTrainer
from shaped.backends.gradients import all_finite, gradients_of
from shaped.strategies import Loss, gradients
from tests.models import batch, mlp, mlp_loss

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)
LAYOUTS = ("dense", "transposed", "expanded", "empty", "scalar", "large")


def made(dtype: torch.dtype, layout: str) -> Tensor:
    whole = torch.randn({"large": (300, 70), "empty": (0, 3), "scalar": ()}.get(layout, (4, 5))).to(dtype)
    if layout == "transposed":
        return whole.t()
    return whole[:1].expand(7, 5) if layout == "expanded" else whole


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from(LAYOUTS)), min_size=1, max_size=5), st.data())
def test_all_finite_is_isfinite_of_each_and_leaves_all_as_it_was(
    kinds: list[tuple[torch.dtype, str]], data: st.DataObject
) -> None:
    tensors = [made(dtype, layout) for dtype, layout in kinds]
    wrong = data.draw(st.sampled_from([None, math.nan, math.inf, -math.inf]))
    if wrong is not None:
        t = tensors[data.draw(st.integers(0, len(tensors) - 1))]
        if t.numel():
            t[(-1,) * t.dim()] = wrong
    before, versions = [t.clone() for t in tensors], [t._version for t in tensors]
    assert all_finite(tensors) == all(bool(torch.isfinite(t).all()) for t in tensors)
    assert all(torch.equal(t, b) or not torch.isfinite(b).all() for t, b in zip(tensors, before, strict=True))
    assert [t._version for t in tensors] == versions


def test_what_is_finite_and_has_a_norm_that_overflows_is_finite() -> None:
    for count in (3, 10**6):
        assert all_finite([torch.full((count,), 3e38)])


def test_memory_that_is_not_ours_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(torch, "_amp_foreach_non_finite_check_and_unscale_", lambda *given: written.append(given))
    assert all_finite([torch.ones(3)], own=False)
    assert not written
    for strategy in (None, given_back):
        trainer = ScalarTrainer(mlp_loss, mlp(), strategy=strategy, backend="eager")
        trainer.step(*batch(), lr=0.1)
        assert len(written) == 1, strategy  # by full backpropagation alone


def given_back(loss: Loss, params: ParamList, *inputs: Tensor) -> tuple[Tensor, ParamList]:
    value = loss(params, *inputs)
    return value, gradients(value, params)


def test_gradients_of_a_loss_are_autograds() -> None:
    a, b = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    for loss in (
        lambda: (a * b).sum(),
        lambda: a.sum() + b.square().mean(),
        lambda: (a @ b.t()).double().logsumexp((0, 1)),
    ):
        ours, torchs = gradients_of(loss(), (a, b)), torch.autograd.grad(loss(), (a, b))
        assert all(map(torch.equal, ours, torchs))


@pytest.mark.parametrize("fault", ["no graph", "unused", "complex", "no scalar"])
def test_what_has_no_gradient_is_refused_in_torchs_words(fault: str) -> None:
    a, b = (torch.randn(3, requires_grad=True) for _ in range(2))
    loss = {"no graph": a.detach().sum(), "unused": b.sum(), "complex": a.sum() * 1j, "no scalar": a * 2}[fault]
    with pytest.raises(RuntimeError) as torchs:
        torch.autograd.grad(loss, (a,), retain_graph=True)
    with pytest.raises(RuntimeError) as ours:
        gradients_of(loss, (a,))
    assert str(ours.value) == str(torchs.value)


def test_autograds_log_is_still_written(caplog: pytest.LogCaptureFixture) -> None:
    a = torch.randn(3, requires_grad=True)
    with caplog.at_level(logging.DEBUG, "torch.autograd.graph"):
        gradients_of(a.square().sum(), (a,))
    assert "Pow" in caplog.text
