"""`shaped bench`: time one training step of a loss on both backends, beside the plain torch loop.

The loss is a function of a file, its parameters are drawn at the sizes given (or are the file's own), and its inputs
are random: normal numbers, true booleans, and integers below a bound that the user gives, since no annotation says how
many classes or words there are. Each contender trains a copy; rounds take turns, so that a busy machine slows all.
"""

import copy
import inspect
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shaped.check import functions_of
from shaped.errors import ShapedError, SignatureError, columns, first_line, listing, nearest
from shaped.layout import dimension_names, list_names
from shaped.params import ParamList
from shaped.shapes import Argument, Dim, Signature, TensorSpec, is_tensor_annotation, resolve_annotations
from shaped.state import METHODS, PATHS
from shaped.trainer import ScalarTrainer

LR, ROUNDS, SECONDS = 1e-4, 15, 0.05  # a round of one contender takes about SECONDS
OPTIMIZERS: Mapping[str, tuple[str, Any]] = {  # the trainer's method, and torch's class
    path: (method, getattr(torch.optim, PATHS[path].__name__)) for method, path in METHODS.items()
}
StepFunction = Callable[[], Tensor]


@dataclass(frozen=True)
class Given:
    """What the command line says.

    Attributes:
        sizes: A number for a dimension or the length of a list; several for an axis such as `*batch`.
        bounds: For an input of integers: a dimension expression that they stay below.
        command: How the command began, for messages.
    """

    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bounds: Mapping[str, str] = field(default_factory=dict)
    backends: Sequence[Literal["eager", "compiled"]] = ("compiled", "eager")
    optimizer: str = "adamw"
    device: str = "cpu"
    static: tuple[str, ...] = ()
    command: str = "shaped bench"


@dataclass
class Contender:
    """One way to take the step, and what was measured of it."""

    name: str
    step: StepFunction
    first: float  # seconds, with all that came before it
    loss: float  # of the first step
    rounds: list[float] = field(default_factory=list)  # microseconds a step


def read_words(words: Sequence[str]) -> tuple[str, dict[str, tuple[int, ...]], dict[str, str]]:
    """The target, the sizes and the bounds of `model.py:loss batch=64 y<classes`; no target is an empty string.

    Raises:
        SignatureError: A word is none of these, or there are two targets.
    """
    targets: list[str] = []
    sizes: dict[str, tuple[int, ...]] = {}
    bounds: dict[str, str] = {}
    for word in words:
        name, sign, value = next((word.partition(s) for s in "=<" if s in word), (word, "", ""))
        if sign == "=" and all(part.isdecimal() and int(part) for part in value.split("x")):
            sizes[name] = tuple(map(int, value.split("x")))
        elif sign == "<" and value:
            bounds[name] = str(Dim.parse(value))
        elif sign or targets:
            raise SignatureError(f"`{word}` is no size, as in batch=64 (or batch=8x4 for *batch), and no 'y<10'")
        else:
            targets.append(word)
    return targets[0] if targets else "", sizes, bounds


def bench(module: ModuleType, name: str, given: Given) -> Iterator[str]:
    """Time the step of a loss, and give the lines to print.

    Args:
        module: Where the loss stands; an instance of its parameters there is used unless the sizes say otherwise.
        name: The loss; may be empty where there is only one.

    Raises:
        ShapedError: There is no such loss, a size or a bound is missing or unknown, the loss is not well-shaped, or it
            fails on random inputs.
    """
    loss = _find(module, name)
    params = _parameters(module, loss, given)
    trainer = ScalarTrainer(loss, copy.deepcopy(params), static=given.static)  # proves, before anything is drawn
    signature = trainer.proof.setting.signature
    sizes = _sizes(signature, trainer.params, given)
    batch = _draw(signature, trainer.params, sizes, given)
    shown = ", ".join(f"{n} = {'x'.join(map(str, size))}" for n, size in sizes.items())
    tensors = [p for p in trainer.params if p.requires_grad]
    yield str(signature)
    yield (
        f"at {shown or 'no named sizes'}: {sum(p.numel() for p in tensors):,} parameters in {len(tensors)} tensors, "
        f"{given.optimizer}, {str(tensors[0].dtype).removeprefix('torch.')}, {given.device}\n"
    )
    found = [_start(f"shaped {b}", partial(_ours, loss, params, batch, b, given), given) for b in given.backends]
    found.append(_start("torch loop, fused", partial(_plain, loss, params, batch, given), given))
    _time(found, given.device)
    yield from _table(found)
    yield f"\n{ROUNDS} rounds that take turns; {_where(given.device)}"


