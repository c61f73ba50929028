"""From names to things: the parts of a configuration made and put together."""

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch

from shaped.data import DataError
from shaped.drawing import check_device
from shaped.errors import ShapedError, nearest
from shaped.given import GivenOptimizer
from shaped.optim import FusedOptimizer, schedules
from shaped.optim.table import OPTIMIZERS
from shaped.params import ParamList
from shaped.trainer import ScalarTrainer
from shaped.workflow import registry
from shaped.workflow.config import OptimizerConfig, Part, WorkflowConfig
from shaped.workflow.models import Provider
from shaped.workflow.providers import DataProvider, GivenData


@dataclass(frozen=True)
class Assembly:
    """What a workflow runs."""

    data: DataProvider
    provider: Provider
    model: Any
    trainer: ScalarTrainer
    predict: Any


def assemble(config: WorkflowConfig, model: Provider | None, data: Any) -> Assembly:
    """Data, model, optimizer and trainer of a configuration; the model is made at the sizes that the data says.

    Raises:
        ShapedError: A part cannot be made. The data is closed then.
    """
    check_device(config.device)
    provider = make_provider(config.model) if model is None else model
    if not isinstance(provider, Provider):
        raise ShapedError(f"model is a {type(provider).__name__}: pass a ModelProvider(make, loss)")
    source = make_data(config) if data is None else GivenData(*data) if isinstance(data, tuple) else data
    if not isinstance(source, DataProvider):
        raise ShapedError(
            f"data is a {type(source).__name__}: pass a provider, or a pair of training and validation data"
        )
    try:
        made = _create(provider, source, config)
        optimizer = make_optimizer(config.optimizer, made)
        trainer = ScalarTrainer(
            provider.loss, made, backend=config.backend, optimizer=optimizer, max_norm=config.max_norm
        )
    except BaseException:
        source.close()
        raise
    predict = provider.predict
    if predict is None and isinstance(made, torch.nn.Module):
        predict = _call_module(made)
    return Assembly(source, provider, made, trainer, predict)


def _call_module(module: torch.nn.Module) -> Any:
    return lambda params, *inputs: module(*inputs)


def make_provider(part: Part | None) -> Provider:
    """The model provider of a name: a function that returns one, called with the part's `defaults`, or one itself."""
    assert part is not None
    found = registry.models.get(part.name)
    if isinstance(found, Provider):
        return found
    try:
        return cast(Provider, found())  # the caller looks at what it is
    except TypeError as error:
        raise ShapedError(f"model `{part.name}` is no ModelProvider, and called without arguments: {error}") from error


def make_data(config: WorkflowConfig) -> DataProvider:
    """The data provider of a name: a function or class, called with the part's options."""
    assert config.data is not None
    return _called(registry.data.get(config.data.name), config.data, "data")


def _called(make: Any, part: Part, kind: str) -> Any:
    try:
        return make(**part.options)
    except TypeError as error:  # an option that it does not take
        raise ShapedError(f"{kind} `{part.name}` with {part.options or 'no options'}: {error}") from error


def _create(provider: Provider, data: DataProvider, config: WorkflowConfig) -> Any:
    """A model whose sizes are those of the data where their names meet, and the configuration's in all else."""
    offered = dict(data.metadata.get("sizes", {}))
    wanted = dict(config.model.options) if config.model is not None else {}
    known = set(provider.sizes)
    both = [name for name in wanted if name in offered and wanted[name] != offered[name]]
    if both:
        said = ", ".join(f"{name} = {offered[name]} in the data and {wanted[name]} in `model.options`" for name in both)
        raise DataError(f"sizes differ: {said}")
    sizes = {**{name: size for name, size in offered.items() if name in known}, **wanted}
    return provider.create(seed=config.seed, device=config.device, **sizes)


def make_optimizer(config: OptimizerConfig, model: Any) -> GivenOptimizer:
    """What a trainer takes as its optimizer: the one of a name over the model's parameters, or what reads the proof.

    Raises:
        ShapedError: An option is unknown. ValueError: One is out of range.
    """
    kind = OPTIMIZERS.get(config.name)
    if kind is None:
        raise ShapedError(f"no optimizer `{config.name}`{nearest(config.name, list(OPTIMIZERS))}")

    def make(params: Any) -> FusedOptimizer:
        try:
            return kind(params, lr=config.lr, **config.options)
        except TypeError as error:
            raise ShapedError(f"optimizer `{config.name}`: {error}") from error

    if kind.by_proof:
        return make
    return make([p for p in (model if isinstance(model, ParamList) else model.parameters()) if p.requires_grad])


def make_schedule(part: Part, optimizer: Any, total: int | None, monitor: str, mode: str) -> Any:
    """A schedule by name: a function or class of `shaped.optim.schedules`, or a class of torch.optim.lr_scheduler.

    What ours needs and the options do not say is the optimizer's lr, and `total` the updates of the whole run.

    Raises:
        ShapedError: There is none of that name, or it does not take these options.
    """
    torchs = torch.optim.lr_scheduler
    base, plateau = torchs.LRScheduler, torchs.ReduceLROnPlateau  # the latter wants a figure at each step: ours has it
    theirs = [n for n, kind in vars(torchs).items() if isinstance(kind, type) and issubclass(kind, base)
              and kind is not base and not issubclass(kind, plateau) and n[0] != "_"]  # fmt: skip
    names = [*schedules.BY_NAME, "reduce_on_plateau", *theirs]
    if part.name not in names:
        raise ShapedError(f"no schedule `{part.name}`{nearest(part.name, names) or f'; there are {names}'}")
    try:
        if part.name == "reduce_on_plateau":
            return schedules.ReduceOnPlateau(optimizer, **{"monitor": monitor, "mode": mode, **part.options})
        if part.name not in schedules.BY_NAME:
            return getattr(torchs, part.name)(optimizer, **part.options)
        function = schedules.BY_NAME[part.name]
        first, *others = inspect.signature(function).parameters
        options = {first: optimizer.param_groups[0]["lr"], **part.options}
        if "total" in others and total is not None:
            options = {"total": total, **options}
        return schedules.as_lambda(optimizer, function(**options))
    except TypeError as error:
        raise ShapedError(f"schedule `{part.name}` with {part.options or 'no options'}: {error}") from error
