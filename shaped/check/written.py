"""Tensor annotations with all that jaxtyping lets them say: `...`, `_`, `#batch`, `*#batch`, `name=3`, `?name`.

Each is read into specs that the proof knows, one for each way in which a tensor can satisfy it: an axis `#batch` has
the size batch or 1, and `*#batch` stands for those axes, for as many of size 1, or for none. An axis `_` has a size of
its own. `...` stands for any axes; in a signature they are the same wherever it is written, as with `*batch`.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shaped.errors import SignatureError
from shaped.shapes import Dim, TensorSpec, is_tensor_annotation, read_tensor

ANY = "_"  # the name of `...`, as that of `*batch` is batch
ONES = "1"  # after the name of `*batch`: as many axes of size 1


@dataclass
class Fresh:
    """Names for axes that have none, in the order in which they are written."""

    stem: str = "_"
    count: int = 0

    def name(self) -> str:
        """`_1`, `_2`, ..."""
        self.count += 1
        return f"{self.stem}{self.count}"


@dataclass(frozen=True)
class Written:
    """One reading of an annotation, and what was chosen for it: `#batch = 1`."""

    spec: TensorSpec
    said: tuple[str, ...] = ()


def read_written(annotation: Any, where: str, fresh: Fresh) -> list[Written]:
    """The specs that an annotation admits, the one that broadcasts nothing first.

    Raises:
        SignatureError: It is no tensor's, or an axis cannot be read.
    """
    if not is_tensor_annotation(annotation):
        read_tensor(annotation, where)  # says so
    plain = read_tensor(_bare(annotation), where)
    axes = [list(_readings(token, where, fresh)) for token in annotation.dim_str.split()]
    readings = []
    for chosen in itertools.islice(_in_order(axes), 4):
        dims = tuple(dim for some, _ in chosen for dim in some)
        readings.append(Written(TensorSpec(dims, plain.dtypes, plain.kind), tuple(said for _, said in chosen if said)))
    return readings


class _Scalar:
    """An annotation's class and dtypes, without its axes."""


def _bare(annotation: Any) -> Any:
    bare = type("Bare", (_Scalar,), {"dim_str": ""})
    for name in ("dtype", "dtypes", "array_type"):
        setattr(bare, name, getattr(annotation, name))
    return bare


def _in_order(axes: list[list[tuple[tuple[Dim, ...], str]]]) -> Iterator[tuple[tuple[tuple[Dim, ...], str], ...]]:
    """All first readings; then all second ones, ...: axes that broadcast do so together. Then the rest."""
    most = max(map(len, axes), default=1)
    together = [tuple(readings[min(i, len(readings) - 1)] for readings in axes) for i in range(most)]
    yield from together
    yield from (chosen for chosen in itertools.product(*axes) if chosen not in together)


def _readings(token: str, where: str, fresh: Fresh) -> Iterator[tuple[tuple[Dim, ...], str]]:
    """What one axis of an annotation stands for."""
    if token == "...":
        yield (Dim(f"*{ANY}"),), ""
        return
    name = token.split("=", 1)[-1] if not token.startswith(("#", "*", "?", "_")) else token
    marks = name[: len(name) - len(name.lstrip("#*?_"))]
    name = name[len(marks) :]
    if "*" in marks:
        if name and not name.isidentifier():
            raise SignatureError(f"{where}: `{token}` has no name that is one: write *batch")
        name = ANY if "_" in marks or not name else name
        yield (Dim(f"*{name}"),), ""
        if "#" in marks:
            yield (Dim(f"*{name}{ONES}"),), f"*#{name} of size 1"
            yield (), f"*#{name} of no axes"
    elif "_" in marks or not name:
        yield (Dim(fresh.name()),), ""
    else:
        dim = Dim.parse(name)
        yield (dim,), ""
        if "#" in marks and dim != Dim("1"):
            yield (Dim("1"),), f"#{name} = 1"


def with_ranks(spec: TensorSpec, ranks: dict[str, int]) -> TensorSpec:
    """A spec with `*batch` written out as batch1, batch2, ... (`...` as _a1, _a2), or as ones."""
    axes = {}
    for name, rank in ranks.items():
        stem = "_a" if name == ANY else name
        axes[name] = [Dim(f"{stem}{i}") for i in range(1, rank + 1)]
        axes[name + ONES] = [Dim("1")] * rank
    return spec.with_axes(axes)


def axes_of(spec: TensorSpec) -> list[str]:
    """The names of its `*batch` axes."""
    return [dim.text[1:].removesuffix(ONES) for dim in spec.dims if dim.is_axes]


def names_of(relation: str) -> set[str]:
    """The dimension names of a relation; none where it cannot be read, which `prove` then says."""
    from shaped.proof.conditions import Assumption

    try:
        return set(Assumption.parse(relation).names)
    except SignatureError:
        return set()


def spelled(name: str) -> str:
    """`*batch`, or `...`."""
    return "..." if name == "_" else f"*{name}"
