"""Two processes that run all checks of a session one after another: starting them costs more than most checks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("processes.py")
Answers = Callable[[str], str]


def run(names: list[str], folder: Path, count: int) -> dict[str, str]:
    """What all ranks answer: by check, nothing or what was wrong on the ranks."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1", "SHAPED_KERNELS": "torch"}
    answers = str(folder / "answers")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(rank), str(count), answers, *names], env=env, stderr=subprocess.PIPE
        )
        for rank in range(count)
    ]
    said = [rank.communicate()[1].decode() for rank in ranks]
    found: dict[str, str] = {}
    for rank in range(count):
        file = folder / f"answers.{rank}"
        told = json.loads(file.read_text()) if file.exists() else {}
        for name in names:
            wrong = told.get(name, f"rank {rank} did not come to it: {said[rank][-2000:]}")
            found[name] = "\n".join(filter(None, [found.get(name, ""), wrong and f"rank {rank}: {wrong}"]))
    return found


def checked(request: pytest.FixtureRequest, folder: Path, count: int = 2) -> Answers:
    """The answers to all checks of this fixture that are among the tests of the session."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    fixture = request.fixturename
    assert fixture is not None
    items = [item for item in request.session.items if fixture in getattr(item, "fixturenames", ())]
    names = [item.callspec.params["name"] for item in items]  # type: ignore[attr-defined]
    answers = run(names, folder, count)
    return answers.__getitem__


@pytest.fixture(scope="session")
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What two processes answer to each check."""
    return checked(request, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def two_ranks_long(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The same of those that compile much."""
    return checked(request, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def four_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What four processes answer to each check."""
    return checked(request, tmp_path_factory.mktemp("ranks"), 4)
