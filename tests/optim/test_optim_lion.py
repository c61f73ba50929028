"""Lion, and the flags of rules: caution, and a decay apart from the gradient. The oracle is float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from shaped.optim import SGD, Adam, AdamW, Lion
from tests.optim.optim_cases import advance, give_gradients, parameters

BETAS, EPS = (0.9, 0.95), 1e-8


def careful(u: Tensor, g: Tensor, cautious: bool) -> Tensor:
    if not cautious or not u.numel():
        return u
    keep = (u * g > 0).double()
    return u * keep / keep.mean().clamp(min=1e-3)


def shrunk(p: Tensor, u: Tensor, decay: float, cautious_decay: bool) -> Tensor:
    return p - decay * p * ((u * p >= 0) if cautious_decay else 1.0)


def lion_line(p: Tensor, g: Tensor, m: Tensor, lr: float, wd: float, flags: dict[str, bool]) -> None:
    u = careful((BETAS[0] * m + (1 - BETAS[0]) * g).sign(), g, flags.get("cautious", False))
    p.copy_(shrunk(p, u, lr * wd, flags.get("cautious_decay", False)) - lr * u)
    m.mul_(BETAS[1]).add_(g, alpha=1 - BETAS[1])


def adamw_line(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, wd: float, flags: dict[str, bool]
) -> None:
    m.lerp_(g, 1 - BETAS[0])
    v.mul_(BETAS[1]).add_(g * g, alpha=1 - BETAS[1])
    u = careful((m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS), g, flags.get("cautious", False))
    if flags.get("cautious_decay"):
        p.copy_(shrunk(p, u, lr * wd, True) - lr * u)
    else:
        p.mul_(1 - lr * wd).sub_(lr * u)


FLAGS = [{}, {"cautious": True}, {"cautious_decay": True}, {"cautious": True, "cautious_decay": True}]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "+".join(flags) or "plain")
@pytest.mark.parametrize("kind", [Lion, AdamW])
def test_ten_steps_are_those_of_the_papers(kind: Any, flags: dict[str, bool]) -> None:
    mine = parameters()
    exact = [p.detach().clone() for p in mine]
    state = [[torch.zeros_like(p) for p in exact] for _ in range(2)]
    optimizer = kind(mine, lr=0.01, betas=BETAS, weight_decay=0.1, **flags)
    for step in range(10):
        give_gradients(mine, step)
        for i, p in enumerate(mine):
            assert p.grad is not None
            if kind is Lion:
                lion_line(exact[i], p.grad, state[0][i], 0.01, 0.1, flags)
            else:
                adamw_line(exact[i], p.grad, state[0][i], state[1][i], step + 1, 0.01, 0.1, flags)
        optimizer.step()

    for p, e in zip(mine, exact, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-12, atol=1e-12)


def test_lion_moves_as_its_peer_does() -> None:
    peer = pytest.importorskip("lion_pytorch")
    mine, theirs = parameters(), parameters()
    ours = Lion(mine, lr=0.01, betas=BETAS, weight_decay=0.1)
    other = peer.Lion(theirs, lr=0.01, betas=BETAS, weight_decay=0.1)
    advance(ours, mine, range(10))
    advance(other, theirs, range(10))

    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_lion_keeps_half_the_state_of_adamw() -> None:
    sizes = {}
    for kind in (Lion, AdamW):
        params = parameters()
        optimizer = kind(params)
        advance(optimizer, params, range(1))
        sizes[kind] = [sum(t.numel() for n, t in optimizer.state[p].items() if n != "step") for p in params]

    assert [2 * n for n in sizes[Lion]] == sizes[AdamW]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_decay_apart_from_the_gradient_shrinks_the_parameter_before_the_step(momentum: float) -> None:
    mine, theirs = parameters(), parameters()
    ours = SGD(mine, lr=0.1, momentum=momentum, weight_decay=0.5, decoupled_weight_decay=True)
    other = torch.optim.SGD(theirs, lr=0.1, momentum=momentum)
    for step in range(4):
        with torch.no_grad():
            torch._foreach_mul_(theirs, 1 - 0.1 * 0.5)
        advance(ours, mine, range(step, step + 1))
        advance(other, theirs, range(step, step + 1))

    for p, q in zip(mine, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_flag_that_is_flipped_in_a_group_counts_from_the_next_step() -> None:
    flipped, cautious = parameters(), parameters()
    one, other = AdamW(flipped, lr=0.01), AdamW(cautious, lr=0.01)
    advance(one, flipped, range(2))
    advance(other, cautious, range(2))
    one.param_groups[0]["cautious"] = True
    advance(one, flipped, range(2, 3))
    advance(other, cautious, range(2, 3))

    assert not torch.equal(flipped[0], cautious[0])


def test_a_state_dict_of_the_plain_rule_loads_into_a_cautious_one_which_stays_so() -> None:
    params, again = parameters(), parameters()
    plain, cautious = torch.optim.AdamW(params), AdamW(again, cautious=True)
    advance(plain, params, range(2))
    cautious.load_state_dict(plain.state_dict())

    assert cautious.param_groups[0]["cautious"] is True
    assert float(cautious.state[again[0]]["step"]) == 2


@pytest.mark.parametrize("kind", [Adam, Lion])
def test_a_cautious_decay_within_the_gradient_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="cautious_decay needs decoupled_weight_decay"):
        kind(parameters(), cautious_decay=True, decoupled_weight_decay=False)


@pytest.mark.parametrize("store", ["stochastic", "split"])
def test_lion_in_low_memory_resumes_bit_for_bit(store: Any) -> None:
    ends = []
    for stop in (None, 2):
        params = parameters(torch.bfloat16)
        optimizer = Lion(params, lr=0.01, store=store, max_norm=1.0, ema_decay=0.9)
        advance(optimizer, params, range(stop or 4))
        if stop:
            state, optimizer = optimizer.state_dict(), Lion(params, lr=0.5, store=store, max_norm=1.0, ema_decay=0.9)
            optimizer.load_state_dict(state)
            advance(optimizer, params, range(stop, 4))
        ends.append([p.detach().clone() for p in params] + [optimizer.state[p]["ema"] for p in params])

    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
