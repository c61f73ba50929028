"""Methods, modules, and what a signature may say."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from shaped.check import Verdict, check_file

HEAD = """
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Optional, Union
import numpy, torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
"""

LINEAR = """
class Linear(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... {result}"]:
        return x @ self.w{transposed}
"""


@pytest.fixture
def check(tmp_path: Path, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    """Write a program, and check it or a name in it."""

    def checked(text: str, name: str = "", **options: object) -> dict[str, Verdict]:
        file = tmp_path / str(len(list(tmp_path.iterdir()))) / "checked.py"
        file.parent.mkdir()
        file.write_text(HEAD + text)
        module = ModuleType(f"checked_{abs(hash(text))}")
        module.__file__ = str(file)
        sys.modules[module.__name__] = module
        request.addfinalizer(lambda: sys.modules.pop(module.__name__, None))
        exec(compile(file.read_text(), str(file), "exec"), vars(module))
        verdicts = check_file(module, file, name, (), {}, **options)  # type: ignore[arg-type]
        return {verdict.function: verdict for verdict in verdicts}

    return checked


def test_a_module_is_proved_for_all_its_widths(check) -> None:  # type: ignore[no-untyped-def]
    found = check(LINEAR.format(result="d_out", transposed=".T"))["Linear.forward"]

    assert found.status == "proved"
    assert found.message.startswith(
        "Linear.forward : Linear(d_in, d_out), [..., d_in] -> [_a1, d_out]\nproved for all ..., d_in, d_out >= 1\n"
        "conditions   none\naxes         ... of 0 to 3 axes"
    )


@pytest.mark.parametrize(
    ("result", "transposed", "line"), [("d_in", ".T", "d_out = d_in"), ("d_out", "", "d_in = d_out")]
)
def test_a_module_that_is_wrong_for_some_widths_is_refuted_at_its_line(check, result, transposed, line) -> None:  # type: ignore[no-untyped-def]
    found = check(LINEAR.format(result=result, transposed=transposed))["Linear.forward"]

    assert found.status == "refuted"
    assert found.summary == f"at checked.py:15: {line}"


@pytest.mark.slow
def test_layers_of_torch_are_made_of_symbolic_sizes(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq 4*dim"]:
        x = self.norm(x)
        return self.up(self.attention(x, x, x)[0])
""")["Block.forward"]

    assert found.status == "proved"
    assert found.conditions == ("dim % heads == 0",)


def test_integers_that_the_program_reads_are_tried_at_numbers_that_are_stated(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
class Deep(nn.Module):
    def __init__(self, dim: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim) for _ in range(n_layers)])

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        for layer in self.layers:
            x = layer(x)
        return x
""")["Deep.forward"]

    assert found.summary == "for all other sizes, at n_layers = 2 or n_layers = 3 or n_layers = 1"


def test_an_axis_that_is_named_otherwise_than_the_module_names_it_is_stated_as_equal(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
class Auto(nn.Module):
    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, code), nn.Linear(code, width)

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        return self.b(self.a(x))
""")["Auto.forward"]

    assert found.conditions == ("features == width",)


def test_every_alternative_of_an_argument_is_proved(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def pool(x: Float[Tensor, "b s d"], how: Literal["mean", "max"], mask: Optional[Float[Tensor, "b s"]] = None
         ) -> Float[Tensor, "b d"]:
    x = x if mask is None else x * mask[..., None]
    return x.mean(1) if how == "mean" else x.amax(1)

def wrong(x: Float[Tensor, "b s d"], mask: Optional[Float[Tensor, "b s"]] = None) -> Float[Tensor, "b s d"]:
    return x if mask is None else x * mask

def either(x: Union[Float[Tensor, "a b"], Float[Tensor, " b"]], keep: bool) -> Float[Tensor, "*some b"]:
    return x if keep else x * 2
""")

    assert found["pool"].summary == "for all sizes, in 4 alternatives"
    assert "how = 'mean' and mask present; how = 'mean' and mask absent" in found["pool"].message
    assert found["wrong"].status == "refuted"
    assert found["wrong"].message.startswith("ProofError: `wrong` is not well-shaped where mask present.")
    assert found["either"].summary == "for all sizes, in 4 alternatives"


def test_what_cannot_be_invented_is_named_where_it_is_read(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
class Reader:
    def __init__(self, source: Any) -> None:
        self.source = source
        self.count = source.count

    def double(self, x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return 2 * x

    def read(self, x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return x * self.count
""")

    assert found["Reader.double"].status == "proved"
    assert found["Reader.read"].status == "unprovable"
    assert "`self.source` is read here, and nothing makes its Any." in found["Reader.read"].message


