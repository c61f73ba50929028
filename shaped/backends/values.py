"""Values that an operation cannot take (an index out of range, an integer divided by zero), found within the graph.

Generated code wraps -1 where eager raises, reads on where nothing is, or throws inside of a parallel loop, which ends
the process; and torch's decompositions drop what its kernels check (a probability above 1, a singular matrix). So a
graph is run here operation by operation while it is traced: each index is compared with the size of
what it is for and then clamped into it, and whether all were right is one more result. Where an index is known to be in
range Inductor leaves its own check out. It costs 1.6 us of 82 in a step of an MLP (median ratio of 31 rounds 1.018; of
a small GPT 1.003; torch 2.13.0, one thread of a busy 2-core machine).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

# Operations over (self, dim, index, ...); only `index_fill` takes negative indices.
_ALONG = (
    *("index_select", "index_add", "index_copy", "index_fill", "index_reduce"),
    *("gather", "scatter", "scatter_add", "scatter_reduce"),
)
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_DIVISIONS = ("floor_divide", "remainder", "fmod")


def _probable(p: Tensor) -> Tensor:
    return (p >= 0) & (p <= 1)  # NaN is neither


# Values that torch's kernels refuse: positions of the arguments, what is right, and the same in words.
_DOMAINS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], str]] = {
    "binary_cross_entropy": ((0, 1), _probable, "inputs and targets between 0 and 1"),
    "bernoulli": ((0, 1), _probable, "probabilities between 0 and 1"),
    "normal": ((1,), lambda std: std >= 0, "standard deviations of at least 0"),
    "poisson": ((0,), lambda rate: rate >= 0, "rates of at least 0"),
    "multinomial": ((0,), lambda w: (w >= 0) & w.isfinite(), "finite weights of at least 0"),
}


@dataclass(frozen=True)
class IndexArgument:
    """An argument of an operation that takes indices 0 to size - 1.

    Attributes:
        at: Its position.
        size: How many there are.
        wraps: Whether -1 is the last.
        ignored: A value that stands for none, as `ignore_index` does.
    """

    at: int
    size: Any
    wraps: bool = False
    ignored: int | None = None


@dataclass(frozen=True)
class Check:
    """One comparison: what an operation took, and whether it may."""

    operation: str
    values: Tensor | None  # None where the program asserts something of its own
    right: Tensor  # of the shape of `values`
    wanted: str

    def __str__(self) -> str:
        if self.values is None:
            return self.wanted
        wrong = self.values[~self.right][0].item()
        return f"{self.operation} takes {self.wanted}, and got {wrong}"


class Runs(Protocol):
    """Something that computes what a proved graph does: the graph with its values looked at, or eager."""

    def run(self, *flat: Tensor) -> Any:
        """The loss, then a gradient for each parameter that wants one; writes into its arguments as the program."""

    def right(self) -> Tensor | None:
        """Whether all values could be taken; None where nothing was looked at."""


class Checked(Interpreter):
    """Runs a graph with every such value compared and mended. After `run`, `checks` has the comparisons."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.checks: list[Check] = []
        self._mended: dict[Any, tuple[Tensor, Tensor]] = {}  # the first of a pair keeps its id from being used again

    def run_node(self, n: Node) -> Any:
        """Run one node; a view of what lies otherwise here than in the proof is a copy, where nobody writes into it."""
        if n.target is torch.ops.aten.equal.default and not n.users:  # of constants, and answered when it was traced
            return None
        try:
            return super().run_node(n)
        except (RuntimeError, ValueError):
            if n.target not in _VIEWS or _written(n):
                raise
            x, shape = self.fetch_args_kwargs_from_env(n)[0]
            return x.reshape(shape)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation, on values that it can take."""
        if isinstance(target, torch._ops.OpOverload):
            name = target._schema.name.removeprefix("aten::").removesuffix("_")  # in place or not
            if name == "_assert_async":
                said = args[1].rstrip(".") if len(args) > 1 else "an assertion of the program does not hold"
                self.checks.append(Check(name, None, args[0] != 0, said))
                return None
            if name == "_linalg_check_errors":
                self.checks.append(
                    Check(args[1], args[0], args[0] == 0, "a matrix that is regular, with 0 as its info")
                )
                return None
            taken = self._hold_domains(name, args)
            if name == "masked_scatter":
                count, most = args[1].expand(args[0].shape).sum(), args[2].numel()
                self.checks.append(Check(name, count, count <= most, "a mask with no more True than there are values"))
                taken[1] = args[1] & (count <= most)
            if target is torch.ops.aten.repeat_interleave.Tensor:
                taken[0] = self._held_repeats(args[0], kwargs.get("output_size"))
            for place in _places(name, args):
                taken[place.at] = self._in_range(name, args[place.at], place)
            if name in ("index", "index_put"):
                taken[1] = self._in_ranges(name, args[0], args[1])
            if (name in _DIVISIONS or kwargs.get("rounding_mode")) and all(map(_is_integer, args[:2])):
                taken[1] = self._not_zero(name, args[1])
            args = tuple(taken)
        return super().call_function(target, args, kwargs)

    def right(self) -> Tensor | None:
        """Whether all were right, 0-dim bool; None where there was nothing to look at."""
        verdict = None
        for check in self.checks:
            right = check.right.all()
            verdict = right if verdict is None else verdict & right
        return verdict

    def first_wrong(self) -> str:
        """What the first check that failed says; of a run on values, not of a trace."""
        wrong = (str(check) for check in self.checks if not check.right.all())
        return next(wrong, "an index that was drawn at random is out of range")

    def _hold_domains(self, name: str, args: Sequence[Any]) -> list[Any]:
        """The arguments with 1 for every value that the kernel refuses."""
        taken = list(args)
        positions, right, wanted = _DOMAINS.get(name, ((), _probable, ""))
        if name == "bernoulli" and len(args) > 1:  # of p, not of what it is written into
            positions = (1,)
        for i in positions:
            if i < len(args) and isinstance(args[i], Tensor):
                verdict = right(args[i])
                self.checks.append(Check(name, args[i], verdict, wanted))
                taken[i] = torch.where(verdict, args[i], torch.ones_like(args[i]))
        if name == "multinomial":
            there, least = (taken[0] > 0).sum(-1, keepdim=True), 1 if len(args) > 2 and args[2] else args[1]
            self.checks.append(
                Check(name, there, there >= least, "as many weights above 0 as it draws, or replacement")
            )
            taken[0] = torch.where(there >= least, taken[0], torch.ones_like(taken[0]))
        return taken

    def _held_repeats(self, repeats: Tensor, total: Any) -> Tensor:
        """Repeats that are none below 0 and add up to a length that was promised, which generated code trusts."""
        self.checks.append(Check("repeat_interleave", repeats, repeats >= 0, "repeats of at least 0"))
        repeats = repeats.clamp_min(0)
        if total is None:
            return repeats
        right = repeats.sum() == total
        self.checks.append(Check("repeat_interleave", repeats.sum(), right, f"repeats that add up to {total}"))
        first = torch.arange(repeats.shape[0], device=repeats.device) == 0
        return torch.where(right, repeats, torch.where(first, total, 0).to(repeats.dtype))

    def _in_ranges(self, name: str, table: Tensor, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """An index for each of the first dimensions; a mask stands for as many as it has."""
        mended: list[Tensor | None] = []
        dim = 0
        for index in indices:
            mask = index is not None and index.dtype in (torch.bool, torch.uint8)
            mended.append(
                index
                if index is None or mask
                else self._in_range(name, index, IndexArgument(1, table.shape[dim], True))
            )
            dim += index.dim() if index is not None and mask else 1
        return mended

    def _in_range(self, name: str, index: Tensor, place: IndexArgument) -> Tensor:
        key = (id(index), str(place.size), place.wraps, place.ignored)
        if key not in self._mended:
            size, top = place.size, place.size - 1
            right = (index >= (-size if place.wraps else 0)) & (index <= top)
            if place.ignored is None:
                mended = torch.where(index < 0, index + size, index) if place.wraps else index
                mended = mended.clamp(0, top) if isinstance(top, int) else torch.where(right, mended, 0)
            else:
                right = right | (index == place.ignored)
                mended = torch.where(right, index, place.ignored)
            shown = name.lstrip("_").removesuffix("_forward").removesuffix("_backward")
            self.checks.append(Check(shown, index, right, f"indices {-size if place.wraps else 0} to {top}"))
            self._mended[key] = index, mended
        return self._mended[key][1]

    def _not_zero(self, name: str, divisor: Tensor | int) -> Tensor | int:
        if isinstance(divisor, int):
            return divisor
        right = divisor != 0
        self.checks.append(Check(name, divisor, right, "integer divisors other than 0"))
        return torch.where(right, divisor, 1)


def _places(name: str, args: Sequence[Any]) -> Iterator[IndexArgument]:
    """Where an operation takes indices."""
    if name in _ALONG:
        table, dim = args[:2]
        yield IndexArgument(2, table.shape[dim] if table.dim() else 1, name == "index_fill")
    elif name in ("take", "put"):
        yield IndexArgument(1, args[0].numel(), wraps=True)
    elif name in ("embedding", "_embedding_bag", "_embedding_bag_forward_only"):
        yield IndexArgument(1, args[0].shape[0])
    elif name == "_embedding_bag_backward":
        yield IndexArgument(1, args[6])
    elif name == "embedding_dense_backward":
        yield IndexArgument(1, args[2])
    elif name in ("max_unpool2d", "max_unpool3d"):
        yield IndexArgument(1, math.prod(args[2]))
    elif name.startswith("nll_loss"):
        at = 2 if name.endswith("backward") else 1
        scores = args[at - 1]
        yield IndexArgument(at, scores.shape[min(1, scores.dim() - 1)], ignored=args[at + 3])


def _written(view: Node) -> bool:
    """Whether something is written into a view's memory: into it, what it is a view of, or another view of that."""
    root = view
    while root.op == "call_function" and _is_view(root):
        root = root.all_input_nodes[0]
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if isinstance(user.target, torch._ops.OpOverload) and user.target._schema.is_mutable:
                return True
            if user.op == "call_function" and _is_view(user):
                waiting.append(user)
    return False


def _is_view(node: Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.all_input_nodes:
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _is_integer(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() and not value.is_complex()
    return isinstance(value, int)
