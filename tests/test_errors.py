"""The exception tree, and how a goal is printed."""

import importlib
import pickle
import pkgutil

import pytest

import shaped
from shaped import (
    CheckpointCorrupt,
    CheckpointError,
    ExecutorError,
    ExportError,
    GradientError,
    NonFiniteError,
    ProofError,
    RankError,
    RunLocked,
    ShapedError,
    ShapeError,
    SignatureError,
    StateError,
    Unprovable,
)
from shaped.errors import Goal, Source, brief, columns, listing, nearest

TREE = {
    SignatureError: TypeError,
    ShapeError: ValueError,
    ProofError: ShapedError,
    Unprovable: ShapedError,
    GradientError: ShapedError,
    NonFiniteError: ArithmeticError,
    ExecutorError: ShapedError,
    ExportError: ShapedError,
    StateError: ValueError,
    RankError: ShapedError,
    CheckpointError: ShapedError,
    CheckpointCorrupt: CheckpointError,
    RunLocked: CheckpointError,
}

GOAL = Goal(
    operation="matmul",
    operands="h : [batch, hidden]   @   p.w2.T : [classes, hidden]",
    equation="hidden = classes",
    context=[("w2", "[hidden, classes]", "declared at model.py:9"), ("h", "[batch, hidden]", "from model.py:13")],
    hint="p.w2 has shape [hidden, classes]; did you mean h @ p.w2 ?",
    sizes={"hidden": 2, "classes": 3},
)
SOURCE = Source("/home/me/model.py", 14, "return F.cross_entropy(h @ p.w2.T + p.b2, y)", " " * 23 + "~~^~~~~~~~")


def test_every_error_is_a_shaped_error_and_what_python_calls_it() -> None:
    exported = {value for value in vars(shaped).values() if isinstance(value, type) and issubclass(value, ShapedError)}

    assert exported == {*TREE, ShapedError}
    assert all(issubclass(error, python) and issubclass(error, ShapedError) for error, python in TREE.items())
    assert all(error.__name__ in (shaped.errors.__doc__ or "") for error in TREE)


def test_an_unsolved_goal_is_printed_line_by_line_with_its_hint() -> None:
    assert str(ProofError("`loss` is not well-shaped.", SOURCE, GOAL)) == (
        "`loss` is not well-shaped.\n"
        "  model.py:14   return F.cross_entropy(h @ p.w2.T + p.b2, y)\n"
        "                                       ~~^~~~~~~~\n"
        "  matmul   h : [batch, hidden]   @   p.w2.T : [classes, hidden]\n"
        "  goal     hidden = classes\n"
        "  context  w2 : [hidden, classes]     declared at model.py:9\n"
        "           h  : [batch, hidden]       from model.py:13\n"
        "  hint     p.w2 has shape [hidden, classes]; did you mean h @ p.w2 ?\n"
        "  refuted  hidden = 2, classes = 3"
    )


def test_a_long_operation_name_widens_the_column() -> None:
    assert Goal(operation="scaled_dot_product", operands="a", equation="b").lines() == [
        "scaled_dot_product  a",
        "goal                b",
    ]


@pytest.mark.parametrize("error", [ProofError, Unprovable])
def test_an_error_without_a_line_or_a_goal_is_its_title(error: type[ProofError] | type[Unprovable]) -> None:
    assert str(error("`loss` loops.")) == "`loss` loops."


def test_every_error_can_be_imported_from_where_its_traceback_says_and_survives_pickling() -> None:
    for module in pkgutil.walk_packages(shaped.__path__, "shaped."):
        importlib.import_module(module.name)
    found, waiting = [ShapedError], [ShapedError]
    while waiting:
        waiting += (more := waiting.pop().__subclasses__())
        found += [kind for kind in more if kind.__module__.split(".")[0] == "shaped" and kind.__name__[0] != "_"]
    assert {
        "shaped.workflow.Pruned",
        "shaped.data.DataError",
        "shaped.ShapedError",
        "shaped.backends.CompileError",
    } <= {f"{kind.__module__}.{kind.__name__}" for kind in found}

    for kind in found:
        assert getattr(importlib.import_module(kind.__module__), kind.__name__) is kind
        assert str(pickle.loads(pickle.dumps(kind("what is wrong")))) == "what is wrong"


def test_an_error_of_a_users_own_keeps_its_place() -> None:
    class Mine(ShapedError):
        pass

    assert Mine.__module__ == __name__


@pytest.mark.parametrize("error", [ProofError, Unprovable])
def test_a_located_error_survives_pickling(error: type[ProofError] | type[Unprovable]) -> None:
    first = error("`loss` is not well-shaped.", SOURCE, GOAL)
    second = pickle.loads(pickle.dumps(first))

    assert (str(second), second.source, second.goal) == (str(first), SOURCE, GOAL)


def test_names_are_listed_as_in_a_sentence() -> None:
    assert [listing(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "`a`",
        "`a` and `b`",
        "`a`, `b` and `c`",
    ]


def test_columns_begin_together_on_the_left_and_end_together_on_the_right() -> None:
    rows = [["fold", "train", "loss"], ["0", "12", brief(0.123456)], ["mean", "", brief(7)]]

    assert columns(rows, left=1) == ["fold  train    loss", "0        12  0.1235", "mean              7"]
    assert columns([["a", "bb"], ["aaa", "b"]], left=2) == ["a    bb", "aaa  b"]
    assert columns([]) == []


def test_the_nearest_known_name_is_suggested_and_a_far_one_is_not() -> None:
    assert nearest("hiden", ["hidden", "pixels"]) == "; did you mean `hidden`?"
    assert nearest("zzz", ["hidden", "pixels"]) == ""
