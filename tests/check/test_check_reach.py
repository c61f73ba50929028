"""Arguments and instances that take more than a glance at their annotations."""

import pytest

from tests.check.test_check_methods import check

__all__ = ["check"]

RECORDS = """
@dataclass
class Rays:
    origins: Float[Tensor, "*a 3"]
    directions: Float[Tensor, "*b 3"]
    times: Optional[Float[Tensor, "*c 1"]] = None

    def __post_init__(self) -> None:
        shape = torch.broadcast_shapes(self.origins.shape[:-1], self.directions.shape[:-1])
        self.origins = self.origins.broadcast_to((*shape, 3))
        self.directions = self.directions.broadcast_to((*shape, 3))

    def points(self, distance: float) -> Float[Tensor, "*a 3"]:
        return self.origins + distance * self.directions

    def refused(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m 3"]:
        return (self.origins.reshape(-1, 3) + times[:, None])[:, :2]

def ends(rays: Rays) -> Float[Tensor, "*a 3"]:
    return rays.origins + rays.directions
"""


def test_an_instance_whose_axes_have_to_agree_is_made_of_the_same_axes_and_says_so(check) -> None:  # type: ignore[no-untyped-def]
    found = check(RECORDS)

    assert found["Rays.points"].status == "proved"
    assert "*b of self as *a" in found["Rays.points"].message
    assert found["ends"].status == "proved"
    assert "*b of rays as *a" in found["ends"].message
    assert found["Rays.refused"].status == "refuted"


def test_an_alternative_that_the_program_refuses_itself_is_left_out_and_said(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def one(x: Float[Tensor, "n d"], y: Optional[Float[Tensor, "n d"]] = None, z: Optional[Float[Tensor, "n d"]] = None
        ) -> Float[Tensor, "n d"]:
    if y is None and z is None:
        raise ValueError("give y or z")
    assert y is None or z is None, "not both"
    return x + (y if y is not None else z)

def short(x: Float[Tensor, "n d"], y: Optional[Float[Tensor, "n d"]] = None) -> Float[Tensor, "n d"]:
    assert x.shape[0] == 3
    return x
""")

    assert found["one"].status == "proved"
    assert "y present and z present (AssertionError: not both)" in found["one"].message
    assert "y absent and z absent (ValueError: give y or z)" in found["one"].message
    assert found["short"].conditions == ("n == 3",)


def test_integers_that_only_python_reads_are_tried_at_numbers(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def drawn(width: int, seed: int) -> Float[Tensor, "width width"]:
    return torch.randn(width, width, generator=torch.Generator().manual_seed(seed))

def item(x: Float[Tensor, "n d"], which: int) -> Float[Tensor, "n d"]:
    assert isinstance(which, int)
    return x * which

def wrong(x: Float[Tensor, "n d"], which: int) -> Float[Tensor, "d n"]:
    assert isinstance(which, int)
    return x * which
""")

    assert found["item"].status == "proved"
    assert found["item"].message.endswith("at           which = 2; which = 3; which = 1")
    assert found["drawn"].status == "proved"
    assert "seed = " in found["drawn"].message
    assert found["wrong"].status != "proved"


