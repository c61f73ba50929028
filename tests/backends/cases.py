"""A model of the corpus as something to train: its parameters and one batch in a dtype, and runs of a few steps."""

import copy
import dataclasses
import functools
import inspect
import random
import typing
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ParamList, ScalarTrainer
from tests.backends.noise import difference, spread
from tests.corpus import concrete
from tests.corpus.catalogue import MODELS, Model

LR, STEPS = 0.05, 3
COUNTS = ("deep_set",)  # whose integers are lengths, of at least 1
Step = Callable[..., Tensor]
RULES: dict[str, tuple[Step, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (lambda t, *b: t.step(*b, lr=LR), lambda p: torch.optim.SGD(p, lr=LR, foreach=False)),
    "adam": (lambda t, *b: t.adam_step(*b, lr=LR), lambda p: torch.optim.Adam(p, lr=LR, foreach=False)),
    "adamw": (
        lambda t, *b: t.adamw_step(*b, lr=LR, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.1, foreach=False),
    ),
}


def trainable(model: Model) -> bool:
    """Whether a model has parameters: it takes a ParamList first, or a module."""
    first = next(iter(concrete._hints(model).values()))
    return model.module is not None or (isinstance(first, type) and issubclass(first, ParamList))


BY_NAME: Mapping[str, Model] = {model.name: model for model in MODELS if trainable(model)}


@dataclass(frozen=True)
class Case:
    """A model with its loss; what returns no scalar is trained by the mean square of what it returns."""

    name: str

    @property
    def model(self) -> Model:
        return BY_NAME[self.name]

    @functools.cached_property
    def loss(self) -> Callable[..., Tensor]:
        return _as_loss(self.model.function)

    @functools.cached_property
    def sizes(self) -> concrete.Sizes:
        """The smallest of at least 2, no two equal, that satisfy the conditions."""
        return _sizes(self.model)

    def start(self, dtype: torch.dtype, copies: torch.dtype | None = None) -> tuple[Any, list[Any]]:
        """Parameters and a batch, rounded to `dtype` and held in `copies`; the same at each call."""
        held = copies or dtype
        torch.manual_seed(zlib.crc32(self.name.encode()))
        with _default_dtype(torch.float32):  # so that the draws are the same for all
            made = [concrete._make(hint, self.sizes, self.model) for hint in concrete._inputs(self.model).values()]
            batch = [
                _drawn(value, 1 if self.name in COUNTS else 0)
                for value in made
                if not isinstance(value, ParamList | nn.Module)
            ]
            module = self.model.module() if self.model.module is not None else None
        batch = [_cast(value, dtype, held) for value in batch]
        if module is not None:
            return module.to(dtype).to(held), batch
        first = next(value for value in made if isinstance(value, ParamList))
        values = [(0.3 * torch.randn(p.shape, dtype=torch.float32)).to(dtype).to(held) for p in first]
        return first.layout().build([value.requires_grad_() for value in values]), batch

    def plain_run(self, dtype: torch.dtype, rule: str) -> list[Tensor]:
        """A few steps in float64 from values of `dtype`, by autograd and torch.optim: the losses, then parameters."""
        with _default_dtype(torch.float64):  # what a model makes inside (torch.zeros) is float64 too
            params, batch = self.start(dtype, torch.float64)
            trained = list(params.parameters() if isinstance(params, nn.Module) else params)
            optimizer = RULES[rule][1](trained)
            losses = []
            for _ in range(STEPS):
                optimizer.zero_grad()
                value = self._call(params, batch)
                value.backward()
                optimizer.step()
                losses.append(value.detach())
        return [*losses, *(p.detach() for p in trained)]

    def _call(self, params: Any, batch: list[Any]) -> Tensor:
        if concrete._over_output(self.model):
            count = len(concrete._forward_hints(self.model))
            return self.loss(params(*batch[:count]), *batch[count:])
        keywords = [p.name for p in inspect.signature(self.loss).parameters.values() if p.kind is p.KEYWORD_ONLY]
        keywords = [name for name in keywords if name in concrete._inputs(self.model)]
        split = len(batch) - len(keywords)
        return self.loss(params, *batch[:split], **dict(zip(keywords, batch[split:], strict=True)))

    def bounds(self, dtype: torch.dtype, rule: str) -> tuple[typing.Sequence[Tensor], list[float]]:
        """What the run ends with, and how far rounding to `dtype` may carry each tensor from it."""
        return spread(lambda: self.plain_run(dtype, rule), torch.finfo(dtype).eps)

    def trainer(self, dtype: torch.dtype) -> tuple[ScalarTrainer, list[Any]]:
        with _default_dtype(dtype):
            params, batch = self.start(dtype)
            options: dict[str, Any] = {"assume": self.model.assume, "static": self.model.static}
            return ScalarTrainer(self.loss, params, allow_unused=True, **options), batch


class Trained:
    """One trainer for all rules and both backends, put back to its start before each run."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.dtype = dtype
        trainer, self.batch = case.trainer(dtype)
        self.trainers = {"eager": trainer, "compiled": trainer.with_backend("compiled")}
        self.start = copy.deepcopy(trainer.state_dict())

    def run(self, backend: typing.Literal["eager", "compiled"], rule: str) -> list[Tensor]:
        """The losses of a few steps, then the parameters that they end with."""
        trainer = self.trainers[backend]
        trainer.load_state_dict(self.start)
        with _default_dtype(self.dtype):
            losses = [RULES[rule][0](trainer, *self.batch).clone() for _ in range(STEPS)]
        params = [p.detach().clone() for p in trainer.params if p.requires_grad]
        return [*losses, *params]


def share(found: typing.Sequence[Tensor], exact: typing.Sequence[Tensor], bounds: typing.Sequence[float]) -> float:
    """The largest part of its bound that an error takes: at most 1 where rounding explains every difference."""
    pairs = zip(found, exact, bounds, strict=True)
    return max(difference(a, b) / bound if bound else float(not torch.equal(a, b)) for a, b, bound in pairs)


def _as_loss(function: Callable[..., Any]) -> Callable[..., Tensor]:
    signature = inspect.signature(function)
    if getattr(signature.return_annotation, "dim_str", None) == "":
        return function

    def loss(*arguments: Any, **named: Any) -> Tensor:
        result = function(*arguments, **named)
        several = [result] if isinstance(result, Tensor) else _parts(result)
        return torch.stack([value.square().mean() for value in several if value.is_floating_point()]).sum()

    scalar = Float[Tensor, ""]
    loss.__signature__ = signature.replace(return_annotation=scalar)  # type: ignore[attr-defined]
    loss.__annotations__ = {**function.__annotations__, "return": scalar}
    loss.__name__ = function.__name__
    return loss


def _sizes(model: Model) -> concrete.Sizes:
    names, generator = concrete.dimensions(model), random.Random(0)
    for attempt in range(10**6):
        drawn = generator.sample(range(2, len(names) + 6 + attempt // 100), len(names))
        named = {**dict(zip(names, drawn, strict=True)), **model.static}
        sizes = concrete.Sizes(named, (3,) if concrete.has_leading_axes(model) else ())
        if sizes.satisfy(model):
            return sizes
    raise AssertionError(f"{model.name}: no sizes found")


def _drawn(value: Any, least: int) -> Any:
    """Zeros and ones where `concrete` has zeros: they index any axis of size 2 or more."""
    return _mapped(value, lambda t: torch.randint(least, 2, t.shape) if t.dtype == torch.int64 else t)


def _cast(value: Any, dtype: torch.dtype, held: torch.dtype) -> Any:
    return _mapped(value, lambda t: t.to(dtype).to(held) if t.is_floating_point() else t)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return [getattr(value, f.name) for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else [*value]


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [_mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    fields = {field.name: _mapped(getattr(value, field.name), change) for field in dataclasses.fields(value)}
    return type(value)(**fields)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
