"""Eager and compiled execution of a proved loss, and the executor cache."""

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from shaped.backends.agreement import DisagreementError as DisagreementError
from shaped.backends.auto import Auto as Auto
from shaped.backends.capture import Capture as Capture
from shaped.backends.comparison import Comparison as Comparison
from shaped.backends.comparison import compare as compare
from shaped.backends.compiled import Compiled as Compiled
from shaped.backends.counters import Counters as Counters
from shaped.backends.eager import Eager as Eager
from shaped.backends.executors import CompileError as CompileError
from shaped.backends.executors import Executor as Executor
from shaped.backends.executors import Executors as Executors
from shaped.backends.executors import Key as Key
from shaped.backends.inductor import has_cpp_compiler as has_cpp_compiler
from shaped.backends.kept import KeptProgram as KeptProgram
from shaped.backends.options import Sizes as Sizes
from shaped.backends.options import TrainerOptions as TrainerOptions
from shaped.backends.packing import keep_program as keep_program
from shaped.backends.program import Program as Program
from shaped.backends.samples import checked_count as checked_count
from shaped.backends.settling import settled as settled
from shaped.backends.shelf import Shelf as Shelf
from shaped.backends.shelf import shelf_for as shelf_for
from shaped.errors import NonFiniteError, listing
from shaped.optim import FusedOptimizer


def not_finite(backend: "Backend", loss: Tensor, inputs: Sequence[Tensor], where: str) -> NonFiniteError:
    """Name what was not finite in a step that changed nothing, so that its pass can be repeated."""
    if not torch.isfinite(loss):
        return NonFiniteError(f"the loss is {loss.item()} {where}")
    _, gradients, _ = backend.loss_and_backward(inputs)
    names = [backend.program.params.names[i] for i in backend.program.used]
    wrong = [name for name, g in zip(names, gradients, strict=True) if not torch.isfinite(g).all()]
    if not wrong:  # the pass draws at random, and this draw was finite
        return NonFiniteError(f"a gradient is not finite {where}")
    return NonFiniteError(f"the gradient of {listing(wrong)} is not finite {where} (the loss is {loss.item():.4g})")


class Backend(Protocol):
    """What a trainer asks of a backend. Both give the same numbers, up to rounding."""

    @property
    def name(self) -> str: ...

    @property
    def program(self) -> Program: ...

    @property
    def executors(self) -> Executors: ...

    def forward(self, inputs: Sequence[Tensor]) -> Tensor: ...

    def loss_and_backward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]: ...

    def update(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer, last: bool = True) -> tuple[Tensor, bool]: ...

    def again(self, inputs: Sequence[Tensor], optimizer: FusedOptimizer) -> tuple[Tensor, bool]:
        """The same right after an update of one batch, where nobody else can have changed parameters or state since."""
        ...


BackendName = Literal["eager", "compiled", "auto"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)


def known_backend(name: object) -> None:
    """Raise ValueError where there is no backend of this name."""
    if name not in BACKENDS:
        raise ValueError(f"backend is {name!r}; it is one of {', '.join(map(repr, BACKENDS))}")
