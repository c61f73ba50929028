"""Statements held against runs on real tensors: what is admitted runs, what runs is admitted, what is refuted fails."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ProofError, Unprovable, prove
from shaped.proof.conditions import Condition, in_one


def parts(x: Float[Tensor, "n d"]) -> Float[Tensor, "n-3 d"]:
    return x.split([3, x.shape[0] - 3])[1]


def odd_and_not_too_small(x: Float[Tensor, "n d"]) -> Float[Tensor, "n//2-1 d"]:
    return x[1:].reshape(-1, 2, x.shape[1])[1:, 0]


def one_side_fails(x: Float[Tensor, "n d"]) -> Float[Tensor, "n-1 d"]:
    return x[1:] if x.shape[0] > 4 else x


def scattered(x: Float[Tensor, "n m"], y: Float[Tensor, "k m"], i: Int[Tensor, "n m"]) -> Float[Tensor, "k m"]:
    return y.scatter_add(1, i, x)


def over_one_entry(x: Float[Tensor, "n c"]) -> Float[Tensor, "n-1 c"]:
    return F.batch_norm(x[1:], None, None, training=True)


def chosen(x: Float[Tensor, "n m"]) -> Float[Tensor, "2 m-1"]:
    return x.unfold(1, 2, 1)[[0, 2]].sum(2)


def chosen_beyond(x: Float[Tensor, "n d"]) -> Float[Tensor, "2 d"]:
    return x[:-1][torch.tensor([0, 2])]


def indexed_by_another(x: Float[Tensor, "n d"], y: Float[Tensor, " m"]) -> Float[Tensor, "m d"]:
    return x[torch.arange(y.shape[0])]


def claims_few(x: Float[Tensor, "a b"]) -> Float[Tensor, ""]:
    assert x.numel() <= x.shape[0]
    return x.sum()


def either_way(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    assert x.shape[0] < 3 or x.shape[1] > 2
    return x


def uneven_parts(x: Float[Tensor, "n d"]) -> Float[Tensor, "n//3 d"]:
    return x.tensor_split(3)[1]


def halved_twice(x: Float[Tensor, "n d"]) -> Float[Tensor, "(n//2)//2 d"]:
    half = x[: x.shape[0] // 2]
    return half.chunk(2)[0]


def last(x: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
    return x[:, x.shape[1] - 1]


def last_of_each(x: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
    return x[torch.arange(x.shape[0]), x.shape[1] - 1]


def ends(x: Float[Tensor, "b t"]) -> Float[Tensor, "b 2"]:
    return x[..., [0, x.shape[1] // 2]]


def before_the_first(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    return x[x.shape[1] - 4]


def written_at_a_size(x: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    y = torch.zeros_like(x)
    y[:, x.shape[1] // 2] = x[:, 0]
    return y


def enlarged(x: Float[Tensor, "b c h"]) -> Float[Tensor, "b c h//2"]:
    return F.interpolate(x, scale_factor=0.5)


def taken_along(x: Float[Tensor, "a b"]) -> Float[Tensor, "a b"]:
    return torch.take_along_dim(x, x.argsort(1), 1)


def divided_by_what_may_be_nothing(x: Float[Tensor, "a a+1 a"]) -> Float[Tensor, ""]:
    return x.reshape(x.shape[0], x.shape[1], -1, 4).sum()


def every_other_in_thirds(x: Float[Tensor, "n d"]) -> Float[Tensor, "((n-1)//2+1)//3 d"]:
    return x[::2].tensor_split(3)[0]


def second_of_three(x: Float[Tensor, "n d"]) -> Float[Tensor, "(n+2)//3 d"]:
    return x.chunk(3)[1]


def three_of_the_pairs(x: Float[Tensor, "k m"]) -> Float[Tensor, "3 2"]:
    pairs = x.unfold(1, 2, 2).reshape(-1, 2)
    return pairs.split([3, x.shape[0] * (x.shape[1] // 2) - 3])[0]


def two_where_odd(x: Float[Tensor, "n d"]) -> Float[Tensor, "n-2 d"]:
    return x[2:] if x.shape[1] % 2 == 0 else x[2:][:2]


def looks_up_in_nothing(x: Float[Tensor, "n m"]) -> Float[Tensor, "2 m//2"]:
    return x[:, : x.shape[1] // 2][[0, 1]]


def counts_around(x: Float[Tensor, "n d"], y: Float[Tensor, " m"]) -> Float[Tensor, "m d"]:
    return x[3:][torch.arange(y.shape[0]) % (x.shape[0] - 3)]


def two_of_the_thirds(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m//3"]:
    thirds = x.view(x.shape[0], x.shape[1] // 3, 3).sum(2)
    return thirds if x.shape[0] > 3 else thirds[:, :2]


def pooled_together(x: Float[Tensor, "a m"], y: Float[Tensor, "a n"]) -> Float[Tensor, "a (m+n+1)//2"]:
    return F.avg_pool1d(torch.cat([x, y], 1), 2, 2, ceil_mode=True)


def every_other_of_as_many(x: Float[Tensor, "n d"], y: Float[Tensor, " m"]) -> Float[Tensor, "m//2 d"]:
    return x[: y.shape[0]][1::2]


def up_to_a_product(x: Float[Tensor, " n"], y: Float[Tensor, "m k"]) -> Float[Tensor, " n"]:
    return x[: y.shape[0] * y.shape[1]]


def last_of_four(x: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    return x.chunk(4, -1)[-1].sum()


def padded_where_two_less_are_thirds(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    x = x[: max(x.shape[0] - 2, 1)]
    return F.pad(x[None], (2, 2), mode="reflect").sum() if x.shape[0] % 3 == 0 else x.sum()


PROGRAMS: list[Callable[..., Any]] = [
    padded_where_two_less_are_thirds,
    up_to_a_product, last_of_four,
    parts, odd_and_not_too_small, one_side_fails, scattered, over_one_entry, chosen, chosen_beyond,
    indexed_by_another, claims_few, either_way, uneven_parts, halved_twice, last, last_of_each, ends,
    before_the_first, written_at_a_size, enlarged, taken_along, divided_by_what_may_be_nothing,
    every_other_in_thirds, second_of_three, three_of_the_pairs, two_where_odd, looks_up_in_nothing,
    counts_around, two_of_the_thirds, pooled_together, every_other_of_as_many,
]  # fmt: skip


def run(function: Callable[..., Any], proof: Any, sizes: dict[str, int]) -> bool:
    """Whether it runs at these sizes and returns what it declares."""
    signature = proof.setting.signature
    try:
        tensors = [
            torch.zeros([int(dim.evaluate(sizes)) for dim in entry.spec.dims], dtype=entry.spec.default_dtype())
            for entry in signature.entries
        ]
        result = function(*tensors)
    except Exception:
        return False
    return list(result.shape) == [int(dim.evaluate(sizes)) for dim in signature.result[0].dims]


LONG = (claims_few, either_way, every_other_of_as_many)  # whose conditions take seconds to find


@pytest.mark.parametrize(
    "function",
    [pytest.param(function, marks=[pytest.mark.slow] if function in LONG else []) for function in PROGRAMS],
    ids=lambda function: function.__name__,
)
def test_a_program_runs_at_just_the_sizes_that_its_conditions_admit(function: Callable[..., Any]):
    proof = prove(function)
    for some in itertools.product(range(1, 8), repeat=len(proof.dims)):
        sizes = dict(zip(proof.dims, some, strict=True))
        admitted = all(condition.holds(sizes) for condition in proof.side_conditions)

        assert run(function, proof, sizes) == admitted, (sizes, proof.conditions)


def test_the_rest_of_a_quotient_is_a_rest_of_the_size():
    nested = [Condition.parse(text) for text in ("n % 2 == 1", "n >= m", "((n - 1)//2) % 3 == 2")]
    one = in_one(nested)

    assert [condition.text for condition in one] == ["n >= m", "n % 6 == 5"]
    assert all(
        all(c.holds({"n": n, "m": 7}) for c in one) == all(c.holds({"n": n, "m": 7}) for c in nested)
        for n in range(1, 50)
    )


def test_a_part_that_is_not_there_is_refuted_at_sizes_that_fail():
    def second(x: Float[Tensor, "a 1"]) -> Float[Tensor, "a 1"]:
        return x.chunk(2, 1)[1]

    with pytest.raises(ProofError, match="tuple index out of range") as caught:
        prove(second)
    assert caught.value.goal.sizes == {"a": 2}


def test_a_claim_that_no_size_satisfies_is_the_goal():
    def impossible(x: Float[Tensor, "a b"]) -> Float[Tensor, ""]:
        assert x.numel() < x.shape[0]
        return x.sum()

    with pytest.raises(ProofError, match="refuses some sizes itself"):
        prove(impossible)


def test_what_only_a_symbolic_run_refuses_is_unprovable_and_not_refuted():
    def compiled(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        if type(x.shape[0]) is not int:
            raise RuntimeError("symbolic")
        return x

    with pytest.raises(Unprovable, match="neither proved nor refuted"):
        prove(compiled)


def test_an_alternative_without_a_value_leaves_the_others():
    condition = Condition.parse("n % (m//2) != 0 or m == 1")

    assert condition.holds({"n": 2, "m": 1})
    assert not Condition.parse("n % (m//2) != 0 or m == 3").holds({"n": 2, "m": 1})


def test_constants_beyond_an_axis_of_any_input_are_refuted():
    def third_of_two(x: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        return F.adaptive_max_pool1d(x, 2)[:, torch.tensor([0, 2])]

    with pytest.raises(ProofError, match="out of bounds"):
        prove(third_of_two)


def test_a_divisor_that_is_data_stays_a_matter_of_values():
    def shares(x: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        return x // y

    def nothing(x: Int[Tensor, " n"], y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        return x // (y - y)

    assert prove(shares).conditions == ()
    assert prove(nothing).conditions == ()


def test_an_index_that_is_data_stays_a_matter_of_values():
    def looked_up(w: Float[Tensor, "v d"], i: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        return w[i + 10**6]

    def none_to_look_up(w: Float[Tensor, "v d"], i: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        return F.embedding(i, w[1:])

    assert prove(none_to_look_up).conditions == ("v >= 2",)  # no index is in range of an axis that is empty
    assert prove(looked_up).conditions == ()


def test_what_holds_at_equal_sizes_too_is_said_of_both():
    assert prove(up_to_a_product).conditions == ("k*m >= n",)
    assert prove(last_of_four).conditions == ()


def test_a_failure_beside_a_remainder_is_told_in_our_words():
    def cut(x: Float[Tensor, "n 4"], y: Float[Tensor, " m"]) -> Float[Tensor, ""]:
        n, m = x.shape[0], y.shape[0]
        kept = x.median(-1)[0].topk(min(1, x.shape[0]), -1)[1].float()
        return F.pad(kept, (0, m % 3)).reshape(n // 2, -1).sum()

    with pytest.raises(ProofError, match="is not well-shaped"):
        prove(cut)
