"""Parameter lists: every form is checked whole, flattens in order, and is copied, masked and written all or nothing."""

import copy
import math
import pickle
from typing import Annotated, Any, ClassVar, cast

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import BFloat16, Bool, Complex64, Float, Float32, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shaped import ParamList, ShapedError, ShapeError, SignatureError, dims, init


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.ones()
    w2: Float[Tensor, "hidden classes"]


class Block(ParamList):
    up: Float[Tensor, "dim 4*dim"]
    scale: Float[Tensor, " dim"] = init.ones()


class GPT(ParamList):
    wte: Float[Tensor, "vocab dim"]
    blocks: list[Block]
    head: Block


class Conv(ParamList):
    kernel: Float[Tensor, "cout cin 3 3"]


class Stage(ParamList):
    first: Annotated[Conv, dims(cin="c", cout="2*c")]
    more: list[Annotated[Conv, dims(cin="2*c", cout="2*c")]] = 2  # type: ignore[assignment]


class Net(ParamList):
    stem: Annotated[Conv, dims(cin="rgb", cout="width")]
    stages: Annotated[list[Stage], dims(c="width + 1")] = 1  # type: ignore[assignment]


def mlp(**options: Any) -> MLP:
    return MLP.init(**{"pixels": 3, "hidden": 2, "classes": 4, **options})


def gpt(**options: Any) -> GPT:
    return GPT.init(**{"vocab": 5, "dim": 2, **options})


anonymous: Any = ParamList  # type checkers do not look at __class_getitem__


def message(error: type[Exception], act: Any) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


def bits(params: ParamList) -> list[bytes]:
    return [tensor.detach().view(torch.uint8).numpy().tobytes() for tensor in params]


# -- forms ---------------------------------------------------------------------------------------------------------


def test_a_class_lists_its_fields_in_the_order_of_their_declaration() -> None:
    params = mlp()
    w1, b1, w2 = params

    assert params.names == ("w1", "b1", "w2")
    assert params.shapes == {"w1": (3, 2), "b1": (2,), "w2": (2, 4)}
    assert params.dims == {"pixels": 3, "hidden": 2, "classes": 4}
    assert len(params) == 3
    assert params.w1 is w1 is params["w1"] is params[0] is params.tensors[0]
    assert (b1, w2) == params[1:]
    assert params.device == torch.device("cpu")


@given(st.integers(0, 4), st.integers(1, 3))
def test_a_nested_list_has_the_length_that_is_asked_for_and_shares_dimension_names(length: int, dim: int) -> None:
    params = gpt(dim=dim, blocks=length)
    nested = [f"blocks.{i}.{name}" for i in range(length) for name in ("up", "scale")]

    assert params.names == ("wte", *nested, "head.up", "head.scale")
    assert len(params.blocks) == length
    assert params.dims == {"vocab": 5, "dim": dim}
    assert all(params[f"blocks.{i}.up"] is block.up for i, block in enumerate(params.blocks))
    assert params["head"] is params.head


def test_a_list_without_a_length_has_two_entries_or_the_number_in_the_class() -> None:
    class Deep(ParamList):
        blocks: list[Block] = 3  # type: ignore[assignment]

    assert len(gpt().blocks) == 2
    assert len(Deep.init(dim=1).blocks) == 3
    assert len(Deep.init(dim=1, blocks=1).blocks) == 1


def test_renames_compose_through_the_tree() -> None:
    params = Net.init(rgb=3, width=4, more=1)

    assert {entry.path: str(entry.spec) for entry in params.entries} == {
        "stem.kernel": "[width, rgb, 3, 3]",
        "stages.0.first.kernel": "[2*(width+1), width+1, 3, 3]",
        "stages.0.more.0.kernel": "[2*(width+1), 2*(width+1), 3, 3]",
    }
    assert params.shapes["stages.0.more.0.kernel"] == (10, 10, 3, 3)
    assert params.dims == {"rgb": 3, "width": 4}


def test_the_anonymous_form_is_positional() -> None:
    Pair = anonymous[Float[Tensor, "a b"], Float[Tensor, " b"]]
    w, b = torch.zeros(2, 3), torch.zeros(3)
    params = Pair(w, b)

    assert params.names == ("0", "1")
    assert params["1"] is params[1]
    assert params[1].data_ptr() == b.data_ptr()
    assert Pair.init(a=2, b=3).dims == {"a": 2, "b": 3}
    assert Pair.__name__.startswith("ParamList[Float[Tensor, 'a b'], ")


