"""Small matrix products in C++, within the driver of a step: a library takes longer to begin than they take.

Sizes are known where a product is written. Some rows of two vectors of the result stay in registers while the whole
depth is added up, one fused multiplication and addition a number and step:

    out[i, j] <- bias[i, j] + (a[i, 0] b[0, j] + a[i, 1] b[1, j] + ...)          in this order, whatever lies beside it

A second factor that is not by rows, and columns that fill no vector, are copied first. There is one level of blocks, as
all of it lies in the caches, and one thread: another would take longer to wake. Source of the blocks: Goto and van de
Geijn 2008, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from shaped.backends.calls import PRODUCTS, Launch, View

LARGEST = 2**20  # multiplications of a call; with more, a library that blocks for the caches and has threads is as fast
DEPTH = 2**10  # so that what is copied at a time is at most 128 KiB
_TYPES = {torch.float32: "float", torch.float64: "double"}


@dataclass(frozen=True)
class Side:
    """A factor or the result: a view, and how many numbers lie between two of a batch, two rows and two columns."""

    view: View
    following: int
    row: int
    column: int

    @property
    def turned(self) -> "Side":
        """Its transpose."""
        return Side(self.view, self.following, self.column, self.row)


@dataclass(frozen=True)
class Product:
    """`out = a @ b + bias` as it is written: [rows, depth] times [depth, columns], `count` times one after another."""

    count: int
    rows: int
    depth: int
    columns: int
    out: Side
    a: Side
    b: Side
    bias: Side | None = None

    @property
    def turned(self) -> "Product":
        """The same with all transposed."""
        bias = None if self.bias is None else self.bias.turned
        return Product(
            self.count, self.columns, self.depth, self.rows, self.out.turned, self.b.turned, self.a.turned, bias
        )

    @property
    def room(self) -> int:
        """Bytes of what is copied at a time: of the depth two vectors, each of 64 bytes at most."""
        return self.depth * 128


@cache
def machine_has_vectors() -> bool:
    """Whether this CPU and its compilers have what products are written for."""
    return os.name == "posix" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def small(call: Launch) -> Product | None:
    """A call as a product that is written here; None where it is none, is large, or is laid out in another way."""
    if call.name not in PRODUCTS or call.views[0].dtype not in _TYPES or any(number != 1 for number in call.numbers):
        return None
    out, *biases, a, b = call.views
    count = out.sizes[0] if len(out.sizes) == 3 else 1
    (rows, columns), depth = out.sizes[-2:], a.sizes[-1]
    if not 0 < count * rows * depth * columns <= LARGEST or depth > DEPTH or not machine_has_vectors():
        return None
    bias = _side(biases[0], out.sizes) if biases else None
    sides = _side(out, out.sizes), _side(a, a.sizes), _side(b, b.sizes)
    made = Product(count, rows, depth, columns, *sides, bias)
    made = made if made.out.column == 1 else made.turned
    return made if made.out.column == 1 and (made.bias is None or made.bias.column == 1) else None


def _side(view: View, sizes: tuple[int, ...]) -> Side:
    """A view spread over sizes; where there is one column its stride may be any, and 1 is taken."""
    missing = len(sizes) - len(view.sizes)
    own, strides = (1,) * missing + view.sizes, (0,) * missing + view.strides
    spread = [0 if one == 1 < size else stride for one, size, stride in zip(own, sizes, strides, strict=True)]
    following, row, column = [0] * (3 - len(spread)) + spread
    return Side(view, following, row, 1 if sizes[-1] == 1 else column)


def called(product: Product, address: Callable[[View], str], room: str) -> str:
    """The C++ that computes it; `room` is where it may copy to."""
    dtype = product.out.view.dtype
    assert dtype is not None
    number = _TYPES[dtype]

    def matrix(side: Side | None, kind: str) -> str:
        if side is None:
            return "{nullptr, 0, 0}"
        skipped = f" + i * {side.following}" if product.count > 1 else ""
        return f"{{({kind}*)({address(side.view)}){skipped}, {side.row}, {side.column}}}"

    read = [matrix(side, f"const {number}") for side in (product.a, product.b, product.bias)]
    given = ", ".join([matrix(product.out, number), *read, str(product.depth), f"({number}*)({room})"])
    line = f"product<{number}, {product.rows}, {product.columns}>({given});"
    return line if product.count == 1 else f"for (int64_t i = 0; i < {product.count}; i++) {line}"


_LANES = """
template <> struct Lanes<TYPE> {
    using V = VECTOR;
    static constexpr int count = COUNT, rows = ROWS;
    static V zero() { return PREFIX_setzero_SUFFIX(); }
    static V load(const TYPE* at) { return PREFIX_loadu_SUFFIX(at); }
    static V spread(TYPE x) { return PREFIX_set1_SUFFIX(x); }
    static V fused(V a, V b, V c) { return PREFIX_fmadd_SUFFIX(a, b, c); }
    static V add(V a, V b) { return PREFIX_add_SUFFIX(a, b); }
    static void store(TYPE* at, V x) { PREFIX_storeu_SUFFIX(at, x); }
};
"""


def _lanes(prefix: str, width: int, rows: int) -> str:
    found = ""
    for number, suffix, letter, size in (("float", "ps", "", 4), ("double", "pd", "d", 8)):
        values = {"TYPE": number, "VECTOR": f"__m{8 * width}{letter}", "COUNT": str(width // size), "ROWS": str(rows)}
        text = _LANES
        for name, value in {**values, "PREFIX": prefix, "SUFFIX": suffix}.items():
            text = text.replace(name, value)
        found += text
    return found


CODE = (
    f"""
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#endif