def _find(module: ModuleType, name: str) -> Callable[..., Any]:
    """The function of this name, or the only loss: parameters first, and a scalar."""
    functions = functions_of(module)
    file = Path(str(module.__file__)).name
    if name and name not in functions:
        raise ShapedError(f"{file} has no function `{name}`{nearest(name, list(functions))}")
    losses = [key for key, value in functions.items() if _is_loss(value)]
    if name and name not in losses:
        raise ShapedError(f"`{name}` is no loss over parameters: write {_FORM}")
    if not name and len(losses) != 1:
        wanted = f"name one of {listing(losses)}, as in {file}:{losses[0]}" if losses else f"write {_FORM}"
        raise ShapedError(f"{file} has {len(losses) or 'no'} losses: {wanted}")
    return functions[name or losses[0]]


_FORM = 'loss(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""], with a ParamList or an nn.Module first'


def _is_loss(function: Callable[..., Any]) -> bool:
    try:
        annotations = resolve_annotations(inspect.unwrap(function))
    except SignatureError:
        return False
    result: Any = annotations.get("return")
    return _first(annotations) is not None and is_tensor_annotation(result) and not result.dim_str.strip()


def _first(annotations: Mapping[str, Any]) -> type | None:
    """The class of the parameters."""
    first = next(iter(annotations.values()), None)
    return first if isinstance(first, type) and issubclass(first, ParamList | nn.Module) else None


def _parameters(module: ModuleType, loss: Callable[..., Any], given: Given) -> Any:
    """The file's own instance, or one of the sizes given."""
    kind: Any = _first(resolve_annotations(inspect.unwrap(loss)))
    own: Any = next((value for value in vars(module).values() if type(value) is kind), None)
    if issubclass(kind, ParamList):
        return _parameter_list(kind, own, given)
    if own is None:
        try:
            own = kind()
        except TypeError as error:
            raise ShapedError(f"{error}: make one in the file, as in net = {kind.__name__}(...)") from None
    return copy.deepcopy(own).to(given.device)


def _parameter_list(kind: Any, own: Any, given: Given) -> ParamList:
    dims, lists = dimension_names(kind._fields), list_names(kind)
    mine = {n: _one(n, size) for n, size in given.sizes.items() if n in (*dims, *lists)}
    if own is not None:
        mine = {**own.dims, **{n: len(own[n]) for n in lists if hasattr(own, n)}, **mine}
    if own is not None and not set(given.sizes) & {*dims, *lists}:
        moved: ParamList = pytree.tree_map(lambda t: t.detach().to(given.device).requires_grad_(t.requires_grad), own)
        return moved
    missing = [name for name in dims if name not in mine]
    if missing:
        sizes = " ".join(f"{name}=..." for name in missing)
        raise ShapedError(f"{kind.__name__} needs a size for {listing(missing)}: {given.command} {sizes}")
    made: ParamList = kind.init(**mine, device=given.device)
    return made


def _one(name: str, size: tuple[int, ...]) -> int:
    if len(size) > 1:
        raise ShapedError(f"{name}={'x'.join(map(str, size))}: only an axis such as *batch has several sizes")
    return size[0]


def _sizes(signature: Signature, params: ParamList, given: Given) -> dict[str, tuple[int, ...]]:
    """The sizes of all names: of the parameters, and of the inputs as they were given."""
    names = [name for entry in signature.entries for dim in entry.spec.dims for name in dim.names]
    names = list(dict.fromkeys([*names, *signature.axes]))
    lists = list_names(type(params))
    for name, size in given.sizes.items():
        if name not in names and name not in lists:
            raise ShapedError(f"`{name}` is no dimension of `{signature.name}`{nearest(name, names)}")
        if name not in signature.axes:
            _one(name, size)
    found = {**{name: (size,) for name, size in params.dims.items()}, **given.sizes}
    missing = [name for name in names if name not in found]
    if missing:
        sizes = " ".join(f"{name}=..." for name in missing)
        raise ShapedError(f"the inputs need a size for {listing(missing)}: {given.command} {sizes}")
    return {name: found[name] for name in names}