def test_a_subclass_adds_and_replaces_fields_as_a_dataclass_does() -> None:
    class Biased(ParamList):
        b2: Float[Tensor, " classes"]

    class More(MLP, Biased):
        b1: Float[Tensor, "hidden 2"]
        b3: Float[Tensor, " classes"]

    assert More.init(pixels=1, hidden=2, classes=3).shapes == {
        "b2": (3,),
        "w1": (1, 2),
        "b1": (2, 2),
        "w2": (2, 3),
        "b3": (3,),
    }


def test_a_class_variable_is_no_field() -> None:
    class Plain(ParamList):
        rate: ClassVar[float] = 0.5
        quoted: "ClassVar[int]" = 3
        w: Float[Tensor, " a"]

    assert Plain.init(a=1).names == ("w",)
    assert Plain.rate == 0.5


def test_two_classes_of_one_name_stay_apart() -> None:
    def make(shape: str) -> type[ParamList]:
        class Layer(ParamList):
            w: Float[Tensor, shape]

        return Layer

    one, two = make("a"), make("a b")

    assert one.init(a=1).shapes == {"w": (1,)}
    assert two.init(a=1, b=2).shapes == {"w": (1, 2)}


def test_fields_named_like_arguments_are_fields() -> None:
    class Odd(ParamList):
        self: Float[Tensor, "cls"]
        seed: Float[Tensor, "self"]

    assert Odd(self=torch.zeros(2), seed=torch.zeros(1)).dims == {"cls": 2, "self": 1}
    assert Odd.init(cls=2, self=1).shapes == {"self": (2,), "seed": (1,)}


def declare(**annotations: Any) -> type[ParamList]:
    return type("Bad", (ParamList,), {"__annotations__": annotations, "__module__": __name__})


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Tensor, "`Tensor` is no tensor and no ParamList"),
        (list, "`list` is no tensor and no ParamList"),
        (list[Float[Tensor, "a"]], "`Float[Tensor, 'a']` is no tensor and no ParamList"),
        (tuple[MLP, ...], f"`tuple[{__name__}.MLP, ...]` is no tensor and no ParamList"),
        (Float[Tensor, "a"] | None, "`jaxtyping.Float[Tensor, 'a'] | None` is no tensor and no ParamList"),
        (int, "`int` is no tensor and no ParamList"),
    ],
)
def test_a_field_that_is_no_tensor_and_no_list_is_refused(annotation: Any, text: str) -> None:
    assert message(SignatureError, lambda: declare(w=annotation)) == (
        f'Bad.w: {text}; write Float[Tensor, "rows columns"], a ParamList class, or list[...] of one'
    )


@pytest.mark.parametrize("name", ["values", "init", "dims", "device", "requires_grad", "_w"])
def test_a_field_may_not_hide_what_paramlist_has(name: str) -> None:
    assert message(SignatureError, lambda: declare(**{name: Float[Tensor, "a"]})) == (
        f"Bad: no entry may be named `{name}`: ParamList keeps its own attributes, and names with an underscore in "
        "front, for itself"
    )


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (Float[Tensor, "a"], 3, "its value must be an initialiser such as init.zeros(), not 3"),
        (MLP, 3, "its value must be nothing: the nested class has its own initialisers, not 3"),
        (list[MLP], 2.0, "its value must be the list's length, not 2.0"),
        (list[MLP], True, "its value must be the list's length, not True"),
    ],
)
def test_a_value_in_the_class_body_must_suit_its_field(annotation: Any, value: Any, text: str) -> None:
    def make() -> Any:
        return type("Bad", (ParamList,), {"__annotations__": {"w": annotation}, "__module__": __name__, "w": value})

    assert message(SignatureError, make) == f"Bad.w: {text}"


def test_renaming_a_dimension_that_is_not_there_is_refused() -> None:
    assert message(SignatureError, lambda: declare(w=Annotated[MLP, dims(pixel="a")])) == (
        "Bad.w: MLP has the dimensions `pixels`, `hidden` and `classes`, not `pixel`; did you mean `pixels`?"
    )


def test_an_empty_list_of_parameters_is_refused() -> None:
    class Empty(ParamList):
        pass

    class Hollow(ParamList):
        blocks: list[Block]

    wanted = "has no entries: declare at least one annotated field"

    assert message(SignatureError, ParamList) == f"ParamList {wanted}"
    assert message(SignatureError, Empty) == message(SignatureError, Empty.init) == f"Empty {wanted}"
    assert message(SignatureError, lambda: Hollow([])) == "Hollow has no entries: each of its lists is empty"
    assert message(SignatureError, lambda: Hollow.init(dim=1, blocks=0)).endswith("each of its lists is empty")


