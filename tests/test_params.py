"""Parameter lists: checked whole, flattened in order, and copied, masked and written all or nothing."""

import copy
import pickle
from typing import Any

import numpy
import pytest
import torch
from jaxtyping import Bool, Complex64, Float, Float32, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from shaped import ParamList, ShapeError, SignatureError
from tests.parameter_lists import GPT, MLP, Block, Net, anonymous, bits, gpt, message, mlp


def test_every_entry_is_checked_and_all_mismatches_are_reported_at_once() -> None:
    blocks = [Block(torch.zeros(2, 8), torch.zeros(2)), Block(torch.zeros(3, 12), torch.zeros(3))]
    head = Block(torch.zeros(4, 16), torch.zeros(4))

    assert message(ShapeError, lambda: GPT(torch.zeros(5, 2), blocks, head)) == (
        "GPT breaks its signature in 4 of 7 entries.\n"
        '  blocks.1.up: expected Float "dim 4*dim" = (2, 8), got float32 (3, 12)\n'
        "      axis dim is 2, set by wte (5, 2)\n"
        "      axis 4*dim is 8, dim = 2, set by wte (5, 2)\n"
        '  blocks.1.scale: expected Float "dim" = (2,), got float32 (3,)\n'
        "      axis dim is 2, set by wte (5, 2)\n"
        '  head.up: expected Float "dim 4*dim" = (2, 8), got float32 (4, 16)\n'
        "      axis dim is 2, set by wte (5, 2)\n"
        "      axis 4*dim is 8, dim = 2, set by wte (5, 2)\n"
        '  head.scale: expected Float "dim" = (2,), got float32 (4,)\n'
        "      axis dim is 2, set by wte (5, 2)"
    )


@pytest.mark.parametrize(
    "wrong", [None, 3, numpy.zeros((3, 2)), mlp(), [torch.zeros(2)], torch.zeros(3, 2).to_sparse()]
)
def test_what_is_no_dense_tensor_is_refused(wrong: Any) -> None:
    text = message(ShapeError, lambda: MLP(wrong, torch.zeros(2), torch.zeros(2, 4)))

    assert text.startswith("MLP breaks its signature in 1 of 3 entries.\n  w1: expected Float")


def test_missing_extra_and_doubled_entries_are_reported_at_once() -> None:
    w = torch.zeros(3, 2)

    assert message(ShapeError, lambda: MLP(w, w1=w, bb1=w)) == (
        "MLP has the entries `w1`, `b1` and `w2`: `bb1` is unknown; did you mean `b1`?; `w1` is given twice; "
        "`b1` and `w2` missing"
    )
    assert message(ShapeError, lambda: MLP(w, w, w, w)).endswith("1 too many by position")


@pytest.mark.parametrize(
    ("value", "got"),
    [(None, "a NoneType"), (3, "an int"), (torch.zeros(2), "float32 (2,)"), ([3], "an int"), ("ab", "a str")],
)
def test_a_nested_list_that_is_none_is_refused(value: Any, got: str) -> None:
    head = Block(torch.zeros(2, 8), torch.zeros(2))
    text = message(ShapeError, lambda: GPT(torch.zeros(5, 2), value, head))

    assert text == f"GPT.blocks: expected a list of Block, got {got}"
    assert (
        message(ShapeError, lambda: GPT(torch.zeros(5, 2), [head], None)) == "GPT.head: expected Block, got a NoneType"
    )


def test_entries_that_share_memory_are_refused() -> None:
    flat = torch.zeros(16)
    square = torch.zeros(3, 2)

    assert message(ShapeError, lambda: MLP(square, square[1], torch.zeros(2, 4))) == (
        "`w1` and `b1` share memory: keep one entry and use it twice in the loss, or clone one"
    )
    assert "share memory" in message(ShapeError, lambda: MLP(flat[:6].view(3, 2), flat[5:7], torch.zeros(2, 4)))
    assert message(ShapeError, lambda: MLP(torch.zeros(1, 2).expand(3, 2), torch.zeros(2), torch.zeros(2, 4))) == (
        "`w1` is expanded, so its elements share memory: clone it"
    )
    assert len(MLP(flat[:6].view(3, 2), flat[6:8], flat[8:].view(2, 4))) == 3, "neighbours in a buffer share none"


