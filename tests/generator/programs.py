"""Small programs at random: Python source with a declared result, which is sometimes wrong."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import tests.generator.computing  # enters its operations in the table
import tests.generator.shaping  # noqa: F401
from tests.generator.drafts import OPERATIONS, Draft, Value, bracketed, replaced

_NAMES = ("n", "m", "k", "d")
_WRONG = 0.12  # of the declared results
_RARE = {"assert": 0.35, "branch": 0.6, "repeat": 0.7}
_LONGEST = 34  # characters of a declared size

HEAD = """\
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

"""


@dataclass(frozen=True)
class Program:
    """A function `program` in a file of its own."""

    number: str  # seed:index
    source: str
    names: tuple[str, ...]
    inputs: tuple[tuple[str, str, tuple[str, ...]], ...]
    result: tuple[str, ...]
    kinds: tuple[str, ...]


def make(seed: int, index: int) -> Program:
    """The program of this number; the same at every call."""
    for attempt in range(1000):
        rng = random.Random(f"{seed}:{index}:{attempt}")
        draft, last = _drafted(rng)
        if last is not None and max(map(len, (*last.dims, ""))) <= _LONGEST and draft.kinds:
            return _written(f"{seed}:{index}", draft, last)
    raise AssertionError("no program was drawn")


def _drafted(rng: random.Random) -> tuple[Draft, Value | None]:
    names = _NAMES[: rng.choice([2, 2, 3, 3, 3, 4])]
    draft = Draft(rng, names)
    dims = [rng.choice(names) for _ in range(rng.choice([2, 2, 3, 3, 4]) - 1)]
    dims = [names[0], *dims] if rng.random() < 0.8 else [rng.choice(names), *dims]
    x = draft.input(dims)
    draft.values.append(x)
    kinds = list(OPERATIONS)
    weights = [_RARE.get(kind, 1.0) for kind in kinds]
    for _ in range(rng.choice([1, 2, 2, 3, 3, 4])):
        kind = rng.choices(kinds, weights)[0]
        start = x if rng.random() < 0.85 else rng.choice(draft.values)
        made = rng.choice(OPERATIONS[kind])(draft, start) if start.rank else None
        if made is not None:
            draft.kinds.append(kind)
            x = made
        if x.rank > 5:
            return draft, None
    return draft, x


def _written(number: str, draft: Draft, last: Value) -> Program:
    """The source, with a declared result and the names unpacked from the inputs."""
    rng, declared = draft.rng, last.dims
    if rng.random() < _WRONG and declared:
        declared = _wrong(rng, draft, declared)
    names = tuple(n for n in draft.names if any(n in _words(dim) for _, _, dims in draft.inputs for dim in dims))
    unpacked, lines = set[str](), []
    missing = [n for n in draft.names if not any(n in dims for _, _, dims in draft.inputs)]
    inputs = list(draft.inputs)
    if missing:  # a name that only expressions use is given by an input of its own
        inputs.append((f"x{len(inputs)}", "Float", tuple(missing)))
        names = draft.names
    for name, _, dims in inputs:
        for axis, dim in enumerate(dims):
            if dim in draft.names and dim not in unpacked:
                unpacked.add(dim)
                lines.append(f"{dim} = {name}.shape[{axis}]")
    arguments = ", ".join(f'{name}: {kind}[Tensor, "{_spaced(dims)}"]' for name, kind, dims in inputs)
    body = "\n".join(f"    {line}" for line in [*lines, *draft.lines, f"return {last.name}"])
    source = f'{HEAD}\ndef program({arguments}) -> Float[Tensor, "{_spaced(declared)}"]:\n{body}\n'
    return Program(number, source, names, tuple(inputs), tuple(declared), tuple(draft.kinds))


def _wrong(rng: random.Random, draft: Draft, dims: Sequence[str]) -> tuple[str, ...]:
    at = rng.randrange(len(dims))
    if len(dims) > 1 and rng.random() < 0.3:
        swapped = list(dims)
        swapped[at], swapped[at - 1] = swapped[at - 1], swapped[at]
        return tuple(swapped)
    other = rng.choice([f"{bracketed(dims[at])}+1", f"{bracketed(dims[at])}//2", rng.choice(draft.names), "1"])
    return replaced(dims, at, other)


def _spaced(dims: Sequence[str]) -> str:
    text = " ".join(dims)
    return text if len(dims) != 1 else f" {text}"


def _words(dim: str) -> set[str]:
    return {c for c in dim if c.isalpha()}