def _draw(
    signature: Signature, params: ParamList, sizes: Mapping[str, tuple[int, ...]], given: Given
) -> dict[str, Any]:
    """Random inputs by name."""
    inputs = [a for a in signature.arguments if a.container is not None]
    paths = [entry.path for argument in inputs for entry in argument.entries]
    wrong = [name for name in given.bounds if name not in {*paths, *(argument.name for argument in inputs)}]
    if wrong:
        raise ShapedError(f"`{wrong[0]}` is no input of `{signature.name}`{nearest(wrong[0], paths)}")
    single = {name: size[0] for name, size in sizes.items() if len(size) == 1}
    axes = {name: [Dim(str(part)) for part in sizes[name]] for name in signature.axes}
    floating = next(p.dtype for p in params if p.requires_grad)
    generator = torch.Generator().manual_seed(0)

    def draw(argument: Argument, path: str, spec: TensorSpec) -> Tensor:
        shape = tuple(int(dim.evaluate(single)) for dim in spec.with_axes(axes).dims)
        dtype = spec.default_dtype(floating)
        if dtype == torch.bool:
            return torch.ones(shape, dtype=dtype, device=given.device)
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(shape, generator=generator, dtype=dtype).to(given.device)
        bound = given.bounds.get(path, given.bounds.get(argument.name))
        if bound is None:
            raise ShapedError(
                f"{path} : {spec.quoted} holds integers, and no annotation says how large they may be. Give a bound, a "
                f"number or a dimension: {given.command} '{path}<10'"
            )
        most = _evaluated(bound, single, signature.name)
        return torch.randint(0, most, shape, generator=generator, dtype=dtype).to(given.device)

    drawn: dict[str, Any] = {}
    for argument in inputs:
        assert argument.container is not None
        tensors = [draw(argument, entry.path, entry.spec) for entry in argument.entries]
        drawn[argument.name] = argument.container.build(tensors)
    return drawn


def _evaluated(bound: str, sizes: Mapping[str, int], name: str) -> int:
    dim = Dim(bound)
    if unknown := [n for n in dim.names if n not in sizes]:
        raise ShapedError(f"`{unknown[0]}` is no dimension of `{name}`{nearest(unknown[0], list(sizes))}")
    most = int(dim.evaluate(sizes))
    if most < 1:
        raise ShapedError(f"the bound {bound} is {most}, and no integer from 0 on is below it")
    return most


def _ours(loss: Callable[..., Any], params: Any, batch: Mapping[str, Any], backend: Any, given: Given) -> StepFunction:
    trainer = ScalarTrainer(loss, copy.deepcopy(params), backend=backend, static=given.static)
    take = getattr(trainer, OPTIMIZERS[given.optimizer][0])
    keywords = {a.name for a in trainer.proof.setting.signature.arguments if a.keyword}
    named = {name: value for name, value in batch.items() if name in keywords}
    inputs = [value for name, value in batch.items() if name not in keywords]
    return lambda: take(*inputs, lr=LR, **named)


def _plain(loss: Callable[..., Any], params: Any, batch: Mapping[str, Any], given: Given) -> StepFunction:
    """The loop that everyone writes."""
    params = copy.deepcopy(params)
    tensors = list(params.parameters() if isinstance(params, nn.Module) else params)
    optimizer = OPTIMIZERS[given.optimizer][1]([p for p in tensors if p.requires_grad], lr=LR, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = loss(params, **batch)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def _start(name: str, make: Callable[[], StepFunction], given: Given) -> Contender:
    began = time.perf_counter()
    try:
        step = make()
        loss = step().item()
    except (IndexError, RuntimeError) as error:  # torch's own, of values: an index out of range, no inverse
        raise ShapedError(f"{name} fails on random inputs: {first_line(error)}") from error
    return Contender(name, step, time.perf_counter() - began, loss)


def _time(found: Sequence[Contender], device: str) -> None:
    counts = []
    for contender in found:
        _round(contender, 3, device)  # warms up
        counts.append(max(1, round(SECONDS / (_round(contender, 3, device) / 1e6))))
    for turn in range(ROUNDS):
        for i in range(len(found)):
            at = (turn + i) % len(found)
            found[at].rounds.append(_round(found[at], counts[at], device))


def _round(contender: Contender, steps: int, device: str) -> float:
    """Microseconds a step; on a GPU until the last one is computed."""
    began = time.perf_counter()
    for _ in range(steps):
        contender.step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return 1e6 * (time.perf_counter() - began) / steps


def _table(found: Sequence[Contender]) -> Iterator[str]:
    base = statistics.median(found[-1].rounds)
    rows = [["", "median us", "worst us", "of torch", "first step s", "first loss"]]
    for c in found:
        median = statistics.median(c.rounds)
        figures = f"{median:.0f}", f"{max(c.rounds):.0f}", f"{median / base:.2f}", f"{c.first:.2f}", f"{c.loss:.4g}"
        rows.append([c.name, *figures])
    yield from columns(rows, left=1)


def _where(device: str) -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    place = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else cpu
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"torch {torch.__version__}, python {platform.python_version()}, {place}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads{load}"
    )
