"""Results of several kinds, held against what is declared."""

from tests.check.test_check_methods import check  # noqa: F401

PAIR = "Union[tuple[Float[Tensor, 'a b'], Float[Tensor, ' a']], tuple[Float[Tensor, 'a b']]]"


def test_each_kind_of_a_union_is_held_against_the_alternative_that_it_is(check) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    program = """
def {name}(x: Float[Tensor, "a b"], both: bool) -> {result}:
    return {value}
"""
    texts = {
        "pairs": (PAIR, "(x, x.sum(1)) if both else (x,)", "proved"),
        "wrong_pairs": (PAIR, "(x, x.sum(0)) if both else (x,)", "refuted"),
        "nothing": ("Union[Float[Tensor, 'a b'], int]", "x if both else None", "refuted"),
        "a_number": ("Union[Float[Tensor, 'a b'], int]", "x if both else 3", "proved"),
        "no_mapping": ("dict[str, Float[Tensor, 'a b']]", "[x.T]", "refuted"),
        "several": ("Union[list[Float[Tensor, 'a b']], list[Float[Tensor, 'b a']]]", "[x]", "unprovable"),
    }
    text = "".join(program.format(name=n, result=result, value=value) for n, (result, value, _) in texts.items())

    assert {name: found.status for name, found in check(text).items()} == {n: s for n, (*_, s) in texts.items()}


def test_arguments_of_any_number_are_left_out_and_that_is_said(check) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    found = check("""
def first(x: Float[Tensor, "a b"], *others: Float[Tensor, "b a"]) -> Float[Tensor, "a b"]:
    return sum(others, x)
""")["first"]

    assert found.status == "proved"
    assert "left out     any *others" in found.message


def test_sizes_that_are_all_taken_at_numbers_are_not_all_sizes(check) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    text = """
def looked_up(x: Float[Tensor, "a b"]) -> Float[Tensor, "a b"]:
    return {23: x.T}.get(x.shape[0], x)
"""
    found = check(text, auto=True)["looked_up"]

    assert found.summary == "at a = 2, b = 4 or a = 4, b = 2"
