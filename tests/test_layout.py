"""The fields of a class: their order, their dimension names, and what is refused as a field."""

from typing import Annotated, Any, ClassVar, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, SignatureError, dims
from tests.parameter_lists import MLP, Block, Net, anonymous, declare, gpt, message, mlp


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


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Tensor, "`Tensor` is no tensor and no ParamList"),
        (list, "`list` is no tensor and no ParamList"),
        (list[Float[Tensor, "a"]], "`Float[Tensor, 'a']` is no tensor and no ParamList"),
        (tuple[MLP, ...], "`tuple[tests.parameter_lists.MLP, ...]` is no tensor and no ParamList"),
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
