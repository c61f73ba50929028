"""How a parameter is read as matrices: which of its axes a map's rows and columns are, and which only count matrices.

    "in out"          x @ w                          "out in in in"     a convolution's kernel
    "batch in out"    a matrix for each layer        "in (3 out)"       three maps side by side, each one matrix
    "(4 out) in in"   a convolution in four groups   "in (8+2+2 out)"   maps of unequal widths side by side

`in` is contracted with activations (fan-in), `out` is free (fan-out). An axis in brackets is split, the outermost
factor first, as torch reshapes it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from torch import Tensor

IN, OUT, BATCH = "in", "out", "batch"


@dataclass(frozen=True)
class MatrixBlock:
    """One batch of matrices within a tensor: `[batch, rows, columns]`, where rows are fan-out and columns fan-in.

    Attributes:
        axis, start, length: The part of one axis that it is; all of the tensor where `axis` is -1.
        factors: The sizes that the part is reshaped to.
        order: How these are permuted: those of the batch, then rows, then columns.
        size: (batch, rows, columns).
        shape: The part's own, as it lies in the tensor.
    """

    axis: int
    start: int
    length: int
    factors: tuple[int, ...]
    order: tuple[int, ...]
    size: tuple[int, int, int]
    shape: tuple[int, ...]

    def part(self, tensor: Tensor) -> Tensor:
        """The part of the tensor that it is: a view."""
        return tensor if self.axis < 0 else tensor.narrow(self.axis, self.start, self.length)

    def take(self, tensor: Tensor) -> Tensor:
        """The matrices, shape `size`: a view where the layout allows it."""
        part = self.part(tensor)
        if len(self.factors) == 2 and self.size[0] == 1:  # a matrix as it is: one view, and not three
            return (part if self.order == (0, 1) else part.mT)[None]
        return part.reshape(self.factors).permute(self.order).reshape(self.size)

    def put(self, matrices: Tensor) -> Tensor:
        """The part of the tensor that these matrices are: what `take` undoes."""
        if len(self.factors) == 2 and self.size[0] == 1:
            return matrices[0] if self.order == (0, 1) else matrices[0].mT
        moved = matrices.reshape([self.factors[i] for i in self.order])
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return moved.permute(inverse).reshape(self.shape)


@dataclass(frozen=True)
class Axes:
    """What the axes of a tensor are; see the top of this file. Made by `read_axes` or by the proof.

    Attributes:
        shape: The tensor's.
        factors: For each axis, its factors in order: (size, "in" | "out" | "batch").
        cut: Where one axis is cut into unequal parts, (axis, lengths).
    """

    shape: tuple[int, ...]
    factors: tuple[tuple[tuple[int, str], ...], ...]
    cut: tuple[int, tuple[int, ...]] | None = None

    def __str__(self) -> str:
        return " ".join(self._axis(i, factors) for i, factors in enumerate(self.factors))

    def _axis(self, index: int, factors: Sequence[tuple[int, str]]) -> str:
        if self.cut is not None and self.cut[0] == index:
            return f"({'+'.join(map(str, self.cut[1]))} {factors[0][1]})"
        if len(factors) == 1:
            return factors[0][1]
        shown = [str(size) if role == BATCH else role for size, role in factors]
        if all(role == factors[0][1] for _, role in factors):
            return factors[0][1]
        kinds = [role for _, role in factors]
        if len(set(kinds) - {BATCH}) == 1 and kinds.count(BATCH) == len(kinds) - 1:
            return f"({' '.join(shown)})"
        return f"({' '.join(f'{size}:{role}' for size, role in factors)})"

    def size(self, role: str) -> int:
        """How many entries the axes of a role have in all; of parts of unequal widths, all of them."""
        return math.prod(size for factors in self.factors for size, mine in factors if mine == role)

    @cached_property
    def blocks(self) -> tuple[MatrixBlock, ...]:
        """The batches of matrices that make up the tensor."""
        if self.cut is None:
            return (self._block(-1, 0, 0, self.shape, self.factors),)
        axis, lengths = self.cut
        found, start = [], 0
        for length in lengths:
            shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
            factors = (*self.factors[:axis], ((length, self.factors[axis][0][1]),), *self.factors[axis + 1 :])
            found.append(self._block(axis, start, length, shape, factors))
            start += length
        return tuple(found)

    @staticmethod
    def _block(
        axis: int, start: int, length: int, shape: tuple[int, ...], factors: Sequence[Sequence[tuple[int, str]]]
    ) -> MatrixBlock:
        flat = [factor for some in factors for factor in some]
        order = [i for role in (BATCH, OUT, IN) for i, (_, mine) in enumerate(flat) if mine == role]
        count, rows, columns = (math.prod(n for n, mine in flat if mine == role) for role in (BATCH, OUT, IN))
        sizes = tuple(size for size, _ in flat)
        return MatrixBlock(axis, start, length, sizes, tuple(order), (count, rows, columns), shape)


_TOKEN = re.compile(r"\(([^()]*)\)|(\S+)")


def read_axes(text: str, shape: Sequence[int], name: str = "the tensor") -> Axes:
    """Read a text as at the top of this file, for a tensor of a shape.

    Raises:
        ValueError: It has another number of axes, a word that is none, no `in` or no `out`, or sizes that do not fit.
    """
    axes = [(found.group(1), found.group(2)) for found in _TOKEN.finditer(text)]
    example = 'write a word for each axis, `in`, `out` or `batch`, as in "batch in out" or "in (3 out)"'
    if len(axes) != len(shape):
        raise ValueError(f"roles: {name} has the shape {list(shape)} and {text!r} names {len(axes)} axes; {example}")
    factors: list[tuple[tuple[int, str], ...]] = []
    cut = None
    for i, ((inside, word), size) in enumerate(zip(axes, shape, strict=True)):
        if inside is None:
            if word not in (IN, OUT, BATCH):
                raise ValueError(f"roles: {name}: {word!r} in {text!r} is none of them; {example}")
            factors.append(((size, word),))
            continue
        read = _factors(inside.split(), size)
        if read is None or (read[1] and cut is not None):
            raise ValueError(f"roles: {name}: ({inside}) in {text!r} does not split an axis of {size}; {example}")
        factors.append(read[0])
        cut = (i, read[1]) if read[1] else cut
    found = {role for some in factors for _, role in some}
    if not {IN, OUT} <= found:
        missing = " and no ".join(f"`{role}`" for role in (IN, OUT) if role not in found)
        raise ValueError(f"roles: {name}: {text!r} has no {missing}, so it is no matrix; {example}")
    return Axes(tuple(shape), tuple(factors), cut)


@lru_cache(maxsize=4096)
def axes_of(text: str, shape: tuple[int, ...]) -> Axes:
    """What `read_axes` reads, kept: an eager step asks for every tensor."""
    return read_axes(text, shape)


def _factors(words: Sequence[str], size: int) -> tuple[tuple[tuple[int, str], ...], tuple[int, ...]] | None:
    """The factors of an axis, and where it is cut; None where they do not fit."""
    if len(words) == 2 and re.fullmatch(r"\d+(\+\d+)+", words[0]) and words[1] in (IN, OUT):
        lengths = tuple(map(int, words[0].split("+")))
        return (((size, words[1]),), lengths) if sum(lengths) == size and min(lengths) > 0 else None
    found: list[tuple[int, str]] = []
    for word in words:
        number, _, role = word.partition(":")
        if word.isdigit():
            found.append((int(word), BATCH))
        elif word in (IN, OUT):
            found.append((0, word))
        elif number.isdigit() and role in (IN, OUT, BATCH):
            found.append((int(number), role))
        else:
            return None
    known = math.prod(n for n, _ in found if n)
    unknown = sum(not n for n, _ in found)
    if not found or known < 1 or size % known or unknown > 1 or (not unknown and known != size):
        return None
    return tuple((n or size // known, role) for n, role in found), ()
