"""Operations written in terms of others give what torch's own give: values, gradients and running statistics."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap

from shaped import ParamList, ProofError, ScalarTrainer, Unprovable, init, prove
from shaped.proof.isolation import tracing
from shaped.proof.operations import OPERATIONS
from shaped.proof.rewrites import Rewrites, batch_norm, cross_entropy, one_hot, tensor_of
from shaped.proof.symbolic import Plan, World

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # float64, a few roundings


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- batch norm --------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(
    sizes=st.tuples(st.integers(2, 5), st.integers(1, 4)),
    rest=st.lists(st.integers(1, 3), max_size=2),
    momentum=st.sampled_from([0.1, 0.5, 0.0, 1.0]),
    training=st.booleans(),
    affine=st.booleans(),
)
def test_batch_norm_is_torch_s_in_its_result_its_gradient_and_its_running_statistics(
    sizes: tuple[int, int], rest: list[int], momentum: float, training: bool, affine: bool
):
    x = drawn(*sizes, *rest)
    weight, bias = (drawn(sizes[1], seed=1), drawn(sizes[1], seed=2)) if affine else (None, None)
    found: list[list[Tensor]] = []
    for rule in (batch_norm, F.batch_norm):
        mean, var = drawn(sizes[1], seed=3), drawn(sizes[1], seed=4).square()
        own = x.clone().requires_grad_()
        result = rule(own, mean, var, weight, bias, training, momentum, 1e-3)
        (gradient,) = torch.autograd.grad(result.square().sum(), own)
        found.append([result, gradient, mean, var])

    torch.testing.assert_close(found[0], found[1], **EXACT)


def test_batch_norm_of_bfloat16_keeps_float32_statistics_as_torch_does():
    x = drawn(6, 3, 4).bfloat16()
    found = []
    for rule in (batch_norm, F.batch_norm):
        mean, var = torch.zeros(3), torch.ones(3)
        result = rule(x, mean, var, torch.ones(3), torch.zeros(3), True)
        found.append((result.dtype, mean, var))

    assert found[0][0] is found[1][0] is torch.bfloat16
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-4, atol=1e-5)


# -- one_hot -----------------------------------------------------------------------------------------------------------


@given(shape=st.lists(st.integers(0, 3), max_size=3), classes=st.integers(2, 6), seed=st.integers(0, 9))
def test_one_hot_of_numbers_is_torch_s(shape: list[int], classes: int, seed: int):
    labels = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(one_hot(labels, classes), F.one_hot(labels, classes))


def test_one_hot_of_a_symbolic_number_of_classes_has_torch_s_shape_and_dtype():
    world = World(("batch", "classes"), Plan({"batch": 240, "classes": 336}))
    with tracing(), world.mode:
        labels = torch.empty(world.values["batch"], dtype=torch.int64)
        found = one_hot(labels, world.values["classes"])

    assert [world.show(size) for size in found.shape] == ["batch", "classes"]
    assert found.dtype is torch.int64
    assert world.env.asked == []


# -- cross_entropy under vmap ------------------------------------------------------------------------------------------

CLASSES = 5
KINDS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {  # x and target of one example
    "one label": ((CLASSES,), (), {}),
    "a row of labels": ((4, CLASSES), (4,), {}),
    "a sum": ((4, CLASSES), (4,), {"reduction": "sum"}),
    "each": ((4, CLASSES), (4,), {"reduction": "none"}),
    "a picture": ((2, CLASSES, 3, 2), (2, 3, 2), {}),
    "with ignored labels": ((6, CLASSES), (6,), {"ignore_index": 2}),
    "smoothed": ((4, CLASSES), (4,), {"label_smoothing": 0.1}),
    "weighted": ((4, CLASSES), (4,), {"weight": torch.arange(1.0, 6.0, dtype=torch.float64)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_of_each_example_under_vmap_is_torch_s(kind: str):
    shape, labels, options = KINDS[kind]
    x = drawn(7, *shape)
    target = torch.randint(0, CLASSES, (7, *labels), generator=torch.Generator().manual_seed(1))
    found = vmap(lambda a, t: cross_entropy(a, t, **options))(x, target)
    expected = torch.stack([F.cross_entropy(a, t, **options) for a, t in zip(x, target, strict=True)])

    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_for_each_example_is_torch_s(kind: str):
    shape, labels, options = KINDS[kind]
    x = drawn(7, *shape)
    target = torch.randint(0, CLASSES, (7, *labels), generator=torch.Generator().manual_seed(1))
    found = vmap(grad(lambda a, t: cross_entropy(a, t, **options).sum()))(x, target)
    own = x.clone().requires_grad_()
    total = sum(F.cross_entropy(a, t, **options).sum() for a, t in zip(own, target, strict=True))
    (expected,) = torch.autograd.grad(total, own)  # type: ignore[arg-type]

    torch.testing.assert_close(found, expected, **EXACT)


def test_without_vmap_each_is_torch_s_own_bit_for_bit():
    x, target = drawn(7, CLASSES), torch.arange(7) % CLASSES
    with Rewrites():
        found = (
            F.cross_entropy(x, target, label_smoothing=0.2),
            F.one_hot(target, CLASSES),
            F.batch_norm(x, None, None, training=True),
        )
    expected = (
        F.cross_entropy(x, target, label_smoothing=0.2),
        F.one_hot(target, CLASSES),
        F.batch_norm(x, None, None, training=True),
    )

    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


# -- in proofs ---------------------------------------------------------------------------------------------------------


class Norm(ParamList):
    w: Float[Tensor, "features hidden"]
    mean: Float[Tensor, " hidden"] = init.zeros()
    var: Float[Tensor, " hidden"] = init.ones()


def dice(z: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " classes"]:
    return (z.softmax(1) * F.one_hot(y, z.shape[1])).sum(0)


def gradient_of_each(
    w: Float[Tensor, "features classes"], x: Float[Tensor, "batch features"], y: Int[Tensor, " batch"]
) -> Float[Tensor, "batch features classes"]:
    return vmap(grad(lambda w, a, t: F.cross_entropy(a @ w, t)), in_dims=(None, 0, 0))(w, x, y)


def weighted(x: Float[Tensor, "n c"], y: Int[Tensor, " n"], w: Float[Tensor, " c"]) -> Float[Tensor, ""]:
    return F.cross_entropy(x, y, weight=w)


def test_cross_entropy_with_weights_is_proved():
    assert prove(weighted).conditions == ()


@pytest.mark.parametrize("function", [dice, gradient_of_each], ids=lambda function: function.__name__)
def test_they_are_proved_for_all_sizes(function: Callable[..., Any]):
    assert prove(function).conditions == ()


def test_the_graph_of_a_rewritten_program_gives_torch_s_values():
    w, x, y = drawn(3, CLASSES).float(), drawn(4, 3, seed=1).float(), torch.tensor([0, 4, 2, 2])
    graph = prove(gradient_of_each).graph_at({"batch": 4, "features": 3, "classes": CLASSES})
    (found,) = graph(w, x, y)

    torch.testing.assert_close(found, gradient_of_each(w, x, y), rtol=1e-5, atol=1e-6)


def plane(theta: Float[Tensor, "n 2 3"], x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w 2"]:
    return F.affine_grid(theta, list(x.shape), align_corners=True)


def space(theta: Float[Tensor, "n 3 4"], x: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n d h w 3"]:
    return F.affine_grid(theta, list(x.shape), align_corners=False)


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid")  # torch's own, for one point alone
@pytest.mark.parametrize(("function", "axes"), [(plane, "h w"), (space, "d h w")])
def test_an_affine_grid_is_proved_for_all_sizes_and_is_torch_s(function: Callable[..., Any], axes: str):
    proof = prove(function)
    names = axes.split()

    assert proof.conditions == ()
    for sizes in ([1, 4, 3], [2, 1, 1], [5, 2, 6]):
        shape = sizes[: len(names)]
        theta, x = drawn(2, len(names), len(names) + 1).float(), drawn(2, 1, *shape).float()
        (found,) = proof.graph_at({"n": 2, "c": 1, **dict(zip(names, shape, strict=True))})(theta, x)
        torch.testing.assert_close(found, function(theta, x), rtol=1e-5, atol=1e-6)


def test_a_theta_that_does_not_fit_an_affine_grid_is_refused():
    def wrong(theta: Float[Tensor, "n 2 3"], x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m h w 2"]:
        return F.affine_grid(theta, list(x.shape), align_corners=False)

    with pytest.raises(ProofError, match=r"goal +n = m"):
        prove(wrong)


def test_running_statistics_are_written_and_the_statement_says_so():
    def loss(p: Norm, x: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
        return F.batch_norm(x @ p.w, p.mean, p.var, training=True).exp().mean()

    params = Norm.init(features=3, hidden=4, frozen=("mean", "var"))
    proof = ScalarTrainer(loss, params).proof

    assert proof.writes == ("mean", "var")
    assert "writes       mean, var" in str(proof)
    assert "batch >= 2" in proof.conditions


def skewed(v: Float[Tensor, "3"], n: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3"]:
    return n @ torch.tensor([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])


def of_rows(x: Float[Tensor, "rows 3"]) -> Float[Tensor, "2"]:
    return torch.tensor([x[0], x[0]])


def copied(x: Float[Tensor, "rows 3"]) -> Float[Tensor, "rows 3"]:
    return copy.deepcopy(LAYER)(copy.deepcopy(x)) + copy.deepcopy(OUTSIDE)


def of_copied_sizes(x: Float[Tensor, "rows cols"]) -> Float[Tensor, "cols rows"]:
    sizes = copy.deepcopy({"rows": x.shape[0], "cols": x.shape[1]})
    return x.reshape(sizes["rows"], sizes["cols"]).T


def test_a_copy_of_a_size_is_the_size() -> None:  # and not of the world it is of, whose storages it would free twice
    assert not prove(of_copied_sizes).conditions


LAYER, OUTSIDE = nn.Linear(3, 3), torch.ones(3)


def test_numbers_in_tensors_make_a_tensor() -> None:
    assert not prove(skewed).conditions
    with pytest.raises(ProofError, match="only one element tensors"):
        prove(of_rows)
    for one, other in itertools.product((torch.int32, torch.float16, torch.float64), (2, 2.0, True, torch.ones(1))):
        real = torch.tensor([torch.ones((), dtype=one), other])
        with FakeTensorMode(allow_non_fake_inputs=True):
            made = tensor_of(torch.tensor)([torch.ones((), dtype=one), other])

        assert (made.dtype, made.shape) == (real.dtype, real.shape)


def test_a_deep_copy_of_a_tensor_has_its_shape_and_values_of_its_own() -> None:
    assert not prove(copied).conditions


# -- numbers that sizes make -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scale", [lambda d: 1 / d**0.5, lambda d: d**-0.5, lambda d: 1 / math.sqrt(d), lambda d: 2 / d]
)
def test_attention_takes_a_scale_that_a_size_makes(scale: Callable[[Any], Any]) -> None:
    def program(q: Float[Tensor, "b n d"], k: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        return F.scaled_dot_product_attention(q, k, k, scale=scale(q.shape[-1]))

    assert prove(program).conditions == ()


def test_attention_with_such_a_scale_steps_as_torch_does() -> None:
    class Heads(ParamList):
        w: Float[Tensor, "d d"]

    def loss(p: Heads, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        q = x @ p.w
        return F.scaled_dot_product_attention(q, x, x, scale=3 / q.shape[-1] ** 0.5).square().mean()

    x, w = drawn(5, 4), drawn(4, 4, seed=1)
    trainer = ScalarTrainer(loss, Heads(w=w.clone()), backend="compiled")
    wanted = w.clone().requires_grad_()
    loss(Heads(w=wanted), x).backward()
    trainer.step(x, lr=0.1)

    torch.testing.assert_close(trainer.params.w.data, w - 0.1 * wanted.grad, **EXACT)  # type: ignore[operator]


def test_math_takes_fractions_of_sizes() -> None:
    def program(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        n, d = x.shape
        return x * math.sqrt(2 / d) * math.pow(d, -0.5) + math.log(n / d) * math.exp(-n) * math.exp(-1 / d) * math.cos(
            math.pi / n
        )

    assert prove(program).conditions == ()


def test_a_number_that_torch_does_not_take_of_sizes_is_told_with_what_goes_through() -> None:
    def program(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return F.dropout(x, p=1 / x.shape[-1])

    with pytest.raises(Unprovable, match=r'take it as a number: static=\["d"\]'):
        prove(program)
    assert prove(program, static=["d"]).conditions == ()


def test_a_relation_of_fractions_ends_in_no_recursion() -> None:
    def program(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        assert 1.0 / x.shape[1] ** 0.5 == 0.25
        return x

    with pytest.raises(ProofError, match=r"1.0 / d\*\*0.5 = 0.25"):
        prove(program)


def filled(w: Tensor, rate: Any) -> Tensor:
    nn.init.xavier_uniform_(w)
    nn.init.normal_(w[:1], std=rate)
    return w + torch.empty_like(w).uniform_(-rate, rate) + torch.empty_like(w).random_(1, 5)


def test_what_is_drawn_with_numbers_that_sizes_make_is_proved_and_drawn_as_torch_does() -> None:
    class Square(ParamList):
        w: Float[Tensor, "d d"]

    def loss(p: Square, x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        d = x.shape[1]
        return (x @ p.w @ filled(x.new_empty(d, d), 1 / float(d))).square().mean()

    x, w = drawn(5, 4), drawn(4, 4, seed=1)
    trainer = ScalarTrainer(loss, Square(w=w.clone()))
    torch.manual_seed(3)
    found = trainer.step(x, lr=0.1)
    torch.manual_seed(3)

    torch.testing.assert_close(found, loss(Square(w=w), x), **EXACT)
    assert trainer.proof.conditions == ()


def test_what_the_rewrite_draws_is_what_torch_draws() -> None:
    for name, numbers in (("uniform_", (-0.25, 0.5)), ("normal_", (0.5, 0.25)), ("random_", (1, 5))):
        torch.manual_seed(3)
        wanted = getattr(torch.empty(40, dtype=torch.float64), name)(*numbers)
        low, high = numbers
        torch.manual_seed(3)
        if name == "random_":
            found = OPERATIONS[Tensor.random_](torch.empty(40, dtype=torch.float64), *numbers)
        else:
            found = getattr(torch.empty(40, dtype=torch.float64), name)()
            found = found.mul_(high - low).add_(low) if name == "uniform_" else found.mul_(high).add_(low)

        torch.testing.assert_close(found, wanted, **EXACT)


def by_python(x: Float[Tensor, "n d"]) -> Float[Tensor, "n//2 d"]:
    return x[: int(x.shape[0] / 2)] / float(x.shape[1])


def test_a_size_is_a_fraction_and_half_of_it_a_size() -> None:
    assert prove(by_python).conditions == ()


def test_a_file_that_is_not_there_is_no_matter_of_shapes() -> None:
    def program(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x * torch.load("absent.pt")

    with pytest.raises(Unprovable, match=r"`program` reads a file here\.[\s\S]*No such file[\s\S]*read it outside"):
        prove(program)
