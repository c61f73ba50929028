"""The random numbers of compiled code, drawn apart, so that the eager program can be run on the same.

Inductor draws one seed for each random operation of a graph and computes the numbers from seed and position. A graph of
these operations alone gives the same numbers from the same generator. The eager program takes them in order wherever it
draws; what is made of them (a mask, a normal number) is computed as the graph has it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_BASE = (aten.rand.default, aten.randn.default, aten.randint.low)
_FUNCTIONAL = {  # of operations in place, which the graph has in this form
    aten.bernoulli_.float: aten.bernoulli.p,
    aten.uniform_.default: aten.uniform.default,
    aten.normal_.default: aten.normal_functional.default,
    aten.exponential_.default: aten.exponential.default,
    aten.geometric_.default: aten.geometric.default,
    aten.cauchy_.default: aten.cauchy.default,
    aten.log_normal_.default: aten.log_normal.default,
}


@dataclass
class Draws:
    """The random operations of one compiled graph.

    Attributes:
        make: Compiles, or loads, a function of the graph's arguments to the numbers, in order; and gives its code.
        own: How many draws it leaves to torch's kernels, whose order is not known.
        table: Gives what random operations are made of.
    """

    make: Callable[[], tuple[Callable[[list[Any]], Sequence[Tensor]], Any]]
    own: int
    table: Callable[[], dict[Any, Callable[..., Any]]]

    @cached_property
    def _made(self) -> tuple[Callable[[list[Any]], Sequence[Tensor]], Any]:
        return self.make()

    @property
    def numbers(self) -> Callable[[list[Any]], Sequence[Tensor]]:
        """The compiled function; it advances the default generator as the whole graph does."""
        return self._made[0]

    @property
    def code(self) -> Any:
        """What Inductor compiled, or what was kept of it."""
        return self._made[1]


def draws(node: Node) -> bool:
    """Whether an operation draws random numbers; attention without dropout has the tag, and does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    schema: Any = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    if "dropout_p" not in names:
        return True
    at = names.index("dropout_p")
    given = node.args[at] if at < len(node.args) else node.kwargs.get("dropout_p", schema.arguments[at].default_value)
    return not (type(given) in (int, float) and given == 0)


class Unheld(Exception):
    """The program and the graph cannot be compared; the message says why."""


@contextmanager
def replayed(draws: Draws, arguments: list[Any]) -> Iterator[None]:
    """Give the numbers that compiled code draws for these arguments to what runs within."""
    from torch._dispatch.python import enable_python_dispatcher

    from shaped.proof.rewrites import Rewrites  # imports sympy: half a second that an eager run does not need

    mode = _Replay(list(draws.numbers(arguments)), draws.table())
    with Rewrites(), enable_python_dispatcher(), mode:  # as the program was traced
        yield
    if mode.left:
        raise Unheld("the program draws less than the graph")


class _Replay(TorchDispatchMode):
    def __init__(self, numbers: list[Tensor], table: dict[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.left, self._table = numbers, table

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func in _BASE:
            return self._next(args[2] if func is aten.randint.low else args[0], kwargs.get("dtype"))
        with self:
            if func in _FUNCTIONAL:
                return args[0].copy_(_FUNCTIONAL[func](*args, **kwargs))
            if func in self._table:
                made = self._table[func](*args, **kwargs)
                if made is not NotImplemented:
                    return made
        return func(*args, **kwargs)

    def _next(self, shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
        if not self.left or list(self.left[0].shape) != list(shape):
            raise Unheld("the program draws otherwise than the graph")
        drawn = self.left.pop(0)
        return drawn if dtype is None else drawn.to(dtype)


class Generators:
    """torch's default generators as they are now: the CPU's and a device's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._cpu = torch.get_rng_state()
        self._other = torch.cuda.get_rng_state(device) if self._device is not None else None

    def put_back(self) -> None:
        """Draw from here again."""
        torch.set_rng_state(self._cpu)
        if self._other is not None and self._device is not None:
            torch.cuda.set_rng_state(self._other, self._device)


def mixed(seed: int, rank: int) -> int:
    """A seed for a rank (SplitMix64, so that neighbours have nothing in common)."""
    z = (seed + (rank + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) % 2**63
