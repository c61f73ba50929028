"""`shaped bench`: finds a loss, draws what it needs, and says what it times; the times themselves are not tested."""

import re
from pathlib import Path

import pytest
import torch

import shaped.bench
from shaped.bench import read_words
from shaped.cli import main
from shaped.errors import SignatureError

HEAD = """
from typing import NamedTuple
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from shaped import ParamList
"""
LINE = """
class Line(ParamList):
    w: Float[Tensor, "features classes"]

def loss(p: Line, x: Float[Tensor, "batch features"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(x @ p.w, y)
"""
SIZES = ["features=4", "classes=3", "batch=5"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaped.bench, "SECONDS", 1e-6)  # one step a round
    monkeypatch.setattr(shaped.bench, "ROUNDS", 2)


@pytest.fixture
def file(script_folder: Path) -> Path:
    path = script_folder / "benched.py"
    path.write_text(HEAD + LINE)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["bench", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def rows(out: str) -> dict[str, list[float]]:
    """The figures of the table, by contender."""
    found = re.findall(r"(?m)^(shaped \w+|torch loop, fused) +([\d.e+-]+(?: +[\d.e+-]+)+)$", out)
    return {name: [float(figure) for figure in figures.split()] for name, figures in found}


def test_bench_times_both_backends_beside_the_plain_loop_from_the_same_start(file, capsys):
    status, out, _ = run(capsys, str(file), *SIZES, "y<classes")
    table = rows(out)

    assert status == 0
    assert out.startswith(
        "loss : Line, [batch, features], [batch] -> scalar\n"
        "at features = 4, classes = 3, batch = 5: 12 parameters in 1 tensors, adamw, float32, cpu\n"
    )
    assert list(table) == ["shaped compiled", "shaped eager", "torch loop, fused"]
    assert len({row[4] for row in table.values()}) == 1  # the first loss
    assert table["torch loop, fused"][2] == 1.0
    assert all(median <= worst for median, worst, *_ in table.values())
    assert f"torch {torch.__version__}" in out


@pytest.mark.smoke
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_bench_takes_one_backend_and_another_optimizer(file, optimizer, capsys):
    status, out, _ = run(capsys, f"{file}:loss", *SIZES, "y<3", "--backend", "eager", "--optimizer", optimizer)

    assert status == 0
    assert list(rows(out)) == ["shaped eager", "torch loop, fused"]
    assert f", {optimizer}, " in out


@pytest.mark.slow
def test_bench_without_a_file_times_an_mlp_on_digits(capsys):
    status, out, _ = run(capsys, "hidden=16", "--backend", "eager")

    assert status == 0
    assert "at pixels = 64, hidden = 16, classes = 10, batch = 64: 1,210 parameters" in out


def test_bench_uses_the_parameters_of_the_file_unless_their_sizes_are_given(file, capsys):
    file.write_text(HEAD + LINE + "params = Line.init(features=4, classes=3)\n")
    _, own, _ = run(capsys, str(file), "batch=5", "y<classes", "--backend", "eager")
    _, other, _ = run(capsys, str(file), "batch=5", "features=6", "y<classes", "--backend", "eager")

    assert "at features = 4, classes = 3, batch = 5: 12 parameters" in own
    assert "at features = 6, classes = 3, batch = 5: 18 parameters" in other


CONTAINERS = """
class Batch(NamedTuple):
    ids: Int[Tensor, "*batch seq"]
    mask: Bool[Tensor, "*batch seq"]

class Table(ParamList):
    words: Float[Tensor, "vocab dim"]

class Words(ParamList):
    tables: list[Table]

def loss(p: Words, batch: Batch, *, target: Float[Tensor, "*batch dim"]) -> Float[Tensor, ""]:
    x = sum(table.words[batch.ids] for table in p.tables) * batch.mask.unsqueeze(-1)
    return (x.sum(-2) - target).square().mean()
"""


@pytest.mark.slow
def test_bench_draws_containers_leading_axes_and_keyword_inputs(file, capsys):
    file.write_text(HEAD + CONTAINERS)
    sizes = ["vocab=7", "dim=3", "tables=3", "batch=2x4", "seq=5"]
    status, out, err = run(capsys, str(file), *sizes, "batch.ids<vocab", "--backend", "eager")

    assert (status, err) == (0, "")
    assert "batch = 2x4" in out
    assert "63 parameters in 3 tensors" in out


MODULE = """
class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(4, width)

def loss(net: Net, x: Float[Tensor, "batch 4"]) -> Float[Tensor, ""]:
    return net.inner(x).square().mean()
"""


def test_bench_times_a_loss_over_a_module_that_the_file_makes(file, capsys):
    file.write_text(HEAD + MODULE)
    status, _, err = run(capsys, str(file), "batch=5", "--backend", "eager")
    assert status == 1
    assert "missing 1 required positional argument: 'width': make one in the file, as in net = Net(...)" in err
    file.write_text(HEAD + MODULE + "net = Net(3)\n")
    status, out, err = run(capsys, str(file), "batch=5", "--backend", "eager")

    assert (status, err) == (0, "")
    assert "15 parameters in 2 tensors" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch=5"], "Line needs a size for `features` and `classes`: shaped bench {} batch=5 features=... "
         "classes=..."),
        (["features=4", "classes=3"], "the inputs need a size for `batch`: shaped bench {} features=4 classes=3 "
         "batch=..."),
        (SIZES, 'y : Int "batch" holds integers, and no annotation says how large they may be. Give a bound, a number '
         "or a dimension: shaped bench {} features=4 classes=3 batch=5 'y<10'"),
        ([*SIZES, "z<3"], "`z` is no input of `loss`"),
        ([*SIZES, "y<clases"], "`clases` is no dimension of `loss`; did you mean `classes`?"),
        ([*SIZES, "y<0"], "the bound 0 is 0, and no integer from 0 on is below it"),
        ([*SIZES, "bach=5"], "`bach` is no dimension of `loss`; did you mean `batch`?"),
        (["features=4x2", "classes=3", "batch=5"], "features=4x2: only an axis such as *batch has several sizes"),
        ([*SIZES, "y<9", "--backend", "eager"], "shaped eager fails on random inputs: Target 8 is out of bounds."),
    ],
    ids=["no parameter size", "no input size", "no bound", "no such input", "no such bound", "nothing below",
         "no such size", "several sizes", "out of range"],
)  # fmt: skip
def test_bench_says_what_is_missing_and_how_to_give_it(words, message, file, capsys):
    status, _, err = run(capsys, str(file), *words)

    assert status == 1
    assert err.splitlines()[-1].partition(": ")[2] == message.format(file)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "", "benched.py has no losses: write loss(p: MLP"),
        (LINE, ":los", "benched.py has no function `los`; did you mean `loss`?"),
        (LINE + LINE.replace("loss(", "other("), "", "benched.py has 2 losses: name one of `loss` and `other`, as in"),
        (LINE + "\ndef f(x: Float[Tensor, ' a']) -> Float[Tensor, '']: return x.sum()\n", ":f", "`f` is no loss over"),
    ],
    ids=["none", "unknown", "two", "no parameters"],
)
def test_bench_names_the_losses_of_a_file(text, name, message, file, capsys):
    file.write_text(HEAD + text)
    status, out, err = run(capsys, f"{file}{name}")

    assert (status, out) == (1, "")
    assert message in err


def test_words_are_a_target_sizes_and_bounds():
    assert read_words(["m.py:loss", "batch=8x4", "dim=3", "y<2*dim"]) == (
        "m.py:loss",
        {"batch": (8, 4), "dim": (3,)},
        {"y": "2*dim"},
    )
    for word in ("batch=0", "batch=-1", "batch=", "y<", "batch=4x"):
        with pytest.raises(SignatureError, match="is no size"):
            read_words([word])
    with pytest.raises(SignatureError, match=re.escape("`b.py` is no size")):
        read_words(["a.py", "b.py"])
