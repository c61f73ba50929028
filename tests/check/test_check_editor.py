"""What an editor shows of a checked file."""

from pathlib import Path

from shaped.check.editor import Mark, hover, inlays, marks
from shaped.check.verdicts import Shape, Verdict
from shaped.errors import Source
from tests.check.test_check_methods import check

__all__ = ["check"]

TEXT = """def model(p, x):
    h = x @ p.w
    é = (h * 2)
    return h.T
"""
FILE = Path("/project/model.py")
SHAPES = (Shape(2, 8, 15, "[batch, dim]"), Shape(3, 9, 14, "[batch, dim]"), Shape(4, 11, 14, "[dim, batch]"))
PROVED = Verdict("model", str(FILE), 1, "proved", "for all sizes", "model : statement", shapes=SHAPES)


def test_a_variable_shows_its_shape_where_it_is_set_and_used() -> None:
    assert hover([PROVED], TEXT, 2, 4) == "h : [batch, dim]"
    assert hover([PROVED], TEXT, 3, 9) == "h : [batch, dim]"
    assert inlays([PROVED], TEXT) == [(2, 5, "[batch, dim]"), (3, 5, "[batch, dim]")]


def test_an_expression_shows_its_shape_and_a_definition_its_statement() -> None:
    assert hover([PROVED], TEXT, 2, 10) == "x @ p.w : [batch, dim]"
    assert hover([PROVED], TEXT, 4, 13) == "h.T : [dim, batch]"
    assert hover([PROVED], TEXT, 1, 0) == "model : statement"
    assert hover([PROVED], TEXT, 9, 0) == ""


def test_several_shapes_of_one_expression_are_all_shown() -> None:
    both = (Shape(2, 8, 15, "[1, dim]"), Shape(2, 8, 15, "[2, dim]"))
    verdict = Verdict("model", str(FILE), 1, "proved", "", "", shapes=both)

    assert hover([verdict], TEXT, 2, 8) == "x @ p.w : [1, dim] or [2, dim]"


def test_a_fault_is_marked_at_its_expression_with_what_it_is_about_and_the_fix_that_was_tried() -> None:
    source = Source(str(FILE), 2, "h = x @ p.w", "    ~~^~~~~")
    context = (("w", "[dim, width]", "declared at other.py:3"), ("x", "[batch, width]", "declared at model.py:1"))
    hint = "p.w.T has shape [width, dim]; did you mean x @ p.w.T ?"
    wrong = Verdict("model", str(FILE), 1, "refuted", "s", "ProofError: m", source, context=context, hint=hint)
    related = ((1, "x : [batch, width]"), (1, "in `model`"))

    assert list(marks([wrong, PROVED], FILE, TEXT.splitlines())) == [
        Mark(2, 8, 15, "error", "refuted", "ProofError: m", related, "x @ p.w.T")
    ]


def test_a_hint_in_words_is_no_fix_and_a_fault_elsewhere_is_marked_at_the_definition() -> None:
    source = Source("/project/other.py", 7, "y = z", "~")
    found = [Verdict("model", str(FILE), 1, "unprovable", "s", "m", source, hint="use torch.where")]

    assert list(marks(found, FILE, TEXT.splitlines())) == [Mark(1, 0, 16, "warning", "unprovable", "m")]


def test_what_comes_before_a_fault_has_its_shapes(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def wrong(x: Float[Tensor, "n d"], w: Float[Tensor, "d k"]) -> Float[Tensor, "n k"]:
    h = x @ w
    return h @ w
""")["wrong"]

    assert found.status == "refuted"
    assert [shape.text for shape in found.shapes] == ["[n, k]"]
