"""Admitted batches: what is known of a tuple of shapes and dtypes once it was checked."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.fx import GraphModule

from shaped.backends.executors import Key, Lowered
from shaped.backends.guards import Guards
from shaped.backends.outside import tensors_of
from shaped.proof import Proof
from shaped.proof.reads import Read
from shaped.shapes import Entry

Traced = tuple[Proof, GraphModule]
CASES = 4096  # admitted tuples of shapes that are remembered


@dataclass(frozen=True, eq=False)
class AdmittedCase:
    """An admitted tuple of shapes and dtypes.

    Attributes:
        sizes: By name.
        key: What it was admitted by.
        samples: As far as sizes tell it; `Program.count` has the whole.
        entries: Of the inputs, with as many axes as they have.
        sketch: The graph as far as it is known without a proof: its inputs, its dtypes, whether it draws.
        traced: Gives the proof and the graph, of a kept program only when they are asked for.
        apart: These sizes take a branch of their own.
        outside: Where the tensors lie that the graph takes after its inputs.
        world: The number of the values that were read from outside.
        refusal: Why it cannot be compiled.
        looks: What the loss reads of an input beside its values, which compiled code takes as it was traced.
        absent: Optional inputs that it leaves out.
    """

    sizes: Mapping[str, int]
    key: tuple[Any, ...]
    samples: float
    entries: tuple[Entry, ...]
    sketch: GraphModule
    traced: Callable[[], Traced]
    apart: bool = False
    outside: tuple[Read, ...] = ()
    world: int = 0
    refusal: str = ""
    looks: str = ""
    absent: tuple[str, ...] = ()

    @property
    def proof(self) -> Proof:
        """What was proved of such a batch."""
        return self.traced()[0]

    @property
    def graph(self) -> GraphModule:
        """The proved graph at these sizes: loss, then a gradient for each parameter that wants one."""
        return self.traced()[1]

    def __str__(self) -> str:
        return ", ".join(f"{name} = {size}" for name, size in self.sizes.items()) or "no named sizes"


class SeenBatch:
    """A batch that was taken as it came, so that one like it is admitted by one look.

    Args:
        case: As which it was admitted.
        inputs: All of it, contiguous, without gradients, and nothing beside it.
        program: Whose batch it is.
    """

    def __init__(self, case: AdmittedCase, inputs: Sequence[Tensor], program: Any) -> None:
        self.case, self._guards = case, Guards(inputs)
        self._world, self._training = program.outside.now, [module.training for module in program.modules]

    def is_like(self, inputs: Sequence[Any], program: Any) -> bool:
        """Whether a batch is of the same shapes, strides, dtypes and devices, in the same world."""
        return (
            self._world is program.outside.now
            and self._guards.alike(inputs)
            and (not self._training or [module.training for module in program.modules] == self._training)
        )


class KeptFacts(Protocol):
    """What another process proved and compiled of a program.

    Attributes:
        unused, writes: As a Proof has them.
    """

    unused: tuple[str, ...]
    writes: tuple[str, ...]

    def begin(self, program: Any) -> None:
        """Give a program its batches, and what it watches outside."""

    def executor(self, key: Key, case: AdmittedCase, layout: Hashable, state: Sequence[Tensor]) -> Lowered | None:
        """The code for a batch and a state, where there is any."""

    def refuted(self) -> None:
        """Something of it proved wrong."""


def free_shape(entry: Entry, sizes: Mapping[str, int], free: Sequence[str]) -> tuple[int | None, ...]:
    """A shape with None for every size that is free."""
    return tuple(None if set(dim.names) & set(free) else int(dim.evaluate(sizes)) for dim in entry.spec.dims)


def shapes_of(case: AdmittedCase, sizes: Mapping[str, Any]) -> list[list[Any]]:
    """The shapes of a batch with other values, or symbols, for its free sizes."""
    known = {**case.sizes, **sizes}
    outside = [list(tensor.shape) for tensor in tensors_of(case.outside)]
    return [*([dim.evaluate(known) for dim in entry.spec.dims] for entry in case.entries), *outside]
