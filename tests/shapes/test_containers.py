"""Tuples, named tuples, typed dictionaries and dataclasses: flattened to tensors, and built again from them."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, ScalarTrainer, ShapeError, SignatureError, prove
from shaped.shapes import Container, read_container, read_signature


class Tokens(NamedTuple):
    ids: Int[Tensor, "batch seq"]
    mask: Float[Tensor, "batch seq"]


class Row(TypedDict):
    x: Float[Tensor, "batch features"]
    y: Float[Tensor, " batch"]


@dataclass
class Batch:
    tokens: Tokens
    row: Row
    pair: tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]


NESTED = read_container(Batch, "batch", "here")
PATHS = [
    "batch.tokens.ids", "batch.tokens.mask", 'batch.row["x"]', 'batch.row["y"]', "batch.pair[0]", "batch.pair[1]",
]  # fmt: skip


ANY: Any = None  # what a leaf is does not matter where the container is wrong
ROW: Row = {"x": ANY, "y": ANY}
WITHOUT_Y: Any = {"x": ANY}
ONE: Any = (ANY,)
THREE: Any = (ANY, ANY, ANY)


def leaves() -> list[Tensor]:
    return [torch.full((1,), float(i)) for i in range(len(PATHS))]


def built() -> Batch:
    ids, mask, x, y, first, second = leaves()
    return Batch(Tokens(ids, mask), {"x": x, "y": y}, (first, second))


def test_the_path_of_a_tensor_is_the_way_to_write_it():
    assert [entry.path for entry in NESTED.entries] == PATHS

    batch = built()
    for i, path in enumerate(PATHS):
        assert eval(path, {"batch": batch}).item() == i


def test_a_nested_container_is_built_as_its_own_classes():
    made = NESTED.build(leaves())

    assert made == built()
    assert [type(part) for part in (made, made.tokens, made.row, made.pair)] == [Batch, Tokens, dict, tuple]


KINDS = [
    Tokens,
    Row,
    Batch,
    tuple[Float[Tensor, " a"], Float[Tensor, " a"]],
    tuple[tuple[Float[Tensor, " a"]], tuple[Tokens, Row]],
    Float[Tensor, " a"],
]


@given(kind=st.sampled_from(KINDS), data=st.data())
def test_flattening_gives_back_what_was_built_from(kind: Any, data: st.DataObject):
    container = read_container(kind, "batch", "here")
    values = data.draw(st.lists(st.integers(), min_size=len(container.entries), max_size=len(container.entries)))

    assert container.flatten(container.build(values)) == values


def test_the_order_of_a_mapping_s_keys_does_not_matter():
    row = read_container(Row, "row", "here")

    assert row.flatten({"y": 1, "x": 2}) == [2, 1]


def test_a_list_stands_for_a_tuple_as_collate_functions_give_it():
    pair = read_container(tuple[Float[Tensor, " a"], Float[Tensor, " a"]], "pair", "here")

    assert pair.flatten([1, 2]) == [1, 2]


def test_a_map_over_the_specs_changes_every_leaf_and_nothing_else():
    doubled = NESTED.map(lambda spec: dataclasses.replace(spec, dims=spec.dims * 2))

    assert [entry.path for entry in doubled.entries] == PATHS
    assert [str(entry.spec) for entry in doubled.entries][3] == "[batch, batch]"
    assert doubled.build(leaves()) == built()


def test_a_signature_shows_classes_by_name_and_tuples_by_their_shapes():
    def run(batch: Batch, pair: tuple[Float[Tensor, " a"], Row]) -> tuple[Float[Tensor, ""], Tokens]: ...  # type: ignore[empty-body]

    assert str(read_signature(run)) == "run : Batch, ([a], Row) -> scalar, Tokens"


@pytest.mark.parametrize(
    ("container", "value", "message"),
    [
        (NESTED, 3, "batch is Batch with tokens, row, pair, got a int"),
        (NESTED, torch.zeros(2), "batch is Batch with tokens, row, pair, got a Tensor"),
        (NESTED, {"tokens": 1, "row": 2}, "batch is Batch with tokens, row, pair, got one with tokens, row"),
        (NESTED, Batch(Tokens(ANY, ANY), WITHOUT_Y, (ANY, ANY)), "batch.row is Row with x, y, got one with x"),
        (NESTED, Batch(Tokens(ANY, ANY), ROW, THREE), "batch.pair is tuple with 0, 1, got one with 0, 1, 2"),
        (NESTED, Batch(ONE, ROW, (ANY, ANY)), "batch.tokens is Tokens with ids, mask, got one with 0"),
    ],
)
def test_what_is_no_such_container_is_refused_with_what_it_has(container: Container, value: Any, message: str):
    with pytest.raises(ShapeError) as caught:
        container.flatten(value)

    assert str(caught.value) == message


class Optional(TypedDict):
    x: Float[Tensor, " a"]
    y: NotRequired[Float[Tensor, " a"]]


class WithNumber(NamedTuple):
    x: Float[Tensor, " a"]
    scale: float


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            list[Float[Tensor, " a"]],
            "`f`: `list[jaxtyping.Float[Tensor, 'a']]` does not say how many tensors it holds: "
            'write tuple[Float[Tensor, "a b"], Int[Tensor, " a"]], a NamedTuple, a TypedDict or a dataclass',
        ),
        (
            tuple[Float[Tensor, " a"], ...],
            "`f`: `tuple[jaxtyping.Float[Tensor, 'a'], ...]` does not say how many tensors it holds: "
            'write tuple[Float[Tensor, "a b"], Int[Tensor, " a"]], a NamedTuple, a TypedDict or a dataclass',
        ),
        (
            dict[str, Float[Tensor, " a"]],
            "`f`: `dict[str, jaxtyping.Float[Tensor, 'a']]` does not say how many tensors it holds: "
            'write tuple[Float[Tensor, "a b"], Int[Tensor, " a"]], a NamedTuple, a TypedDict or a dataclass',
        ),
        (Optional, "`f`: `Optional` may lack y; a signature is fixed"),
        (
            WithNumber,
            "`f`, `batch.scale`: `float` has no shape; "
            'annotate it as a ParamList or as Float[Tensor, "batch features"]',
        ),
        (
            tuple[Float[Tensor, " a"], Tensor],
            '`f`, `batch[1]`: `Tensor` has no shape; annotate it as a ParamList or as Float[Tensor, "batch features"]',
        ),
    ],
    ids=["list", "tuple of any length", "dict", "optional key", "number", "bare tensor"],
)
def test_an_annotation_that_does_not_tell_its_tensors_is_refused(annotation: Any, message: str):
    with pytest.raises(SignatureError) as caught:
        read_container(annotation, "batch", "`f`")

    assert str(caught.value) == message


# -- inputs by position and by name ------------------------------------------------------------------------------------


class Line(ParamList):
    w: Float[Tensor, " features"]


def loss(p: Line, row: Row, weight: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (weight * (row["x"] @ p.w - row["y"]).square()).mean()


SIGNATURE = read_signature(loss)


def test_inputs_are_arranged_by_position_and_by_name():
    row = {"x": 1, "y": 2}
    expected = [1, 2, 3]

    assert SIGNATURE.arrange([row, 3], {}) == expected
    assert SIGNATURE.arrange([row], {"weight": 3}) == expected
    assert SIGNATURE.arrange([], {"weight": 3, "row": row}) == expected


@pytest.mark.parametrize(
    ("positional", "named", "wrong"),
    [
        ([], {}, "`row` is missing; `weight` is missing"),
        ([1], {}, "`weight` is missing"),
        ([1, 2, 3], {}, "1 too many"),
        ([1, 2], {"weight": 3}, "`weight` is given twice"),
        ([1], {"wieght": 3}, "`wieght` is unknown; did you mean `weight`?; `weight` is missing"),
        ([1, 2], {"p": 3}, "`p` is unknown"),
    ],
)
def test_inputs_that_do_not_fit_the_signature_are_named_all_at_once(positional: Any, named: Any, wrong: str):
    with pytest.raises(ShapeError) as caught:
        SIGNATURE.arrange(positional, named)

    assert str(caught.value) == f"`loss` takes the inputs row, weight: {wrong}"


def test_a_function_of_containers_is_proved_in_its_paths():
    def run(batch: Batch) -> tuple[Float[Tensor, "batch features"], Row]:
        return batch.row["x"] * batch.pair[0][:, None], batch.row

    proof = prove(run)

    assert proof.conditions == ()
    assert str(proof).startswith("run : Batch -> [batch, features], Row")


def batch_of(size: int) -> tuple[Row, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x, y, weight = (torch.rand(*shape, generator=generator) for shape in ((size, 3), (size,), (size,)))
    return {"x": x, "y": y}, weight


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_step_over_containers_by_position_or_by_name_is_that_of_plain_torch(backend: Any):
    params = Line.init(features=3, seed=0)
    row, weight = batch_of(4)
    w = params.w.detach().clone().requires_grad_()
    plain = torch.optim.AdamW([w], lr=0.1)
    trainer = ScalarTrainer(loss, params, backend=backend)
    ways: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((row, weight), {}),
        ((row,), {"weight": weight}),
        ((), {"weight": weight, "row": row}),
    ]
    for positional, named in ways:
        plain.zero_grad()
        expected = loss(Line(w), row, weight)
        expected.backward()
        plain.step()

        torch.testing.assert_close(trainer.adamw_step(*positional, **named, lr=0.1), expected.detach())
    torch.testing.assert_close(trainer.params.w, w)


def test_a_batch_that_breaks_the_signature_is_named_by_its_path():
    trainer = ScalarTrainer(loss, Line.init(features=3))
    row, weight = batch_of(4)
    with pytest.raises(ShapeError) as caught:
        trainer.forward({"x": row["x"], "y": row["y"][:3]}, weight)

    assert str(caught.value) == (
        "The batch breaks its signature in 1 of 3 entries.\n"
        '  row["y"]: expected Float "batch" = (4,), got float32 (3,)\n'
        '      axis batch is 4, set by row["x"] (4, 3)'
    )