@pytest.mark.parametrize("items", [(), ("Float[Tensor, 'a']",)], ids=["nothing", "a string"])
def test_the_anonymous_form_needs_annotations(items: Any) -> None:
    assert message(SignatureError, lambda: anonymous[items]).endswith(
        ': the anonymous form is ParamList[Float[Tensor, "a b"], Float[Tensor, " b"]]'
    )


def test_a_class_with_fields_takes_no_annotations_in_brackets() -> None:
    assert message(SignatureError, lambda: cast(Any, MLP)[Float[Tensor, "a"]]) == (
        'MLP[Float[Tensor, \'a\']]: the anonymous form is ParamList[Float[Tensor, "a b"], Float[Tensor, " b"]]'
    )


# -- construction --------------------------------------------------------------------------------------------------


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


# -- the gradient mask ---------------------------------------------------------------------------------------------


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
        ("w1", "MLP: frozen is 'w1'; it is a list of paths, such as ('w1',)"),
        (None, "MLP: frozen is None; it is a list of paths, such as ('w1',)"),
    ],
)
def test_freezing_what_is_not_there_is_refused(frozen: Any, text: str) -> None:
    assert message(SignatureError, lambda: mlp(frozen=frozen)) == text


# -- init ----------------------------------------------------------------------------------------------------------


@given(st.integers(-(2**70), 2**70))
def test_init_is_a_function_of_the_seed(seed: int) -> None:
    assert bits(mlp(seed=seed)) == bits(mlp(seed=seed))
    assert bits(mlp(seed=seed)) != bits(mlp(seed=seed + 1))


def test_init_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    mlp()

    assert torch.equal(torch.get_rng_state(), before)


def test_adding_an_entry_changes_no_other() -> None:
    class Wider(ParamList):
        first: Float[Tensor, "pixels pixels"]
        w1: Float[Tensor, "pixels hidden"]
        w2: Float[Tensor, "hidden classes"]

    wide, params = Wider.init(pixels=3, hidden=2, classes=4), mlp()

    assert torch.equal(wide.w1, params.w1)
    assert torch.equal(wide.w2, params.w2)


def test_a_declared_initialiser_is_used_and_otherwise_matrices_are_drawn_and_vectors_are_zero() -> None:
    class Plain(ParamList):
        w: Float[Tensor, "a b"]
        b: Float[Tensor, " b"]

    plain = Plain.init(a=3, b=2)

    assert mlp().b1.tolist() == [1.0, 1.0]
    assert plain.b.tolist() == [0.0, 0.0]
    assert 0 < plain.w.abs().max() <= 1 / math.sqrt(3)


def test_the_dtype_is_that_of_the_entries_that_admit_it() -> None:
    class Mixed(ParamList):
        w: Float[Tensor, " a"]
        norm: Float32[Tensor, " a"]
        n: Int[Tensor, " a"]

    params = Mixed.init(a=2, dtype=torch.bfloat16)

    assert [t.dtype for t in params] == [torch.bfloat16, torch.float32, torch.int64]
    assert mlp(dtype=torch.float64).w1.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"dtype": torch.int64}, ValueError, "dtype is torch.int64; it is a floating-point torch.dtype"),
        ({"dtype": "float32"}, ValueError, "dtype is 'float32'; it is a floating-point torch.dtype"),
        (
            {"dtype": torch.complex64},
            SignatureError,
            'dtype is torch.complex64, which no entry admits: `w1: Float "pixels hidden"`, `b1: Float "hidden"` and '
            '`w2: Float "hidden classes"`',
        ),
        ({"seed": 1.5}, ValueError, "seed is 1.5; it is a whole number"),
        ({"seed": None}, ValueError, "seed is None; it is a whole number"),
    ],
)
def test_an_option_of_init_that_is_not_usable_is_refused(options: Any, error: Any, text: str) -> None:
    assert message(error, lambda: mlp(**options)) == text


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_refused_with_torchs_reason(device: Any) -> None:
    assert message(ValueError, lambda: mlp(device=device)).startswith(f"device '{device}' cannot be used: ")


def test_all_that_is_wrong_with_sizes_is_reported_at_once() -> None:
    assert message(SignatureError, lambda: MLP.init(pixels=0, hiden=2, classes=cast(int, 2.5))) == (
        "MLP has the dimensions `pixels`, `hidden` and `classes`: `hidden` missing; "
        "`hiden` is not one of them; did you mean `hidden`?; pixels = 0 is not a positive whole number; "
        "classes = 2.5 is not a positive whole number"
    )
    assert message(SignatureError, lambda: gpt(blocks=-1)).endswith("blocks = -1 is not a whole number")


