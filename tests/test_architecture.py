"""Architecture search: the two steps, the budget, and that it finds the better operation."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from shaped import GradientError, NonFiniteError, ParamList, ProofError, ScalarTrainer, ShapeError, StateError, init
from shaped.architecture import Choice, Darts, mixed


class Space(ParamList):
    first: Float[Tensor, " 3"] = init.zeros()
    linear: Float[Tensor, "features hidden"]
    square: Float[Tensor, "features hidden"]
    up: Float[Tensor, "features hidden"]
    across: Float[Tensor, "hidden hidden"]
    second: Float[Tensor, " 2"] = init.zeros()
    more: Float[Tensor, "hidden hidden"]
    out: Float[Tensor, "hidden one"]


def loss(p: Space, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch one"]) -> Float[Tensor, ""]:
    h = mixed(
        "first",
        p.first,
        {
            "linear": lambda: x @ p.linear,
            "square": lambda: (x @ p.square).square(),
            "deep": lambda: (x @ p.up).tanh() @ p.across,
        },
    )
    h = mixed("second", p.second, {"skip": lambda: h, "linear": lambda: h @ p.more})
    return F.mse_loss(h @ p.out, y)


CHOICES = (
    Choice("first", {"linear": ("linear",), "square": ("square",), "deep": ("up", "across")}),
    Choice("second", {"skip": (), "linear": ("more",)}),
)


def space(seed: int = 0) -> Space:
    return Space.init(features=3, hidden=8, one=1, seed=seed)


def data(seed: int, size: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))
    return x, x.square().sum(1, keepdim=True)


def search(params: Space | None = None, **options: Any) -> Darts[Space]:
    return Darts(loss, params or space(), CHOICES, **options)


def test_each_step_leaves_the_others_parameters_as_they_are() -> None:
    params = space()
    darts = search(params)
    assert "gradients : Space" in str(darts.alphas.proof)
    before = params.values()
    darts.alphas.adam_step(*data(1), lr=0.1)
    assert [n for n in params.names if not torch.equal(params[n], before[n])] == ["first", "second"]

    between = params.values()
    darts.weights.adamw_step(*data(0), lr=0.1)
    assert [n for n in params.names if torch.equal(params[n], between[n])] == ["first", "second"]


@pytest.mark.smoke
def test_both_steps_have_the_gradients_of_autograd_at_their_own_batch() -> None:
    params = space()
    darts = search(params)
    leaves = params.with_frozen(())
    for trainer, inputs, names in (
        (darts.alphas, data(1), ["first", "second"]),
        (darts.weights, data(0), ["linear", "square", "up", "across", "more", "out"]),
    ):
        found = trainer.backward(*inputs)
        exact = torch.autograd.grad(loss(leaves, *inputs), [leaves[n] for n in names])
        torch.testing.assert_close([found[n] for n in names], list(exact))
        assert not any(found[n].any() for n in params.names if n not in names)


@pytest.fixture(scope="module")
def second_order() -> Darts[Space]:
    params = Space.init(features=3, hidden=8, one=1, seed=0, dtype=torch.float64)
    with torch.no_grad():
        params.first.copy_(torch.tensor([0.3, -0.2, 0.1]))
        params.second.copy_(torch.tensor([0.5, -0.5]))
    return search(params, second_order=True)


def through_a_step(params: Space, training: Any, validation: Any, xi: float) -> tuple[Tensor, ...]:
    """The logits' gradient of the validation loss after a step of gradient descent, by autograd through that step."""
    leaves = {name: params[name].detach().clone().requires_grad_() for name in params.names}
    names = [name for name in leaves if name not in ("first", "second")]

    def at(tensors: Any, batch: Any) -> Tensor:
        return loss(SimpleNamespace(**tensors), *batch)  # type: ignore[arg-type]

    down = torch.autograd.grad(at(leaves, training), [leaves[n] for n in names], create_graph=True)
    after = {**leaves, **{n: leaves[n] - xi * g for n, g in zip(names, down, strict=True)}}
    return torch.autograd.grad(at(after, validation), [leaves["first"], leaves["second"]])


