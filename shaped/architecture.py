"""Architecture search: DARTS over a few operations, with both steps of the bilevel problem proved.

    y = sum_i softmax(alpha)_i * operation_i(x)

    alpha <- Adam on the validation batch, weights frozen         weights <- AdamW on the training batch, alpha frozen

First order, alpha's gradient is taken at the weights as they are. Second order, at the weights after a step of theirs:

    w' = w - xi*grad_w L_train(w, alpha)          grad_alpha L_val(w', alpha) - xi*(g(w+) - g(w-)) / 2 eps
    w+- = w +- eps*grad_w' L_val(w', alpha)       g(w) = grad_alpha L_train(w, alpha),  eps = 0.01 / |grad_w' L_val|

Source: Liu, Simonyan & Yang 2019, arXiv:1806.09055, Algorithm 1, with xi = 0 or by equations 7 and 8.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from shaped.arguments import checked, number, only_tensors
from shaped.backends import BackendName
from shaped.errors import NonFiniteError, ShapedError, ShapeError, StateError, listing, nearest
from shaped.params import ParamList
from shaped.shapes import resolve_annotations, worn
from shaped.strategies import GradientStrategy, Loss, gradients
from shaped.trainer import ScalarTrainer

P = TypeVar("P", bound=ParamList)
_chosen: ContextVar[Mapping[str, str] | None] = ContextVar("chosen", default=None)
_met: ContextVar[dict[str, tuple[str, ...]] | None] = ContextVar("met", default=None)  # what `mixed` was called with


def mixed(
    alpha: str, logits: Float[Tensor, " operations"], operations: Mapping[str, Callable[[], Tensor]]
) -> Float[Tensor, "..."]:
    """The mean of what several operations give, weighted by softmax(logits); or the one that was chosen, alone.

        h = mixed("first", p.first, {"linear": lambda: x @ p.w, "skip": lambda: x})

    Args:
        alpha: The path of the logits in the parameters: which choice this is.
        logits: One for each operation, in order.
        operations: By name. All give tensors of one shape; the proof refuses others.

    Raises:
        ShapedError: The chosen operation is none of these.
        ShapeError: `alpha` had other operations at another place.
    """
    if not isinstance(operations, Mapping) or not operations or not all(map(callable, operations.values())):
        raise ShapeError(f"mixed: operations is {operations!r}; it is a mapping of names to functions")
    if not isinstance(alpha, str):
        raise ShapeError(f"mixed: alpha is {alpha!r}; it is the path of the logits")
    if (met := _met.get()) is not None:
        before = met.setdefault(alpha, tuple(operations))
        if before != tuple(operations):
            raise ShapeError(f"mixed({alpha!r}) has the operations {list(before)}, then {list(operations)}")
    only_tensors("mixed", 1, logits=logits)
    chosen = _chosen.get()
    if chosen is not None and alpha in chosen:
        if chosen[alpha] not in operations:
            raise ShapedError(f"mixed({alpha!r}): the chosen `{chosen[alpha]}` is none of {listing(list(operations))}")
        return operations[chosen[alpha]]()
    outputs = torch.stack([operation() for operation in operations.values()])
    weights = logits.softmax(0).view(-1, *[1] * (outputs.dim() - 1))
    return (weights * outputs).sum(0)


@checked
@dataclass(frozen=True)
class Choice:
    """One place of the search: the path of its logits, and for each operation the parameters that are its own."""

    alpha: str
    operations: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Architecture:
    """One operation for each choice.

    Attributes:
        operations: By the path of the logits.
        parameters: How many numbers it trains.
        loss: The loss that computes the chosen operations only.
        unused: What it leaves out: the other operations' parameters and all logits.
    """

    operations: Mapping[str, str]
    parameters: int
    loss: Callable[..., Any]
    unused: tuple[str, ...]

    @checked
    def of(self, params: P) -> P:
        """Parameters for `loss`: the same memory, with what is not used frozen. Draw new ones to train from scratch."""
        return params.with_frozen(self.unused)

    def __str__(self) -> str:
        return ", ".join(f"{a}: {o}" for a, o in self.operations.items()) + f" ({self.parameters} parameters)"


class Darts(Generic[P]):
    """A search over a loss that calls `mixed`.

    Args:
        loss: `loss(params, *inputs)`, annotated.
        params: Weights and logits in one list; trained in place.
        choices: What is searched.
        backend: For both trainers.
        second_order: Let the logits look at the weights' next step. Costs three more passes, forward and backward;
            both batches then have the same sizes.

    Attributes:
        weights, alphas: Two ScalarTrainers over the same memory: one with the logits frozen, one with all else. Under
            `second_order` a step of `alphas` takes the training batch too, as `step` gives it.

    Raises:
        ShapeError: A choice names what is not there, its logits are not one for each operation, or `mixed` has its
            operations under another path, by other names, or in another order.
        ProofError, GradientError: The loss is not well-shaped, or does not use some of its parameters.
    """

    @checked
    def __init__(
        self,
        loss: Callable[..., Any],
        params: P,
        choices: Sequence[Choice],
        *,
        backend: BackendName = "eager",
        second_order: bool = False,
    ) -> None:
        self._loss, self._params, self.choices = loss, params, tuple(choices)
        self._second_order = second_order
        _check(params, self.choices)
        logits = [choice.alpha for choice in self.choices]
        held = [name for name, p in zip(params.names, params, strict=True) if not p.requires_grad]
        weights = [name for name in params.names if name not in {*logits, *held}]
        met: dict[str, tuple[str, ...]] = {}
        token = _met.set(met)
        try:
            self.weights = ScalarTrainer(loss, params.with_frozen([*logits, *held]), backend=backend)
            frozen = params.with_frozen([*weights, *held])
            if second_order:
                strategy = _unrolling([params.names.index(name) for name in weights])
                self.alphas = ScalarTrainer(_of_two_batches(loss), frozen, backend=backend, strategy=strategy)
            else:
                self.alphas = ScalarTrainer(loss, frozen, backend=backend)
        finally:
            _met.reset(token)
        _check_met(met, self.choices)

    def step(
        self,
        training: Sequence[Any],
        validation: Sequence[Any],
        *,
        lr: float,
        alpha_lr: float = 3e-4,
        weight_decay: float = 1e-2,
        xi: float | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """One step of each: the logits on the validation batch, then the weights on the training batch.

        Args:
            training, validation: The inputs of the loss; of two splits, or the logits favour what overfits.
            lr, weight_decay: For the weights' AdamW.
            alpha_lr: For the logits' Adam, with betas of (0.5, 0.999) as in the paper.
            xi: How far the logits look ahead, in parameter units per gradient unit; `lr` by default, as in the paper.
                Only where the search is of second order.

        Returns:
            The losses of the training and of the validation batch, each before its update.

        Raises:
            ShapeError: A batch does not fit the loss. ValueError: A number is out of range, or the search is not of
                second order, and `xi` is given. Nothing has changed.
        """
        for name, batch in (("training", training), ("validation", validation)):
            if not isinstance(batch, list | tuple):
                raise ShapeError(f"{name} is a {type(batch).__name__}; it is a list of the loss's inputs")
        lr, alpha_lr = number("lr", lr), number("alpha_lr", alpha_lr)
        weight_decay = number("weight_decay", weight_decay)
        if xi is not None and not self._second_order:
            raise ValueError("xi is for a search of second order: Darts(..., second_order=True)")
        more: dict[str, Any] = {}
        if self._second_order:
            names = _input_names(self._loss)
            if len(training) != len(names):
                raise ShapeError(f"the training batch has {len(training)} tensors; the loss takes {listing(names)}")
            more = {f"training_{name}": value for name, value in zip(names, training, strict=True)}
            logits = next(p for p in self.alphas.params if p.requires_grad)
            ahead = lr if xi is None else number("xi", xi)
            more["xi"] = torch.tensor(ahead, dtype=logits.dtype, device=logits.device)
        self.weights._program.arrange(training, {})  # refused before the logits have moved
        beside = self.alphas.adam_step(*validation, lr=alpha_lr, betas=(0.5, 0.999), **more)
        return self.weights.adamw_step(*training, lr=lr, weight_decay=weight_decay), beside

    def probabilities(self) -> dict[str, dict[str, float]]:
        """softmax(alpha) by choice and operation."""
        return {
            choice.alpha: dict(
                zip(choice.operations, self._params[choice.alpha].detach().softmax(0).tolist(), strict=True)
            )
            for choice in self.choices
        }

    @checked
    def discretise(self, max_params: int | None = None) -> Architecture:
        """The most probable operation of each choice; under a budget, the most probable architecture within it.

        Exact: of all combinations whose parameters fit, the one with the largest product of probabilities.

        Args:
            max_params: How many numbers the architecture may train, those outside all choices included.

        Raises:
            ValueError: No architecture is that small; says how small one can be. NonFiniteError: Logits are not finite.
        """
        broken = [choice.alpha for choice in self.choices if not self._params[choice.alpha].isfinite().all()]
        if broken:
            raise NonFiniteError(f"the logits {listing(broken)} are not finite")
        sizes = {name: tensor.numel() for name, tensor in zip(self._params.names, self._params, strict=True)}
        owned = {path for choice in self.choices for paths in choice.operations.values() for path in paths}
        logits = {choice.alpha for choice in self.choices}
        fixed = sum(size for name, size in sizes.items() if name not in owned | logits)
        front: list[tuple[int, float, tuple[str, ...]]] = [(fixed, 0.0, ())]
        for choice in self.choices:
            chances = self._params[choice.alpha].detach().double().log_softmax(0).tolist()
            front = _best(
                (cost + sum(sizes[path] for path in paths), score + chance, (*taken, name))
                for cost, score, taken in front
                for chance, (name, paths) in zip(chances, choice.operations.items(), strict=True)
            )
        within = [row for row in front if max_params is None or row[0] <= max_params]
        if not within:
            raise ValueError(f"max_params is {max_params}; the smallest architecture has {min(front)[0]} parameters")
        cost, _, taken = max(within, key=lambda row: row[1])
        operations = {choice.alpha: name for choice, name in zip(self.choices, taken, strict=True)}
        kept = {path for c in self.choices for path in c.operations[operations[c.alpha]]}
        unused = tuple(name for name in self._params.names if name in logits or name in owned - kept)
        return Architecture(operations, cost, _only(self._loss, operations), unused)

    def state_dict(self) -> dict[str, Any]:
        """Both trainers' states."""
        return {"weights": self.weights.state_dict(), "alphas": self.alphas.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over both states, all or nothing.

        Raises:
            StateError: One does not fit.
        """
        if not isinstance(state, Mapping) or set(state) != {"weights", "alphas"}:
            raise StateError("a search's state has `weights` and `alphas`")
        before = self.weights.state_dict()
        self.weights.load_state_dict(state["weights"])
        try:
            self.alphas.load_state_dict(state["alphas"])
        except StateError:
            self.weights.load_state_dict(before)
            raise


def _best(rows: Any) -> list[tuple[int, float, tuple[str, ...]]]:
    """The rows that no other beats in both cost and score."""
    front: list[tuple[int, float, tuple[str, ...]]] = []
    for row in sorted(rows, key=lambda row: (row[0], -row[1])):
        if not front or row[1] > front[-1][1]:
            front.append(row)
    return front


def _input_names(loss: Callable[..., Any]) -> list[str]:
    """What a batch is made of: the arguments after the parameters that have no default."""
    _, *inputs = inspect.signature(loss).parameters.values()
    return [p.name for p in inputs if p.default is p.empty]


def _of_two_batches(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss with more inputs, which it does not use: a training batch `training_...`, and `xi : []`."""
    annotations = resolve_annotations(loss)
    taken = {"xi", *(f"training_{name}" for name in _input_names(loss))} & {*inspect.signature(loss).parameters}
    if taken:
        raise ShapeError(f"a search of second order adds inputs, and the loss has {listing(sorted(taken))} already")
    annotations = {f"training_{name}": annotations.get(name) for name in _input_names(loss)} | {"xi": Float[Tensor, ""]}
    extra = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=a) for n, a in annotations.items()]

    def of_two(*args: Any, **named: Any) -> Any:
        return loss(*args, **{name: value for name, value in named.items() if name not in annotations})

    return worn(of_two, loss, annotations, extra)