namespace driver {{
template <typename T> struct Lanes {{  // a vector, and of how many rows of two of them the registers hold the sums
    using V = T;
    static constexpr int count = 1, rows = 4;
    static V zero() {{ return 0; }}
    static V load(const T* at) {{ return *at; }}
    static V spread(T x) {{ return x; }}
    static V fused(V a, V b, V c) {{ return a * b + c; }}
    static V add(V a, V b) {{ return a + b; }}
    static void store(T* at, V x) {{ *at = x; }}
}};
#if defined(__AVX512F__)
{_lanes("_mm512", 64, 8)}
#elif defined(__AVX2__) && defined(__FMA__)
{_lanes("_mm256", 32, 6)}
#endif
"""
    + """
template <typename T> struct Matrix {
    T* at;
    int64_t row, column;
};

// R rows and C vectors of the result, of which so many columns are there; b lies by rows of `step`.
template <typename T, int R, int C> static __attribute__((noinline))
void tile(Matrix<T> out, Matrix<const T> a, const T* b, int64_t step, Matrix<const T> bias, int depth, int columns) {
    using L = Lanes<T>;
    typename L::V sum[R][C];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 2
        for (int j = 0; j < C; j++) sum[i][j] = L::zero();
    const T* left = a.at;
    for (int k = 0; k < depth; k++, left += a.column, b += step) {
        typename L::V right[C];
#pragma GCC unroll 2
        for (int j = 0; j < C; j++) right[j] = L::load(b + j * L::count);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            auto x = L::spread(left[i * a.row]);
#pragma GCC unroll 2
            for (int j = 0; j < C; j++) sum[i][j] = L::fused(x, right[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        T* to = out.at + i * out.row;
        const T* from = bias.at ? bias.at + i * bias.row : nullptr;
        if (columns == C * L::count) {
#pragma GCC unroll 2
            for (int j = 0; j < C; j++) {
                auto v = sum[i][j];
                L::store(to + j * L::count, from ? L::add(v, L::load(from + j * L::count)) : v);
            }
        } else {
            T row[C * L::count];
#pragma GCC unroll 2
            for (int j = 0; j < C; j++) L::store(row + j * L::count, sum[i][j]);
            for (int j = 0; j < columns; j++) to[j] = from ? row[j] + from[j] : row[j];
        }
    }
}
template <typename T, int M, int C> static
void strip(Matrix<T> out, Matrix<const T> a, const T* b, int64_t step, Matrix<const T> bias, int depth, int columns) {
    constexpr int R = Lanes<T>::rows < M ? Lanes<T>::rows : M;
    for (int i = 0; i < M / R; i++) {
        tile<T, R, C>(out, a, b, step, bias, depth, columns);
        out.at += R * out.row, a.at += R * a.row;
        if (bias.at) bias.at += R * bias.row;
    }
    if constexpr (M % R != 0) tile<T, M % R, C>(out, a, b, step, bias, depth, columns);
}
template <typename T> static void copy(T* room, int width, Matrix<const T> b, int depth, int columns) {
    for (int n = 0; n < width; n++)
        for (int k = 0; k < depth; k++) room[k * width + n] = n < columns ? b.at[k * b.row + n * b.column] : T(0);
}
template <typename T, int M, int N> static
void product(Matrix<T> out, Matrix<const T> a, Matrix<const T> b, Matrix<const T> bias, int depth, T* room) {
    constexpr int L = Lanes<T>::count, W = 2 * L, rest = N % W, C = (rest + L - 1) / L;
    for (int j = 0; j < N / W; j++) {
        const T* panel = b.at;
        int64_t step = b.row;
        if (b.column != 1) copy(room, W, b, depth, W), panel = room, step = W;
        strip<T, M, 2>(out, a, panel, step, bias, depth, W);
        out.at += W, b.at += W * b.column;
        if (bias.at) bias.at += W;
    }
    if constexpr (rest > 0) {
        copy(room, C * L, b, depth, rest);
        strip<T, M, C>(out, a, room, C * L, bias, depth, rest);
    }
}
}
"""
)
