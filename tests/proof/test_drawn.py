"""A loss that gives something else at each call is refused, and one that seeds what it draws from is not."""

import ctypes
import datetime
import gc
import io
import itertools
import json
import os
import queue
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import Unprovable, prove
from shaped.proof.watching import Watching

OWN, NUMPY = random.Random(3), np.random.default_rng(0)
PARAMETER = torch.ones(1)
GENERATOR, FACTORS, PATH = torch.Generator(), itertools.count(1), Path(__file__)
STREAM = io.StringIO("[1]")
LIBRARY = ctypes.CDLL(None)
DESCRIPTOR = os.open(os.devnull, os.O_RDONLY)


def by_file(x: float) -> float:
    with open(__file__) as file:
        return len(file.read()) * x


def by_file_in_c(x: float) -> float:
    with io.FileIO(__file__) as file:
        return len(file.read()) * x


def by_log(x: float) -> None:
    with open(os.devnull, "w") as file:
        file.write(str(x))


DRAWN: list[tuple[Callable[[Any], Any], str]] = [
    (lambda x: random.random() * x, "draws from Python's `random`"),
    (lambda x: random.choice([x, x]), "draws from Python's `random`"),
    (lambda x: OWN.gauss(0, 1) * x, "draws from Python's `random`"),
    (lambda x: np.random.rand() * x, "draws from NumPy's generator"),
    (lambda x: np.random.beta(1, 1) * x, "draws from NumPy's generator"),
    (lambda x: NUMPY.normal() * x, "draws from NumPy's generator"),
    (lambda x: np.random.default_rng().normal() * x, "draws from NumPy's generator"),
    (lambda x: torch.rand((), generator=GENERATOR) * x, "draws from a generator of its own"),
    (lambda x: next(FACTORS) * x, "draws from an iterator"),
    (by_file, "reads a file"),
    (lambda x: len(PATH.read_text()) * x, "reads a file"),
    (lambda x: len(STREAM.getvalue()) * x, "reads a file"),
    (lambda x: [STREAM.seek(0), json.load(STREAM)], "reads a file"),
    (lambda x: float(PATH.exists()) * x, "reads the file system"),
    (lambda x: len(list(PATH.parent.iterdir())) * x, "reads the file system"),
    (lambda x: os.path.getsize(__file__) * x, "reads the file system"),
    (lambda x: len(os.listdir(".")) * x, "reads the file system"),
    (lambda x: len(os.read(max(DESCRIPTOR, DESCRIPTOR), 8)) * x, "reads a file"),
    (by_file_in_c, "reads a file"),
    (lambda x: subprocess.run(["true"], check=True).returncode * x, "reads another process"),
    (lambda x: time.time() * x, "reads the clock"),
    (lambda x: time.perf_counter() * x, "reads the clock"),
    (lambda x: datetime.datetime.now().second * x, "reads the clock"),
    (lambda x: float(time.strftime("%S")) * x, "reads the clock"),
    (lambda x: len(os.getcwd()) * x, "reads the file system"),
    (lambda x: gc.get_count()[0] * x, "reads the state of this process"),
    (lambda x: os.times().elapsed * x, "reads the state of this process"),
    (lambda x: torch.initial_seed() % 7 * x, "reads the seed of torch's generator"),
    (lambda x: torch.default_generator.get_state().sum() * x, "reads the seed of torch's generator"),
    (lambda x: PARAMETER._version * x, "reads how often a tensor was written"),
    (lambda x: LIBRARY.abs(-3) * x, "reads what a function of C gives"),
]


@pytest.mark.parametrize(("function", "said"), DRAWN, ids=[str(i) for i in range(len(DRAWN))])
def test_a_loss_that_draws_from_what_torch_does_not_seed_or_reads_the_clock_is_refused(
    function: Callable[[Any], Any], said: str
) -> None:
    with Watching([function], "f") as watching:
        function(2)

    with pytest.raises(Unprovable, match=said):
        watching.reads(True)
    watching.reads(False)  # its shapes do not depend on it


SEEDED: list[Callable[[Any], Any]] = [
    lambda x: random.Random(0).random() * x,
    lambda x: np.random.default_rng(0).normal() * x,
    lambda x: time.sleep(0),
    lambda x: len(os.path.join("a", PATH.parent.name)) * x,
    by_log,
    lambda x: print(x, file=STREAM),
    lambda x: STREAM.write("x"),
    lambda x: json.dump([x], STREAM),
]


@pytest.mark.parametrize("function", SEEDED)
def test_a_generator_that_the_loss_makes_and_seeds_gives_the_same_each_time(function: Callable[[Any], Any]) -> None:
    with Watching([function], "f") as watching:
        function(2)

    watching.reads(True)


WAITING: dict[str, Callable[[], Any]] = {
    "reads a queue": queue.Queue().get,
    "reads a queue,": queue.SimpleQueue().get,
    "reads what another thread does": threading.Event().wait,
    "reads what is typed": input,
    "reads what another thread does,": threading.Thread(target=int).start,
}


@pytest.mark.parametrize("said", WAITING)
def test_what_a_program_would_wait_for_is_refused_before_it_waits(said: str) -> None:
    wait = WAITING[said]

    def waiting(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return x * float(wait() or 1)

    with pytest.raises(Unprovable, match=said):
        prove(waiting)