def doubles(seed: int, size: int = 16) -> tuple[Tensor, ...]:
    return tuple(t.double() for t in data(seed, size))


def test_a_second_order_step_has_the_gradient_of_autograd_through_the_weights_next_step(
    second_order: Darts[Space],
) -> None:
    params, (x, y), validation = second_order._params, doubles(0), doubles(1)
    plain = through_a_step(params, (x, y), validation, 0.0)
    for xi in (0.0, 0.01, 0.1):
        given = torch.tensor(xi, dtype=torch.float64)
        found = second_order.alphas.backward(*validation, training_x=x, training_y=y, xi=given)
        exact = through_a_step(params, (x, y), validation, xi)
        for name, mine, theirs, first in zip(
            ("first", "second"), (found.first, found.second), exact, plain, strict=True
        ):
            # Central differences at a distance of h = 0.01 are off by h**2/6 times a third derivative.
            added = (theirs - first).abs().max().item()
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * added + 1e-12, msg=name)
        assert not any(found[n].any() for n in params.names if n not in ("first", "second"))


def test_a_second_order_step_gives_the_logits_both_batches_and_looks_ahead_by_lr_or_xi(
    second_order: Darts[Space], monkeypatch: pytest.MonkeyPatch
) -> None:
    training, validation = doubles(0), doubles(1)
    given: list[Any] = []

    def taken(*inputs: Tensor, **named: Any) -> Tensor:
        given.append((*inputs, named["training_x"], named["training_y"], float(named["xi"])))
        return torch.zeros(())

    monkeypatch.setattr(second_order.alphas, "adam_step", taken)
    second_order.step(training, validation, lr=0.3)
    second_order.step(training, validation, lr=0.3, xi=0.7)
    with pytest.raises(ShapeError, match="the training batch has 1 tensors; the loss takes `x` and `y`"):
        second_order.step(training[:1], validation, lr=0.3)

    assert [row[4] for row in given] == [0.3, 0.7]
    assert all(a is b for row in given for a, b in zip(row, (*validation, *training), strict=False))


class Small(ParamList):
    a: Float[Tensor, "2"]
    w: Float[Tensor, "3 3"]
    v: Float[Tensor, "3 3"]
    base: Float[Tensor, "3 3"]


def small_loss(p: Small, x: Float[Tensor, "batch 3"], y: Float[Tensor, "batch 3"]) -> Float[Tensor, ""]:
    h = mixed("a", p.a, {"linear": lambda: x @ p.w, "tanh": lambda: torch.tanh(x @ p.v)})
    return (h @ p.base - y).square().mean()


@pytest.mark.slow
def test_a_part_of_a_concatenation_is_not_written_over_while_the_whole_is_read() -> None:
    """Inductor gave the memory of such a part away twice, and this compiled gradient was off by half."""
    torch.manual_seed(3)
    x, y, *validation = torch.randn(4, 8, 3)
    params, found = Small(torch.randn(2) / 2, *torch.randn(3, 3, 3) / 2), []
    for backend in ("eager", "compiled"):
        choice = Choice("a", {"linear": ("w",), "tanh": ("v",)})
        darts = Darts(small_loss, params, [choice], backend=backend, second_order=True)
        found.append(darts.alphas.backward(*validation, training_x=x, training_y=y, xi=torch.tensor(0.0)).a)

    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_was_frozen_stays_so_in_both_orders() -> None:
    params = space()
    held = next(name for name in params.names if name not in ("first", "second"))
    for second_order in (False, True):
        darts = Darts(loss, params.with_frozen([held]), CHOICES, second_order=second_order)
        before = params[held].detach().clone()
        darts.step(data(0), data(1), lr=0.1, alpha_lr=0.1)

        assert torch.equal(params[held], before)
        assert not darts.weights.params[held].requires_grad


