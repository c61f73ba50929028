"""Random operations in a compiled step: seeded, resumed, and as often as in eager."""

import math

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer
from shaped.checkpoint.generators import generator_states, set_generator_states


class Line(ParamList):
    w: Float[Tensor, "inputs outputs"]


def dropped(p: Line, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, ""]:
    return F.dropout(x @ p.w, 0.25).mean() + 0.01 * torch.randn_like(x).mean()


def line() -> Line:
    return Line.init(inputs=6, outputs=8, seed=0)


@pytest.fixture(scope="module")
def compiled() -> ScalarTrainer:
    """One trainer, so that its two passes compile once."""
    return ScalarTrainer(dropped, line(), backend="compiled")


def run(trainer: ScalarTrainer, steps: int) -> list[Tensor]:
    return [trainer.step(torch.ones(5, 6), lr=0.1) for _ in range(steps)]


def test_two_compiled_runs_with_one_seed_are_equal_bit_for_bit(compiled):
    start = compiled.state_dict()
    losses = []
    for seed in (1, 1, 2):
        compiled.load_state_dict(start)
        torch.manual_seed(seed)
        losses.append(torch.stack([*run(compiled, 4), *[p.sum() for p in compiled.params]]))

    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_a_compiled_run_that_draws_is_resumed_bit_for_bit_with_the_generators_of_its_checkpoint(compiled):
    torch.manual_seed(3)
    run(compiled, 2)
    state, generators = compiled.state_dict(), generator_states()
    straight = run(compiled, 3)
    torch.manual_seed(99)
    compiled.load_state_dict(state)
    set_generator_states(generators)

    assert torch.equal(torch.stack(run(compiled, 3)), torch.stack(straight))


def test_each_compiled_step_draws_anew_and_as_often_as_the_eager_one(compiled):
    x, n = torch.ones(64, 6), 300
    torch.manual_seed(0)
    values = {}
    for backend in ("eager", "compiled"):
        trainer = compiled.with_backend(backend)
        values[backend] = torch.stack([trainer.forward(x) for _ in range(n)]).double()
    eager, fast = values["eager"], values["compiled"]

    assert len(set(fast.tolist())) == n
    # Means of n draws differ by sqrt(2/n) of their deviation; five of that is one time in two million.
    assert abs(eager.mean() - fast.mean()) < 5 * math.sqrt(2 / n) * eager.std()
    assert 0.75 < fast.std() / eager.std() < 1.33  # a deviation from n draws is known to 1/sqrt(2n), 4 %: 7 of that
