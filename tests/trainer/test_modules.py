"""Losses over an nn.Module."""

import copy

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from shaped import (
    ProofError,
    ScalarTrainer,
    ShapeError,
    SignatureError,
)
from tests.models import batch
from tests.trainer.oracle import both

pytestmark = pytest.mark.usefixtures("interpreted")


@both
def test_train_and_eval_of_a_module_are_followed(backend):
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    trainer = ScalarTrainer(module_loss, module, backend=backend)
    x, y = batch()
    trainer.loss_and_backward(x, y)
    module.eval()

    torch.testing.assert_close(trainer.loss_and_backward(x, y)[0], module_loss(module, x, y).detach())


def module_loss(model: nn.Module, x: Float[Tensor, "batch 6"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(model(x), y)


def output_loss(logits: Float[Tensor, "batch 3"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.outer = nn.Linear(8, 3)

    def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3"]:
        result: Tensor = self.outer(torch.tanh(self.inner(x)))
        return result


@both
@pytest.mark.parametrize("loss", [module_loss, output_loss])
def test_a_module_is_trained_in_place_by_a_loss_over_it_or_over_its_output(backend, loss):
    torch.manual_seed(0)
    module = Net().double()
    twin = copy.deepcopy(module)
    oracle = torch.optim.AdamW(twin.parameters(), lr=0.01)
    trainer = ScalarTrainer(loss, module, backend=backend)
    for seed in range(3):
        x, y = batch(seed=seed, dtype=torch.float64)
        trainer.adamw_step(x, y, lr=0.01)
        oracle.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        oracle.step()

    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_the_prediction_must_be_what_forward_returns_for_all_sizes():
    def misdeclared(logits: Float[Tensor, "batch 5"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        return F.cross_entropy(logits, y)

    with pytest.raises(ProofError) as caught:
        ScalarTrainer(misdeclared, Net())
    assert caught.value.goal.equation == "3 = 5"


@both
def test_new_storage_is_followed_and_a_new_dtype_is_refused(backend):
    module = Net()
    trainer = ScalarTrainer(module_loss, module, backend=backend)
    x, y = batch()
    before = trainer.loss_and_backward(x, y)[0]
    for p in module.parameters():
        p.data = p.data * 0.0
    after = trainer.loss_and_backward(x, y)[0]

    assert before != after
    torch.testing.assert_close(after, torch.log(torch.tensor(3.0)))
    module.double()
    with pytest.raises(ShapeError, match="the parameters were changed; make a new trainer for them"):
        trainer.step(x, y, lr=0.1)


def test_a_module_whose_forward_is_not_annotated_says_what_to_write():
    with pytest.raises(SignatureError, match=r"Annotate Sequential.forward, or write the loss over the module"):
        ScalarTrainer(output_loss, nn.Sequential(nn.Linear(6, 3)))


def test_a_loss_that_does_not_say_what_its_first_argument_is_says_what_to_write():
    def loss(net, x: Float[Tensor, "batch 6"]) -> Float[Tensor, ""]:
        return net(x).square().mean()

    with pytest.raises(SignatureError, match=r"argument `net` has no annotation: write `net: Linear` where it takes"):
        ScalarTrainer(loss, nn.Linear(6, 3))
