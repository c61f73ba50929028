"""Small products that are written into the driver are products, in any layout, each number by one rule."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shaped.backends.calls import Launch, Segment, View
from shaped.backends.microkernels import DEPTH, LARGEST, machine_has_vectors, small
from shaped.backends.units import built

vectors = pytest.mark.skipif(not machine_has_vectors(), reason="no AVX2")


def view_of(name: str, t: Tensor) -> View:
    return View(name, 0, t.dtype, tuple(t.shape), tuple(t.stride()))


class Calls:
    """Products of tensors, which one driver computes."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.calls: list[Launch] = []

    def view(self, t: Tensor) -> View:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = t
        return view_of(name, t)

    def add(self, name: str, out: Tensor, *given: Tensor) -> Launch:
        numbers = (1.0, 1.0) if "add" in name else ()
        self.calls.append(Launch(name, tuple(map(self.view, (out, *given))), numbers))
        return self.calls[-1]

    def run(self) -> None:
        places = {name: (i, 0) for i, name in enumerate(self.tensors)}
        _, driver = built({}, "", [Segment(self.calls, list(self.tensors), places)])
        assert driver is not None
        driver.drives[0](*self.tensors.values())


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def columns(*shape: int) -> Tensor:
    return rows(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)


def every_other(*shape: int) -> Tensor:
    return rows(*shape[:-1], 2 * shape[-1])[..., ::2]


def spread(*shape: int) -> Tensor:
    return rows(*shape[:-2], 1, shape[-1]).expand(shape)


LAYOUTS: list[Callable[..., Tensor]] = [rows, columns, every_other, spread]


def in_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The same layout in another dtype."""
    reach = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    made = torch.zeros(reach, dtype=dtype).as_strided(t.shape, t.stride())
    if 0 in t.stride():
        made[..., :1, :] = t[..., :1, :].to(dtype)
        return made
    return made.copy_(t)


@vectors
@pytest.mark.parametrize("count", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_a_small_product_is_within_the_rounding_of_its_sum_in_any_layout(count):
    torch.manual_seed(0)
    draw, calls, wanted = random.Random(count), Calls(), []
    for _ in range(count):
        shape = [draw.choice([1, 2, 5, 8, 10, 16, 17, 31, 33, 64]) for _ in range(3)]
        (m, k, n), dtype = shape, draw.choice([torch.float32, torch.float32, torch.float64])
        batch = draw.choice([(), (), (3,)])
        a, b = (in_dtype(draw.choice(LAYOUTS)(*batch, *of), dtype) for of in ((m, k), (k, n)))
        turned = draw.random() < 0.3
        out = in_dtype((columns if turned else rows)(*batch, m, n), dtype)
        bias = [] if turned or draw.random() < 0.5 else [torch.randn(n).to(dtype)]
        name = {(0, 0): "mm", (0, 1): "addmm", (1, 0): "bmm", (1, 1): "baddbmm"}[len(batch), len(bias)]
        launch = calls.add(name, out, *([bias[0].expand(out.shape)] if bias and batch else bias), a, b)
        assert small(launch) is not None, (shape, turned)
        whole = a.double() @ b.double() + (bias[0].double() if bias else 0)
        size = a.double().abs() @ b.double().abs() + (bias[0].double().abs() if bias else 0)
        wanted.append((out, whole, size * (k + 2) * torch.finfo(dtype).eps))
    calls.run()

    for out, whole, bound in wanted:
        assert ((out.double() - whole).abs() <= bound).all()


@vectors
def test_a_number_of_a_small_product_hangs_on_no_row_or_column_beside_it():
    torch.manual_seed(1)
    calls = Calls()
    a, b = torch.randn(40, 24), torch.randn(24, 50)
    whole, some = torch.zeros(40, 50), torch.zeros(7, 13)
    calls.add("mm", whole, a, b)
    calls.add("mm", some, a[11:18].contiguous(), b[:, 20:33].contiguous())
    calls.run()

    assert torch.equal(some, whole[11:18, 20:33])


@vectors
def test_what_is_large_or_laid_out_otherwise_is_left_to_torch():
    out, a, b = torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)

    def product(*given: Tensor, name: str = "mm", numbers: tuple[float, ...] = ()) -> bool:
        return small(Launch(name, tuple(view_of(str(i), t) for i, t in enumerate(given)), numbers)) is not None

    assert product(out, a, b)
    assert product(out, torch.zeros(4), a, b, name="addmm", numbers=(1.0, 1.0))
    assert not product(out, torch.zeros(4), a, b, name="addmm", numbers=(0.5, 1.0))
    assert not product(out.half(), a.half(), b.half())
    assert not product(torch.zeros(4, 8)[:, ::2], a, b)
    assert not product(out.T, torch.zeros(4), a, b, name="addmm", numbers=(1.0, 1.0))
    assert not product(torch.zeros(2, 2), torch.zeros(2, DEPTH + 1), torch.zeros(DEPTH + 1, 2))
    side = 2 ** (LARGEST.bit_length() // 3 + 1)
    assert not product(*(torch.zeros(side, side) for _ in range(3)))
