"""Elastic weight consolidation: learn something new, and stay near what mattered for the old.

    total(p, batch) = loss(p, batch) + strength/2 * sum_i F_i * (p_i - a_i)**2

`a` are the parameters that knew the old data, `F` the diagonal of the Fisher information there. Both are frozen entries
of one ParamList with the model. So their sizes are the model's own names in the proof, and a checkpoint has them.

Source: Kirkpatrick et al. 2017, PNAS 114(13), arXiv:1612.00796, equation 3.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils import _pytree as pytree

from shaped.arguments import checked, number, only_tensors
from shaped.errors import ShapeError, SignatureError
from shaped.params import ParamList
from shaped.shapes import annotated_part, resolve_annotations, worn

P = TypeVar("P", bound=ParamList)


@dataclass(frozen=True)
class Elastic(Generic[P]):
    """What a trainer takes: the loss with its elastic term, and the list of `model`, `anchor` and `fisher`."""

    loss: Callable[..., Any]
    params: Any

    @property
    def model(self) -> P:
        """The parameters that are trained."""
        return self.params.model  # type: ignore[no-any-return]


@checked
def fisher_diagonal(
    loss: Callable[..., Any],
    params: P,
    data: Iterable[Any],
    *,
    sample: Callable[..., Tensor] | None = None,
    chunk: int | None = None,
) -> P:
    """The diagonal of the Fisher information: the mean of squared gradients, each of a single example.

        F_i = E[(d loss(p, x, y) / d p_i)**2]        not the square of the mean, which is nearly 0 at a minimum

    Args:
        loss: `loss(params, *inputs)`, a negative log likelihood, meaned over the first axis of its inputs. It goes
            through torch.func, so its Python must not depend on values.
        params: Where.
        data: Batches.
        sample: `sample(params, *inputs)` draws the last input, the labels, from the model itself: the Fisher
            information in the strict sense. By default the data's own labels count, the "empirical" one; the two agree
            where the model has the data's distribution.
        chunk: Examples at a time; None takes a batch at once, which needs so many gradients' memory.

    Returns:
        A list of the parameters' class, accumulated in float64; zero for what asks for no gradient.

    Raises:
        ValueError: There are no examples. ShapeError and what the loss raises: a batch does not fit it.

    Source: Kunstner, Balles & Hennig 2019, arXiv:1905.12558, on the difference between the two.
    """
    names = [i for i, wanted in enumerate(params.requires_grad) if wanted]
    frozen = [t.detach() for t in params]
    sums = [torch.zeros_like(frozen[i], dtype=torch.float64) for i in names]

    def single(trained: tuple[Tensor, ...], *example: Tensor) -> Tensor:
        tensors = list(frozen)
        for i, tensor in zip(names, trained, strict=True):
            tensors[i] = tensor
        whole = pytree.tree_unflatten(tensors, pytree.tree_structure(params))
        value: Tensor = loss(whole, *(x.unsqueeze(0) for x in example))
        only_tensors("fisher_diagonal", loss=value)
        return value

    count, trained = 0, tuple(frozen[i] for i in names)
    for batch in data:
        inputs = _examples(batch, params, sample)
        if not len(inputs[0]):
            continue
        each = vmap(grad(single), (None, *[0] * len(inputs)), chunk_size=chunk, randomness="different")
        for total, gradient in zip(sums, each(trained, *inputs), strict=True):
            total += gradient.double().square().sum(0)
        count += len(inputs[0])
    if not count:
        raise ValueError("the Fisher information is a mean over examples, and the data has none")
    found = [torch.zeros_like(t) for t in frozen]
    for i, total in zip(names, sums, strict=True):
        found[i] = (total / count).to(frozen[i].dtype)
    return params.like(found)


def _examples(batch: Any, params: ParamList, sample: Callable[..., Tensor] | None) -> tuple[Tensor, ...]:
    inputs = (batch,) if isinstance(batch, Tensor) else tuple(batch) if isinstance(batch, list | tuple) else ()
    if not inputs or not all(isinstance(x, Tensor) and x.dim() for x in inputs):
        raise ShapeError(f"a batch of the data is a {type(batch).__name__}: pass tensors with the examples first")
    if sample is not None:
        with torch.no_grad():
            inputs = (*inputs[:-1], sample(params, *inputs))
        only_tensors("fisher_diagonal", sample=inputs[-1])
    return inputs


@checked
def elastic(
    loss: Callable[..., Any], params: P, fisher: P, *, anchor: P | None = None, strength: float = 1.0
) -> Elastic[P]:
    """A loss with an elastic term, and the parameters that it is over; both go to a ScalarTrainer.

        memory = elastic(loss, params, fisher_diagonal(loss, params, old_data), strength=100.0)
        trainer = ScalarTrainer(memory.loss, memory.params)

    Args:
        loss: `loss(params, *inputs)`, annotated.
        params: The model; it is trained in place.
        fisher: What mattered, of the model's class and sizes; not negative.
        anchor: Where to stay near; by default a copy of `params` as they are now.
        strength: Of the term, the paper's lambda; 0 or above.

    Raises:
        ValueError: `strength` or an entry of `fisher` is negative or not finite. ShapeError: The lists differ in sizes.
        SignatureError: The loss has no argument that is a parameter list.
    """
    number("strength", strength)
    wrong = [n for n, t in zip(fisher.names, fisher, strict=True) if not bool((t.isfinite() & (t >= 0)).all())]
    if wrong:
        raise ValueError(f"fisher: {', '.join(wrong)} is negative or not finite")
    kind, count = type(params), len(params)
    fields = {"model": kind, "anchor": kind, "fisher": kind}
    made = type(f"Elastic{kind.__name__}", (ParamList,), {"__annotations__": fields, "__module__": kind.__module__})
    copies = [list(part.values()) for part in (anchor if anchor is not None else params, fisher)]
    mask = [*params.requires_grad, *[False] * (2 * count)]
    held = [params, *(params.like(tensors) for tensors in copies)]
    together = made(*held, requires_grad=mask)
    return Elastic(_with_term(loss, made, float(strength)), together)


def _with_term(loss: Callable[..., Any], kind: type[ParamList], strength: float) -> Callable[..., Any]:
    """The sum as a function with the loss's own signature, save that its parameters are the list of three."""
    annotations, signature = resolve_annotations(loss), inspect.signature(loss)
    names = [name for name in signature.parameters if inspect.ismethod(getattr(annotations.get(name), "layout", None))]
    if not names:
        raise SignatureError(f"`{annotated_part(loss).__name__}` has no argument that is a ParamList")

    def total(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        memory = bound.arguments[names[0]]
        bound.arguments[names[0]] = memory.model
        value = loss(*bound.args, **bound.kwargs)
        for p, a, f in zip(memory.model, memory.anchor, memory.fisher, strict=True):
            if p.is_floating_point():
                value = value + (0.5 * strength) * (f * (p - a).square()).sum()
        return value

    return worn(total, loss, {names[0]: kind})
