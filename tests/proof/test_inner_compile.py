"""What the user compiled is traced through: the function that was compiled runs itself."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ParamList, ProofError, ScalarTrainer, init, prove
from shaped.proof.isolation import uncompiled

compiles: list[Any] = []


def counting(graph: Any, _: Any) -> Any:
    compiles.append(graph)
    return graph.forward


doubled = torch.compile(lambda a: a * 2, backend=counting, fullgraph=True)
gram = torch.compile(lambda a: a.T @ a, backend=counting)
linear = torch.compile(nn.Linear(3, 4), backend=counting)
within = nn.Linear(3, 4)
within.compile(backend=counting)


def by_function(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    return doubled(x)


def by_product(x: Float[Tensor, "n m"]) -> Float[Tensor, "m m"]:
    return gram(x)


def by_module(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    return linear(x)


def by_its_call(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    return within(x)


def made_within(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    return torch.compile(lambda a: a * 2, backend=counting)(x)


@pytest.mark.parametrize("function", [by_function, by_product, by_module, by_its_call, made_within])
def test_what_was_compiled_is_proved_and_nothing_is_compiled(function: Callable[..., Any]) -> None:
    compiles.clear()

    assert prove(function).conditions == ()
    assert not compiles


def test_a_fault_within_is_refuted() -> None:
    def wrong(x: Float[Tensor, "n m"]) -> Float[Tensor, "n n"]:
        return gram(x)

    with pytest.raises(ProofError, match="n"):
        prove(wrong)


class Weights(ParamList):
    w: Float[Tensor, "d e"] = init.ones()


def loss(p: Weights, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    return doubled(x @ p.w).square().mean()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, as it compiles
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_step_through_it_is_the_step_without(backend: Any) -> None:
    x, w = torch.ones(5, 3), torch.ones(3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad((x @ w * 2).square().mean(), w)
    params = Weights.init(d=3, e=4)
    ScalarTrainer(loss, params, backend=backend).step(x, lr=0.1)

    torch.testing.assert_close(params.w, (w - 0.1 * gradient).detach())


def test_other_threads_compile_meanwhile_and_nothing_stays() -> None:
    def compile_here() -> None:
        torch.compile(lambda a: a - 1, backend=counting)(torch.ones(2))

    compiles.clear()
    with uncompiled():
        thread = threading.Thread(target=compile_here)
        thread.start()
        thread.join()
        gram(torch.ones(2, 2))

    assert len(compiles) == 1
    assert not torch.fx._symbolic_trace.is_fx_symbolic_tracing()
