"""The rules' references against torch.optim, and the torch path against the references."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shaped_kernels import adam_, adam_reference, adamw_, sgd_, sgd_reference

SGD_CASES: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "maximize": True},
]
ADAM_CASES: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.1},
    {"betas": (0.5, 0.7), "eps": 1e-3, "amsgrad": True, "maximize": True, "weight_decay": 0.1},
    {"betas": (0.0, 0.0)},
]
SHAPES = [(3, 4), (), (0, 2), (7,), (2, 1, 5), (67,)]  # the last is longer than a vector of any dtype


def tensors(dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def zeros(like: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) for p in like]


def sgd_rules(case: dict[str, Any], lr: float, first: bool) -> dict[str, Any]:
    return {
        "lr": lr,
        "momentum": case.get("momentum", 0.0),
        "damp": 1.0 if first else 1.0 - case.get("dampening", 0.0),
        "weight_decay": case.get("weight_decay", 0.0),
        "nesterov": case.get("nesterov", False),
        "maximize": case.get("maximize", False),
    }


def adam_rules(case: dict[str, Any], lr: float, step: int, decoupled: bool) -> dict[str, Any]:
    beta1, beta2 = case.get("betas", (0.9, 0.999))
    return {
        "lr": lr,
        "beta1": beta1,
        "beta2": beta2,
        "eps": case.get("eps", 1e-8),
        "weight_decay": case.get("weight_decay", 0.0),
        "step": step,
        "decoupled": decoupled,
        "maximize": case.get("maximize", False),
    }


@pytest.mark.parametrize("case", SGD_CASES, ids=str)
def test_sgd_reference_follows_torch_for_ten_steps(case: dict[str, Any]) -> None:
    p = torch.randn(5, dtype=torch.float64)
    theirs = p.clone().requires_grad_()
    optimizer = torch.optim.SGD([theirs], lr=0.1, foreach=False, **case)
    buf = torch.zeros_like(p) if "momentum" in case else None
    for step in range(10):
        g = torch.randn(5, dtype=torch.float64)
        theirs.grad = g.clone()
        optimizer.step()
        p, buf = sgd_reference(p, g, buf, **sgd_rules(case, 0.1, step == 0))

    torch.testing.assert_close(p, theirs.detach(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("case", ADAM_CASES, ids=str)
def test_adam_reference_follows_torch_for_ten_steps(case: dict[str, Any], decoupled: bool) -> None:
    p = torch.randn(5, dtype=torch.float64)
    theirs = p.clone().requires_grad_()
    rule = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = rule([theirs], lr=0.1, foreach=False, **{"weight_decay": 0.0, **case})
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    top = torch.zeros_like(p) if case.get("amsgrad") else None
    for step in range(1, 11):
        g = torch.randn(5, dtype=torch.float64)
        theirs.grad = g.clone()
        optimizer.step()
        p, m, v, top = adam_reference(p, g, m, v, top, **adam_rules(case, 0.1, step, decoupled))

    torch.testing.assert_close(p, theirs.detach(), rtol=1e-12, atol=1e-13)


# After three steps of lr 0.1: a few roundings of p, or of the update (a few lr). A narrow dtype rounds p, m
# and v once a step, and m/sqrt(v) carries their errors into the update.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-4, torch.float16: 2**-7}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", SGD_CASES, ids=str)
def test_sgd_on_the_torch_path_follows_the_reference_over_three_steps(case: dict[str, Any], dtype: torch.dtype) -> None:
    params = tensors(dtype, 0)
    bufs = zeros(params) if "momentum" in case else None
    exact = [p.double().clone() for p in params]
    exact_bufs: list[Tensor | None] = [torch.zeros_like(p) if bufs else None for p in exact]
    for step in range(3):
        grads = tensors(dtype, 1 + step)
        sgd_(params, grads, bufs, lr=0.1, fresh=step == 0, **case)
        for i, g in enumerate(grads):
            exact[i], exact_bufs[i] = sgd_reference(
                exact[i], g.double(), exact_bufs[i], **sgd_rules(case, 0.1, step == 0)
            )

    for p, e in zip(params, exact, strict=True):
        torch.testing.assert_close(p.double(), e, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("case", ADAM_CASES, ids=str)
def test_adam_on_the_torch_path_follows_the_reference_over_three_steps(
    case: dict[str, Any], decoupled: bool, dtype: torch.dtype
) -> None:
    params = tensors(dtype, 0)
    slots = [zeros(params) for _ in range(3 if case.get("amsgrad") else 2)]
    exact = [p.double().clone() for p in params]
    state: list[Any] = [[torch.zeros_like(p) for _ in slots] for p in exact]
    rule: Callable[..., None] = adamw_ if decoupled else adam_
    given_case = {"weight_decay": 0.0, **{k: v for k, v in case.items() if k != "amsgrad"}, "eps": 1e-3}
    for step in (1, 2, 3):
        grads = tensors(dtype, step)
        rule(params, grads, *slots, step=step, lr=0.1, **given_case)
        for i, g in enumerate(grads):
            exact[i], *new = adam_reference(
                exact[i], g.double(), *state[i], **adam_rules(given_case, 0.1, step, decoupled)
            )
            state[i] = [slot for slot in new if slot is not None]

    for p, e in zip(params, exact, strict=True):
        torch.testing.assert_close(p.double(), e, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def strided(layout: str, n: int, m: int) -> Tensor:
    """An n by m matrix of random numbers in one of several memory layouts."""
    return {
        "dense": lambda: torch.randn(n, m),
        "transposed": lambda: torch.randn(m, n).t(),
        "holey": lambda: torch.randn(n, 2 * m)[:, ::2],
        "shifted": lambda: torch.randn(n * m + 1)[1:].view(n, m),
    }[layout]()


LAYOUT = st.sampled_from(["dense", "transposed", "holey", "shifted"])


@given(LAYOUT, LAYOUT, LAYOUT, st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_memory_layout_does_not_change_the_numbers(p_: str, g_: str, m_: str, n: int, m: int) -> None:
    p, g, first, second = strided(p_, n, m), strided(g_, n, m), torch.zeros_like(strided(m_, n, m)), torch.zeros(n, m)
    dense = [t.clone(memory_format=torch.contiguous_format) for t in (p, g, first, second)]
    other = torch.randn(3)  # moves in the same call, down the fast path
    others = [other, torch.ones(3), torch.zeros(3), torch.zeros(3)]
    expected = other - 0.1
    adamw_([p, others[0]], [g, others[1]], [first, others[2]], [second, others[3]], step=1, lr=0.1, weight_decay=0.0)
    adamw_([dense[0]], [dense[1]], [dense[2]], [dense[3]], step=1, lr=0.1, weight_decay=0.0)

    torch.testing.assert_close(p, dense[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(first, dense[2], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(other, expected, rtol=1e-5, atol=1e-6)


def test_float32_moments_of_a_bfloat16_parameter_keep_their_precision() -> None:
    p, g = torch.ones(4, dtype=torch.bfloat16), torch.full((4,), 1.0, dtype=torch.bfloat16)
    m, v = torch.zeros(4), torch.zeros(4)
    adam_([p], [g], [m], [v], step=1, lr=0.125, betas=(0.9, 0.999))

    torch.testing.assert_close(m, torch.full((4,), 1 - 0.9))
    assert p.tolist() == [0.875] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_references_take_their_scalars_as_tensors_too(dtype: torch.dtype) -> None:
    for shape in ((3,), ()):
        p, g, m, v = (torch.rand(shape, dtype=dtype) for _ in range(4))
        numbers: dict[str, Any] = {
            "lr": 0.1,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "step": 3.0,
        }
        as_tensors: dict[str, Any] = {k: torch.tensor(x, dtype=torch.float64) for k, x in numbers.items()}
        sgd_numbers: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "damp": 0.7, "weight_decay": 0.01}
        sgd_tensors: dict[str, Any] = {k: torch.tensor(x, dtype=torch.float64) for k, x in sgd_numbers.items()}

        tight: dict[str, Any] = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0.0}
        for decoupled in (False, True):
            expected = adam_reference(p, g, m, v, v, decoupled=decoupled, **numbers)
            got = adam_reference(p, g, m, v, v, decoupled=decoupled, **as_tensors)
            torch.testing.assert_close(got, expected, **tight)
        expected_sgd = sgd_reference(p, g, m, **sgd_numbers)
        torch.testing.assert_close(sgd_reference(p, g, m, **sgd_tensors), expected_sgd, **tight)


def test_references_change_none_of_their_arguments() -> None:
    arguments = [torch.rand(3) for _ in range(5)]
    before = [t.clone() for t in arguments]
    adam_reference(
        *arguments, lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=1, decoupled=True, maximize=True
    )
    sgd_reference(*arguments[:3], lr=0.1, momentum=0.9, damp=0.5, weight_decay=0.1, maximize=True)

    assert all(torch.equal(t, b) for t, b in zip(arguments, before, strict=True))


def test_a_reference_traced_with_tensor_scalars_serves_every_step() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def step_rule(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: Tensor, step: Tensor) -> Any:
        b1, b2 = (torch.tensor(b, dtype=torch.float64) for b in (0.9, 0.999))
        return adam_reference(
            p, g, m, v, lr=lr, beta1=b1, beta2=b2, eps=1e-8, weight_decay=0.1, step=step, decoupled=True
        )

    p, g, m, v = (torch.rand(3) for _ in range(4))
    lr = torch.tensor(0.1, dtype=torch.float64)
    traced = make_fx(step_rule)(p, g, m, v, lr, torch.tensor(1.0))
    seventh = torch.tensor(7.0)

    for mine, direct in zip(traced(p, g, m, v, lr, seventh)[:3], step_rule(p, g, m, v, lr, seventh)[:3], strict=True):
        assert torch.equal(mine, direct)


def test_a_tensor_learning_rate_is_read() -> None:
    p = torch.ones(2)
    sgd_([p], [torch.ones(2)], lr=torch.tensor(0.5))

    assert p.tolist() == [0.5, 0.5]


def test_no_tensors_at_all_are_no_error() -> None:
    sgd_([], [], lr=0.1)
    adam_([], [], [], [], step=1, lr=0.1)
