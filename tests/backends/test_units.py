"""Kernels of one graph share a library, or a few where there is much code, and compute what they did apart."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile

from shaped.backends import inductor, units
from shaped.backends.kernels import taken_apart
from shaped.backends.units import _file, _Kernel, _parts

SOURCE = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel(float* a) { a[0] = 1; }\n'


def kernels(*sizes: int) -> list[_Kernel]:
    return [_Kernel(["float*"], SOURCE + " " * (size - len(SOURCE))) for size in sizes]


def three(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Loops that products keep apart, one of which is twice the same, and one over integers."""
    h = (x @ w).relu()
    g = ((h @ w).exp() / 3).softmax(1)
    return (g @ w).relu(), g.argmax(1) + 1


@pytest.mark.parametrize("largest", [units.LARGEST, pytest.param(1, marks=pytest.mark.slow)])
def test_all_kernels_of_a_graph_stand_in_one_library_and_in_a_few_where_there_is_much_code(largest, monkeypatch):
    monkeypatch.setattr(units, "LARGEST", largest)
    monkeypatch.setattr(units, "_cores", lambda: 2)
    x, w = (torch.randn(size, 7 if largest > 1 else 9) for size in (5, 7 if largest > 1 else 9))  # each compiled anew
    lowered = inductor.lower(lambda w, x: three(x, w), [w], [x])

    assert len(taken_apart(lowered.code).libraries) == (1 if largest > 1 else 2)
    for ours, torchs in zip(lowered.run([w, x]), three(x, w), strict=True):
        torch.testing.assert_close(ours, torchs)


def test_a_header_is_included_once_and_outside_of_all_namespaces():
    text = _file(kernels(200, 300))

    assert text.count("cpp_prefix.h") == 1
    assert text.index("cpp_prefix.h") < text.index("namespace unit0") < text.index("namespace unit1")


@pytest.mark.parametrize(
    ("sizes", "cores", "parts"),
    [
        ([200], 8, [[0]]),
        ([200] * 5, 8, [[0, 1, 2, 3, 4]]),
        ([units.LARGEST, 200], 1, [[0, 1]]),
        ([200, units.LARGEST, 200], 8, [[1], [0, 2]]),
        ([units.LARGEST // 2] * 4, 8, [[0, 2], [1, 3]]),
        ([units.LARGEST] * 6, 4, [[0, 4], [1, 5], [2], [3]]),
        ([9 * units.LARGEST], 8, [[0]]),
    ],
)
def test_parts_are_of_about_one_size_and_as_many_as_pay_for_their_headers(sizes, cores, parts, monkeypatch):
    monkeypatch.setattr(units, "_cores", lambda: cores)

    assert _parts(sizes) == parts


def test_torchs_own_compiling_is_as_it_was_afterwards_and_in_other_threads(monkeypatch):
    seen: list[Any] = []

    def theirs(self: Any, takes: list[str], source: str) -> None:
        seen.append(source)

    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", theirs)
    headers = config.cpp_cache_precompile_headers
    with units.together(), ThreadPoolExecutor(1) as pool:
        pool.submit(AsyncCompile().cpp_pybinding, ["float*"], SOURCE).result()
        mine = AsyncCompile().cpp_pybinding(["float*"], SOURCE)

    assert isinstance(mine, _Kernel)
    assert (seen, AsyncCompile.cpp_pybinding) == ([SOURCE], theirs)
    assert config.cpp_cache_precompile_headers == headers
