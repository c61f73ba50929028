import re
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from shaped import ExecutorError, ScalarTrainer
from shaped.backends import Executors, Key, program
from shaped.backends.executors import Lowered
from tests.models import batch, mlp, mlp_loss

CPU = torch.device("cpu")


def key(mode: str = "forward", size: int = 2, **other: Any) -> Key:
    return Key(mode, ((size,),), (torch.float32,), CPU, **other)


def lowered() -> Lowered:
    return Lowered(lambda arguments: arguments, "inductor")


def test_an_executor_is_found_by_what_it_is_for():
    cache = Executors(2)
    made = cache.add(key(), "batch = 2", lowered)

    assert cache.find(key()) is made
    assert cache.find(key(size=3)) is None
    assert len(cache) == 1


def test_a_full_cache_names_the_argument_and_what_is_there():
    cache = Executors(1)
    cache.add(key(), "batch = 2", lowered).seconds = 1.5

    with pytest.raises(ExecutorError) as caught:
        cache.add(key(size=3), "batch = 3", lowered)

    assert str(caught.value) == (
        "`forward` at batch = 3 would be executor 2, and max_executors is 1. Pad batches to few sizes, use "
        "sizes='dynamic', or raise max_executors.\n"
        "  forward            inductor     1.5 s         0 calls  batch = 2  (the first; float32; cpu)"
    )
    assert len(cache) == 1


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (key("AdamW"), "the first"),
        (key(size=3), "another size"),
        (Key("forward", ((2,),), (torch.float64,), CPU), "another dtype"),
        (key(training=(False,)), "train() or eval()"),
        (key(layout=1), "parameters or state laid out anew"),
        (key(size=3, layout=1), "another size and parameters or state laid out anew"),
    ],
)
def test_a_new_executor_says_in_what_it_differs_from_the_one_most_like_it(other, reason):
    cache = Executors(9)
    cache.add(key(), "batch = 2", lowered)

    assert cache.add(other, "here", lowered).reason == reason


def test_hooks_see_each_executor_once_when_it_is_made():
    cache = Executors(9)
    seen = []

    @cache.on_create
    def note(executor):
        seen.append((executor.mode, executor.sizes, executor.reason))

    cache.add(key(), "batch = 2", lowered)
    cache.find(key())
    cache.add(key(size=3), "batch = 3", lowered)

    assert seen == [("forward", "batch = 2", "the first"), ("forward", "batch = 3", "another size")]


def test_what_cannot_be_compiled_takes_no_place_and_calls_no_hook():
    cache = Executors(1)
    cache.on_create(lambda executor: pytest.fail("no executor was made"))
    with pytest.raises(ZeroDivisionError):
        cache.add(key(), "batch = 2", lambda: 1 // 0)  # type: ignore[arg-type,return-value]

    assert len(cache) == 0


class Terminal:
    """A stderr that a person reads."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_a_person_is_told_what_is_compiled_on_one_line_and_a_log_on_two(monkeypatch, capsys):
    Executors(1).add(key(), "batch = 2", lowered)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    Executors(1).add(key(), "batch = 2", lowered)

    assert terminal.text == "shaped: compiling forward at batch = 2 (the first) ... 0.0 s\n"
    assert re.fullmatch(
        r"shaped: compiling forward at batch = 2 \(the first\) \.\.\.\n"
        r"shaped: compiling forward at batch = 2 \(the first\): 0\.0 s\n",
        capsys.readouterr().err,
    )


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


def test_what_was_compiled_once_is_found_on_disk():
    for _ in range(2):
        counters["inductor"].clear()
        ScalarTrainer(mlp_loss, mlp(), backend="compiled").forward(*batch())

    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