def _unrolling(weights: Sequence[int]) -> GradientStrategy:
    """A gradient strategy: the logits' gradient of second order, by differences.

    Args:
        weights: The parameters whose next step is looked at. The strategy's inputs are the validation batch, the
            training batch, and xi.
    """

    def moved(params: ParamList, by: Sequence[Tensor | None], scale: Tensor | float) -> list[Tensor]:
        """The parameters with the weights elsewhere, as leaves that ask for a gradient."""
        tensors = list(params)
        for i, direction in zip(weights, by, strict=True):
            there = params[i] if direction is None else params[i] + scale * direction
            tensors[i] = there.detach().clone().requires_grad_()
        return tensors

    def of_weights(value: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return torch.autograd.grad(value, [tensors[i] for i in weights], allow_unused=True)

    def unrolled(loss: Loss, params: ParamList, /, *inputs: Tensor) -> tuple[Tensor, ParamList]:
        training, xi = inputs[len(inputs) // 2 : -1], inputs[-1]

        def train_loss(tensors: Sequence[Tensor]) -> Tensor:
            return loss(tensors, *training, *training, xi)

        here = moved(params, [None] * len(weights), 0.0)
        after = moved(params, of_weights(train_loss(here), here), -xi)
        beside = loss(after, *inputs)
        first = gradients(beside, params, retain_graph=True)
        uphill = of_weights(beside, after)
        norm = torch.stack([g.square().sum() for g in uphill if g is not None]).sum().sqrt()
        eps = 0.01 / norm.clamp_min(1e-12)
        plus, minus = (gradients(train_loss(moved(params, uphill, sign * eps)), params) for sign in (1, -1))
        second = [a - xi * (p - m) / (2 * eps) for a, p, m in zip(first, plus, minus, strict=True)]
        return loss(params, *inputs), params.like(second)

    return unrolled


def _only(loss: Callable[..., Any], operations: Mapping[str, str]) -> Callable[..., Any]:
    """The loss with the chosen operations, for whoever reads its signature."""

    def discrete(*args: Any, **named: Any) -> Any:
        token = _chosen.set(operations)
        try:
            return loss(*args, **named)
        finally:
            _chosen.reset(token)

    return worn(discrete, loss)


def _check_met(met: Mapping[str, Sequence[str]], choices: Sequence[Choice]) -> None:
    """The choices are those that the loss calls `mixed` with; else another operation would be reported than won."""
    for choice in choices:
        there, here = met.get(choice.alpha), tuple(choice.operations)
        if there is None:
            raise ShapeError(f"the loss has no mixed({choice.alpha!r}, ...){nearest(choice.alpha, list(met))}")
        if tuple(there) != here:
            raise ShapeError(
                f"Choice({choice.alpha!r}) has the operations {list(here)} and mixed({choice.alpha!r}) {list(there)}: "
                "give the same names in the same order"
            )
    chosen = [choice.alpha for choice in choices]
    unknown = [alpha for alpha in met if alpha not in chosen]
    if unknown:
        raise ShapeError(f"the loss calls `mixed` with {listing(unknown)}, which no Choice is for")


def _check(params: ParamList, choices: Sequence[Choice]) -> None:
    owner, names = type(params).__name__, params.names
    if not choices:
        raise ShapeError(f"{owner}: there is nothing to search: choices is empty")
    seen: set[str] = set()
    for choice in choices:
        paths = [path for own in choice.operations.values() for path in own]
        for path in (choice.alpha, *paths):
            if path not in names:
                raise ShapeError(f"{owner} has no entry `{path}`{nearest(path, names)}")
            if path in seen:
                raise ShapeError(f"{owner}: `{path}` belongs to two operations; what they share belongs to none")
            seen.add(path)
        shape = tuple(params[choice.alpha].shape)
        if shape != (len(choice.operations),):
            raise ShapeError(
                f"{owner}.{choice.alpha} is {list(shape)}: it has one logit for each of the "
                f"{len(choice.operations)} operations {listing(list(choice.operations))}"
            )
