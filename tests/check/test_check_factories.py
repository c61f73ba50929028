"""What an argument is by a factory of the user's: made for each run of free dimensions, or once for all."""

from pathlib import Path

import pytest

from shaped.check import Answer, Job, Report, Verdict
from shaped.check.project import FileFindings
from tests.check.test_check_methods import check

__all__ = ["check"]


def test_an_argument_is_what_a_factory_says_by_its_name(check) -> None:  # type: ignore[no-untyped-def]
    text = """
def activated(x: Float[Tensor, "n d"], mode: str, net: Any) -> Float[Tensor, "n d"]:
    return net(x.relu() if mode == "relu" else x.tanh())
"""
    unknown = check(text)["activated"]
    found = check(text, factories=["mode='relu'", "net=nn.Linear(d, d)"])["activated"]

    assert "say what it is: --make 'mode=...'" in unknown.message
    assert found.status == "proved"


def test_a_factory_without_free_dimensions_is_made_once_and_the_statement_says_it(check) -> None:  # type: ignore[no-untyped-def]
    text = """
class Net(nn.Module):
    made = 0
    def __init__(self, width: int) -> None:
        super().__init__()
        Net.made += 1
        self.w = nn.Parameter(torch.zeros(width, 3))

def applied(model: Any, x: Float[Tensor, "n d"]) -> Float[Tensor, "n 3"]:
    return x @ model.w

def twice(other: Any, x: Float[Tensor, "n width"]) -> Float[Tensor, "width n"]:
    return x @ other.w * Net.made

def scaled(x: Float[Tensor, "n d"], scale: Any) -> Float[Tensor, "n d"]:
    return x * scale
"""
    found = check(text, factories=["model=Net(width := 4)", "other=model", "scale=math.pi"])

    assert found["applied"].status == "proved"
    assert "given        model = Net(width := 4)" in found["applied"].message
    assert found["applied"].conditions == ("d == 4",)
    assert found["twice"].status == "refuted"
    lost = check(text, "scaled", factories=["scale=nowhere.at_all()"])["scaled"]
    assert lost.summary.endswith(
        "the factory nowhere.at_all() names `nowhere`, which is no module and nothing of this file"
    )
    assert found["scaled"].status == "proved"


@pytest.mark.slow
def test_a_factory_refutes_nothing_by_the_number_of_its_axes(check) -> None:  # type: ignore[no-untyped-def]
    text = """
def added(bias: Any, x: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    return x + bias

def flat(row: Any, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    return (x + row)[:, 0]
"""
    found = check(text, factories=["bias=torch.zeros(2, 5, 3)", "row=torch.zeros(2, 3)"])

    assert found["added"].status == "proved"
    assert "left out     *batch has 1 axis (" in found["added"].message
    assert found["flat"].status == "refuted"


def test_a_factory_says_an_argument_of_one_function_or_an_attribute_where_no_constructor_runs(check) -> None:  # type: ignore[no-untyped-def]
    text = """
class Loaded:
    def __init__(self, path: str) -> None:
        sys.exit(1)

    def denoised(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x - self.net(x)

    def wrong(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return self.net(x).sum(1)

def one(x: Float[Tensor, "n d"], scale: Any) -> Float[Tensor, "n d"]:
    return x * scale

def other(x: Float[Tensor, "n d"], scale: Any) -> Float[Tensor, "n d"]:
    return scale(x)
"""
    found = check(text, factories=["Loaded.net=lambda x: x.relu()", "scale=0.5", "other.scale=torch.sin"])

    assert {name: found[name].status for name in found if "init" not in name} == {
        "Loaded.denoised": "proved", "Loaded.wrong": "refuted", "one": "proved", "other": "proved",
    }  # fmt: skip
    assert "any Loaded with net as said" in found["Loaded.denoised"].message


def test_a_factory_of_the_command_that_no_function_asks_for_is_said(tmp_path: Path) -> None:
    job = Job(tmp_path / "one.py")
    asked = Verdict("one", str(job.file), 1, "proved", "", "", dims=("n",), factories=("Net",))
    found = FileFindings(Answer(job, (asked,)), [asked], [])
    report = Report(made=["Net(Config(n))", "Nett(3)", "mode='relu'"])

    lines = list(report.lines([found]))

    assert report.status == 2
    assert lines[1:3] == [
        "\nfailed      ShapedError: --make Nett(3): `one` does not ask for `Nett`",
        "\nfailed      ShapedError: --make mode='relu': `one` does not ask for `mode`",
    ]


def test_what_a_tensor_is_by_a_factory_is_taken_and_said(check) -> None:  # type: ignore[no-untyped-def]
    found = check(
        'def twice(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:\n    return x * 2\n',
        factories=["x=torch.ones(n, 3)"],
    )["twice"]

    assert found.factories == ("x",)
    assert found.status == "proved"