def test_a_function_that_writes_into_its_arguments_is_proved(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def masked(x: Float[Tensor, "n d"], mask: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    x[:, 0] = 0.0
    x.mul_(mask)
    return x

def wrong(x: Float[Tensor, "n d"], mask: Float[Tensor, "d n"]) -> Float[Tensor, "n d"]:
    x.mul_(mask)
    return x
""")

    assert found["masked"].status == "proved"
    assert found["wrong"].status == "refuted"


def test_the_message_of_a_check_of_values_may_show_a_tensor(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def looked_up(x: Float[Tensor, "*batch"], table: Float[Tensor, "rows 3"]) -> Float[Tensor, "*batch 3"]:
    rows = x.long()
    least = rows.min()
    assert least >= 0, f"the least is {least}"
    return table[rows]
""")["looked_up"]

    assert found.status == "proved"
    assert "values that are refused at checked.py:12 are left out" in found.message


def test_a_function_behind_a_decorator_that_hides_it_is_found(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def once(f: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)
    wrapper.__module__ = "elsewhere"
    return wrapper

@once
def doubled(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return 2 * x

class Net:
    @once
    def forward(self, x: Float[Tensor, "n m"]) -> Float[Tensor, "n"]:
        return x
""")

    assert found["doubled"].status == "proved"
    assert found["Net.forward"].status == "refuted"


@pytest.mark.slow
def test_what_the_program_refuses_of_every_instance_that_was_made_refutes_nothing(check) -> None:  # type: ignore[no-untyped-def]
    found = check(
        RECORDS
        + """
def timed(rays: Rays) -> Float[Tensor, "*a 3"]:
    assert rays.times is not None, "no times"
    return rays.origins * rays.times
"""
    )["timed"]

    assert found.status == "unprovable"
    assert "AssertionError: no times" in found.message
    assert "rays.times absent" in found.message


def test_a_number_that_the_program_refuses_itself_refutes_nothing(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
STATE: list[int] = []

def first(x: Float[Tensor, "n 12"], rank: int) -> Float[Tensor, "n rank"]:
    if not 0 < rank <= 12:
        raise ValueError(f"rank must be in [1, 12], got {rank}")
    return x[:, :rank]

class State:
    def read(self) -> Float[Tensor, "3"]:
        assert len(STATE) > 0, "not ready"
        return torch.zeros(3)

def wrong(x: Float[Tensor, "n 12"], rank: int) -> Float[Tensor, "n rank"]:
    if not 0 < rank <= 12:
        raise ValueError(f"rank must be in [1, 12], got {rank}")
    return x[:, rank:]
""")

    assert found["first"].status == "proved"
    assert found["State.read"].status == "unprovable"
    assert found["wrong"].status == "refuted"


def test_what_takes_more_memory_than_there_is_is_undecided_and_says_so(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def large(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    bytearray(2**60)
    return x
""")["large"]

    assert found.status == "unprovable"
    assert found.summary == "it takes more memory than the process may have (--memory)"


COUNTED = """
def grid(s: Int[Tensor, " n"]) -> Float[Tensor, "h w 2"]:
    h, w = s.max().item(), s.min().item()
    return torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).float()

def ranked(x: Float[Tensor, "n d"], s: Float[Tensor, " d"]) -> Float[Tensor, "n r"]:
    k = int((s > 0.1).sum())
    if not 0 < k <= x.shape[1]:
        raise ValueError(f"a rank of {k}")
    return x[:, :k]
"""
MISCOUNTED = """
from jaxtyping import Bool

def columns(x: Float[Tensor, "n d"], m: Bool[Tensor, " n"]) -> Float[Tensor, "k d"]:
    return torch.zeros(int(m.sum()), x.shape[1] + 1)

def once(x: Float[Tensor, "n d"], m: Bool[Tensor, " n"]) -> Float[Tensor, "n d"]:
    return x[: int(m.sum())] + x

def one(m: Bool[Tensor, " n"], c: Int[Tensor, " n"]) -> Float[Tensor, " k"]:
    return torch.zeros(int(m.sum())) + torch.zeros(int(c[0]))

def flat(x: Float[Tensor, "n d"], m: Bool[Tensor, " n"]) -> Float[Tensor, "n d"]:
    return x.reshape(int(m.sum()), -1)

def square(s: Int[Tensor, " n"]) -> Float[Tensor, "h h 2"]:
    h, w = s.max().item(), s.min().item()
    return torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).float()

def four(x: Float[Tensor, "n d"], m: Bool[Tensor, " n"]) -> Float[Tensor, "n d"]:
    return {4: x[:, :1]}.get(int(m.sum()), x)
"""


@pytest.mark.slow
def test_a_whole_number_that_data_tell_is_a_size_of_its_own_in_the_statement(check) -> None:  # type: ignore[no-untyped-def]
    found = check(COUNTED)

    assert {verdict.status for verdict in found.values()} == {"proved"}
    assert "as many as data has, as many as data has, 2" in found["grid"].steps[-1]
    assert "data1 is a whole number that data tell at checked.py:" in found["ranked"].message


@pytest.mark.slow
def test_a_function_that_is_right_for_some_of_the_numbers_that_data_tell_is_not_proved(check) -> None:  # type: ignore[no-untyped-def]
    found = check(MISCOUNTED)

    assert "proved" not in {verdict.status for verdict in found.values()}


def test_a_number_that_data_tell_may_be_refused_by_the_programs_own_raise_alone(check) -> None:  # type: ignore[no-untyped-def]
    found = check(COUNTED, "ranked")["ranked"]

    assert found.status == "proved"
    assert found.conditions == ("d >= 5",)


def test_integers_that_the_program_refuses_as_no_integers_are_tried_at_numbers_together(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
from numbers import Integral

def basis(width: int, rank: int, seed: int) -> Float[Tensor, "width rank"]:
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(rank, Integral):
        raise ValueError(f"an integer, not {rank}")
    if not 1 <= rank <= width:
        raise ValueError("rank is at most width")
    return torch.linalg.qr(torch.randn(width, rank, generator=generator))[0][:, :rank]
""")

    assert found["basis"].status == "proved"
    assert "seed = 8, width = 4, rank = 2; seed = 12, width = 6, rank = 3" in found["basis"].message
    assert "seed = 2, width = 4, rank = 8: rank is at most width" in found["basis"].message


def test_what_a_module_was_made_for_at_numbers_refutes_no_axis_that_nothing_ties_to_them(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
from numbers import Integral

import einops

class Encoder(torch.nn.Module):
    weight: Float[torch.nn.Parameter, "*component learnt entry"]

    def __init__(self, inputs: int, features: int, count: int | None) -> None:
        super().__init__()
        if not isinstance(inputs, Integral):
            raise ValueError(f"an integer, not {inputs}")
        shape = (features, inputs) if count is None else (count, features, inputs)
        self.weight, self.act = torch.nn.Parameter(torch.zeros(*shape)), torch.nn.ReLU()

    def forward(self, x: Float[Tensor, "batch *component entry"]) -> Float[Tensor, "batch *component learnt"]:
        return self.act(einops.einsum(x, self.weight, "b ... e, ... l e -> b ... l"))
""")["Encoder.forward"]

    assert found.status == "unprovable"
    assert "its module was made at numbers for `inputs`, `features` and `count`" in found.hint


LEAVES = """
import numpy as np

def both(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    found = []
    for row in x.numpy():
        found += [row.sum(), row.max()]
    return torch.from_numpy(np.stack(found))

def one(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    return torch.from_numpy(np.stack([row.sum() for row in x.numpy()]))

def times(x: Float[Tensor, "n 3"], k: int) -> Float[Tensor, "n"]:
    return torch.from_numpy(np.stack([x.numpy().sum()] * k))

def raises(x: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
    return torch.from_numpy(np.stack([row.sum() for row in x.numpy()] + [np.zeros(2)]))
"""


def test_a_program_that_leaves_torch_is_refuted_where_no_run_returns_what_it_declares(check) -> None:  # type: ignore[no-untyped-def]
    found = check(LEAVES)

    assert found["both"].status == "refuted"
    assert "a result has 2 where n is declared (of a run on real tensors)" in found["both"].message
    assert "refuted  n = 1" in found["both"].message
    assert {name: found[name].status for name in ("one", "times", "raises")} == dict.fromkeys(
        ("one", "times", "raises"), "unprovable"
    )


def test_numbers_in_tensors_make_a_tensor_by_its_class_too(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def corners(x: Float[Tensor, "n"], y: Float[Tensor, ""]) -> Float[Tensor, "2 2"]:
    return torch.Tensor([[x.sum(), y], [y, 0]])

def wrong(x: Float[Tensor, "n"]) -> Float[Tensor, "3"]:
    return torch.Tensor([x.sum(), x.mean()])
""")

    assert found["corners"].status == "proved"
    assert "taken as 0.5" in found["corners"].message
    assert found["wrong"].status == "refuted"
    assert "goal     2 = 3" in found["wrong"].message


def test_a_list_of_our_making_that_is_too_short_refutes_nothing(check) -> None:  # type: ignore[no-untyped-def]
    found = check(PICKED)

    assert found["picked"].status != "refuted"


def test_what_torch_keeps_of_a_module_is_no_argument_of_it(check) -> None:  # type: ignore[no-untyped-def]
    found = check(PICKED)

    assert "proved for all n >= 1" in found["Scaled.twice"].message


PICKED = """
def picked(parts: list[Float[Tensor, "n"]], which: int) -> Float[Tensor, "n"]:
    return parts[which]

class Scaled(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.scale = config.scale

    def twice(self, x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return x + x
"""
