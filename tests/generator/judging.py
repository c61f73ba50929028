"""A program held against brute force: what `prove` says of it, and what real tensors do at small sizes."""

import importlib.util
import itertools
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shaped import Proof, ProofError, prove
from shaped.errors import ShapedError
from shaped.shapes import Dim
from tests.generator.programs import Program

# What a program can come to. The first five are faults.
UNSOUND, RAW, EMPTY, REFUTED_WRONGLY, TOO_STRONG = "unsound", "raw error", "no sizes", "wrongly refuted", "too strong"
PROVED, REFUTED, UNPROVABLE = "proved", "refuted", "unprovable"
FAULTS = (UNSOUND, RAW, EMPTY, REFUTED_WRONGLY, TOO_STRONG)
_ALL = {1: 7, 2: 7, 3: 7, 4: 4}  # up to which every size is tried, for so many names
_LARGER = 24
_WIDE = (*range(1, 17), 24, 32, 48, 64, 100, 150, 256, 720, 1000, 4096)
_DRAWS = 20_000

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """What came of one program."""

    number: str
    kind: str
    said: str
    conditions: tuple[str, ...]
    shown: dict[str, int]  # sizes at which it goes wrong
    right: float  # the share of the sizes at which the program runs and returns what it declares
    seconds: float

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def judge(program: Program, folder: Path) -> Verdict:
    """Prove a program, and compare with what it does."""
    function = load(program, folder)
    right = {tuple(sizes.items()): runs(program, function, sizes) for sizes in sizes_of(program)}
    started = time.perf_counter()
    proof: Proof | None = None
    error: Exception | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            proof = prove(function)
    except Exception as caught:
        error = caught
    seconds = time.perf_counter() - started
    share = sum(right.values()) / len(right)
    kind, said, shown = _of_proof(proof, right) if proof is not None else _of_error(program, function, error, right)
    return Verdict(program.number, kind, said, proof.conditions if proof else (), dict(shown), share, seconds)


def _of_proof(proof: Proof, right: Mapping[Any, bool]) -> tuple[str, str, Sizes]:
    admitted = {sizes: all(c.holds(dict(sizes)) for c in proof.side_conditions) for sizes in right}
    wrong = next((sizes for sizes, good in right.items() if admitted[sizes] and not good), None)
    if wrong is not None:
        return UNSOUND, "", dict(wrong)
    if not any(admitted.values()) and not _satisfiable(proof):
        return EMPTY, "", {}
    lost = next((sizes for sizes, good in right.items() if good and not admitted[sizes]), None)
    if lost is not None:
        return TOO_STRONG, "", dict(lost)
    return PROVED, "", {}


def _satisfiable(proof: Proof) -> bool:
    """Whether some sizes satisfy the conditions, beyond those at which the program is run."""
    rng = random.Random(0)
    drawn = ({name: rng.choice(_WIDE) for name in proof.dims} for _ in range(_DRAWS))
    return any(all(c.holds(sizes) for c in proof.side_conditions) for sizes in drawn)


def _of_error(
    program: Program, function: Callable[..., Any], error: Exception | None, right: Mapping[Any, bool]
) -> tuple[str, str, Sizes]:
    said = " | ".join(line.strip() for line in str(error).splitlines())
    if not isinstance(error, ShapedError):
        lines = traceback.format_exception(error)[-3:]
        return RAW, f"{type(error).__name__}: {said} @ {' '.join(' '.join(lines).split())[:400]}", {}
    if not isinstance(error, ProofError):
        return UNPROVABLE, said, {}
    named = dict(error.goal.sizes)
    if error.goal.silent:
        return REFUTED, said, named
    if all(right.values()) or (named and runs(program, function, named)):
        return REFUTED_WRONGLY, said, named
    return REFUTED, said, named


def load(program: Program, folder: Path) -> Callable[..., Any]:
    """Its function, from a file, so that lines are shown."""
    name = f"program_{program.number.replace(':', '_')}"
    path = folder / f"{name}.py"
    path.write_text(program.source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    del sys.modules[name]
    function: Callable[..., Any] = module.program
    return function


def sizes_of(program: Program) -> Iterator[dict[str, int]]:
    """All small sizes, and a handful of larger ones."""
    names, rng = program.names, random.Random(program.number)
    most = _ALL[len(names)]
    for sizes in itertools.product(range(1, most + 1), repeat=len(names)):
        yield dict(zip(names, sizes, strict=True))
    for _ in range(_LARGER if len(names) < 4 else 4 * _LARGER):
        pool = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 24, 35) if len(names) < 4 else (1, 2, 3, 4, 5, 6, 7, 8, 9, 12)
        yield dict(zip(names, (rng.choice(pool) for _ in names), strict=True))


def runs(program: Program, function: Callable[..., Any], sizes: Sizes) -> bool:
    """Whether it runs on real tensors at these sizes and returns what it declares."""
    try:
        inputs = [_tensor(kind, [_size(dim, sizes) for dim in dims]) for _, kind, dims in program.inputs]
        declared = [_size(dim, sizes) for dim in program.result]
    except RuntimeError:  # an input of a negative size, which nobody can have
        return False
    if any(n < 0 for n in declared):
        return False
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            result = function(*inputs)
    except Exception:
        return False
    return list(result.shape) == declared and result.dtype.is_floating_point


def _tensor(kind: str, shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64) if kind == "Int" else torch.rand(shape)


_PARSED: dict[str, Dim] = {}


def _size(text: str, sizes: Sizes) -> int:
    dim = _PARSED.setdefault(text, Dim.parse(text))
    return int(dim.evaluate(sizes))
