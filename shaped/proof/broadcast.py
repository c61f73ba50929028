"""Outer broadcasts that nobody sees: [batch, 1] minus [batch] is [batch, batch], and a mean hides it.

torch allows it, and often it is meant: `position[:, None] >= position`, the distances of all pairs. Blamed is an
operation where

    the operands have different ranks, and the result has one size twice, once from each operand;
    they are different values, neither of which is a view of the other;
    and the pairs vanish: a mean or a sum goes over both axes, and nothing in between looked at one of them (where the
    axis of size 1 was not written, but left by keepdim or by a product with one column, any reduction counts).

If all pairs are meant, `y[None, :]` says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

_ELEMENTWISE = {
    "add", "sub", "mul", "div", "rsub", "rdiv", "true_divide", "pow", "maximum", "minimum", "where", "eq", "ne", "lt",
    "le", "gt", "ge", "atan2", "hypot", "subtract", "multiply", "divide", "logaddexp", "radd", "rmul", "lerp", "fmax",
    "fmin", "xlogy", "addcmul", "addcdiv", "floordiv", "mod",
}  # fmt: skip
_UNARY = {
    "square", "abs", "exp", "log", "sqrt", "relu", "sigmoid", "tanh", "neg", "softplus", "log1p", "expm1", "clamp",
    "clip", "clamp_min", "clamp_max", "float", "double", "to", "type", "gelu", "silu", "logsigmoid", "rsqrt", "sign",
    "log_sigmoid", "mish", "selu", "celu", "hardtanh", "log2", "log10", "sinh", "cosh", "round", "floor", "ceil", "erf",
    "nan_to_num", "clone", "contiguous", "leaky_relu", "elu", "cos", "sin", "reciprocal", "half", "bfloat16",
}  # fmt: skip
_SUMS = {"mean", "sum", "nanmean", "nansum", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm"}
_REDUCTIONS = {*_SUMS, "logsumexp", "amax", "amin", "prod", "var", "std"}
_WRITTEN = {"unsqueeze", "view", "reshape"}  # with indexing by None: an axis of size 1 that somebody wrote
_VIEWS = {
    "getitem", "unsqueeze", "squeeze", "view", "reshape", "transpose", "permute", "expand", "expand_as", "flatten",
    "detach", "contiguous", "clone", "to", "float", "movedim", "swapaxes", "unflatten",
}  # fmt: skip


@dataclass
class Pairs:
    """An outer broadcast: where it was made, and which axes of the value at hand are its two."""

    call: Any
    operands: tuple[Tensor, Tensor]
    shape: Sequence[Any]
    axes: tuple[int, ...]
    written: bool  # the axis of size 1 was asked for, by indexing with None and its like


class Broadcasts:
    """What is known of each value of one run. Tensors are kept, so that no two have one id."""

    def __init__(self, size: Callable[[Any], Any]) -> None:
        self._size = size  # of an axis, as an expression
        self._numbers: dict[int, int] = {}
        self._known: dict[Any, int] = {}
        self._pairs: dict[int, Pairs] = {}
        self._kept: list[Tensor] = []
        self._written: set[int] = set()

    def hidden(self, call: Any, result: Any) -> Pairs | None:
        """Note one operation; the outer broadcast that it hides, if it does."""
        if not isinstance(result, Tensor):
            return None
        name, operands = call.name, call.operands
        self._number_result(call, operands, result)
        came = [self._pairs[id(t)] for t in operands if id(t) in self._pairs]
        if came and len(operands) == 1 and name in (_SUMS if came[0].written else _REDUCTIONS):
            return self._summed(call, came[0], operands[0], result)
        if name in _ELEMENTWISE and len(operands) > 1:
            made = came[0] if came else self._outer(call, operands, result)
            others = [t for t in operands if id(t) not in self._pairs]
            if made is not None and not any(self._has_both(t, made, result) for t in others):
                shift = 0 if not came else result.dim() - next(t for t in operands if id(t) in self._pairs).dim()
                self._pairs[id(result)] = replace(made, axes=tuple(axis + shift for axis in made.axes))
        elif came and (name in _UNARY or name in _ELEMENTWISE) and result.dim() == operands[0].dim():
            self._pairs[id(result)] = came[0]
        return None

    def _number_result(self, call: Any, operands: Sequence[Tensor], result: Tensor) -> None:
        """One number for one value: views share their base's; the same operation on the same values has the same."""
        self._kept.append(result)
        if call.name in _WRITTEN or (call.name == "getitem" and None in _indices(call)):
            self._written.add(id(result))
        if call.name in _VIEWS and len(operands) == 1:
            self._numbers[id(result)] = self._number(operands[0])
            return
        leaves = pytree.tree_leaves((call.args, call.kwargs))
        key = (call.name, *(self._number(x) if isinstance(x, Tensor) else str(x) for x in leaves))
        random = "rand" in call.name or call.name in ("dropout", "bernoulli", "multinomial")
        self._numbers[id(result)] = len(self._kept) if random else self._known.setdefault(key, len(self._kept))

    def _number(self, tensor: Tensor) -> int:
        if id(tensor) not in self._numbers:
            self._kept.append(tensor)
            self._numbers[id(tensor)] = -len(self._kept)
        return self._numbers[id(tensor)]

    def _outer(self, call: Any, operands: Sequence[Tensor], result: Tensor) -> Pairs | None:
        for i, a in enumerate(operands):
            for b in operands[i + 1 :]:
                axes = self._twice(a, b, result)
                if axes is not None and self._number(a) != self._number(b):
                    long = a if a.dim() > b.dim() else b
                    return Pairs(call, (a, b), result.shape, axes, id(long) in self._written)
        return None

    def _twice(self, a: Tensor, b: Tensor, result: Tensor) -> tuple[int, int] | None:
        """Axes of the result with one size, of which one comes from each operand, which have different ranks."""
        if a.dim() == b.dim() or 0 in (a.dim(), b.dim()):
            return None
        long, short = (a, b) if a.dim() > b.dim() else (b, a)
        rank, sizes = result.dim(), [self._size(n) for n in result.shape]
        mine, theirs = self._aligned(long, rank), self._aligned(short, rank)
        only_long = [i for i in range(rank) if theirs[i] is None and mine[i] != 1]
        only_short = [j for j in range(rank) if mine[j] == 1 and theirs[j] not in (None, 1)]
        pairs = ((i, j) for i in only_long for j in only_short if sizes[i] == sizes[j] and not sizes[i].is_number)
        return next(pairs, None)

    def _aligned(self, tensor: Tensor, rank: int) -> list[Any]:
        return [None] * (rank - tensor.dim()) + [self._size(n) for n in tensor.shape]

    def _has_both(self, tensor: Tensor, pairs: Pairs, result: Tensor) -> bool:
        """Whether another operand really has the two axes, so that the pairs are looked at."""
        sizes = self._aligned(tensor, result.dim())
        return all(sizes[axis] not in (None, 1) for axis in pairs.axes if axis < len(sizes))

    def _summed(self, call: Any, pairs: Pairs, operand: Tensor, result: Tensor) -> Pairs | None:
        gone = _reduced(call, operand.dim())
        left = tuple(axis for axis in pairs.axes if axis not in gone)
        if not left:
            return pairs
        kept = result.dim() == operand.dim()  # keepdim
        self._pairs[id(result)] = replace(pairs, axes=tuple(a if kept else a - sum(g < a for g in gone) for a in left))
        return None


def _indices(call: Any) -> list[Any]:
    index = call.args[1] if len(call.args) > 1 else ()
    return [part for part in (index if isinstance(index, tuple) else (index,)) if not isinstance(part, Tensor)]


def _reduced(call: Any, rank: int) -> set[int]:
    """The axes that a reduction goes over; all where none is named."""
    named = call.kwargs.get("dim", call.kwargs.get("axis"))
    if named is None and call.name not in ("norm", "vector_norm") and len(call.args) > 1:
        named = call.args[1]
    if named is None:
        return set(range(rank))
    listed = named if isinstance(named, list | tuple) else (named,)
    return {int(axis) % rank for axis in listed if isinstance(axis, int) and rank}
