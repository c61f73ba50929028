"""What is proved, under which conditions, and that it is so."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int, jaxtyped
from torch import Tensor

from shaped import ParamList, Proof, ProofError, SignatureError, Unprovable, prove
from tests.models import GPT, MLP, gpt_loss, mlp_loss


@pytest.fixture(scope="module")
def gpt_proof() -> Proof:
    return prove(gpt_loss)


def without_seconds(proof: Proof) -> str:
    return str(proof).replace(f"{proof.seconds:.1f} s", "_ s")


def test_the_statement_of_a_loss_says_for_which_sizes_and_under_which_conditions():
    proof = prove(mlp_loss)

    assert without_seconds(proof) == (
        "mlp_loss : MLP, [batch, pixels], [batch] -> scalar   gradients : MLP\n"
        f"proved for all batch, pixels, hidden, classes >= 1   {proof.operations['forward']} operations forward, "
        f"{proof.operations['backward']} backward, _ s\n"
        "conditions   none"
    )


def test_each_operation_is_a_step_with_its_shapes_in_names_and_its_line():
    steps = [(step.operation, step.operands, step.result) for step in prove(mlp_loss).steps]

    assert steps == [
        ("matmul", ("[batch, pixels]", "[pixels, hidden]"), "[batch, hidden]"),
        ("add", ("[batch, hidden]", "[hidden]"), "[batch, hidden]"),
        ("relu", ("[batch, hidden]",), "[batch, hidden]"),
        ("matmul", ("[batch, hidden]", "[hidden, classes]"), "[batch, classes]"),
        ("add", ("[batch, classes]", "[classes]"), "[batch, classes]"),
        ("cross_entropy", ("[batch, classes]", "[batch]"), "[]"),
    ]
    first = prove(mlp_loss).steps[0]
    assert first.place == f"models.py:{mlp_loss.__code__.co_firstlineno + 1}"


def test_a_transformer_needs_divisible_heads_and_a_sequence_within_the_context(gpt_proof: Proof):
    assert gpt_proof.conditions == ("dim % 4 == 0", "seq <= context")
    assert "here         blocks has 2 entries" in str(gpt_proof)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 5),
    seq=st.integers(1, 6),
    context=st.integers(2, 6),  # one position would broadcast over any sequence
    quarter=st.integers(1, 3),
    vocab=st.integers(1, 9),
)
def test_every_size_that_satisfies_the_conditions_runs_and_every_other_is_refused(
    gpt_proof: Proof, batch: int, seq: int, context: int, quarter: int, vocab: int
):
    sizes = {"batch": batch, "seq": seq, "context": context, "dim": 4 * quarter, "vocab": vocab}
    params = GPT.init(context=context, dim=4 * quarter, vocab=vocab)
    tokens = torch.zeros(batch, seq, dtype=torch.int64)
    if seq <= context:
        gpt_proof.check(sizes)

        assert gpt_loss(params, tokens, tokens).shape == ()
    else:
        with pytest.raises(ValueError, match=rf"seq <= context, and seq = {seq}, context = {context}"):
            gpt_proof.check(sizes)
        with pytest.raises(RuntimeError):
            gpt_loss(params, tokens, tokens)


def test_the_proved_graph_agrees_with_the_function_in_loss_and_gradients_at_any_size(gpt_proof: Proof):
    for batch, seq, dim in [(2, 3, 8), (1, 4, 4), (3, 1, 4)]:
        params = GPT.init(context=4, dim=dim, vocab=5, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        tokens, targets = (torch.randint(0, 5, (batch, seq), generator=generator) for _ in range(2))
        loss = gpt_loss(params, tokens, targets)
        gradients = torch.autograd.grad(loss, list(params))
        graph = gpt_proof.graph_at({"batch": batch, "seq": seq, "context": 4, "dim": dim, "vocab": 5})
        with torch.no_grad():
            found = graph(*params, tokens, targets)

        torch.testing.assert_close(found[0], loss.detach(), rtol=0, atol=0)
        for mine, theirs in zip(found[1:], gradients, strict=True):
            torch.testing.assert_close(mine, theirs)


def heads_by_a_named_dimension(
    x: Float[Tensor, "batch seq dim"], w: Float[Tensor, "heads dim//heads dim"]
) -> Float[Tensor, "batch heads seq dim//heads"]:
    b, s, d = x.shape
    return x.view(b, s, w.shape[0], d // w.shape[0]).transpose(1, 2)


def strided(
    x: Float[Tensor, "batch cin height width"], w: Float[Tensor, "cout cin 3 3"]
) -> Float[Tensor, "batch cout (height-3)//2+1 (width-3)//2+1"]:
    return F.conv2d(x, w, stride=2)


def concatenated(
    x: Float[Tensor, "batch a"], y: Float[Tensor, "batch b"]
) -> Float[Tensor, "batch a+b"]:  # fmt: skip
    return torch.cat([x, y], dim=1)


def squeezed(x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
    return x.squeeze()


def scaled(x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
    return x / math.sqrt(x.shape[1])


def pairs(x: Float[Tensor, "n features"]) -> Float[Tensor, "n n"]:
    return (x[:, None] - x[None]).square().sum(-1)


def mean_of_rows(x: Float[Tensor, "n features"]) -> Float[Tensor, " features"]:
    return x.sum(0) / len(x)


def shifted(x: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq-1"]:
    return x[:, 1:] - x[:, :-1]


def gated(x: Float[Tensor, "batch inputs"], w: Float[Tensor, "inputs 2*hidden"]) -> Float[Tensor, "batch hidden"]:
    values, gates = (x @ w).chunk(2, dim=-1)
    return values * torch.sigmoid(gates)


def pooled(
    x: Float[Tensor, "batch 1 height width"], w: Float[Tensor, "c 1 3 3"], v: Float[Tensor, "c2 c 3 3"]
) -> Float[Tensor, "batch c2"]:
    h = F.max_pool2d(F.relu(F.conv2d(x, w, padding=1)), 2)
    return F.conv2d(h, v, padding=1).mean((2, 3))


def half(x: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
    return x[:, : x.shape[1] // 2].sum(1)


def branching(x: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    return x if x.shape[1] > 0.5 * x.shape[0] else 2 * x


def normalised(x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    return F.group_norm(x, 4)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("function", "conditions"),
    [
        (heads_by_a_named_dimension, ("dim % heads == 0",)),
        (strided, ("height >= 3", "width >= 3")),
        (concatenated, ()),
        (squeezed, ("batch >= 2", "features >= 2")),  # at size 1 an axis goes, which the result does not declare
        (scaled, ()),
        (pairs, ()),
        (mean_of_rows, ()),
        (gated, ()),  # chunk asks whether (3*hidden - 1)//hidden is 2, and it is for every size
        (pooled, ("height >= 2", "width >= 2")),  # torch's kernels ask for batch >= 16; both answers go through
        (half, ()),  # seq//2 <= seq asks nothing
        (branching, ()),
        (normalised, ("c % 4 == 0", "batch >= 2 or c//4 >= 2 or h >= 2 or w >= 2")),  # as torch itself refuses
        (shifted, ()),  # at seq = 1 both sides are empty, as the result declares
    ],
)
def test_conditions_are_the_ones_that_are_needed(function, conditions):
    assert prove(function).conditions == conditions


def test_no_condition_is_needed_where_the_other_branch_is_well_shaped_too():
    def asks(x: Float[Tensor, "a n"], y: Float[Tensor, "b n"]) -> Float[Tensor, " n"]:
        return x.sum(0) if x.shape == y.shape else y.sum(0)

    assert prove(asks).conditions == ()


def test_where_the_other_branch_fails_the_inequality_is_a_condition():
    def asks(x: Float[Tensor, "a n"], y: Float[Tensor, "b n"]) -> Float[Tensor, " n"]:
        return x.sum(1) if x.shape == y.shape else y.sum(0)

    assert prove(asks).conditions == ("a != b",)


def test_an_assertion_of_the_program_about_sizes_is_a_condition():
    def bounded(x: Float[Tensor, "batch seq"], w: Float[Tensor, "context seq2"]) -> Float[Tensor, " batch"]:
        assert x.shape[0] <= 16
        if x.shape[1] > w.shape[0]:
            raise ValueError("too long")
        return x.sum(1)

    assert prove(bounded).conditions == ("batch <= 16", "seq <= context")
    assert prove(bounded, assume=("batch <= 16", "seq <= context")).conditions == ("batch <= 16", "seq <= context")


def test_assumptions_are_part_of_the_statement_and_what_they_imply_is_proved():
    def residual(x: Float[Tensor, "batch inner"], w: Float[Tensor, "inner outer"]) -> Float[Tensor, "batch outer"]:
        return x + x @ w

    assert prove(residual, assume=("outer == inner",)).conditions == ("outer == inner",)


@pytest.mark.slow
def test_with_assumptions_a_condition_that_does_not_follow_is_an_error():
    with pytest.raises(ProofError) as caught:
        prove(gpt_loss, assume=("dim % 4 == 0",))

    assert str(caught.value).splitlines()[0] == "`gpt_loss` needs more than was assumed."
    assert caught.value.goal.equation == "seq <= context"


@pytest.mark.slow
def test_a_condition_follows_from_a_stronger_assumption():
    proof = prove(gpt_loss, assume=("dim % 4 == 0", "seq < context"))

    assert "seq < context" in proof.conditions


@pytest.mark.parametrize(
    ("assume", "message"),
    [
        (("dim",), 'assume: `dim` is not one comparison; write for example "dim % heads == 0" or "seq <= context"'),
        (("contxt >= seq",), "`contxt` is no dimension of `gpt_loss`; did you mean `context`?"),
        ("seq <= context", "assume is a list of relations such as (\"seq <= context\",), not 'seq <= context'"),
        (("dim == dim",), "assume: `dim == dim` defines `dim` by itself or a second time"),
        (("dim == vocab", "vocab == dim"), "assume: `vocab == dim` defines `vocab` by itself or a second time"),
    ],
)
def test_an_assumption_that_cannot_be_read_is_a_signature_error(assume, message):
    with pytest.raises(SignatureError) as caught:
        prove(gpt_loss, assume=assume)

    assert str(caught.value) == message


def looping(x: Float[Tensor, "batch seq features"]) -> Float[Tensor, "batch features"]:
    state = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        state = torch.tanh(state + x[:, t])
    return state


def test_a_loop_over_a_size_is_unprovable_and_says_what_to_declare():
    with pytest.raises(Unprovable) as caught:
        prove(looping)

    line = looping.__code__.co_firstlineno + 2
    assert str(caught.value) == (
        "`seq` is used as a plain number here, so this holds for one size only.\n"
        f"  test_prove.py:{line}   for t in range(x.shape[1]):\n"
        f"{' ' * len(f'  test_prove.py:{line}   ')}         ~~~~~~~~~~~~~~~~~\n"
        '  hint     declare it: static=("seq",) proves each size of it as it comes; or keep to tensor operations'
    )


def test_a_side_that_is_made_of_its_square_is_to_be_named() -> None:
    def grid(x: Float[Tensor, "n d"]) -> Float[Tensor, "h h d"]:
        side = int(math.sqrt(x.shape[0]))
        return x.reshape(side, side, x.shape[1])

    with pytest.raises(Unprovable, match="or name the side instead of its square"):
        prove(grid)


def test_a_static_dimension_is_proved_at_one_size_which_the_statement_says():
    proof = prove(looping, static={"seq": 4})

    assert "proved for all batch, features >= 1" in str(proof)
    assert "seq = 4" in str(proof)
    assert prove(looping, static=("seq",)).static.keys() == {"seq"}


def test_a_branch_on_data_is_unprovable():
    def branches(x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        return x if x.sum() > 0 else -x

    with pytest.raises(Unprovable, match="depends on data here"):
        prove(branches)


def test_a_users_own_exception_comes_through_as_it_is():
    def broken(x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        prove(broken)


def test_a_jaxtyped_function_is_unwrapped_so_that_no_checker_runs_in_the_trace():
    checked = jaxtyped(typechecker=None)(scaled)

    assert prove(checked).conditions == ()


def test_writing_into_an_input_is_refused():
    def writes(x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        return x.add_(1)

    with pytest.raises(Unprovable, match="the program writes into x"):
        prove(writes)


def test_names_that_only_the_result_uses_are_fixed_by_it():
    def flat(x: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch pixels"]:
        return x.flatten(1)

    assert prove(flat).conditions == ()


def widened(x: Float[Tensor, "a 4*b"]) -> Float[Tensor, "a*b 4"]:
    return 2 * x.view(-1, 4)


def joined(x: Float[Tensor, " b-1"], y: Float[Tensor, " b-1"]) -> Float[Tensor, "2*b-2"]:  # fmt: skip
    return torch.cat([x, y])


def test_a_question_that_divides_by_zero_somewhere_is_still_read():
    def windows(x: Float[Tensor, "n t"]) -> Float[Tensor, "n t//4"]:
        return x[:, : x.shape[1] - x.shape[1] % 4].reshape(x.shape[0], -1, 4).mean(-1)

    assert prove(windows).conditions == ()


def test_a_size_that_is_divided_by_must_not_be_zero():
    def divided(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return x * (10 // (x.shape[0] - 3)) + x.shape[1] % x.shape[0]

    assert prove(divided).conditions == ("n != 3",)


def test_axes_may_be_declared_as_expressions_only():
    assert prove(widened).conditions == ()
    assert prove(joined).conditions == ()


def test_a_result_expression_over_an_unknown_name_is_refused():
    def doubled(x: Float[Tensor, " n"]) -> Float[Tensor, "2*k"]:
        return x * 2

    with pytest.raises(ProofError, match="`k` is no dimension of the arguments"):
        prove(doubled)


def test_what_a_branch_on_one_size_asks_for_is_asked_of_that_size_alone():
    def special(x: Float[Tensor, "n m"], y: Float[Tensor, " k"]) -> Float[Tensor, "n m"]:
        return x * y[4] if x.shape[1] == 3 else x

    def thousand(x: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        return x.sum(0) if x.shape[0] == 1000 else x.sum(1)

    assert prove(special).conditions == ("m != 3 or k > 4",)
    assert prove(thousand).conditions == ("n != 1000",)


def test_two_branches_taken_at_once_are_tried_too():
    def crossed(x: Float[Tensor, "a b"]) -> Float[Tensor, "a b"]:
        left = torch.zeros(1) if x.shape[0] > 100 else torch.zeros(3)
        right = torch.zeros(1) if x.shape[1] > 100 else torch.zeros(4)
        return x + (left + right).sum()

    assert prove(crossed).conditions == ("a > 100 or b > 100",)


def test_of_a_set_of_ones_that_fails_one_must_be_larger():
    def unsqueezed(x: Float[Tensor, "a b c"]) -> Float[Tensor, "a*b c"]:
        return x.flatten(0, 1).squeeze(0)

    assert "a >= 2 or b >= 2" in prove(unsqueezed).conditions


def test_one_size_of_a_result_name_must_fit_everywhere():
    def square(x: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "n n"]:
        return x.sum(0)

    with pytest.raises(ProofError):
        prove(square)


def test_several_results_are_checked_each():
    def split(x: Float[Tensor, "batch n"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " n"]]:
        return x.sum(1), x.sum(0)

    def swapped(x: Float[Tensor, "batch n"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " n"]]:
        return x.sum(0), x.sum(1)

    assert str(prove(split)).startswith("split : [batch, n] -> [batch], [n]")
    with pytest.raises(ProofError, match="does not return what it declares"):
        prove(swapped)


def test_parameters_the_loss_does_not_depend_on_are_named():
    def partial(p: MLP, x: Float[Tensor, "batch pixels"]) -> Float[Tensor, ""]:
        return (x @ p.w1).mean()

    assert prove(partial).unused == ("b1", "w2", "b2")


def test_integers_and_booleans_may_be_inputs():
    def masked(x: Float[Tensor, "batch n"], keep: Int[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        return torch.where(keep > 0, x, 0.0).sum(1)

    assert prove(masked).conditions == ()


def test_a_list_of_length_three_is_proved_at_its_length():
    class Deep(ParamList):
        layers: list[Block] = 3  # type: ignore[assignment]

    def run(p: Deep, x: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
        for layer in p.layers:
            x = torch.tanh(x @ layer.w)
        return x.mean()

    proof = prove(run)

    assert proof.lengths == {"layers": 3}
    assert sum(step.operation == "matmul" for step in proof.steps) == 3


class Block(ParamList):
    w: Float[Tensor, "dim dim"]


def test_a_statement_without_free_sizes_says_for_what_it_is_proved():
    def scalar(x: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return x + 1

    def row(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return x + 1

    assert str(prove(scalar)).splitlines()[1].startswith("proved  ")
    assert "proved for these sizes" in str(prove(row, static={"n": 3}))