def test_scalars_empty_and_complex_tensors_are_entries() -> None:
    class Odd(ParamList):
        temperature: Float[Tensor, ""]
        nothing: Float[Tensor, "none 2"]
        wave: Complex64[Tensor, " a"]

    params = Odd(torch.tensor(2.0), torch.zeros(0, 2), torch.zeros(3, dtype=torch.complex64))

    assert params.dims == {"none": 0, "a": 3}
    assert params.requires_grad == (True, True, True)


def test_entries_on_the_meta_device_are_entries() -> None:
    params = mlp(device="meta")

    assert params.device.type == "meta"
    assert params.shapes == mlp().shapes


def test_floating_entries_ask_for_gradients_unless_the_mask_says_no() -> None:
    class Mixed(ParamList):
        w: Float[Tensor, " a"]
        n: Int[Tensor, " a"]
        m: Bool[Tensor, " a"]

    values = (torch.zeros(2), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool))

    assert Mixed(*values).requires_grad == Mixed.init(a=2).requires_grad == (True, False, False)
    assert Mixed(*values, requires_grad=[False] * 3).requires_grad == (False, False, False)
    assert message(ShapeError, lambda: Mixed(*values, requires_grad=[True] * 3)) == (
        "Mixed: `n` and `m` cannot have a gradient, only floating-point tensors can"
    )


def test_a_mask_of_the_wrong_length_gives_both_lengths() -> None:
    assert message(ShapeError, lambda: MLP(*mlp(), requires_grad=[True])) == (
        "MLP: requires_grad has 1 entries, the list has 3"
    )


@pytest.mark.parametrize("mask", [True, "abc", [1, 0, 1], [None] * 3, {"w1": True}, 3], ids=str)
def test_a_mask_is_a_list_of_bools(mask: Any) -> None:
    assert message(ShapeError, lambda: MLP(*mlp(), requires_grad=mask)) == (
        f"MLP: requires_grad is {mask!r}; it is a list with True or False for each tensor"
    )


def test_frozen_paths_and_prefixes_ask_for_no_gradient() -> None:
    params = gpt(frozen=("wte", "blocks.1"))

    assert [name for name, wants in zip(params.names, params.requires_grad, strict=True) if not wants] == [
        "wte",
        "blocks.1.up",
        "blocks.1.scale",
    ]


@pytest.mark.parametrize(
    ("frozen", "text"),
    [
        (("ww1",), "MLP: nothing to freeze at `ww1`; did you mean `w1`?"),
        (("w",), "MLP: nothing to freeze at `w`; did you mean `w2`?"),
    ],
)
def test_freezing_what_is_not_there_is_refused(frozen: Any, text: str) -> None:
    assert message(SignatureError, lambda: mlp(frozen=frozen)) == text


@pytest.mark.parametrize("frozen", ["w1", None])
def test_what_is_frozen_is_a_sequence_of_paths(frozen: Any) -> None:
    assert message(ValueError, lambda: mlp(frozen=frozen)) == f"frozen is {frozen!r}; it is a sequence of texts"


def test_a_name_that_is_not_there_suggests_the_nearest() -> None:
    params = gpt()

    assert message(AttributeError, lambda: params.wt) == "GPT has no entry `wt`; did you mean `wte`?"
    assert message(KeyError, lambda: params["blocks.0.u"]) == repr(
        "GPT has no entry `blocks.0.u`; did you mean `blocks.0.up`?"
    )
    assert message(IndexError, lambda: params[7]) == "GPT has 7 tensors and none at 7"
    for key in ("", "wte.0", "blocks.9", "blocks.-1", "blocks.²", None, 1.5):
        with pytest.raises(KeyError):
            params[key]  # type: ignore[index]


