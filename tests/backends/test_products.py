"""Which form of a matrix product is compiled on a CPU whose MKL is slow."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor
from torch.fx import GraphModule

from shaped import ParamList, ScalarTrainer, init
from shaped.backends import products
from shaped.backends.inductor import whole_graph

sizes = st.integers(1, 40)
LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "rows": torch.randn,
    "columns": lambda m, n: torch.randn(n, m).t(),
    "part of a larger one": lambda m, n: torch.randn(m + 1, n + 3)[1:, 2:-1],
    "every second": lambda m, n: torch.randn(m, 2 * n)[:, ::2],
    "one row again and again": lambda m, n: torch.randn(1, n).expand(m, n),
    "windows that overlap": lambda m, n: torch.randn(m + n - 1).unfold(0, n, 1),
    "one number": lambda m, n: torch.randn(1, 1).expand(m, n),
}


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)


def chosen(function: Callable[..., tuple[Tensor, ...]], *examples: Tensor) -> GraphModule:
    graph = whole_graph(function, examples)
    products.choose_products(graph)
    graph.graph.lint()
    graph.recompile()
    return graph


def targets(graph: GraphModule) -> str:
    return " ".join(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


BIASES: dict[str, Callable[[int], Tensor | None]] = {
    "none": lambda n: None,
    "a row": torch.randn,
    "every second": lambda n: torch.randn(2 * n)[::2],
    "one number again and again": lambda n: torch.randn(1).expand(n),
}
kinds = st.sampled_from(list(LAYOUTS))


@given(sizes, sizes, sizes, kinds, kinds, st.sampled_from(list(BIASES)))
def test_a_product_by_onednn_is_the_product_in_every_layout(m, k, n, left, right, beside):
    torch.manual_seed(0)
    a, b, bias = LAYOUTS[left](m, k), LAYOUTS[right](k, n), BIASES[beside](n)
    found = products.onednn()(a, b, bias)
    right_one = a.double() @ b.double() + (0 if bias is None else bias.double())
    scale = a.double().abs() @ b.double().abs() + (0 if bias is None else bias.double().abs())

    assert found.is_contiguous()
    assert ((found - right_one).abs() <= (k + 2) * torch.finfo(torch.float32).eps * scale).all()


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((128, 256, 256), "product"),  # worth the start of oneDNN
        ((64, 128, 10), "mm permute add"),  # narrow: by columns
        ((64, 64, 128), "addmm"),
        ((8, 128, 10), "addmm"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_sizes_decide_and_the_result_stays_the_same(shape, form, turned):
    m, k, n = shape
    a, b, bias = torch.randn(k, m).t() if turned else torch.randn(m, k), torch.randn(k, n), torch.randn(n)

    def layer(a: Tensor, b: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (torch.addmm(bias, a, b).relu(),)

    graph = chosen(layer, a, b, bias)

    assert all(part in targets(graph) for part in form.split())
    assert ("addmm" in targets(graph)) == (form == "addmm")
    torch.testing.assert_close(graph(a, b, bias)[0], layer(a, b, bias)[0], atol=1e-4, rtol=1e-5)


def test_onednn_copies_the_smaller_of_two_factors_that_it_cannot_read():
    x, g = torch.randn(2048, 512), torch.randn(2048, 64)

    assert products.form(512, 2048, 64, a_by_rows=False, b_by_rows=True) == "onednn columns"
    assert products.form(64, 2048, 512, a_by_rows=False, b_by_rows=True) == "onednn"
    graph = chosen(lambda x, g: (x.t().mm(g) * 2,), x, g)
    torch.testing.assert_close(graph(x, g)[0], x.t().mm(g) * 2, atol=1e-3, rtol=1e-5)


def test_a_product_that_is_returned_keeps_its_rows():
    x, g = torch.randn(2048, 512), torch.randn(2048, 10)
    graph = chosen(lambda x, g: (x.t().mm(g), x.mm(x.t()[:, :10])), x, g)

    assert all(result.is_contiguous() for result in graph(x, g))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_torch(dtype):
    a, b = torch.randn(256, 256, dtype=dtype), torch.randn(256, 256, dtype=dtype)

    assert "aten.mm" in targets(chosen(lambda a, b: (a.mm(b) * 2,), a, b))


@pytest.mark.parametrize("shape", [(1,), (), (1, 256), (128, 1), (128, 256)])
def test_a_bias_that_is_spread_is_left_to_torch(shape):
    a, b, bias = torch.randn(128, 256), torch.randn(256, 256), torch.randn(shape)
    graph = chosen(lambda a, b, bias: (torch.addmm(bias, a, b) * 2,), a, b, bias)

    assert "product" not in targets(graph)
    torch.testing.assert_close(graph(a, b, bias)[0], torch.addmm(bias, a, b) * 2)


def test_on_another_cpu_nothing_changes(monkeypatch):
    monkeypatch.setattr(products, "mkl_is_slow", lambda: False)
    a, b = torch.randn(256, 256), torch.randn(256, 256)

    assert "aten.mm" in targets(chosen(lambda a, b: (a.mm(b) * 2,), a, b))


class Wide(ParamList):
    w: Float[Tensor, "features hidden"] = init.normal(0.1)
    v: Float[Tensor, "hidden classes"] = init.normal(0.1)


def wide_loss(p: Wide, x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    return (torch.tanh(x @ p.w) @ p.v).square().mean()


@pytest.mark.slow
def test_a_step_of_free_sizes_with_such_products_is_one_executor():
    made = [Wide.init(features=256, hidden=128, classes=10, seed=0) for _ in range(2)]
    eager = ScalarTrainer(wide_loss, made[0])
    compiled = ScalarTrainer(wide_loss, made[1], backend="compiled", sizes="dynamic")
    for batch in (96, 40, 7, 200):
        x = torch.randn(batch, 256)
        torch.testing.assert_close(compiled.step(x, lr=1e-2), eager.step(x, lr=1e-2))

    assert len(compiled.executors) == 1
    for mine, right in zip(*made, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-4)
