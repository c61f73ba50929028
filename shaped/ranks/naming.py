"""Where names lie: which axis of a parameter or an input has parts under a plan such as `{"hidden": "tp"}`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shaped.errors import ShapeError, SignatureError, listing
from shaped.ranks.placements import AxisPlacement, Shard
from shaped.shapes import Dim, Entry


@dataclass(frozen=True)
class NamedAxis:
    """The dimension names that lie over one axis of a mesh.

    Attributes:
        axis: Of the mesh.
        size: How many ranks it has.
        names: What lies over it.
        gathers: Whether values are made whole where an operation must see them so.
    """

    axis: str
    size: int
    names: tuple[str, ...]
    gathers: bool = False

    def __str__(self) -> str:
        inside = ", inside" if self.gathers else ""
        return f"{', '.join(self.names)} over {self.axis} = {self.size}{inside}"

    def shard(self, entry: Entry, sizes: Mapping[str, Any]) -> Shard | None:
        """The axis of an entry that is in parts; None where none has a name of these.

        Args:
            entry: A parameter or an input.
            sizes: Numbers or expressions of the names that stand before a name within an axis, as 3 in `3*dim`.

        Raises:
            SignatureError: Two axes have, or the name is within something that has no parts.
        """
        at = [i for i, dim in enumerate(entry.spec.dims) if set(dim.names) & set(self.names)]
        if len(at) > 1:
            both = " and ".join(str(entry.spec.dims[i]) for i in at[:2])
            raise SignatureError(
                f"shard: {entry.path} : {entry.spec} has {self.axis} on two of its axes, {both}. A value has one axis "
                "in parts over one axis of the mesh: give one of the axes a name of its own, or leave a name out"
            )
        return Shard(at[0], self._before(entry, entry.spec.dims[at[0]], sizes)) if at else None

    def _before(self, entry: Entry, dim: Dim, sizes: Mapping[str, Any]) -> Any:
        """The product of what stands before the name in an axis."""
        factors = dim.text.split("*")
        mine = [i for i, factor in enumerate(factors) if factor in self.names]
        if len(mine) != 1 or not all(factor.isidentifier() or factor.isdecimal() for factor in factors):
            raise SignatureError(
                f"shard: {entry.path} : {entry.spec} has {self.axis} within {dim}, of which there are no even parts: "
                "name that axis by itself, or leave the name out"
            )
        before: Any = 1
        if unknown := [f for f in factors[: mine[0]] if not f.isdecimal() and f not in sizes]:
            raise SignatureError(
                f"shard: {entry.path} : {entry.spec} has {self.axis} behind {listing(unknown)} of unknown size: "
                f"name an axis {unknown[0]} by itself somewhere, or write its number"
            )
        for factor in factors[: mine[0]]:
            before = before * (int(factor) if factor.isdecimal() else sizes[factor])
        return before

    def layouts(
        self, entries: Sequence[Entry], shapes: Sequence[tuple[int, ...]], sizes: Mapping[str, int]
    ) -> dict[int, AxisPlacement]:
        """How each parameter lies, by its position.

        Args:
            entries: The parameters.
            shapes: Of the whole tensors.
            sizes: Of the names.

        Raises:
            SignatureError: As `shard`. ShapeError: An axis has no even parts.
        """
        found = {}
        for i, (entry, shape) in enumerate(zip(entries, shapes, strict=True)):
            shard = self.shard(entry, sizes)
            if shard is not None and shape[shard.axis] % (int(shard.before) * self.size):
                dim = entry.spec.dims[shard.axis]
                raise ShapeError(
                    f"the plan does not fit: {entry.path} : {entry.spec} has {dim} = {shape[shard.axis]} over "
                    f"{self.axis} = {self.size}, which has no even parts"
                )
            found[i] = AxisPlacement(tuple(shape), self.size, shard)
        return found

    def hold_even(self, sizes: Mapping[str, int]) -> None:
        """Hold the sizes that are known to be divided by the axis.

        Raises:
            ShapeError: One is not.
        """
        odd = [name for name in self.names if name in sizes and sizes[name] % self.size]
        if odd:
            shown = ", ".join(f"{name} % {self.axis} == 0, and {name} = {sizes[name]}" for name in odd)
            raise ShapeError(
                f"the plan does not fit: {shown} with {self.axis} = {self.size}. Choose sizes that {self.axis} "
                f"divides, or leave {listing(odd)} out of shard"
            )