def test_attributes_are_read_only() -> None:
    params = mlp()
    text = "MLP keeps its tensors: write new values into them with set_values, or build a new list"

    assert message(AttributeError, lambda: setattr(params, "w1", torch.zeros(3, 2))) == text
    assert message(AttributeError, lambda: setattr(params, "new", 1)) == text
    assert message(AttributeError, lambda: delattr(params, "w1")) == "MLP keeps its tensors"


def test_values_is_a_copy_of_the_same_class_and_mask() -> None:
    params = mlp(frozen=("b1",))
    copied = params.values()
    before = bits(params)
    with torch.no_grad():
        copied.w1.fill_(7)

    assert bits(params) == before
    assert type(copied) is MLP
    assert copied.requires_grad == (True, False, True)
    assert copied.dims == params.dims


def test_set_values_copies_in_place_from_a_list_or_a_sequence() -> None:
    params, other = mlp(), mlp(seed=1)
    pointers = [t.data_ptr() for t in params]
    params.set_values(other)

    assert bits(params) == bits(other)
    params.set_values([t.double() for t in mlp(seed=2)])
    assert bits(params) == bits(mlp(seed=2))
    assert [t.data_ptr() for t in params] == pointers
    assert params.w1.dtype == torch.float32


def test_set_values_reads_what_shares_memory_before_it_writes() -> None:
    Pair = anonymous[Float[Tensor, "a a"], Float[Tensor, "a a"]]
    params = Pair.init(a=3)
    first, second = (t.detach().clone() for t in params)
    params.set_values([params[1], params[0].T])

    assert torch.equal(params[0], second)
    assert torch.equal(params[1], first.T)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    "wrong",
    [None, torch.zeros(9, 9), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2).to_sparse(), numpy.zeros(2)],
)
def test_set_values_is_all_or_nothing(place: int, wrong: Any) -> None:
    params = mlp()
    before = bits(params)
    values: list[Any] = list(mlp(seed=1))
    values[place] = wrong
    text = message(ShapeError, lambda: params.set_values(values))

    assert bits(params) == before
    assert text.startswith("The new value of MLP breaks its signature in 1 of 3 entries.")


@pytest.mark.parametrize("wrong", [None, 3, torch.zeros(3), {"w1": 1}, [], mlp(device="meta"), mlp(pixels=9)])
def test_set_values_takes_a_list_with_the_same_sizes(wrong: Any) -> None:
    params = mlp()
    before = bits(params)
    with pytest.raises(ShapeError, match="The new value of MLP"):
        params.set_values(wrong)

    assert bits(params) == before


def test_a_list_like_another_has_its_class_and_sizes_and_asks_for_no_gradients() -> None:
    params = mlp()
    gradients = params.like([torch.ones_like(t) for t in params])

    assert type(gradients) is MLP
    assert gradients.requires_grad == (False, False, False)
    assert message(ShapeError, lambda: params.like([torch.zeros(1)])).startswith("MLP takes 3 tensors, got 1.")


def test_repr_shows_each_entry_with_its_shape_and_who_asks_for_no_gradient() -> None:
    assert repr(mlp(frozen=("b1",))) == (
        "MLP(\n"
        "  w1: [pixels, hidden] = float32 (3, 2)\n"
        "  b1: [hidden] = float32 (2,), no gradient\n"
        "  w2: [hidden, classes] = float32 (2, 4)\n"
        ")"
    )


