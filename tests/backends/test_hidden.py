"""What a loss reads through objects and functions of C: both backends follow it, or say that they do not."""

import ctypes
import decimal
import logging
import math
from collections.abc import Callable
from enum import Enum
from functools import lru_cache, singledispatch
from multiprocessing import Value
from threading import local
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ExecutorError, ParamList, ScalarTrainer

pytestmark = pytest.mark.usefixtures("interpreted")
Scalar = Float[Tensor, ""]
X = torch.ones(2, 3)


class P(ParamList):
    w: Float[Tensor, " n"]


class Color(Enum):
    RED = "red"


class Rate(float):
    """A number that has more than its value."""

    rate = 0.0


class Own(local):
    rate = 0.0


class Slotted:
    __slots__ = ("__rate",)

    def __init__(self) -> None:
        self.put(0.0)

    def put(self, value: float) -> None:
        self.__rate = value

    def __repr__(self) -> str:
        return str(self.__rate)


@lru_cache
def answered(key: str) -> float:
    return len(key) + SUMMAND["now"]


def put_in_cache(value: float) -> None:
    """A cache goes on with what it computed once."""
    answered.cache_clear()
    SUMMAND["now"] = value - 1
    answered("a"), answered(key="a")  # which are two entries
    SUMMAND["now"] = 7.0


@singledispatch
def dispatched(key: object) -> float:
    return 0.0


def put_level(value: float) -> None:
    LOGGER.setLevel(10 * int(value))


def put_errors(value: float) -> None:
    np.seterr(under="warn" if value == 2 else "ignore")


SUMMAND, NUMBER, SHARED = {"now": 0.0}, ctypes.c_double(0.0), Value("d", 0.0)
LOGGER, TRIPLE, RATE, SLOTTED, OWN = logging.getLogger(__name__), (ctypes.c_double * 3)(), Rate(), Slotted(), Own()
POINTER, OBJECTS = ctypes.pointer(NUMBER), np.array([RATE, RATE], dtype=object)
RECORDS = np.rec.array([(0.0, 1)], dtype=[("a", float), ("b", int)])
MASKED = np.ma.array([0.0, 1.0], mask=[False, True])
READ: dict[str, tuple[Callable[[], Any], Callable[[float], Any]]] = {
    "a number of C's": (lambda: NUMBER.value, lambda v: setattr(NUMBER, "value", v)),
    "numbers of C's": (lambda: sum(TRIPLE), lambda v: TRIPLE.__setitem__(1, v)),
    "a number that processes share": (lambda: SHARED.value, lambda v: setattr(SHARED, "value", v)),
    "whether a logger would speak": (lambda: 2.0 - LOGGER.isEnabledFor(15), put_level),
    "a logger's level": (lambda: LOGGER.getEffectiveLevel() / 10, put_level),
    "how NumPy takes an error": (lambda: 1.0 + (np.geterr()["under"] == "warn"), put_errors),
    "a switch of torch's": (
        lambda: 1.0 + torch.backends.cuda.matmul.allow_tf32,
        lambda v: setattr(torch.backends.cuda.matmul, "allow_tf32", v == 2),
    ),
    "what a member of an enumeration was given": (
        lambda: getattr(Color.RED, "rate"),  # noqa: B009
        lambda v: setattr(Color.RED, "rate", v),
    ),
    "what a number of a class of its own was given": (lambda: RATE.rate, lambda v: setattr(RATE, "rate", v)),
    "what each thread has its own": (lambda: OWN.rate, lambda v: setattr(OWN, "rate", v)),
    "a slot under a private name": (lambda: float(repr(SLOTTED)), SLOTTED.put),
    "a class's own dictionary": (lambda: Rate.__dict__["rate"], lambda v: setattr(Rate, "rate", v)),
    "a constant of a library": (lambda: math.tau, lambda v: setattr(math, "tau", v)),
    "a record": (lambda: RECORDS.a[0], lambda v: RECORDS.a.__setitem__(0, v)),
    "what a function dispatches to": (lambda: dispatched("a"), lambda v: dispatched.register(str, lambda _: v)),
    "what a cache answers": (lambda: answered("a"), put_in_cache),
    "what a cache answers that is asked by name": (lambda: answered(key="a"), put_in_cache),
}


def reading(read: Callable[[], Any]) -> Callable[..., Any]:
    def loss(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        return (x @ p.w).mean() * 0 + read()

    return loss


@pytest.mark.parametrize("kind", READ)
def test_both_backends_follow_what_lies_in_c(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, change = READ[kind]
    monkeypatch.setattr(math, "tau", math.tau)  # and is put back
    change(1.0)
    trainers = [ScalarTrainer(reading(read), P(w=torch.ones(3)), backend=b) for b in ("eager", "compiled")]  # type: ignore[arg-type]
    seen = []
    for value in (1.0, 2.0, 1.0):
        change(value)
        seen += [trainer.step(X, lr=0.1).item() for trainer in trainers]

    assert seen == [1.0, 1.0, 2.0, 2.0, 1.0, 1.0]


HIDDEN: dict[str, Callable[[], Any]] = {
    "POINTER": lambda: POINTER[0],
    "MASKED": lambda: MASKED.sum(),
    "OBJECTS": lambda: OBJECTS[0].rate,
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_an_object_keeps_where_nothing_tells_of_it_is_not_compiled(name: str) -> None:
    with pytest.raises(ExecutorError) as raised:
        ScalarTrainer(reading(HIDDEN[name]), P(w=torch.ones(3)), backend="compiled").step(X, lr=0.1)

    assert f"reads `{name}` (" in str(raised.value)
    assert "from outside, and what that holds cannot be watched: pass it as an input" in str(raised.value)


def test_decimal_numbers_follow_how_they_are_rounded() -> None:
    third = [decimal.Decimal(1), decimal.Decimal(3)]
    trainer = ScalarTrainer(reading(lambda: float(third[0] / third[1])), P(w=torch.ones(3)), backend="compiled")
    seen = []
    for digits in (2, 3):
        with decimal.localcontext(decimal.Context(prec=digits)):
            seen.append(round(trainer.step(X, lr=0.1).item(), 6))

    assert seen == [0.33, 0.333]
