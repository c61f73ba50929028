"""One place decides where an update runs, and importing the package costs no triton."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shaped_kernels import sgd_
from shaped_kernels.dispatch import choose_path

KERNELS = Path(__file__).parents[2] / "kernels"


def test_cpu_tensors_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHAPED_KERNELS", raising=False)

    assert choose_path(torch.device("cpu")) == "torch"


def test_the_environment_overrides_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_KERNELS", "torch")

    assert choose_path(torch.device("cuda")) == "torch"


def test_triton_on_cpu_tensors_is_refused_outside_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("SHAPED_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    p = torch.ones(2)
    with pytest.raises(ValueError, match="needs a GPU, or TRITON_INTERPRET=1"):
        sgd_([p], [torch.ones(2)], lr=0.1)

    assert p.tolist() == [1.0, 1.0]


def test_an_unknown_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAPED_KERNELS", "cuda")
    with pytest.raises(ValueError, match="must be 'torch' or 'triton', got 'cuda'"):
        choose_path(torch.device("cpu"))


def test_the_package_imports_neither_triton_nor_the_library() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import shaped_kernels; new = set(sys.modules) - before;"
        "shaped_kernels.sgd_([torch.ones(2)], [torch.ones(2)], lr=0.1);"
        "bad = [m for m in new if m.split('.')[0] in ('triton', 'shaped')]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=KERNELS)


def test_the_kernels_never_mention_the_library() -> None:
    for file in (KERNELS / "shaped_kernels").glob("*.py"):
        lines = [line.split() for line in file.read_text().splitlines()]

        assert not [line for line in lines if line[:1] in (["import"], ["from"]) and line[1].split(".")[0] == "shaped"]
