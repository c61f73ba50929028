"""The same run under another mask of what is trained: moments, counts and memory go along."""

from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ScalarTrainer, SignatureError
from shaped.optim import SGD, AdamW
from tests.models import batch, mlp, mlp_loss
from tests.trainer.oracle import bits, both, same

pytestmark = pytest.mark.usefixtures("interpreted")


def by_hand(params: Any, optimizer: Any, mask: dict[str, bool], seed: int) -> None:
    for name, p in zip(("w1", "b1", "w2", "b2"), params, strict=True):
        p.requires_grad_(mask.get(name, True))
    optimizer.zero_grad()
    mlp_loss(params, *batch(seed=seed)).backward()
    optimizer.step()


@both
@pytest.mark.parametrize("way", ["train_step", "adamw_step"])
def test_unfreezing_keeps_moments_and_counts(backend: Any, way: str) -> None:
    params, plain = mlp(frozen=("w1", "b1")), mlp()
    options: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.0}
    optimizer = AdamW(params, **options) if way == "train_step" else None
    trainer = ScalarTrainer(mlp_loss, params, optimizer=optimizer, backend=backend)
    oracle = torch.optim.AdamW(list(plain), **options)
    masks = [["w1", "b1"], [], ["w2"]]
    for i, frozen in enumerate(masks):
        if i:
            trainer = trainer.with_frozen(frozen)
        for seed in range(3 * i, 3 * i + 3):
            trainer.train_step(*batch(seed=seed)) if optimizer else trainer.adamw_step(*batch(seed=seed), **options)
            by_hand(plain, oracle, dict.fromkeys(frozen, False), seed)

    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
    assert trainer.steps == 9
    assert [p.data_ptr() for p in trainer.params] == [p.data_ptr() for p in params]


def test_a_state_under_one_mask_goes_on_in_a_new_trainer_under_the_same_mask() -> None:
    params = mlp(frozen=("w1",))
    trainer = ScalarTrainer(mlp_loss, params)
    for seed in range(2):
        trainer.adamw_step(*batch(seed=seed), lr=0.01)
    trainer = trainer.with_frozen(["b2"])
    trainer.adamw_step(*batch(seed=2), lr=0.01)
    other = ScalarTrainer(mlp_loss, mlp(seed=1, frozen=("b2",)))
    other.load_state_dict(trainer.state_dict())
    for one in (trainer, other):
        one.adamw_step(*batch(seed=3), lr=0.01)

    assert same(bits(trainer.params), other.params)


def test_what_cannot_be_unfrozen_so_says_what_to_do() -> None:
    params = mlp()
    waiting = ScalarTrainer(mlp_loss, params, optimizer=SGD(params, lr=0.1), accumulate=2)
    waiting.train_step(*batch())
    with pytest.raises(ValueError, match=r"1 gradients wait for an update: step_waiting\(\) takes it"):
        waiting.with_frozen(["w1"])
    with pytest.raises(SignatureError):
        ScalarTrainer(mlp_loss, params).with_frozen(["w9"])
    with pytest.raises(ValueError, match=r"goes on with the moments"):
        ScalarTrainer(of_module, nn.Linear(6, 1)).with_frozen(["weight"])


def of_module(net: nn.Linear, x: Float[Tensor, "batch 6"]) -> Float[Tensor, ""]:
    return net(x).square().mean()
