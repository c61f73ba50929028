"""What a parameter does in a program, and the table that says so of all of them."""

from dataclasses import dataclass
from typing import Literal, SupportsIndex, overload

from shaped.errors import columns, nearest
from shaped_kernels.matrices import Axes

Kind = Literal["matrix", "embedding", "unembedding", "vector", "scale", "bias", "unused", "ambiguous"]


@dataclass(frozen=True)
class Role:
    """What a parameter does in a program.

    Attributes:
        name: Its path.
        kind: "matrix": contracted with activations, with further weights after it. "unembedding": the same, and nothing
            but the loss after it. "embedding": rows that are looked up. "vector": a map from or to one number.
            "scale", "bias": multiplied with or added to activations. "ambiguous": see `why`.
        axes: How it is read as matrices, where it can be.
        why: What is used for what, in words.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    axes: Axes | None
    why: str


class Roles(tuple[Role, ...]):
    """The role of each parameter, in order; prints itself as a table."""

    def __str__(self) -> str:
        head = ("parameter", "shape", "axes", "role", "why")
        rows = [head, *((r.name, str(list(r.shape)), str(r.axes or "-"), r.kind, r.why) for r in self)]
        return "\n".join(columns(rows, left=len(head)))

    @overload
    def __getitem__(self, name: str | SupportsIndex) -> Role: ...

    @overload
    def __getitem__(self, name: slice) -> tuple[Role, ...]: ...

    def __getitem__(self, name: str | SupportsIndex | slice) -> Role | tuple[Role, ...]:
        """A role by name or by place, or the roles of a slice."""
        if isinstance(name, str):
            for role in self:
                if role.name == name:
                    return role
            raise KeyError(f"there is no parameter `{name}`{nearest(name, [role.name for role in self])}")
        return super().__getitem__(name)
