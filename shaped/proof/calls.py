"""An operation as the user's program calls it, and shape faults in it that torch itself would let pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from shaped.proof.broadcast import Pairs
from shaped.proof.claims import Broken
from shaped.proof.source import Place


@dataclass
class Call:
    """An operation as the user's program calls it."""

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: Place | None
    number: int = 0  # in the run

    @property
    def operands(self) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


class Mismatch(RuntimeError):
    """A shape fault that torch itself would let pass."""

    def __init__(self, goal: str, said: str = "", between: Sequence[Tensor] = ()) -> None:
        super().__init__(said or goal)
        self.goal = goal
        self.between = tuple(between)  # two tensors that would be broadcast against each other


class HiddenBroadcast(Mismatch):
    """An outer broadcast that a mean or a sum hides."""

    def __init__(self, hidden: Pairs, shapes: Sequence[str], result: str, hides: str) -> None:
        said = f"{hidden.call.name} broadcasts {shapes[0]} against {shapes[1]} to {result}, and {hides} hides it"
        super().__init__(f"{shapes[0]} = {shapes[1]}", said, hidden.operands)
        self.call: Call = hidden.call


class Misplaced(Mismatch):
    """A view that gives one axis the place of another."""

    def __init__(self, call: Call, before: str, after: str) -> None:
        said = f"{call.name} reads the elements of {before} as {after} and moves none: "
        super().__init__(f"the axes of {before} in their order", said + "an axis takes the place of another")
        self.call = call


class ClaimMismatch(Mismatch):
    """An annotation within the program does not hold."""

    def __init__(self, broken: Broken, shape: str) -> None:
        super().__init__(broken.goal)
        self.broken, self.shape = broken, shape


class ResultMismatch(Mismatch):
    """The result is not what the signature declares.

    Args:
        held: Axes before the one that is not, which are as declared.
    """

    def __init__(self, actual: str, declared: str, goal: str, hint: str, held: int = 0) -> None:
        super().__init__(goal)
        self.actual, self.declared, self.hint, self.held = actual, declared, hint, held


# Where an operation takes `sparse`, or gather `sparse_grad`, if it is given by position; and where its table is.
SPARSE = {"embedding": ("sparse", 6, 1), "embedding_bag": ("sparse", 7, 1), "gather": ("sparse_grad", 4, 0)}


def asks_for_sparse_gradient(call: Call) -> bool:
    """Whether a call's backward pass makes a sparse gradient."""
    keyword, at, table = SPARSE.get(call.name, ("", 0, 0))
    asked = call.kwargs.get(keyword) or (keyword and len(call.args) > at and call.args[at])
    given = call.args[table] if len(call.args) > table else call.kwargs.get("weight", call.kwargs.get("input"))
    return asked is True and isinstance(given, Tensor) and given.requires_grad


def contracts(call: Call | None) -> bool:
    """Whether an einsum sums over an index; one that does not is a product, which promotes dtypes."""
    equation = call.args[0] if call is not None and call.args else None
    if not isinstance(equation, str) or "->" not in equation:
        return True
    inputs, output = equation.split("->")
    return any(letter.isalpha() and letter not in output for letter in inputs)
