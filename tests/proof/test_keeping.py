"""A proof changes nothing that the program can reach, and keeps nothing of what it made."""

import gc
import random
import threading
import types
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ParamList, ScalarTrainer, Unprovable, init, prove
from shaped.proof.fake import RememberingMode
from shaped.proof.keeping import keeping, putting_back

CACHE: dict[str, Tensor] = {}
LOG: list[Tensor] = []
NAMES: set[str] = set()
LAST: deque[Tensor] = deque(maxlen=2)
COUNTS = np.zeros(3)
SEEN = torch.zeros(3)
total = 0


class Holder:
    shared: ClassVar[dict[str, Tensor]] = {}
    calls = 0

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        self.last = self.shared["x"] = x
        Holder.calls += 1
        return x


class Slotted:
    __slots__ = ("last",)
    last: Tensor


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return x * 2


holder, slotted, layer = Holder(), Slotted(), Layer()


@lru_cache
def ones(n: int) -> Tensor:
    return torch.ones(n)


def positions() -> Tensor:
    if "p" not in CACHE:
        CACHE["p"] = torch.linspace(0, 1, 3)
    return CACHE["p"]


def writes_everywhere(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    global total
    total += 1
    LOG.append(x)
    NAMES.add("x")
    LAST.append(x)
    COUNTS[0] += 1
    slotted.last = x
    vars(writes_everywhere)["last"] = x
    return layer(holder(x)) * ones(3) + positions()


def state() -> list[Any]:
    calls, last = Holder.calls, vars(writes_everywhere).get("last")
    held = [dict(vars(holder)), dict(Holder.shared), hasattr(slotted, "last"), vars(layer).get("kept"), last]
    return [dict(CACHE), list(LOG), set(NAMES), list(LAST), COUNTS.tolist(), total, calls, *held]


def test_what_a_program_writes_outside_of_itself_is_as_it_was() -> None:
    before = state()

    assert prove(writes_everywhere).conditions == ()
    assert state() == before
    assert type(ones(3)) is Tensor


def test_what_a_closure_counts_is_as_it_was() -> None:
    count = 0

    def counting(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        nonlocal count
        count += 1
        return x

    prove(counting)

    assert count == 0


def test_a_refuted_program_leaves_nothing_behind_either() -> None:
    def wrong(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
        LOG.append(x)
        return x

    with pytest.raises(Exception, match="does not return"):
        prove(wrong)

    assert LOG == []


class P(ParamList):
    w: Float[Tensor, " dim"] = init.ones()


def cached_loss(p: P, x: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    return ((x * p.w).sum() * positions().sum()).square()


def test_a_loss_with_a_cache_trains_after_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CACHE", {})
    params, x = P.init(dim=4), torch.ones(2, 4)
    wanted = cached_loss(params, x).detach()
    CACHE.clear()

    assert torch.equal(ScalarTrainer(cached_loss, params).step(x, lr=0.0), wanted)
    assert torch.equal(cached_loss(params, x), wanted)


def adds(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    SEEN.add_(1)
    return x + SEEN


def adds_to_a_row(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    SEEN[:2].fill_(1)
    return x + SEEN


def test_what_a_cache_was_asked_before_is_no_reason_to_keep_what_a_run_put_there() -> None:
    ones.cache_clear()
    ones(4)
    with keeping(lambda: ones(3)):
        for n in (5, 6):  # of the second run one call is left, as there was at first
            with putting_back():
                ones(n)

    assert ones.cache_info().currsize == 0


@pytest.mark.parametrize("function", [adds, adds_to_a_row])
def test_a_write_into_a_tensor_from_outside_is_refused_before_it_happens(function: Callable[..., Any]) -> None:
    with pytest.raises(Unprovable, match="writes into a tensor from outside"):
        prove(function)

    assert SEEN.tolist() == [0, 0, 0]


def makes_and_writes(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    constant, zeros = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    constant[0] = 5
    zeros[1:].fill_(2)
    return x + constant.add_(zeros)


def test_a_program_may_write_into_what_it_makes() -> None:
    assert prove(makes_and_writes).conditions == ()


def seeds(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    torch.manual_seed(0)
    return x + torch.rand(3)


def drops(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    return torch.dropout(x, 0.5, True) + torch.randn_like(x) + torch.randperm(3)


@pytest.mark.parametrize("function", [seeds, drops])
def test_torchs_generator_is_where_it_was(function: Callable[..., Any]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    prove(function)

    assert torch.equal(torch.get_rng_state(), before)


def test_another_thread_draws_what_it_would_have_drawn() -> None:
    torch.manual_seed(5)
    random.seed(5)
    wanted = [(torch.rand(()).item(), random.random()) for _ in range(20_000)]
    torch.manual_seed(5)
    random.seed(5)
    drawn: list[tuple[float, float]] = []
    over = threading.Event()

    def draw() -> None:
        while not over.is_set() and len(drawn) < len(wanted):
            drawn.append((torch.rand(()).item(), random.random()))

    thread = threading.Thread(target=draw)
    thread.start()
    prove(drops)
    over.set()
    thread.join()

    assert drawn
    assert drawn == wanted[: len(drawn)]


def test_proofs_do_not_stay_in_memory() -> None:
    def worlds() -> int:
        gc.collect()
        return sum(issubclass(type(thing), RememberingMode) for thing in gc.get_objects())

    def product(x: Float[Tensor, "n m"], y: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
        return torch.relu(x @ y).softmax(1)

    prove(product)
    before = worlds()
    for _ in range(6):
        prove(product)

    # Each makes four worlds; a few stay in torch's bounded caches.
    assert worlds() - before < 12


def test_modules_that_name_each_other_in_circles_are_looked_into_once(monkeypatch):
    here, there = types.ModuleType("here"), types.ModuleType("there")
    here.there, there.here = there, here  # type: ignore[attr-defined]
    here.also, there.also = there, here  # type: ignore[attr-defined]
    monkeypatch.setitem(globals(), "here", here)

    def through(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        here.there.here.also.scale = 2.0  # type: ignore[name-defined]
        return x * here.there.scale  # type: ignore[name-defined]

    assert prove(through).conditions == ()
    assert not hasattr(there, "scale")


def test_an_assert_that_pytest_rewrote_does_not_lead_into_the_session() -> None:
    def bounded(x: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
        assert x.shape[0] <= 16
        return x.sum(1)

    assert "@pytest_ar" in bounded.__globals__
    with keeping(bounded) as kept:
        assert not [one for one in kept._seen.values() if type(one).__module__.startswith("_pytest")]
