from typing import Any

import pytest

from shaped import ExecutorError, ScalarTrainer
from shaped.backends import Executor, Executors, program
from tests.models import batch, mlp, mlp_loss


def made(mode: str) -> Executor:
    return Executor(mode, "batch = 2", "inductor", 1.5, lambda arguments: arguments)


def test_an_executor_is_made_once_for_each_key():
    cache = Executors(2)
    first = cache.get("a", lambda: made("forward"), "forward", "batch = 2")
    again = cache.get("a", lambda: made("never"), "forward", "batch = 2")

    assert first is again
    assert len(cache) == 1


def test_a_full_cache_names_the_argument_and_what_is_there():
    cache = Executors(1)
    cache.get("a", lambda: made("forward"), "forward", "batch = 2")

    with pytest.raises(ExecutorError) as caught:
        cache.get("b", lambda: made("forward"), "forward", "batch = 3")

    assert str(caught.value) == (
        "`forward` at batch = 3 would be executor 2, and max_executors is 1. Each new tuple of shapes needs one: pad "
        "batches to few sizes, or raise max_executors.\n"
        "  forward            inductor     1.5 s         0 calls  batch = 2"
    )
    assert len(cache) == 1


@pytest.mark.parametrize("limit", [0, -1, 1.5])
def test_the_limit_is_a_positive_whole_number(limit):
    with pytest.raises(ValueError, match="max_executors"):
        Executors(limit)


def test_the_proof_at_construction_is_that_of_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs: list[object] = []
    prove = vars(program)["prove_setting"]

    def counted(*arguments: Any) -> Any:
        proofs.append(arguments)
        return prove(*arguments)

    monkeypatch.setattr(program, "prove_setting", counted)
    params = mlp()
    ScalarTrainer(mlp_loss, params).step(*batch(), lr=0.1)

    assert len(proofs) == 1