def test_a_factory_says_how_an_instance_is_made(check) -> None:  # type: ignore[no-untyped-def]
    text = """
class Scale:
    def __init__(self, options: Any) -> None:
        self.w = torch.ones(options["width"])

    def apply(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return x * self.w
"""
    found = check(text, factories=["Scale({'width': width})"])["Scale.apply"]

    assert found.status == "proved"
    assert check(text)["Scale.apply"].status == "unprovable"


def test_static_and_class_methods_properties_and_configurations_are_proved(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
@dataclass
class Config:
    dim: int
    scale: float = 2.0

class Net(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.w = config, nn.Parameter(torch.ones(config.dim))

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return x * self.w * self.config.scale

    @property
    def weight(self) -> Float[Tensor, " dim"]:
        return self.w

    @staticmethod
    def halves(x: Float[Tensor, "n 2*m"]) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"]]:
        return x.chunk(2, dim=1)

    @classmethod
    def zeros(cls, dim: int) -> Float[Tensor, " dim+1"]:
        return torch.zeros(dim)
""")

    assert {name: verdict.status for name, verdict in found.items()} == {
        "Net.forward": "proved", "Net.weight": "proved", "Net.halves": "proved", "Net.zeros": "refuted",
    }  # fmt: skip


def test_axes_without_a_name_that_broadcast_and_lists_are_read(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def joined(xs: list[Float[Tensor, "n _"]]) -> Float[Tensor, "n m"]:
    return torch.cat(xs, 1)

def add(x: Float[Tensor, "#batch dim"], y: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    return x + y

def missed(x: Float[Tensor, "#batch dim"], y: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    return x

def last(x: Float[Tensor, "... dim"]):
    return x[..., 0]
""")

    assert found["joined"].summary == "for all sizes, in 2 alternatives"
    assert found["add"].status == "proved"
    assert found["missed"].message.startswith(
        "ProofError: `missed` does not return what it declares where x: #batch = 1."
    )
    assert "-> [_a1] (found)" in found["last"].message


def test_a_refusal_of_one_signature_does_not_hide_the_rest(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def unreadable(x: Float[Tensor, "a/b"]) -> Float[Tensor, "a"]:
    return x

def fine(x: Float[Tensor, "a b"]) -> Float[Tensor, "b a"]:
    return x.T
""")

    assert {name: verdict.status for name, verdict in found.items()} == {"unreadable": "unprovable", "fine": "proved"}


def test_a_dimension_that_is_read_is_taken_at_numbers_where_that_is_allowed(check) -> None:  # type: ignore[no-untyped-def]
    text = """
def scan(x: Float[Tensor, "time dim"]) -> Float[Tensor, " dim"]:
    state = x[0]
    for t in range(x.shape[0]):
        state = state + x[t]
    return state
"""

    assert check(text)["scan"].status == "unprovable"
    assert check(text, auto=True)["scan"].summary == "for all other sizes, at time = 2 or time = 3 or time = 1"


def test_axes_that_only_a_result_has_are_whatever_comes(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def six(a: float = 0.0) -> Float[Tensor, "*batch"]:
    return torch.tensor([a] * 6)
""")

    assert found["six"].status == "proved"


def test_an_attribute_is_held_to_its_annotation_where_a_constructor_sets_it(check) -> None:  # type: ignore[no-untyped-def]
    text = """
class Net(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.w: Float[Tensor, "{axes}"] = nn.Parameter(torch.empty(d_out, d_in))

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        return x @ self.w.T
"""
    wrong = check(text.format(axes="d_in d_out"))["Net.forward"]

    assert check(text.format(axes="d_out d_in"))["Net.forward"].status == "proved"
    assert wrong.summary == "at checked.py:12: d_out = d_in"


def test_so_is_one_that_the_body_of_its_class_annotates_and_the_defaults_it_was_made_with_are_said(check) -> None:  # type: ignore[no-untyped-def]
    text = """
class Net(nn.Module):
    w: Float[Tensor, "{axes}"]
    scale: Float[Tensor, " {width}"]
    kept: Float[Tensor, "batch d_in"]

    def __init__(self, d_in: int, d_out: int, heads: int = 4, act="relu") -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(d_out, d_in))
        self.register_buffer("scale", torch.ones(d_out))

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        self.kept = x if self.training else torch.cat([x, x])
        return x @ self.w.T * self.scale
"""
    right = check(text.format(axes="d_out d_in", width="d_out"))["Net.forward"]

    assert right.status == "proved"
    assert "by default   heads = 4, act = 'relu'\n" in right.message
    for axes, width, line in (("d_in d_out", "d_out", 16), ("d_out d_in", "d_in", 17)):
        wrong = check(text.format(axes=axes, width=width))["Net.forward"]
        assert wrong.summary == f"at checked.py:{line}: d_out = d_in"


def test_a_coroutine_is_undecided_and_what_a_generator_yields_is_held(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
from typing import Iterator
async def later(x: Float[Tensor, "a"]) -> Float[Tensor, "a"]:
    return x

def each(x: Float[Tensor, "a b"]) -> Iterator[Float[Tensor, "a"]]:
    yield x[0]
""")

    assert {name: verdict.status for name, verdict in found.items()} == {"later": "unprovable", "each": "refuted"}


def test_a_tensor_without_a_shape_is_proved_at_any_number_of_axes_or_said_to_need_one(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def scaled(x: Tensor) -> Float[Tensor, "..."]:
    return x / x.norm()

def added(x: Tensor, y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return x[0] + y
""")

    assert found["scaled"].status == "proved"
    assert "x has 2 axes; x has 1 axis; x has 3 axes; x has 0 axes" in found["scaled"].message
    assert found["added"].status == "unprovable"
    assert found["added"].message.endswith(
        "a Tensor without a shape may have any: annotate it; it goes through where x has 1 axis"
    )


def test_a_tensor_of_any_dtype_is_taken_as_whole_numbers_where_others_are_refused(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def taken(i: Shaped[Tensor, " n"], x: Float[Tensor, "m k"]) -> Float[Tensor, "n k"]:
    assert not torch.is_floating_point(i)
    return x[i]
""")["taken"]

    assert found.status == "proved"
    assert found.message.endswith("dtypes       i of int64")


def test_what_a_dataclass_derives_after_its_constructor_is_there_and_what_it_generates_is_not_reported(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
@dataclass
class Points:
    xyz: Float[Tensor, "*batch 3"]

    def __post_init__(self) -> None:
        self.count = self.xyz.shape[:-1]

    def lengths(self) -> Float[Tensor, "*batch"]:
        return self.xyz.norm(dim=-1).reshape(self.count)
""")

    assert {name: verdict.status for name, verdict in found.items()} == {"Points.lengths": "proved"}


def test_a_branch_on_data_is_proved_both_ways_and_named(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def clipped(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    if not bool(torch.isfinite(x).all()):
        raise ValueError("not finite")
    if x.sum() > 1:
        return x / 2
    return x
""")["clipped"]

    assert found.status == "proved"
    assert found.summary == "for all sizes, each way of its data"
    assert "values that are refused at checked.py:11 are left out" in found.message


def test_what_is_there_for_others_to_define_is_not_asked(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
class Encoding(nn.Module):
    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        "To be defined."
        raise NotImplementedError

class Same(Encoding):
    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x
""")

    assert {name: verdict.status for name, verdict in found.items()} == {"Same.forward": "proved"}


def test_a_move_to_a_gpu_that_is_not_here_says_nothing_of_shapes(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def moved(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    return x.cuda() + torch.zeros(1, device="cuda") + x.to("cuda:0")

def turned(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    return x.cuda().T
""")

    assert {name: verdict.status for name, verdict in found.items()} == {"moved": "proved", "turned": "refuted"}


def test_a_size_that_numpy_reads_is_taken_at_some_numbers(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
import numpy as np

class Grid(nn.Module):
    def __init__(self, levels: int, dim: int) -> None:
        super().__init__()
        self.growth = np.exp(np.log(levels) / 3)
        self.w = nn.Parameter(torch.zeros(levels, dim))

    def forward(self, x: Float[Tensor, "n dim"]) -> Float[Tensor, "n levels dim"]:
        return x[:, None] * self.w * self.growth
""")["Grid.forward"]

    assert found.summary == "for all other sizes, at levels = 2 or levels = 3 or levels = 1"


def test_a_constructor_that_registers_a_buffer_is_proved_itself(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
class Basis(nn.Module):
    def __init__(self, basis: Float[Tensor, "m k"]) -> None:
        super().__init__()
        self.register_buffer("basis", basis)

    def forward(self, x: Float[Tensor, "n m"]) -> Float[Tensor, "n k"]:
        return x @ self.basis
""")

    assert {verdict.status for verdict in found.values()} == {"proved"}
