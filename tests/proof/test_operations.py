"""Operations that torch writes over plain numbers are proved for all sizes, and give what torch gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, ProofError, SignatureError, Unprovable, prove
from shaped.proof import operations
from shaped.proof.indexing import take_along_dim
from shaped.proof.rewrites import kron
from shaped.proof.setting import Setting
from shaped.proof.symbolic import Plan, World
from shaped.proof.trace import Recorder, trace
from shaped.shapes import read_signature

noise = torch.Generator()


def pooled(x: Float[Tensor, "n c l"]) -> Float[Tensor, "n c l//2"]:
    return F.max_pool1d(x, 2)


def in_order(x: Float[Tensor, "n l d"]) -> Float[Tensor, "n l d"]:
    return torch.take_along_dim(x, x.argsort(1), 1)


def windowed(x: Float[Tensor, "n l"]) -> Float[Tensor, "n l"]:
    return x * torch.hann_window(x.shape[1]) * torch.hamming_window(x.shape[1], False)


def likelihood(m: Float[Tensor, "n d"], y: Float[Tensor, "n d"], v: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    return F.gaussian_nll_loss(m, y, v)


def spaced(x: Float[Tensor, "n l"]) -> Float[Tensor, "n l"]:
    return x * torch.logspace(0, 1, x.shape[1])


def covariance(x: Float[Tensor, "n l"]) -> Float[Tensor, "n n"]:
    return x.cov()


def of_one_variable(x: Float[Tensor, " n"], y: Float[Tensor, " m"]) -> Float[Tensor, " n*m"]:
    return torch.kron(x, y) * x.cov() + torch.corrcoef(x)


def a_quarter(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d//4"]:
    return x[:, : int(x.shape[1] * 0.25)]


def frequent(x: Float[Tensor, "n l"]) -> Float[Tensor, "n l//2+1"]:
    shifted = torch.fft.fft(x, dim=0).abs() * torch.fft.fftfreq(x.shape[0], 0.5).unsqueeze(1)
    return torch.fft.rfft(shifted).abs() * torch.fft.rfftfreq(x.shape[1])


def tapered(x: Float[Tensor, "n l"]) -> Float[Tensor, "n l"]:
    return x * torch.bartlett_window(x.shape[1]) * torch.kaiser_window(x.shape[1], False, 6.0)


def powers(x: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    return torch.vander(x, increasing=True) + torch.vander(x, x.shape[0])


def forms(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], w: Float[Tensor, "k d e"]) -> Float[Tensor, "n k"]:
    return F.bilinear(x, y, w)


def correlation(x: Float[Tensor, "n l"]) -> Float[Tensor, "n n"]:
    return torch.corrcoef(x)


def halved(x: Float[Tensor, "n d"]) -> Float[Tensor, "n//2+1 d"]:
    return torch.fft.rfft(x, dim=0).abs()


def noisy(x: Float[Tensor, "n l"]) -> Float[Tensor, "n l"]:
    return x + torch.randn(x.shape, generator=noise) + torch.rand(x.shape[0], 1, generator=noise)


def noisy_by_default(x: Float[Tensor, "n l"]) -> Float[Tensor, "n l"]:
    return x + torch.randn(*x.shape) + torch.rand(x.shape[0], 1) + torch.randn(x.shape, generator=None)


def grouped(x: Float[Tensor, "n 8"], w: Float[Tensor, "3 8 k"], ends: Int[Tensor, "3"]) -> Float[Tensor, "n k"]:
    return F.grouped_mm(x, w, offs=ends.int())


PROVED: dict[Callable[..., Any], tuple[str, ...]] = {
    pooled: ("l >= 2",),
    in_order: (),
    windowed: (),
    likelihood: (),
    spaced: (),
    covariance: ("n >= 2",),
    of_one_variable: (),
    a_quarter: (),
    frequent: (),
    tapered: (),
    powers: (),
    forms: (),
    correlation: ("n >= 2",),
    halved: (),
    noisy: (),
    noisy_by_default: (),
    grouped: ("k % 4 == 0",),
}


@pytest.mark.parametrize("function", PROVED, ids=lambda function: function.__name__)
def test_an_operation_with_a_plain_shape_is_proved_for_all_sizes(function: Callable[..., Any]) -> None:
    assert prove(function).conditions == PROVED[function]


class Rows(ParamList):
    w: Float[Tensor, "n l"]


def of_many(p: Rows, x: Float[Tensor, "n l"]) -> Float[Tensor, ""]:
    y = windowed(x) * tapered(x.cos()) + spaced(x)
    y = y * forms(x, x, p.w.unsqueeze(1) * p.w.unsqueeze(2)).sum()
    return (p.w * y).sum() + frequent(p.w).sum() + (covariance(p.w) * correlation(x) * powers(x[:, 0])).sum()


@pytest.mark.parametrize("shape", [(4, 6), (3, 7)])
def test_at_free_sizes_they_give_what_torch_gives(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    w, x = (torch.rand(shape, generator=generator) for _ in range(2))
    names = ("n", "l")
    world = World(names, Plan({"n": 240, "l": 336}))
    setting = Setting(read_signature(of_many), (torch.float32,) * 2, (False, False), torch.device("cpu"))
    graph = trace(setting, world, Recorder(world)).graph

    torch.testing.assert_close(graph(w, x)[0], of_many(Rows(w=w), x))


def test_the_other_forms_give_what_torch_gives() -> None:
    x = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    beyond = torch.tensor([0, 8, 9, 20])  # torch wraps what lies beyond an axis
    pairs = [
        (operations.max_pool1d(x, 2), F.max_pool1d(x, 2)),
        (operations.max_pool1d(x[None], 3, 2, 1, 1, True), F.max_pool1d(x[None], 3, 2, 1, 1, True)),
        (operations.cov(x, correction=0), torch.cov(x, correction=0)),
        (operations.cov(x[0]), torch.cov(x[0])),
        (operations.corrcoef(x[0]), torch.corrcoef(x[0])),
        *((kron(a, b), torch.kron(a, b)) for a, b in ((x, x[:2]), (x, x[0]), (x[0], x), (x[0, 0], x[None]))),
        *((take_along_dim(x, i[:, None], 1), torch.take_along_dim(x, i[:, None], 1)) for i in (beyond, -beyond)),
    ]

    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(4, 9), (4, 1), (4,)])
def test_a_likelihood_of_variances_and_its_gradient_are_torchs(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    var = torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
    losses = [f(x, y, var, full=True) for f in (operations.gaussian_nll_loss, F.gaussian_nll_loss)]
    gradients = [torch.autograd.grad(loss, var)[0] for loss in losses]

    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_products_of_groups_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(12, 8, generator=generator), torch.randn(3, 8, 16, generator=generator)
    ends = torch.tensor([4, 4, 12], dtype=torch.int32)

    torch.testing.assert_close(operations.grouped_mm(x, w, offs=ends), F.grouped_mm(x, w, offs=ends))


@pytest.mark.parametrize(("axis", "size", "step"), [(2, 3, 2), (-2, 4, 1), (1, 6, 1), (0, 1, 1), (2, 7, 3)])
def test_windows_that_are_looked_up_are_torchs(axis: int, size: int, step: int) -> None:
    x = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(operations.windows(x, axis, size, step), x.unfold(axis, size, step))


def test_groups_that_are_normalised_by_their_mean_and_variance_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(n, dtype=torch.float64, generator=generator) for n in ((2, 6, 7), (6,), (6,)))

    torch.testing.assert_close(operations.normalised(x, 3, w, b, 1e-5), F.group_norm(x, 3, w, b))


def halves(x: Float[Tensor, "n m"]) -> Float[Tensor, "n-n//2+1 m n//2"]:
    return x.unfold(0, x.shape[0] // 2, 1)


def by_channel(x: Float[Tensor, "n c t"]) -> Float[Tensor, "n c t"]:
    return F.group_norm(x, x.shape[1])


def half_of_a_square(x: Float[Tensor, "m m"]) -> Float[Tensor, " (m**2+1)//2"]:
    return x.flatten().chunk(2)[0]


def test_windows_groups_and_halves_of_any_length_are_proved() -> None:
    assert prove(halves).conditions == ()
    assert prove(by_channel).conditions == ("n >= 2 or t >= 2",)
    assert prove(half_of_a_square).conditions == ()


def solved(a: Float[Tensor, "n m"], b: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
    solution: Tensor = torch.linalg.lstsq(a, b).solution
    return solution


def counted(x: Int[Tensor, " n"], w: Float[Tensor, " k"]) -> Int[Tensor, " k"]:
    return torch.bincount(x, minlength=w.shape[0])


def by_pinv(a: Float[Tensor, "n m"], b: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
    return torch.linalg.pinv(a) @ b


def by_one_hot(x: Int[Tensor, " n"], w: Float[Tensor, " k"]) -> Int[Tensor, " k"]:
    return F.one_hot(x, w.shape[0]).sum(0)


@pytest.mark.parametrize(
    ("function", "hint", "instead"),
    [(solved, "torch.linalg.pinv(a) @ b", by_pinv), (counted, "F.one_hot(x, n).sum(0)", by_one_hot)],
)
def test_the_remedy_for_a_shape_that_is_data_is_proved(
    function: Callable[..., Any], hint: str, instead: Callable[..., Any]
) -> None:
    with pytest.raises(Unprovable) as caught:
        prove(function)

    assert hint in caught.value.goal.hint
    assert prove(instead).conditions == ()


def packed(x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    rows = torch.nn.utils.rnn.pack_padded_sequence(x, lengths + 1, batch_first=True, enforce_sorted=False)
    return rows.data.sum()


def packed_as_given(x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    rows = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return rows.data.sum()


@pytest.mark.parametrize("function", [packed, packed_as_given])
def test_a_sum_over_packed_rows_is_proved_however_many_they_are(function: Callable[..., Any]) -> None:
    assert prove(function).conditions == ()


def aligned(x: Float[Tensor, "t n c"], y: Int[Tensor, "n s"], ends: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    return F.ctc_loss(x.half().log_softmax(-1), y, ends, ends)


def test_an_alignment_in_half_precision_is_unprovable_and_no_mask_is_advised() -> None:
    with pytest.raises(Unprovable, match="in float32 or float64") as caught:
        prove(aligned)

    assert "torch.where" not in str(caught.value)


def different(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return x.unique().sum()


def paired(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    return x.unique().reshape(2, -1).sum()


def test_a_sum_of_as_many_numbers_as_data_decide_is_proved() -> None:
    assert prove(different).conditions == ()


def test_a_size_that_data_decides_is_told_without_torchs_symbols() -> None:
    with pytest.raises(Unprovable, match="shape depends on data") as caught:
        prove(paired)

    assert "Relational" not in str(caught.value)


def exits(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    raise SystemExit(0)


def test_a_function_that_ends_the_process_is_unprovable() -> None:
    with pytest.raises(Unprovable, match=r"`exits` ends the process: sys\.exit\(0\)\."):
        prove(exits)


def second_of_one(x: Float[Tensor, "a 1"]) -> Float[Tensor, "a 1"]:
    return x.chunk(2, 1)[1]


def test_an_index_of_the_users_is_refuted_with_sizes() -> None:
    with pytest.raises(ProofError) as caught:
        prove(second_of_one)

    assert caught.value.goal.sizes


def test_sizes_that_no_tensor_has_are_refused() -> None:
    def minus(x: Float[Tensor, "-1 m"]) -> Float[Tensor, "-1 m"]:
        return x

    with pytest.raises(SignatureError, match="`-1` is no size"):
        prove(minus)
    with pytest.raises(SignatureError, match="larger than any tensor can be"):
        prove(in_order, static={"n": 2**70})


def checked_by_torch(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    torch._check_tensor_all(x < 1)
    return x.sum()


def checked_as_a_number(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    torch._check(x.sum().item() < 1)
    return x.sum()


@pytest.mark.parametrize("function", [checked_by_torch, checked_as_a_number])
def test_a_check_of_values_that_a_graph_would_lose_is_unprovable_and_the_remedy_is_named(
    function: Callable[..., Any],
) -> None:
    with pytest.raises(Unprovable, match="checks a value here, which a graph would not") as caught:
        prove(function)

    assert "torch._assert_async(condition.all(), message)" in str(caught.value)
