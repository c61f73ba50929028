"""A proof ends with a run on real numbers: what kernels refuse is refused; values prove nothing; no state changes."""

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shaped import ProofError, prove
from shaped.proof.conditions import Condition
from shaped.proof.rehearsal import draw_sizes
from tests.models import mlp_loss


def softmax_of_integers(x: Int[Tensor, "n d"]) -> Int[Tensor, "n d"]:
    return x.softmax(-1)


def gelu_of_integers(x: Int[Tensor, "n d"]) -> Int[Tensor, "n d"]:
    return F.gelu(x)


def mean_of_integers(x: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return x.mean(-1)


def index_add_of_another_dtype(
    x: Float[Tensor, "n d"], out: Float[Tensor, "m d"], i: Int[Tensor, " n"]
) -> Float[Tensor, "m d"]:
    return out.double().index_add(0, i, x).float()


def weights_of_another_dtype(x: Float[Tensor, "n c"], y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.nll_loss(x.log_softmax(-1), y, weight=torch.ones(x.shape[1], dtype=torch.float64))


def targets_of_another_dtype(x: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    return F.binary_cross_entropy(x, y.double())


def a_sum_over_no_axis(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return x.sum(2)


def a_softmax_over_no_axis(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return x.softmax(2)


def a_negative_mask(x: Bool[Tensor, "n d"]) -> Bool[Tensor, "n d"]:
    return -x


REFUSED: dict[Callable[..., Any], str] = {  # and a part of torch's words
    softmax_of_integers: "not implemented for 'Long'",
    gelu_of_integers: "not implemented for 'Long'",
    mean_of_integers: "floating point",
    index_add_of_another_dtype: "same scalar type",
    weights_of_another_dtype: "Double",
    targets_of_another_dtype: "Double",
    a_sum_over_no_axis: "Dimension out of range",
    a_softmax_over_no_axis: "Dimension out of range",
    a_negative_mask: "on a bool tensor is not supported",
}


def name_of(function: Callable[..., Any]) -> str:
    return function.__name__


@pytest.mark.parametrize("function", REFUSED, ids=name_of)
def test_what_a_kernel_refuses_is_refused_at_its_line_in_torch_s_words(function: Callable[..., Any]):
    with pytest.raises(ProofError) as caught:
        prove(function)
    error = caught.value

    assert error.source is not None
    assert error.source.line > function.__code__.co_firstlineno
    assert REFUSED[function] in error.goal.said
    assert set(error.goal.sizes) <= {"n", "d", "m", "c"}


def test_the_whole_message_of_a_kernel_that_refuses():
    with pytest.raises(ProofError) as caught:
        prove(softmax_of_integers)

    assert str(caught.value) == (
        "`softmax_of_integers` is not well-shaped.\n"
        f"  test_rehearsal.py:{softmax_of_integers.__code__.co_firstlineno + 1}   return x.softmax(-1)\n"
        f"{' ' * len(f'  test_rehearsal.py:{softmax_of_integers.__code__.co_firstlineno + 1}   ')}"
        "       ~~~~~~~~~~~~~\n"
        "  torch    \"softmax_lastdim_kernel_impl\" not implemented for 'Long'\n"
        "  refuted  n = 2, d = 3"
    )


def cholesky(x: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return torch.linalg.cholesky(x - 100)


def inverse(x: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return torch.linalg.inv(x - x)


def solve(x: Float[Tensor, "n n"], b: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    return torch.linalg.solve(0 * x, b)


def index(x: Float[Tensor, "n d"], i: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
    return x[i + 10**6]


def index_select(x: Float[Tensor, "n d"], i: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
    return x.index_select(0, i + 10**6)


def gather(x: Float[Tensor, "n d"], i: Int[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return x.gather(1, i - 10**6)


def embedding(w: Float[Tensor, "v d"], i: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    return F.embedding(i + 10**6, w)


def class_number(x: Float[Tensor, "n d"], y: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.cross_entropy(x, y + 10**6)


def multinomial(x: Float[Tensor, "n d"]) -> Int[Tensor, "n 1"]:
    return torch.multinomial(-x, 1)


def bernoulli(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return torch.bernoulli(x + 7)


def probabilities(x: Float[Tensor, "n c"], y: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    return F.binary_cross_entropy(x + 7, y)


def a_quotient(x: Float[Tensor, " n"], by: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return x * (7 // by)


VALUES = [
    a_quotient, cholesky, inverse, solve, index, index_select, gather, embedding, class_number, multinomial,
    bernoulli, probabilities,
]  # fmt: skip


@pytest.mark.parametrize("function", VALUES, ids=name_of)
def test_values_that_a_kernel_refuses_prove_nothing(function: Callable[..., Any], request: pytest.FixtureRequest):
    if function is bernoulli:
        request.applymarker(pytest.mark.xfail(reason="torch's words for it are not known", strict=True))

    assert prove(function).conditions == ()


def layer_without_memory(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
    layer = nn.Linear(3, 2, device="meta")  # its initialiser draws where nothing is
    return torch.func.functional_call(layer, {"weight": x.new_ones(2, 3), "bias": x.new_ones(2)}, (x,))


def test_a_module_of_no_memory_within_a_program_is_no_fault():
    assert prove(layer_without_memory).conditions == ()


def draws(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return F.dropout(x, 0.5) + torch.rand_like(x) + torch.randn(x.shape[0], 1)


def refused_after_a_draw(x: Int[Tensor, "n d"]) -> Int[Tensor, "n d"]:
    return torch.randint_like(x, 9).softmax(-1)


@pytest.mark.parametrize("function", [draws, mlp_loss, refused_after_a_draw], ids=name_of)
def test_no_state_of_the_process_is_touched(function: Callable[..., Any]):
    torch.manual_seed(7)
    random.seed(7)
    numpy.random.seed(7)
    before = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        try:
            prove(function)
        except ProofError:
            assert function is refused_after_a_draw

        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(numpy.random.get_state()) == before[2]
    assert torch.get_default_dtype() is torch.float32
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.overrides._get_current_function_mode() is None
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


CONDITIONS = [
    ("seq <= context",), ("dim % heads == 0",), ("dim % 4 == 0", "seq <= context"), ("t >= k",), ("t >= 2*k - 1",),
    ("height >= 3", "width >= 3"), ("c % 4 == 0", "batch >= 2 or c//4 >= 2"), ("a == b",), ("a != b",), ("a == 3",),
    ("a % 2 == 1",), ("dim % (2*heads) == 0",), ("n*m % 6 == 0",), ("height >= 16", "width >= 16"), ("a - 3 != 0",),
]  # fmt: skip


@settings(max_examples=80)
@given(texts=st.sampled_from(CONDITIONS), seed=st.integers(0, 1000), data=st.data())
def test_drawn_sizes_satisfy_the_conditions_and_keep_static_ones(
    texts: tuple[str, ...], seed: int, data: st.DataObject
):
    conditions = [Condition.parse(text) for text in texts]
    names = sorted({name for condition in conditions for name in condition.names} | {"other"})
    static = data.draw(st.sampled_from([{}, {"other": 1}, {"other": 30}]))
    sizes = draw_sizes(names, static, conditions, seed)

    assert sizes is not None
    assert list(sizes) == names
    assert all(condition.holds(sizes) for condition in conditions)
    assert all(size >= 2 for name, size in sizes.items() if name not in static)
    assert {name: sizes[name] for name in static} == static


def test_no_sizes_are_drawn_where_none_satisfy_the_conditions():
    assert draw_sizes(["a"], {}, [Condition.parse("a >= 5"), Condition.parse("a <= 4")]) is None


def test_sizes_are_mostly_distinct_so_that_no_two_meet_by_accident():
    sizes = draw_sizes(["a", "b", "c", "d"], {}, [Condition.parse("a <= b")])

    assert sizes is not None
    assert len(set(sizes.values())) == 4
