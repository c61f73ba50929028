"""How far rounding may move a step: the same graph in float64, run again with each operation rounded at random.

Two programs for one real function differ in where they round and in what order they sum. Both are covered by the
standard model of rounding (Higham 2002, Accuracy and Stability of Numerical Algorithms, 2.2 and 4.2), with u the
unit roundoff of the dtype that an operation gives:

    elementwise    fl(f(x)) = f(x)*(1 + d),             |d| <= 2u      one ulp, which covers exp and its like
    sum, product   fl(sum a*b) = sum a*b*(1 + d_i),     |d_i| <= n*u   n terms, in whatever order

So one run draws every d at random within its limit, in float64, through forward, backward and update, and each
parameter moves by what rounding of that size can do to it. That is Monte Carlo arithmetic (Parker 1997). The largest
such move of `RUNS` runs is taken for the distance of one backend from the exact step, and twice it for the distance
between two. Where a result hangs on rounding alone (the sign of a gradient that is zero up to rounding, under Adam) the
bound is as large as that makes it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_map

from shaped.backends.draws import Generators, draws

RUNS = 8

# What moves numbers without changing them.
_MOVES = (
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "select"),
    *("slice", "as_strided", "alias", "detach", "clone", "copy", "copy_", "cat", "stack", "gather", "index", "where"),
    *("index_select", "embedding", "scatter", "constant_pad_nd", "flip", "full", "scalar_tensor", "empty", "getitem"),
    *("split", "split_with_sizes", "unbind", "iota", "arange", "full_like", "zeros_like", "lift_fresh_copy", "repeat"),
    *("neg", "abs", "relu", "maximum", "minimum", "amax", "amin", "max", "min", "slice_scatter", "select_scatter"),
)
# What adds any number of rows into one.
_GATHERS = ("index_put", "index_add", "scatter_add", "embedding_dense_backward", "scatter_reduce")


def draws_at_random(graph: GraphModule) -> bool:
    """Whether an operation of the graph draws random numbers."""
    return any(draws(node) for node in graph.graph.nodes if node.op == "call_function")


def rounding_bounds(graph: GraphModule, arguments: Sequence[Tensor], written: int) -> tuple[float, list[float]]:
    """How far one rounded run of a functional graph may be from the exact one.

    Args:
        graph: A step: flat arguments to a loss and more; it writes the new values into its arguments.
        arguments: What it is run on; they are copied.
        written: How many of the first arguments are asked about.

    Returns:
        The largest move of the loss, and of any element of each argument, over `RUNS` runs.
    """
    returned, moves = rounding_moves(graph, arguments, written)
    return returned[0], moves


def rounding_moves(graph: GraphModule, arguments: Sequence[Tensor], written: int) -> tuple[list[float], list[float]]:
    """The same for everything that the graph returns, in place of the loss alone; what is no number has 0."""
    generators = Generators(arguments[0].device)  # a graph that draws draws the same in each run
    exact, kept = _Rounded(graph, None).after(arguments, written)
    generator = torch.Generator(device=arguments[0].device).manual_seed(0)
    returned, moves = [0.0] * len(exact), [0.0] * written
    for _ in range(RUNS):
        generators.put_back()
        rounded, after = _Rounded(graph, generator).after(arguments, written)
        returned = [max(m, _largest(a, b)) for m, a, b in zip(returned, rounded, exact, strict=True)]
        moves = [max(m, _largest(a, b)) for m, a, b in zip(moves, after, kept, strict=True)]
    return returned, moves


def _largest(a: Any, b: Any) -> float:
    if not isinstance(a, Tensor) or not a.is_floating_point() or not a.numel():
        return 0.0
    return (a - b).abs().max().item()


class _Rounded(Interpreter):
    """Runs a graph in float64; with a generator, each operation rounds at random as its own dtype may."""

    def __init__(self, graph: GraphModule, generator: torch.Generator | None) -> None:
        super().__init__(graph)
        self._generator = generator

    def after(self, arguments: Sequence[Tensor], written: int) -> tuple[Sequence[Any], list[Tensor]]:
        """What the graph returns, and the first arguments as it leaves them."""
        wide = [_wide(x).clone() for x in arguments]
        kept = wide[:written]
        with torch.no_grad():
            returned = self.run(*wide)
        return returned, kept

    def run_node(self, n: Node) -> Any:
        if n.op == "get_attr":
            return _wide(super().run_node(n))
        if n.op != "call_function":
            return super().run_node(n)
        assert callable(n.target)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        args, kwargs = tree_map(_wide, (args, kwargs))
        name = str(getattr(n.target, "__name__", n.target)).split(".")[0]
        results = _floating(n.meta.get("val"))
        if self._generator is None or not results or name in _MOVES:
            return n.target(*args, **kwargs)
        unit = torch.finfo(results[0].dtype).eps / 2
        if name in ("_to_copy", "convert_element_type"):
            return self._moved(n.target(*args, **kwargs), unit)
        terms = _terms(n, name, results, [self.env[node] for node in n.all_input_nodes])
        if terms > 1:
            args = tree_map(lambda x: self._moved(x, terms * unit), args)
        return tree_map(lambda x: self._moved(x, 2 * unit), n.target(*args, **kwargs))

    def _moved(self, x: Any, limit: float) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        draws = torch.rand(x.shape, generator=self._generator, dtype=x.dtype, device=x.device)
        return x * (1 + limit * (2 * draws - 1))


def _terms(node: Node, name: str, results: Sequence[Tensor], given: Sequence[Any]) -> float:
    """How many terms an operation adds up for one entry of its result; of several results, the one with the most.

    What it is `given` are real tensors: in the trace there may be as many entries as a mask keeps.
    """
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return 1.0
    operands = [a for value in given for a in _floating(value)]
    counts = sorted((a.numel() for a in operands), reverse=True)
    if not counts or not counts[0]:
        return 1.0
    if name in _GATHERS:
        return float(counts[0])
    if name == "convolution":
        return operands[1].numel() / operands[1].shape[0]
    if name == "convolution_backward":  # of its result, of x, the weight
        return max(operands[i].numel() / operands[i].shape[1] for i in (0, 2))
    if "scaled_dot_product" in name:
        return float(max(size for a in operands if a.dim() == 4 for size in a.shape[2:]))
    result = max(min(size if isinstance(size := r.numel(), int) else 1 for r in results), 1)
    # A product of [m, k] and [k, n] has m*k and k*n entries, and adds up k for each of m*n; a sum adds up all / kept.
    return max(1.0, counts[0] / result if len(counts) == 1 else math.sqrt(counts[0] * counts[1] / result))


def _floating(value: Any) -> list[Tensor]:
    """The floating-point tensors among an operation's results."""
    values = value if isinstance(value, tuple | list) else (value,)
    return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]


def _wide(x: Any) -> Any:
    """Floating-point tensors and dtypes as float64."""
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.detach().double()
    return torch.float64 if isinstance(x, torch.dtype) and x.is_floating_point else x
