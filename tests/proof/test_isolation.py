"""A proof changes nothing that another thread sees, and works in several threads."""

import builtins
import importlib
import math
import threading
import time
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, jaxtyped
from torch import Tensor, nn

from shaped import prove


def lengths(x: Float[Tensor, "rows 8"]) -> Float[Tensor, "rows 8"]:
    return x / math.sqrt(x.shape[0]) / sqrt(len(x))


def halves(x: Float[Tensor, "rows 8"]) -> Float[Tensor, "rows//2 16"]:
    whole, _ = divmod(len(x), 2)
    return x[: 2 * whole].reshape(whole, 16)


class Layer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / len(x)


layer = Layer()


def through_a_module(x: Float[Tensor, "rows 8"]) -> Float[Tensor, "rows 8"]:
    return layer(x)


def while_another_watches(seen: Callable[[], Any], run: Callable[[], Any]) -> list[Any]:
    """What a second thread finds while this one runs."""
    found: list[Any] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            found.append(seen())
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run()
    finally:
        stop.set()
        thread.join()
    return found


@pytest.mark.parametrize("function", [lengths, halves, through_a_module])
def test_lengths_and_roots_of_sizes_are_proved_for_all_of_them(function: Callable[..., Tensor]) -> None:
    assert prove(function).conditions == ()


def test_a_helper_in_another_module_is_followed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("other")
    exec("import math\ndef scale(x): return x / math.sqrt(len(x))", vars(other))
    before = dict(vars(other))

    def scaled(x: Float[Tensor, "rows 8"]) -> Float[Tensor, "rows 8"]:
        scaled_x: Tensor = other.scale(x)
        return scaled_x

    assert prove(scaled).conditions == ()
    assert vars(other) == before


def test_no_thread_sees_another_len_root_module_call_or_flag_while_one_proves() -> None:
    tracing = importlib.import_module("torch.fx._symbolic_trace")

    def seen() -> tuple[Any, ...]:
        flags = jaxtyping.config.jaxtyping_disable, bool(tracing.is_fx_symbolic_tracing())
        methods = nn.Module.__call__, nn.Module.__getattr__, hasattr(torch.SymInt, "__divmod__")
        return builtins.len, math.sqrt, *methods, *flags

    before = seen()
    found = while_another_watches(seen, lambda: [prove(f) for f in (lengths, halves, through_a_module)])

    assert set(found) == {before}


def test_another_threads_checks_refuse_a_wrong_shape_while_one_proves() -> None:
    @jaxtyped(typechecker=beartype)
    def checked(x: Float[Tensor, "3"]) -> None: ...

    def refused() -> bool:
        try:
            checked(torch.zeros(4))
        except jaxtyping.TypeCheckError:
            return True
        return False

    assert set(while_another_watches(refused, lambda: prove(lengths))) == {True}


def test_another_thread_hears_its_warnings_while_one_proves() -> None:
    heard: list[str] = []

    def warn() -> None:
        warnings.warn("heard", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: heard.append(str(message))  # type: ignore[assignment]
        count = len(while_another_watches(warn, lambda: prove(lengths)))

    assert heard.count("heard") == count


def test_checks_of_jaxtyping_within_the_program_ask_for_no_size() -> None:
    @jaxtyped(typechecker=beartype)
    def helper(x: Float[Tensor, "a 8"]) -> Float[Tensor, "a 8"]:
        return x * 2

    def doubled(x: Float[Tensor, "rows 8"]) -> Float[Tensor, "rows 8"]:
        return helper(x)

    assert prove(doubled).conditions == ()
    assert not jaxtyping.config.jaxtyping_disable


def test_two_threads_prove_at_once() -> None:
    functions = [lengths, halves, through_a_module] * 2
    with ThreadPoolExecutor(4) as pool:
        proofs = list(pool.map(prove, functions))

    assert [proof.conditions for proof in proofs] == [()] * 6
    assert "len" not in globals()
    assert math.sqrt is sqrt
