"""Products in eight bits, with bounds from the formats; and the loss scaler."""

import json
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import ParamList, ProofError, ScalarTrainer, ShapeError, StateError
from shaped.fp8 import (
    E4M3,
    E5M2,
    Fp8Linear,
    LossScaler,
    convert,
    fp8_linear,
    round_to_fp8,
    to_fp8,
    unscaled,
    with_scale,
)
from tests.models import batch, mlp, mlp_loss

# relative error of a normal number, and half the spacing below the smallest one
ROUNDING = {E4M3: (2.0**-4, 2.0**-10), E5M2: (2.0**-3, 2.0**-17)}


class Net(ParamList):
    w1: Float[Tensor, "inputs hidden"]
    b1: Float[Tensor, " hidden"]
    w2: Float[Tensor, "hidden classes"]


def net_loss(p: Net, x: Float[Tensor, "batch inputs"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(F.relu(fp8_linear(x, p.w1, p.b1)) @ p.w2, y)


def net() -> Net:
    return Net.init(inputs=6, hidden=16, classes=3)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@settings(max_examples=40)
@given(exponents=st.lists(st.floats(-30, 30), min_size=1, max_size=30))
def test_a_value_is_off_by_what_its_format_says(dtype: torch.dtype, exponents: list[float]) -> None:
    x = torch.tensor([(-1) ** i * 2.0**e for i, e in enumerate(exponents)])
    relative, absolute = ROUNDING[dtype]
    scale = torch.finfo(dtype).max / x.abs().max()
    error = (round_to_fp8(x, dtype) - x).abs()

    # 2**-20: the multiplication by the scale and the division by it round in float32
    assert (error <= torch.maximum(relative * x.abs(), absolute / scale) * (1 + 2**-20) + x.abs() * 2**-20).all()
    assert round_to_fp8(x, dtype).isfinite().all()


def test_zeros_stay_zeros() -> None:
    assert torch.equal(round_to_fp8(torch.zeros(3)), torch.zeros(3))


def bound(a: Tensor, b: Tensor, of_a: torch.dtype, of_b: torch.dtype) -> Tensor:
    """How far a @ b may be off: each factor by its format, each sum by float32."""
    largest = [t.abs() * ROUNDING[d][0] + ROUNDING[d][1] * t.abs().max() / torch.finfo(d).max
               for t, d in ((a, of_a), (b, of_b))]  # fmt: skip
    exact = a.abs() @ largest[1] + largest[0] @ b.abs() + largest[0] @ largest[1]
    return exact + a.shape[1] * 2**-22 * (a.abs() @ b.abs())


def test_a_product_and_its_gradients_are_within_the_formats_bounds() -> None:
    x, w, g = normal(32, 48).requires_grad_(), normal(48, 16, seed=1).requires_grad_(), normal(32, 16, seed=2)
    y = fp8_linear(x, w)
    dx, dw = torch.autograd.grad(y, (x, w), g)
    x, w = x.detach(), w.detach()

    assert ((y - x @ w).abs() <= bound(x, w, E4M3, E4M3)).all()
    assert ((dx - g @ w.T).abs() <= bound(g, w.T, E5M2, E4M3)).all()
    assert ((dw - x.T @ g).abs() <= bound(x.T, g, E4M3, E5M2)).all()
    assert not torch.allclose(y, x @ w, rtol=1e-4)  # it is eight bits


@pytest.mark.smoke
def test_torchs_own_product_in_eight_bits_gives_the_emulated_one() -> None:
    x, w, g = normal(32, 48).requires_grad_(), normal(48, 16, seed=1).requires_grad_(), normal(32, 16, seed=2)
    results = []
    for product in ("emulated", "scaled"):
        y = fp8_linear(x, w, product=product)  # type: ignore[arg-type]
        results.append([y.detach(), *torch.autograd.grad(y, (x, w), g)])

    for emulated, scaled in zip(*results, strict=True):
        torch.testing.assert_close(emulated, scaled, rtol=1e-5, atol=1e-4)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3"]:
        logits: Tensor = self.head(F.relu(self.body(x)))
        return logits


def distance(prediction: Float[Tensor, "batch 3"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(prediction, y)


@pytest.mark.filterwarnings("ignore")
def test_torchaos_layers_are_proved_and_give_the_same_numbers() -> None:
    mine, theirs = Two(), Two()
    convert(mine, ["body"])
    assert convert(theirs, ["body"], product="torchao") == ("body",)
    assert type(theirs.body).__name__ == "Float8Linear"
    found = [ScalarTrainer(distance, module).backward(*batch()) for module in (mine, theirs)]

    torch.testing.assert_close(list(found[0]), list(found[1]), rtol=1e-5, atol=1e-5)


def test_a_missing_torchao_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    module = Two()

    with pytest.raises(ImportError, match=r'pip install "shaped-trainer\[fp8\]"'):
        convert(module, product="torchao")
    assert type(module.body) is nn.Linear


@pytest.mark.smoke
def test_eight_bits_are_proved_for_all_sizes() -> None:
    proof = ScalarTrainer(net_loss, net()).proof

    assert "proved for all batch, inputs, hidden, classes >= 1" in str(proof)
    assert proof.conditions == ()


@pytest.mark.slow
def test_eight_bits_train_on_both_backends() -> None:
    eager = ScalarTrainer(net_loss, net())
    x, y = batch()
    start = eager.forward(x, y)
    for trainer in (eager, eager.with_backend("compiled")):
        for _ in range(5):
            trainer.adamw_step(x, y, lr=0.05)

    assert eager.forward(x, y) < 0.7 * start
    assert eager.compare_backends(x, y).largest < 1e-5


def test_more_axes_are_rows() -> None:
    x, w = normal(2, 3, 4), normal(4, 5, seed=1)

    assert torch.equal(fp8_linear(x, w), fp8_linear(x.view(6, 4), w).view(2, 3, 5))


def test_a_product_that_does_not_fit_is_refused_in_the_proof() -> None:
    def crossed(p: Net, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, ""]:
        return (fp8_linear(x, p.w1.T) + p.b1.sum() + p.w2.sum()).sum()

    with pytest.raises((ProofError, ShapeError), match="inputs"):
        ScalarTrainer(crossed, net())
    with pytest.raises(ShapeError, match=r"x is \[2, 3\] and w \[4, 5\]"):
        fp8_linear(torch.zeros(2, 3), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="product is 'real'"):
        fp8_linear(torch.zeros(2, 3), torch.zeros(3, 5), product="real")  # type: ignore[arg-type]


def test_master_weights_keep_updates_that_eight_bits_would_lose() -> None:
    params = net()
    trainer = ScalarTrainer(net_loss, params)
    x, y = batch()
    before = params.w1.detach().clone()
    trainer.step(x, y, lr=1e-4)
    lost = to_fp8(params.w1)[0].float() == to_fp8(before)[0].float()

    assert params.w1.dtype is torch.float32
    assert (lost & (params.w1 != before)).any()


def test_a_converted_module_keeps_its_parameters_and_is_proved() -> None:
    module = Two()
    kept = list(module.parameters())
    assert convert(module, ["body"]) == ("body",)
    assert isinstance(module.body, Fp8Linear)
    assert type(module.head) is nn.Linear
    assert all(a is b for a, b in zip(kept, module.parameters(), strict=True))
    trainer = ScalarTrainer(distance, module)
    assert trainer.step(*batch(), lr=0.1) > trainer.forward(*batch())
    with pytest.raises(ShapeError, match="Two has no weight `tail`"):
        convert(module, ["tail"])


# -- the loss scaler -----------------------------------------------------------------------------------------------


def scaled(params: Any = None) -> ScalarTrainer:
    return ScalarTrainer(with_scale(mlp_loss), params or mlp(), strategy=unscaled, nonfinite="skip")


def test_a_scaled_step_is_the_plain_step() -> None:
    x, y = batch(dtype=torch.float64)
    mine, plain = scaled(mlp(dtype=torch.float64)), ScalarTrainer(mlp_loss, mlp(dtype=torch.float64))
    scaler = LossScaler(2.0**10)
    for _ in range(3):
        value = scaler.take(mine.adamw_step, x, y, lr=0.1)
        exact = plain.adamw_step(x, y, lr=0.1)
        torch.testing.assert_close(value, exact)

    torch.testing.assert_close(list(mine.params), list(plain.params))
    assert "gradients : MLP by unscaled" in str(mine.proof)


def test_a_scaled_loss_trains_under_float16() -> None:
    trainer = ScalarTrainer(with_scale(mlp_loss), mlp(), strategy=unscaled, nonfinite="skip", autocast=torch.float16)
    scaler = LossScaler()
    values = [scaler.take(trainer.adamw_step, *batch(), lr=0.05) for _ in range(4)]

    assert values[-1] < 0.7 * values[0]
    assert trainer.steps == 4


def test_the_scale_shrinks_where_a_gradient_overflows_and_nothing_has_changed() -> None:
    trainer, scaler = scaled(), LossScaler(2.0**127)
    x, y = batch()
    before = trainer.get_params()
    while trainer.steps == 0:
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.params, strict=True))
        scaler.take(trainer.step, 1e3 * x, y, lr=0.01)

    assert trainer.skipped > 0
    assert scaler.scale == 2.0 ** (127 - trainer.skipped)


def test_the_scale_doubles_after_the_interval_and_stays_above_the_floor() -> None:
    scaler = LossScaler(4.0, interval=3)
    scales = []
    for finite in (True, True, True, True, False, True, True, True, False, False, False, False, False):
        scaler.update(finite)
        scales.append(scaler.scale.item())

    assert scales == [4, 4, 8, 8, 4, 4, 4, 8, 4, 2, 1, 1, 1]
    assert (LossScaler().interval, LossScaler().growth, LossScaler().backoff, LossScaler().floor) == (2000, 2, 0.5, 1)


def test_a_scaler_saved_mid_run_goes_on_the_same_in_a_new_one() -> None:
    first, second = LossScaler(8.0, interval=4), LossScaler(interval=4)
    for finite in (True, False, True, True, True):
        first.update(finite)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for scaler in (first, second):
        scaler.update(True)

    assert second.state_dict() == first.state_dict() == {"scale": 8.0, "good": 0}
    with pytest.raises(StateError, match="a scaler's state is a finite scale of at least 1"):
        second.load_state_dict({"scale": 0.5, "good": 0})


@pytest.mark.parametrize("wrong", [{"scale": 0.5}, {"growth": 1.0}, {"backoff": 1.0}, {"interval": 0}, {"floor": 0.0}])
def test_a_scaler_out_of_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossScaler(**wrong)


def test_a_scale_stops_growing_before_it_is_infinite() -> None:
    scaler = LossScaler(2.0**127, interval=1)
    for _ in range(3):
        scaler.update(True)
    assert scaler.scale.item() == 2.0**127
    for state in ({"scale": float("inf"), "good": 0}, {"scale": float("nan"), "good": 0}):
        with pytest.raises(StateError, match="a finite scale"):
            scaler.load_state_dict(state)
    scaler.load_state_dict({"scale": 4.0, "good": 99})
    scaler.update(True)
    assert scaler.scale.item() == 8.0


def test_no_rows_give_no_rows_and_whole_numbers_are_refused() -> None:
    w = torch.ones(8, 3)
    assert fp8_linear(torch.zeros(0, 8), w).shape == (0, 3)
    with pytest.raises(ShapeError, match="both are floating-point"):
        fp8_linear(torch.ones(2, 8, dtype=torch.int64), w)
