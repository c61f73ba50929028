"""[batch, 1] against [batch] under a mean is blamed where the pairs are made; pairs that are meant are not."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, ProofError, prove


class Line(ParamList):
    w: Float[Tensor, "d 1"]
    b: Float[Tensor, " 1"]


class Row(ParamList):
    w: Float[Tensor, " d"]


# -- hidden, as people write it ----------------------------------------------------------------------------------------


def squared_error(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return ((x @ p.w + p.b - y) ** 2).mean()


def absolute_error(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x @ p.w - y).abs().mean()


def mean_with_keepdim(x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x.mean(1, keepdim=True) - y).square().sum()


def logistic(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    logits = x @ p.w
    return (F.softplus(logits) - y * logits).mean()


def cross_entropy_by_hand(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    q = torch.sigmoid(x @ p.w)
    return -(y * q.log() + (1 - y) * (1 - q).log()).mean()


def weighted_squares(
    p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"], weight: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    return (weight * (x @ p.w).square()).mean()


def accuracy(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return ((x @ p.w > 0) == (y > 0)).float().mean()


def huber_by_hand(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    r = (x @ p.w - y).abs()
    return torch.where(r < 1, 0.5 * r**2, r - 0.5).mean()


def in_three_lines(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    prediction = torch.tanh(x @ p.w)
    error = prediction - y
    squared = error * error
    return squared.sum() / x.shape[0]


def poisson(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    log_rate = x @ p.w
    return (log_rate.exp() - y * log_rate).mean()


def mean_of_mean(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x @ p.w - y).square().mean(0).mean()


def target_first(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (y - (x @ p.w)).pow(2).mean()


def policy_gradient(
    p: Line, x: Float[Tensor, "batch d"], logp: Float[Tensor, " batch"], returns: Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    return -(logp * (returns.unsqueeze(1) - x @ p.w)).mean()


def norm_of_error(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x @ p.w - y).norm()


def gaussian_likelihood(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    mean = x @ p.w
    return (0.5 * ((y - mean) / 2.0).square()).mean()


BLAMED: dict[Callable[..., Any], str] = {  # where
    squared_error: "@ p.w + p.b - y",
    absolute_error: "x @ p.w - y",
    mean_with_keepdim: "keepdim=True) - y",
    logistic: "y * logits",
    cross_entropy_by_hand: "y * q.log()",
    weighted_squares: "weight * (x @ p.w)",
    accuracy: "(x @ p.w > 0) == (y > 0)",
    huber_by_hand: "x @ p.w - y",
    in_three_lines: "error = prediction - y",
    poisson: "y * log_rate",
    mean_of_mean: "x @ p.w - y",
    target_first: "y - (x @ p.w)",
    policy_gradient: "logp * (returns",
    norm_of_error: "x @ p.w - y",
    gaussian_likelihood: "y - mean",
}

# -- meant, or seen ------------------------------------------------------------------------------------------------


def squeezed(p: Line, x: Float[Tensor, "batch d"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return ((x @ p.w).squeeze(-1) - y).square().mean()


def a_row_added(p: Row, x: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    return (x + p.w).square().mean()


def distances_of_all_pairs(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    return (x[:, None] - x[None]).square().sum(-1).mean()


def causal_mask(q: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    position = torch.arange(q.shape[0])
    return (q @ q.T).masked_fill(position[:, None] < position, 0.0)


def pairs_returned(x: Float[Tensor, "n 1"], y: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    return x - y


def both_axes_written(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return (x[:, None] - y[None, :]).square().mean()


def pairs_looked_at_by_a_softmax(x: Float[Tensor, "n 1"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return (x - y).softmax(-1).mean()


def normalised(x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def attention(q: Float[Tensor, "batch n d"]) -> Float[Tensor, "batch n d"]:
    return (q @ q.mT).softmax(-1) @ q


def contrastive(a: Float[Tensor, "batch d"], b: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    return F.cross_entropy(a @ b.T, torch.arange(a.shape[0]))


def same_labels(z: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    same = y[:, None] == y[None, :]
    return (torch.cdist(z, z) * same).mean()


def same_labels_short(z: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    same = y.unsqueeze(1) == y
    return (torch.cdist(z, z) * same).mean()


def pairwise_ranking(score: Float[Tensor, " n"], rel: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return (F.softplus(-(score[:, None] - score[None, :])) * (rel[:, None] > rel[None, :])).mean()


def two_names(x: Float[Tensor, "n 1"], y: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    return (x - y).square().mean()


def outer_product_of_one(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return (x.unsqueeze(1) * x).sum()


def a_weight_for_each_row(x: Float[Tensor, "batch d"], w: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x.square() * w[:, None]).mean()


def nearest_centre(x: Float[Tensor, "n d"], c: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
    return (x[:, None] - c).square().sum(-1).amin(1).mean()


FINE: list[Callable[..., Any]] = [
    squeezed,
    a_row_added,
    distances_of_all_pairs,
    causal_mask,
    pairs_returned,
    both_axes_written,
    pairs_looked_at_by_a_softmax,
    normalised,
    attention,
    contrastive,
    same_labels,
    same_labels_short,
    pairwise_ranking,
    two_names,
    outer_product_of_one,
    a_weight_for_each_row,
    nearest_centre,
]


def name_of(function: Callable[..., Any]) -> str:
    return function.__name__


@pytest.mark.parametrize("function", BLAMED, ids=name_of)
def test_pairs_that_a_reduction_hides_are_refused_where_they_are_made(function: Callable[..., Any]):
    with pytest.raises(ProofError) as caught:
        prove(function)
    error = caught.value
    lines, start = inspect.getsourcelines(function)
    wanted = next(start + i for i, line in enumerate(lines) if BLAMED[function] in line)

    assert error.source is not None
    assert error.source.line == wanted
    assert " broadcasts " in error.goal.silent
    assert error.goal.silent.endswith(" hides it")


@pytest.mark.parametrize("function", BLAMED, ids=name_of)
def test_what_is_blamed_is_what_torch_does_without_a_word(function: Callable[..., Any]):
    """At the goal's own sizes torch runs it, so nothing but the proof would have told."""
    sizes = {"batch": 3, "d": 2}
    spec = inspect.signature(function).parameters
    arguments: list[Any] = []
    for parameter in spec.values():
        if parameter.annotation is Line:
            arguments.append(Line.init(d=2))
        else:
            shape = [sizes[axis] if axis in sizes else int(axis) for axis in parameter.annotation.dim_str.split()]
            arguments.append(torch.rand(shape))

    assert function(*arguments).shape == ()


