"""What torch's shape functions do not look at: how a value fits what an index takes, and one length the other."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped import ProofError, prove
from shaped.proof.conditions import Condition
from shaped.proof.missing import excluding
from shaped.shapes.terms import Term


def heads(
    act: Float[Tensor, "pos head d"], at: Int[Tensor, " n"], new: Float[Tensor, "n d"]
) -> Float[Tensor, "pos head d"]:
    act = act.clone()
    act[at] = new
    return act


def masked(x: Float[Tensor, "a b"], mask: Bool[Tensor, " a"], new: Float[Tensor, " c"]) -> Float[Tensor, "a b"]:
    x = x.clone()
    x[mask] = new
    return x


def put(x: Float[Tensor, "a b"], at: Int[Tensor, " n"], new: Float[Tensor, " c"]) -> Float[Tensor, "a b"]:
    return x.index_put((at,), new)


def added(x: Float[Tensor, "a b"], at: Int[Tensor, " n"], new: Float[Tensor, "n c"]) -> Float[Tensor, "a b"]:
    return x.index_add(0, at, new)


def selected(x: Float[Tensor, "a b"], new: Float[Tensor, " c"]) -> Float[Tensor, "a b"]:
    return x.select_scatter(new, 0, 0)


def attended(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h m d"], v: Float[Tensor, "b h n d"]
) -> Float[Tensor, "b h n d"]:
    return F.scaled_dot_product_attention(q, k, v)


def classed(x: Float[Tensor, "b h w c"], y: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    return F.cross_entropy(x, y)


@pytest.mark.parametrize(
    ("program", "goal"),
    [
        (heads, "n -> head"),
        (masked, "c -> b"),
        (put, "c -> b"),
        (added, "b = c"),
        (selected, "b = c"),
        (attended, "m = n"),
        (classed, "w = h"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_refuted_where_only_the_kernel_looks(program: Callable[..., Tensor], goal: str) -> None:
    with pytest.raises(ProofError) as error:
        prove(program)

    assert goal in f"{error.value.goal.equation} {error.value.goal.said}"


def test_what_fits_or_broadcasts_is_proved_for_all_sizes() -> None:
    def fits(
        x: Float[Tensor, "a b c"], at: Int[Tensor, " n"], rows: Int[Tensor, "m 1"], mask: Bool[Tensor, " a"],
        new: Float[Tensor, "1 m n"], row: Float[Tensor, " c"],
    ) -> Float[Tensor, "a b c"]:  # fmt: skip
        x = x.clone()
        x[at, :, rows] = new[0, ..., None]
        x[mask] = row
        return x.index_add(1, at, x[:, at])

    assert prove(fits).conditions == ()


def test_relations_that_say_that_two_sizes_are_equal_exclude_nothing() -> None:
    a, b = Term.name("a"), Term.name("b")
    wrong = [{"a": m, "b": n} for m in range(1, 5) for n in range(1, 5) if m != n]
    right = [{"a": n, "b": n} for n in range(1, 5)]
    alone = [{"a": 1, "b": n} for n in range(1, 5)]
    one = Term.of("==", a, Term.number(1))

    assert excluding(wrong, right, [Term.of(">=", a, b), Term.of(">=", b, a)]) is None
    assert excluding([some for some in wrong if some["a"] > 1], alone, [one]) is None
    assert excluding([{"a": 2, "b": 3}], [*right, *alone], [Term.of(">=", a, b), one]) == [
        Condition(Term.of("or", Term.of(">=", a, b), one))
    ]


def test_a_condition_that_is_a_guess_from_runs_is_held_against_more() -> None:
    def repeated(x: Float[Tensor, "a b"], at: Int[Tensor, " n"]) -> Float[Tensor, "a b"]:
        return x.put(at, x.new_zeros(3))  # the kernel alone asks for as many values as positions

    with pytest.raises(ProofError):
        prove(repeated)


def test_a_proof_of_attention_moves_no_switch_that_other_threads_see(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a switch of the process")

    for switch in ("_set_sdp_use_flash", "_set_sdp_use_math"):
        monkeypatch.setattr(torch._C, switch, refuse)

    def fits(q: Float[Tensor, "b m d"], k: Float[Tensor, "b n d"], v: Float[Tensor, "b n c"]) -> Float[Tensor, "b m c"]:
        return F.scaled_dot_product_attention(q, k, v)

    assert prove(fits).conditions == ()
    with pytest.raises(ProofError):
        prove(attended)
