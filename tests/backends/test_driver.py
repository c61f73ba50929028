"""The driver of a step computes what the generated Python does, with torch's products bit for bit; no call reaches into
another."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from shaped.backends import inductor, microkernels
from shaped.backends.calls import read
from shaped.backends.driver import PIECE, SMALL, placement, products
from shaped.backends.executors import Lowered
from shaped.backends.kernels import driver_of, taken_apart

TEXT = """
class Runner:
    def call(self, args):
        arg0_1, arg1_1 = args
        args.clear()
        buf0 = empty_strided_cpu((4, 4), (4, 1), torch.float32)
        extern_kernels.addmm(arg1_1, arg0_1, arg0_1, alpha=1, beta=1, out=buf0)
        del arg1_1
        buf1 = empty_strided_cpu((4, 4), (4, 1), torch.float32)
        cpp_fused_0(buf0, buf1)
        buf2 = buf0; del buf0  # reuse
        extern_kernels.mm(buf1, reinterpret_tensor(buf1, (4, 4), (1, 4), 0), out=buf2)
        buf3 = torch.ops.aten.cumsum(buf2, 0)
        del buf2
        buf4 = empty_strided_cpu((4, 4), (4, 1), torch.float32)
        cpp_fused_0(buf3, buf4)
        buf5 = empty_strided_cpu((4, 4), (4, 1), torch.float32)
        buf6 = reinterpret_tensor(buf5, (3, 4), (4, 1), 4); del buf5  # reuse
        cpp_fused_0(reinterpret_tensor(buf4, (3, 4), (4, 1), 4), buf6)
        del buf4
        return (buf6, )
"""
KERNELS = {"cpp_fused_0": ["const float*", "float*"]}


def test_lines_in_a_row_become_one_call_and_all_others_stay() -> None:
    found = read(TEXT, KERNELS, [torch.zeros(4, 4), torch.zeros(4)], ["mm", "addmm"])

    assert found is not None
    source, (first, second) = found
    assert source == (
        "def driven(args):\n"
        "    torch.get_num_threads()\n"
        "    arg0_1, arg1_1 = args\n"
        "    args.clear()\n"
        "    buf0 = empty_strided_cpu((4, 4), (4, 1), torch.float32)\n"
        "    drive0(buf0, arg1_1, arg0_1)\n"
        "    del arg1_1\n"
        "    buf2 = buf0\n"
        "    del buf0\n"
        "    buf3 = torch.ops.aten.cumsum(buf2, 0)\n"
        "    del buf2\n"
        "    buf5 = empty_strided_cpu((4, 4), (4, 1), torch.float32)\n"
        "    drive1(buf3, buf5)\n"
        "    buf6 = reinterpret_tensor(buf5, (3, 4), (4, 1), 4)\n"
        "    del buf5\n"
        "    return (buf6,)"
    )
    assert ([call.name for call in first.calls], first.own) == (["addmm", "cpp_fused_0", "mm"], {"buf1": 64})
    assert ([view.at for call in second.calls for view in call.views], second.own) == ([0, 0, 16, 16], {"buf4": 64})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("arg0_1, arg1_1 = args", "s0, arg0_1, arg1_1 = args"),  # sizes that are free: more than the tensors
        ("buf1 = empty_strided_cpu", "buf0 = empty_strided_cpu"),  # a name that means two things
        ("def call", "def partition_0"),
        ("args.clear()", "self.partitions[0](args)"),  # a part of the step is another function
    ],
)
def test_a_text_of_another_form_has_no_driver(before: str, after: str) -> None:
    assert read(TEXT.replace(before, after), KERNELS, [torch.zeros(4, 4), torch.zeros(4)], ["mm", "addmm"]) is None


def test_a_product_that_torch_does_not_have_stays_a_line_of_python() -> None:
    found = read(TEXT, KERNELS, [torch.zeros(4, 4), torch.zeros(4)], [])

    assert found is not None
    assert ("extern_kernels.mm(" in found[0], len(found[1])) == (True, 1)


def test_a_product_of_another_device_stays_a_line_of_python() -> None:
    found = read(TEXT, KERNELS, [torch.zeros(4, 4, device="meta"), torch.zeros(4)], ["mm", "addmm"])

    assert found is not None
    assert "extern_kernels.addmm(" in found[0]
    assert "addmm" not in [call.name for segment in found[1] for call in segment.calls]


def test_small_buffers_share_memory_where_they_are_not_used_at_one_time() -> None:
    buffers = {"a": (100, 0, 2), "b": (64, 1, 3), "c": (10, 3, 4), "d": (0, 0, 4), "large": (SMALL + 1, 0, 4)}

    assert placement(buffers) == ({"a": 0, "b": 128, "c": 0, "d": 192}, 256)


def test_a_piece_has_an_end_and_what_finds_no_place_in_it_is_alone() -> None:
    placed, length = placement({str(i): (SMALL, 0, 1) for i in range(PIECE // SMALL + 2)})

    assert (len(placed), length) == (PIECE // SMALL, PIECE)


def network(w: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Products and loops, with an operation between them that is torch's own, and a write into an argument."""
    h = (x @ w + b).relu()
    many = torch.bmm(h.reshape(2, 4, 8), h.reshape(2, 8, 4)).tanh()
    c = torch.cumsum((h @ w).sin().reshape(-1), 0).reshape(8, 8) * 2
    g = (c @ w.T).tanh() + many.sum()
    b.add_(g.mean(0))
    large = (g.reshape(-1, 1) * torch.ones(1024)).cos()  # more than shares the piece
    return g @ w, g.sum(0), c.T, (large @ large.T).sum(1)


@pytest.fixture(scope="module", params=["its own products", "torch's products"])
def lowered(request: pytest.FixtureRequest) -> Iterator[Lowered]:
    w, b, x = arguments(0)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch's products":
            patch.setattr(microkernels, "machine_has_vectors", lambda: False)
        yield inductor.lower(network, [w, b], [x])


def arguments(seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw) for shape in ((8, 8), (8,), (8, 8))]


def test_a_driver_computes_what_the_generated_python_does(lowered: Lowered) -> None:
    driver = driver_of(lowered.code)

    assert driver is not None
    assert "cumsum" in driver.source
    assert products() == ("mm", "addmm", "bmm", "baddbmm")
    for run in (lowered.run, taken_apart(lowered.code).load()):
        for seed in range(3):
            theirs, ours = arguments(seed), arguments(seed)
            expected = lowered.code.compiled_fn_runner.call([*theirs])
            found = run([*ours])
            for one, other in zip([*expected, *theirs], [*found, *ours], strict=True):
                if microkernels.machine_has_vectors():
                    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
                else:
                    assert torch.equal(one, other)
                assert one.stride() == other.stride()


def test_what_a_step_returns_is_not_written_by_the_next_nor_by_another_thread(lowered: Lowered) -> None:
    expected = [lowered.run([*arguments(seed)]) for seed in range(8)]
    kept = [[t.clone() for t in one] for one in expected]

    def again(seed: int) -> bool:
        found: list[Any] = [lowered.run([*arguments(seed)]) for _ in range(20)]
        return all(torch.equal(a, b) for one in found for a, b in zip(one, kept[seed], strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(again, range(8)))
    assert all(
        torch.equal(a, b) for one, other in zip(expected, kept, strict=True) for a, b in zip(one, other, strict=True)
    )