@pytest.mark.parametrize("function", FINE, ids=name_of)
def test_pairs_that_are_meant_or_looked_at_are_proved(function: Callable[..., Any]):
    assert prove(function).conditions == ()


def test_the_message_shows_both_shapes_what_hides_them_and_the_axis_to_squeeze():
    with pytest.raises(ProofError) as caught:
        prove(in_three_lines)
    start = in_three_lines.__code__.co_firstlineno
    lead = f"  test_broadcast.py:{start + 2}   "

    assert str(caught.value) == (
        "`in_three_lines` is not well-shaped.\n"
        f"{lead}error = prediction - y\n"
        f"{' ' * len(lead)}        ~~~~~~~~~~~^~~\n"
        "  sub      prediction : [batch, 1]   -   y : [batch]\n"
        "  goal     [batch, 1] = [batch]\n"
        "  silent   sub broadcasts [batch, 1] against [batch] to [batch, batch], and `sum` hides it\n"
        f"  context  y          : [batch]        declared at test_broadcast.py:{start}\n"
        f"           prediction : [batch, 1]     from test_broadcast.py:{start + 1}\n"
        "  hint     prediction.squeeze(-1) has shape [batch]; did you mean prediction.squeeze(-1) - y ?\n"
        "  refuted  batch = 2, d = 3"
    )