@pytest.mark.parametrize("size", [numpy.int64(3), torch.tensor(3)])
def test_any_whole_number_is_a_size(size: Any) -> None:
    assert mlp(pixels=size).dims["pixels"] == 3
    assert type(mlp(pixels=size).dims["pixels"]) is int


@pytest.mark.parametrize("size", [3.0, "3", True, None, torch.tensor(3.0)])
def test_nothing_else_is_a_size(size: Any) -> None:
    assert f"pixels = {size!r} is not a positive whole number" in message(SignatureError, lambda: mlp(pixels=size))


def test_a_dimension_named_like_an_option_of_init_is_explained() -> None:
    assert message(SignatureError, declare(w=Float[Tensor, "seed"]).init) == (
        "Bad has the dimensions `seed`: `seed` missing; `seed` is the name of an argument of init"
    )


@pytest.mark.parametrize(
    ("annotation", "sizes", "text"),
    [
        (Float[Tensor, "a-5"], {"a": 3}, "w : [a-5] would have the shape (-2,)"),
        (Float[Tensor, "a//b"], {"a": 1, "b": 2}, "w : [a//b] would have the shape (0,)"),
        (Float[Tensor, "a//(b-2)"], {"a": 1, "b": 2}, "w : [a//(b-2)] divides by zero at these sizes"),
        (Float[Tensor, "a"], {"a": 10**30}, f"w : [a] would have the shape ({10**30},)"),
    ],
)
def test_sizes_that_give_no_shape_are_refused(annotation: Any, sizes: Any, text: str) -> None:
    assert message(SignatureError, lambda: declare(w=annotation).init(**sizes)) == text


def test_an_initialiser_that_refuses_a_shape_says_for_which_entry() -> None:
    class Bad(ParamList):
        w: Float[Tensor, " a"] = init.orthogonal()

    assert message(SignatureError, lambda: Bad.init(a=2)) == (
        "w : [a] = (2,) by init.orthogonal(1.0): init.orthogonal needs rank 2 or more, and the shape is (2,)"
    )


# -- reading and writing -------------------------------------------------------------------------------------------


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


# -- as a value ----------------------------------------------------------------------------------------------------


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


# -- modules -------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_module_is_read_under_its_own_names_with_tied_weights_once_and_buffers_without_gradient() -> None:
    module = Tied()
    params = ParamList.from_module(module)

    assert dict(zip(params.names, params.requires_grad, strict=True)) == {
        "embed.weight": True,
        "norm.weight": True,
        "norm.bias": True,
        "norm.running_mean": False,
        "norm.running_var": False,
        "norm.num_batches_tracked": False,
    }
    assert params["embed.weight"] is module.embed.weight
    assert [str(entry.spec) for entry in params.entries] == ["[5, 3]", "[3]", "[3]", "[3]", "[3]", "[]"]
    assert [entry.spec.kind for entry in params.entries[-2:]] == ["Float32", "Int64"]
    assert type(params).__name__ == "Tied"


def test_a_frozen_parameter_of_a_module_stays_frozen() -> None:
    module = nn.Linear(2, 3)
    module.bias.requires_grad_(False)

    assert ParamList.from_module(module).requires_grad == (True, False)


class Clash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.b = nn.Parameter(self.a.detach())


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (nn.ReLU(), ShapeError, "ReLU has no parameters"),
        (
            nn.LazyLinear(3),
            ShapeError,
            "LazyLinear has no shape yet for `weight` and `bias`: run the module once",
        ),
        (3, SignatureError, "ParamList.from_module(an int): write ParamList.from_module(nn.Module)"),
        (None, SignatureError, "ParamList.from_module(a NoneType): write ParamList.from_module(nn.Module)"),
        (
            Clash(),
            SignatureError,
            "Clash: no entry may be named `values`: ParamList keeps its own attributes, and names with an underscore "
            "in front, for itself",
        ),
        (
            Shared(),
            ShapeError,
            "`a` and `b` share memory: keep one entry and use it twice in the loss, or clone one",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_module_that_cannot_be_a_list_is_refused(module: Any, error: type[ShapedError], text: str) -> None:
    assert message(error, lambda: ParamList.from_module(module)) == text


def test_a_class_reads_no_module() -> None:
    assert message(SignatureError, lambda: MLP.from_module(nn.Linear(2, 3))) == (
        "MLP.from_module(a Linear): write ParamList.from_module(nn.Module)"
    )


def test_a_narrow_annotation_draws_in_its_own_dtype() -> None:
    assert declare(w=BFloat16[Tensor, "a b"]).init(a=2, b=2)[0].dtype == torch.bfloat16