def test_an_input_named_as_one_that_a_search_adds_is_refused() -> None:
    def named(p: Space, x: Float[Tensor, "batch features"], xi: Float[Tensor, "batch one"]) -> Float[Tensor, ""]:
        return loss(p, x, xi)

    with pytest.raises(ShapeError, match="the loss has `xi`"):
        Darts(named, space(), CHOICES, second_order=True)


@pytest.mark.slow
def test_a_second_order_search_takes_the_same_steps_on_both_backends(second_order: Darts[Space]) -> None:
    x, y = doubles(0)
    named = {"training_x": x, "training_y": y, "xi": torch.tensor(0.1, dtype=torch.float64)}

    assert second_order.alphas.compare_backends(*doubles(1), **named).agree


@pytest.mark.slow  # docs/architecture-search.md runs such a search, and the comparison below, with the other tests
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_search_finds_the_operation_that_made_the_data(backend: Any) -> None:
    darts = search(backend=backend)
    for i in range(100):  # first the weights alone, or an operation is judged by its first values
        darts.weights.adamw_step(*data(5000 + i), lr=0.03)
    for i in range(60):
        darts.step(data(2 * i), data(2 * i + 1), lr=0.03, alpha_lr=0.1)
    found = darts.discretise()

    assert found.operations["first"] == "square"
    assert darts.probabilities()["first"]["square"] > 0.6


@pytest.mark.slow
def test_what_was_found_is_retrained_alone_and_better_than_the_others() -> None:
    losses = {}
    for index, name in enumerate(CHOICES[0].operations):
        params = space()
        with torch.no_grad():
            params.first[index] = 5.0
        found = _unproved(params).discretise()
        trainer = ScalarTrainer(found.loss, found.of(space(seed=1)), save_frozen=False)
        for i in range(100):
            trainer.adamw_step(*data(i), lr=0.05)
        losses[name] = trainer.forward(*data(1000)).item()
        kept = {p for choice in CHOICES for p in choice.operations[found.operations[choice.alpha]]} | {"out"}
        assert set(trainer.state_dict()["params"]) == kept

    assert losses["square"] < 0.2 * min(losses["linear"], losses["deep"])


def test_a_discrete_loss_is_the_mixed_one_at_certain_logits() -> None:
    params = space()
    with torch.no_grad():
        params.first.copy_(torch.tensor([-1e4, 1e4, -1e4]))
        params.second.copy_(torch.tensor([1e4, -1e4]))
    found = search(params).discretise()

    torch.testing.assert_close(found.loss(params, *data(0)), loss(params, *data(0)))
    assert str(found) == "first: square, second: skip (32 parameters)"


@settings(max_examples=40)
@given(st.lists(st.floats(-3, 3), min_size=5, max_size=5), st.integers(0, 200))
def test_a_budget_gives_the_most_probable_architecture_within_it(logits: list[float], budget: int) -> None:
    params = space()
    with torch.no_grad():
        params.first.copy_(torch.tensor(logits[:3]))
        params.second.copy_(torch.tensor(logits[3:]))
    darts = _unproved(params)
    chances = darts.probabilities()
    sizes = {("first", "linear"): 24, ("first", "square"): 24, ("first", "deep"): 88}
    sizes |= {("second", "skip"): 0, ("second", "linear"): 64}
    every = [
        (8 + sizes["first", a] + sizes["second", b], chances["first"][a] * chances["second"][b])
        for a, b in itertools.product(chances["first"], chances["second"])
    ]
    within = [chance for size, chance in every if size <= budget]
    if not within:
        with pytest.raises(ValueError, match="the smallest architecture has 32 parameters"):
            darts.discretise(max_params=budget)
        return
    found = darts.discretise(max_params=budget)
    a, b = found.operations["first"], found.operations["second"]

    assert found.parameters <= budget
    assert chances["first"][a] * chances["second"][b] == pytest.approx(max(within))


def _unproved(params: Space) -> Darts[Space]:
    """A search without its trainers, whose proofs would take their time in each example."""
    darts: Darts[Space] = Darts.__new__(Darts)
    darts._loss, darts._params, darts.choices = loss, params, CHOICES
    return darts


