"""Which matrix products of a CPU graph are computed otherwise than by `torch.mm`.

On an x86 CPU that is not Intel's, MKL leaves half the width of AVX-512 unused, and is several times slower still where
a product has few columns and their number is no multiple of 16. Measured with one thread on an AMD EPYC
(docs/benchmarks/products.py): MKL comes to 100 GFLOP/s, oneDNN to 220, after 12 us and half a nanosecond for each
element that it copies first; the product of 64 x 128 and 128 x 10 takes 9.0 us by rows and 5.5 us by columns.

The choice hangs on the CPU, sizes and layouts alone, so one program gives the same numbers again on one machine.
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

Form = Literal["rows", "columns", "onednn", "onednn columns"]

_NARROW = 32  # columns; from here on MKL loses little
_GAIN = 1 / 100e9 - 1 / 220e9  # seconds for each floating-point operation
_START, _COPY = 12e-6, 0.5e-9  # seconds a call, seconds an element


@cache
def mkl_is_slow() -> bool:
    """Whether products go through MKL on a CPU that has AVX-512 and is not Intel's."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and not str(torch.cpu.get_capabilities().get("cpu_name", "Intel")).startswith("Intel")
    )


def form(m: int, k: int, n: int, a_by_rows: bool, b_by_rows: bool) -> Form:
    """How to compute a [m, k] times [k, n] product of float32, by rule of the figures above.

    Args:
        m, k, n: The sizes.
        a_by_rows: The first factor lies in memory row by row; oneDNN copies one that does not.
        b_by_rows: The second does. Written by columns, the product is that of the transposed factors.
    """
    copied, turned = (0 if a_by_rows else m * k), (n * k if b_by_rows else 0)
    if 2 * m * k * n * _GAIN > _START + _COPY * min(copied, turned):
        return "onednn" if copied <= turned else "onednn columns"
    return "columns" if n < min(m, _NARROW) and n % 16 else "rows"


def choose_products(graph: GraphModule) -> None:
    """Rewrite every `mm` and `addmm` of float32 to its best form on such a CPU."""
    if not (mkl_is_slow() and torch.backends.mkldnn.enabled):
        return
    aten = torch.ops.aten
    for node in graph.graph.find_nodes(op="call_function", target=aten.mm.default):
        a, b = node.args
        _rewrite(graph, node, a, b)
    for node in graph.graph.find_nodes(op="call_function", target=aten.addmm.default):
        bias, a, b = node.args
        if not node.kwargs:
            _rewrite(graph, node, a, b, bias)


def _rewrite(graph: GraphModule, node: Node, a: Node, b: Node, bias: Node | None = None) -> None:
    left, right = a.meta["val"], b.meta["val"]
    if left.device.type != "cpu" or left.dtype != torch.float32:
        return
    if bias is not None and [_hint(size) for size in bias.meta["val"].shape] != [_hint(right.shape[1])]:
        return  # it is spread over rows or columns
    best = form(_hint(left.shape[0]), _hint(left.shape[1]), _hint(right.shape[1]), _by_rows(left), _by_rows(right))
    if any(user.op == "output" for user in node.users):  # a caller may rely on its strides
        best = "onednn" if best.startswith("onednn") else "rows"
    if best == "rows":
        return
    put = _Put(graph, node)
    if best == "onednn":
        made = put(onednn(), a, b, bias)
    else:
        flipped = (put.turned(b), put.turned(a))
        made = put.turned(put(torch.ops.aten.mm.default, *flipped) if best == "columns" else put(onednn(), *flipped))
        made = made if bias is None else put(torch.ops.aten.add.Tensor, made, bias)
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)


class _Put:
    """Puts operations before a node, each with its fake value."""

    def __init__(self, graph: GraphModule, before: Node) -> None:
        self._graph, self._before = graph.graph, before

    def __call__(self, target: Any, *args: Any) -> Node:
        with self._graph.inserting_before(self._before):
            made = self._graph.call_function(target, args)
        made.meta["val"] = target(*(x.meta["val"] if isinstance(x, Node) else x for x in args))
        return made

    def turned(self, x: Node) -> Node:
        return self(torch.ops.aten.permute.default, x, [1, 0])


def _hint(size: Any) -> int:
    """A size, or for a free one the number it was traced at: comparing that sets no condition."""
    return size if isinstance(size, int) else int(size.node.hint)


def _by_rows(x: Tensor) -> bool:
    """Whether the last size has the unit stride; a column vector counts as both."""
    return _hint(x.stride(1)) == 1


@cache
def onednn() -> Any:
    """`a @ b + bias` by oneDNN: [m, k], [k, n] and [n] to [m, n], row by row."""
    signature = "(Tensor a, Tensor b, Tensor? bias=None) -> Tensor"
    torch.library.define("shaped::product", signature, tags=torch.Tag.pt2_compliant_tag)

    def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        (rows, columns), (k, n) = b.stride(), b.shape
        if not ((columns == 1 and rows >= n) or (rows == 1 and columns >= k)):  # strided, expanded or overlapping
            b = b.contiguous()
        bias = None if bias is None else bias.contiguous()
        made: Tensor = torch.ops.mkldnn._linear_pointwise.default(a, b.t(), bias, "none", [], "")
        return made

    def like(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        return a.new_empty(a.shape[0], b.shape[1])

    torch.library.impl("shaped::product", "CPU", product)
    torch.library.register_fake("shaped::product", like)
    return torch.ops.shaped.product.default