@pytest.mark.parametrize("params", [mlp(), gpt(blocks=3), Net.init(rgb=1, width=1)], ids=lambda p: type(p).__name__)
def test_a_list_survives_the_pytree_round_trip(params: ParamList) -> None:
    leaves, tree = pytree.tree_flatten(params)
    back = pytree.tree_unflatten(leaves, tree)
    doubled = pytree.tree_map(lambda t: 2 * t, params)
    keys = [pytree.keystr(key) for key, _ in pytree.tree_flatten_with_path(params)[0]]

    assert all(a is b for a, b in zip(leaves, params, strict=True))
    assert type(back) is type(params)
    assert (back.names, back.dims) == (params.names, params.dims)
    assert torch.equal(doubled[0], 2 * params[0])
    assert keys == [f"['{name}']" for name in params.names]


def test_lists_of_one_layout_are_one_tree_whatever_their_sizes() -> None:
    small, large = mlp(), mlp(pixels=9)
    sizes = pytree.tree_map(lambda a, b: a.numel() + b.numel(), small, large)

    assert list(sizes) == [24, 4, 16]


def test_what_a_pytree_function_makes_is_checked_when_its_sizes_are_asked_for() -> None:
    sums = pytree.tree_map(lambda t: t.sum(), mlp())

    assert sums.w1.shape == ()
    assert "w1: [pixels, hidden] = float32 ()" in repr(sums)
    assert "breaks its signature in 3 of 3 entries" in message(ShapeError, lambda: sums.dims)
    assert repr(pytree.tree_map(lambda t: None, mlp())).count("a NoneType, no gradient") == 3


@pytest.mark.parametrize("params", [mlp(frozen=("b1",)), gpt()], ids=["class", "nested"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["copy", "pickle"])
def test_a_list_is_copied_deeply_and_pickled(params: ParamList, duplicate: Any) -> None:
    copied = duplicate(params)

    assert type(copied) is type(params)
    assert bits(copied) == bits(params)
    assert (copied.names, copied.dims, copied.requires_grad) == (params.names, params.dims, params.requires_grad)
    assert all(copied[name] is tensor for name, tensor in zip(copied.names, copied, strict=True))
    assert not {t.data_ptr() for t in copied} & {t.data_ptr() for t in params}


def test_an_anonymous_list_is_copied_deeply() -> None:
    params = anonymous[Float[Tensor, "a b"]].init(a=2, b=3)

    assert bits(copy.deepcopy(params)) == bits(params)


def test_a_list_goes_to_another_dtype_with_its_mask_and_leaves_its_own_tensors() -> None:
    params = MLP.init(pixels=3, hidden=4, classes=2, frozen=("b1",), seed=0)
    wide = params.to("cpu", torch.float64)

    assert type(wide) is MLP
    assert (wide.requires_grad, {t.dtype for t in wide}) == (params.requires_grad, {torch.float64})
    assert all(torch.equal(a, b.float()) for a, b in zip(params, wide, strict=True))
    assert not {t.data_ptr() for t in params} & {t.data_ptr() for t in params.to()}


def test_a_dtype_that_an_annotation_does_not_admit_is_a_shape_error() -> None:
    class Single(ParamList):
        w: Float32[Tensor, "d"]

    with pytest.raises(ShapeError, match=r"Single\.to breaks its signature"):
        Single.init(d=2).to(dtype=torch.float64)


def test_a_state_dict_has_the_tensors_themselves_by_name() -> None:
    params = mlp()
    state = params.state_dict()

    assert list(state) == list(params.names)
    assert all(state[n].data_ptr() == t.data_ptr() for n, t in zip(params.names, params, strict=True))
    assert not any(t.requires_grad for t in state.values())


def test_sizes_of_names_that_stand_in_products_alone_are_those_that_init_was_given() -> None:
    class Heads(ParamList):
        q: Float[Tensor, "dim heads*head"]
        out: Float[Tensor, "heads*head dim"]

    params = Heads.init(dim=8, heads=4, head=2)

    assert params.dims == {"dim": 8, "heads": 4, "head": 2}
    assert copy.deepcopy(params).dims == params.to(dtype=torch.float64).dims == params.dims
