"""Stores of fewer bytes: exact where they say so, right on average, and in Triton as in torch."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shaped_kernels import lowmemory
from shaped_kernels.adam import AdamRule
from shaped_kernels.calls import RuleCall
from shaped_kernels.fusion import take
from shaped_kernels.lion import LionRule
from shaped_kernels.lists import GROUP, TensorLists, scale_count
from shaped_kernels.sgd import SgdRule

BITS = st.integers(0, 2**32 - 1)


def floats(bits: list[int]) -> Tensor:
    return torch.tensor(bits, dtype=torch.int64).sub(2**31).to(torch.int32).view(torch.float32)


@given(st.lists(BITS, min_size=1, max_size=20))
def test_a_float32_comes_back_from_its_two_halves_bit_for_bit(bits: list[int]) -> None:
    x = floats(bits)
    x = x[~x.isnan()]
    high, low = lowmemory.split(x)

    assert torch.equal(lowmemory.joined(high, low).view(torch.int32), x.view(torch.int32))
    nearest = x.to(torch.bfloat16)
    between = (nearest != high) & (low != -(2**15))  # only exact halves go another way: away from zero, not to even
    assert not bool(between.any())


def test_a_nan_stays_one_in_both_halves() -> None:
    high, low = lowmemory.split(torch.tensor([float("nan"), -float("nan")]))

    assert bool(high.isnan().all())
    assert bool(lowmemory.joined(high, low).isnan().all())


def test_stochastic_rounding_is_right_on_average_and_one_of_the_two_neighbours() -> None:
    x = torch.full((100_000,), 1.0 + 2**-9)  # a quarter of the way from 1 to the next bfloat16
    rounded = lowmemory.stochastic(x, lowmemory.noise(len(x), tensor=3, step=7) & 0xFFFF).float()

    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    # The mean of n draws with probability 1/4 is off by sqrt(3/16/n) = 0.0014: five times that.
    assert abs(float((rounded - 1).mean() / 2**-7) - 0.25) < 0.007


@given(st.lists(BITS, min_size=1, max_size=20), st.integers(0, 2**16 - 1))
def test_stochastic_rounding_keeps_what_is_exact_and_what_is_not_finite(bits: list[int], draw: int) -> None:
    x = floats(bits).to(torch.bfloat16).float()
    rounded = lowmemory.stochastic(x, torch.full(x.shape, draw)).float()

    assert torch.equal(rounded.isnan(), x.isnan())
    assert torch.equal(rounded.nan_to_num(0.0), x.nan_to_num(0.0))


def test_random_bits_are_even_and_differ_between_tensors_and_steps() -> None:
    first = lowmemory.noise(20_000, tensor=0, step=1)
    for other in (lowmemory.noise(20_000, tensor=1, step=1), lowmemory.noise(20_000, tensor=0, step=2)):
        assert int((first == other).sum()) < 3
    for draws in (first & 0xFFFF, first >> 16, lowmemory.drawn_again(first)):
        # A uniform draw's mean is off by 1/sqrt(12 n) = 0.002: five times that.
        assert abs(float(draws.double().mean()) / 2**16 - 0.5) < 0.01


@given(st.integers(0, 10_000), st.integers(1, 3 * GROUP))
def test_moments_in_8_bits_are_near_and_never_lose_a_positive_v(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    m = torch.randn(n, generator=generator) * torch.exp(3 * torch.randn(n, generator=generator))
    v = m.square()
    kept = lowmemory.encoded(m, v)
    m_back, v_back = lowmemory.decoded(kept[:2], kept[2:])
    m_top, v_top = (
        torch.nn.functional.pad(t.abs(), (0, -n % GROUP)).view(-1, GROUP).amax(1).repeat_interleave(GROUP)[:n]
        for t in (m, v)
    )

    # sqrt(|m|/top) and (v/top)**(1/4) are kept to half a step of 1/127 and 1/255.
    assert bool(((m_back.abs() / m_top).sqrt() - (m.abs() / m_top).sqrt()).abs().max() <= 0.51 / 127)
    assert bool(((v_back / v_top) ** 0.25 - (v / v_top) ** 0.25).abs().max() <= 1.01 / 255)
    assert bool((v_back > 0).all())
    assert bool((m_back * m >= 0).all())


def state_for(params: list[Tensor], store: str, moments: Any) -> dict[str, Any]:
    """Arguments of TensorLists beside the parameters."""
    kinds = (torch.int8, torch.uint8) if moments == "8bit" else (moments, moments)
    slots = {name: [torch.zeros_like(p, dtype=kind) for p in params] for name, kind in zip("mv", kinds, strict=True)}
    given: dict[str, Any] = {"slots": slots}
    if moments == "8bit":
        given["scales"] = {name: [torch.zeros(scale_count(p.numel())) for p in params] for name in ("sm", "sv")}
    if store == "split":
        given["low"] = [torch.zeros_like(p, dtype=torch.int16) for p in params]
    return given


def everything(lists: TensorLists) -> list[Tensor]:
    halves = zip(lists.params, lists.low or [], strict=False)
    params = [lowmemory.joined(*both) for both in halves] if lists.low else lists.params
    return [t for group in (params, *lists.slots, *(lists.scales or ())) for t in group]


@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32, "8bit"], ids=str)
@pytest.mark.parametrize("store", ["stochastic", "split", "nearest"])
@pytest.mark.parametrize("rule", ["adamw", "sgd", "lion"])
def test_triton_stores_as_torch_does(rule: str, store: Any, moments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    if rule == "sgd" and moments == "8bit":
        pytest.skip("8-bit moments are Adam's and Lion's")
    if torch.cuda.is_available():
        pytest.skip("a GPU fuses multiply and add, and its last bits differ")
    from shaped_kernels.launch_triton import launch

    sizes, results = [(5,), (3, 100), (2100,)], []
    for path in ("torch", "triton"):
        monkeypatch.setenv("SHAPED_KERNELS", path)
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(s, generator=generator).to(torch.bfloat16) for s in sizes]
        given = state_for(params, store, moments)
        if rule != "adamw":
            del given["slots"]["v"]
            given.get("scales", {}).pop("sv", None)
        lists, taken = TensorLists(params, **given), torch.tensor(0.0)
        chosen: Any = AdamRule(True, store=store, eight_bit=moments == "8bit")
        if rule == "sgd":
            chosen = SgdRule(store=store, buffered=True)
        if rule == "lion":
            chosen = LionRule(store=store, eight_bit=moments == "8bit")
        scalars = {"adamw": (1e-2, 0.9, 0.999, 1e-8, 0.1), "sgd": (1e-2, 0.9, 0.0, 0.1), "lion": (1e-2, 0.9, 0.99, 0.1)}
        for _ in range(2):
            grads = [torch.randn(s, generator=generator).to(torch.bfloat16) for s in sizes]
            call = RuleCall(chosen, lists, grads, scalars[rule], taken)
            _ = take([call]) if path == "torch" else launch([call], block=1024)
        results.append(everything(lists))
    for ours, theirs in zip(*results, strict=True):
        # Two steps of a few roundings each; products in another order may tip one narrow rounding in a few hundred.
        near = torch.isclose(ours.float(), theirs.float(), rtol=2e-6, atol=2e-7)
        assert float((~near).float().mean()) < 0.01


def test_a_parameter_of_any_layout_is_stored_in_fewer_bytes() -> None:
    base = torch.randn(6, 8).to(torch.bfloat16)
    runs = []
    for p in (base.clone(), base.t().contiguous().t(), torch.stack([base, base], 2)[..., 0]):
        given = state_for([p], "split", torch.float32)
        lists = TensorLists([p], **given)
        take(
            [
                RuleCall(
                    AdamRule(True, store="split"), lists, [base * 0.5], (0.1, 0.9, 0.999, 1e-8, 0.1), torch.tensor(0.0)
                )
            ]
        )
        runs.append(p.float())

    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_small_updates_are_lost_by_nearest_and_kept_by_the_others() -> None:
    ends = {}
    for store in ("nearest", "stochastic", "split"):
        p = torch.ones(512, dtype=torch.bfloat16)
        lists = TensorLists([p], **{**state_for([p], store, torch.float32), "slots": {}})
        taken = torch.tensor(0.0)
        chosen: Any = SgdRule(store=store)  # type: ignore[arg-type]
        for _ in range(64):
            take([RuleCall(chosen, lists, [torch.ones_like(p)], (2**-11, 0.0, 0.0, 0.0), taken)])
        ends[store] = float(p.float().mean())

    assert ends["nearest"] == 1.0  # each update is an eighth of the gap to the next bfloat16
    assert ends["split"] == 1.0 - 64 * 2**-11
    assert abs(ends["stochastic"] - ends["split"]) < 2e-3