@pytest.mark.slow
def test_a_search_saved_mid_run_goes_on_bit_for_bit_in_a_new_one() -> None:
    whole, first, second = search(), search(), search(space(seed=3))
    for i in range(4):
        whole.step(data(i), data(10 + i), lr=0.02)
    for i in range(2):
        first.step(data(i), data(10 + i), lr=0.02)
    second.load_state_dict(first.state_dict())
    for i in range(2, 4):
        second.step(data(i), data(10 + i), lr=0.02)

    assert all(torch.equal(a, b) for a, b in zip(whole._params, second._params, strict=True))
    before = second._params.values()
    with pytest.raises(StateError):
        second.load_state_dict({"weights": first.state_dict()["weights"], "alphas": {}})
    assert all(torch.equal(a, b) for a, b in zip(before, second._params, strict=True))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((), "choices is empty"),
        ((Choice("frist", {"a": ()}),), "Space has no entry `frist`; did you mean `first`"),
        ((Choice("first", {"a": ("linear",), "b": ()}),), r"Space.first is \[3\]: it has one logit for each of the 2"),
        ((Choice("first", {"a": ("linear",), "b": ("linear",), "c": ()}),), "`linear` belongs to two operations"),
    ],
)
def test_a_choice_that_does_not_fit_the_parameters_is_refused(choices: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Darts(loss, space(), choices)


def test_operations_of_different_shapes_are_refused_by_the_proof() -> None:
    def uneven(p: Space, x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
        return mixed("second", p.second, {"a": lambda: x, "b": lambda: x @ p.linear}).sum()

    with pytest.raises(ProofError, match="stack"):
        Darts(uneven, space(), CHOICES)


def test_logits_that_the_loss_does_not_use_are_a_missing_gradient() -> None:
    def deaf(p: Space, x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
        others = p.linear.sum() + p.square.sum() + p.up.sum() + p.across.sum() + p.more.sum() + p.out.sum()
        return mixed("first", p.first, {"a": lambda: x, "b": lambda: 2 * x, "c": lambda: 3 * x}).sum() + others

    with pytest.raises(GradientError, match="`deaf` does not depend on `second`"):
        Darts(deaf, space(), CHOICES)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ((Choice("first", {"square": ("square",), "linear": ("linear",), "deep": ("up", "across")}), CHOICES[1]),
         "give the same names in the same order"),
        ((CHOICES[0], Choice("second", {"skip": (), "linaer": ("more",)})), "give the same names in the same order"),
        (CHOICES[:1], "the loss calls `mixed` with `second`, which no Choice is for"),
    ],
)  # fmt: skip
def test_choices_that_are_not_those_of_the_loss_are_refused_before_the_search(choices: Any, said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        Darts(loss, space(), choices)


def test_a_misspelt_path_in_the_loss_is_refused_before_the_search() -> None:
    class Small(ParamList):
        first: Float[Tensor, " 2"] = init.zeros()
        w: Float[Tensor, "features one"]

    def misspelt(p: Small, x: Float[Tensor, "batch features"], y: Float[Tensor, "batch one"]) -> Float[Tensor, ""]:
        h = mixed("frist", p.first, {"linear": lambda: x @ p.w, "zero": lambda: torch.zeros_like(y)})
        return F.mse_loss(h, y)

    with pytest.raises(ShapeError, match=r"the loss has no mixed\('first', ...\); did you mean `frist`"):
        Darts(misspelt, Small.init(features=3, one=1), [Choice("first", {"linear": ("w",), "zero": ()})])


def test_logits_that_are_not_finite_choose_nothing() -> None:
    found = search()
    with pytest.raises(ValueError, match="xi is for a search of second order"):
        found.step(data(0), data(1), lr=0.1, xi=0.1)
    with torch.no_grad():
        found._params.second.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the logits `second` are not finite"):
        found.discretise()
