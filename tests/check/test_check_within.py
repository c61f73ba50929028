"""Functions within functions, and arguments of which no annotation says how many or whether."""

import pytest

from tests.check.test_check_methods import check

__all__ = ["check"]

HOOKS = """
def adds(delta: Float[Tensor, "batch pos d"], head: int):
    def hook(x: Float[Tensor, "batch pos heads d"], name: Any) -> Float[Tensor, "batch pos heads d"]:
        y = x.clone()
        y[:, :, head] += delta
        return y

    return hook

def wrong(delta: Float[Tensor, "batch d"]):
    def hook(x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        return x + delta

    return hook

def around(delta: Float[Tensor, "batch d"], other: Float[Tensor, "pos d"]):
    def hook(x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        return x + delta

    delta = delta + other
    return hook

class Net(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = nn.Linear(d, 2 * d)

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch 2*d"]:
        def scaled(y: Float[Tensor, "batch e"]) -> Float[Tensor, "batch e"]:
            return y * x.mean(1, keepdim=True)

        return scaled(self.w(x))

def early(x: Float[Tensor, "n"]) -> int:
    if x.shape[0]:
        return 1

    def never(y: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return y + x

    return 0
"""


def test_a_function_within_a_function_is_proved_for_whatever_encloses_it(check) -> None:  # type: ignore[no-untyped-def]
    found = check(HOOKS)

    assert found["adds.<locals>.hook"].conditions == ("head < heads",)
    assert found["wrong.<locals>.hook"].status == "refuted"
    assert found["around"].status == "refuted"
    assert found["around.<locals>.hook"].status == "unprovable"
    assert found["Net.forward.<locals>.scaled"].status == "proved"
    assert "for all d, batch, e >= 1" in found["Net.forward.<locals>.scaled"].message
    assert "`never` is not made" in found["early.<locals>.never"].message


def test_a_list_has_as_many_entries_as_an_axis_if_the_program_needs_that(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def weighed(x: Float[Tensor, "n 3"], weights: list[float]) -> Float[Tensor, "n 3"]:
    return x * torch.tensor(weights)[:, None]

def halved(x: Float[Tensor, "n 3"], weights: list[float]) -> Float[Tensor, "n 3"]:
    return x.reshape(2, 3)
""")

    assert found["weighed"].conditions == ("n == 2 where len(weights) = 2 and weights[0] = 0.5 and weights[1] = 0.5",)
    assert found["halved"].status == "refuted"


def test_an_attribute_that_may_be_absent_need_not_be_and_that_is_said(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
@dataclass
class Rays:
    origins: Float[Tensor, "*a 3"]
    deltas: Optional[Float[Tensor, "*a 1"]] = None

def weighed(rays: Rays) -> Float[Tensor, "*a 3"]:
    return rays.deltas * rays.origins

def own(x: Float[Tensor, "n"], y: Optional[Float[Tensor, "n"]] = None) -> Float[Tensor, "n"]:
    return x * y
""")

    assert found["weighed"].status == "proved"
    assert "rays.deltas absent (TypeError: unsupported operand type(s) for *: 'NoneType' and 'Tensor')" in (
        found["weighed"].message
    )
    assert found["own"].status == "error"


def test_integers_are_tried_before_sizes_are_where_the_program_refuses_one(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def ending(x: Float[Tensor, "n 3"], shape: tuple[int, ...]) -> Float[Tensor, "n 3"]:
    assert shape[-1] == 3
    return x + torch.zeros(3)
""")

    assert "for all n >= 1" in found["ending"].message
    assert "shape_0 = 3 where len(shape) = 1" in found["ending"].message


def test_a_median_is_of_at_least_one_entry_that_a_mask_keeps(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def middle(x: Float[Tensor, "n 3"], y: Float[Tensor, "n"]) -> Float[Tensor, "3"]:
    return torch.median(x[y > 0], dim=0).values
""")

    assert "for all n, data1 >= 1" in found["middle"].message


def test_what_is_beyond_a_list_of_our_making_or_of_the_memory_refutes_nothing(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
def named(names: list[float], which: int) -> Float[Tensor, "1"]:
    return torch.full((1,), names[which])

def large(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    y = x.t()
    numpy.zeros((2**20, 2**20))
    return y.t()
""")

    assert found["named"].status != "refuted"
    assert found["large"].summary == "it takes more memory than the process may have (--memory)"


def test_recurrent_layers_are_proved_for_all_their_widths(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
class Net(nn.Module):
    def __init__(self, d_in: int, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(d_in, hidden, batch_first=True)

    def last(self, x: Float[Tensor, "batch time d_in"], ends: Int[Tensor, " batch"]) -> Float[Tensor, "batch hidden"]:
        rows = nn.utils.rnn.pack_padded_sequence(x, ends, batch_first=True, enforce_sorted=False)
        return self.rnn(rows)[1][0][-1]

    def wide(self, x: Float[Tensor, "batch time d_in"]) -> Float[Tensor, "batch time d_in"]:
        return self.rnn(x)[0]
""")

    assert (found["Net.last"].status, found["Net.last"].conditions, found["Net.last"].summary) == (
        "proved",
        (),
        "for all sizes",
    )
    assert "goal     hidden = d_in" in found["Net.wide"].message


@pytest.mark.slow
def test_a_length_below_1_is_no_fault_of_what_is_packed(check) -> None:  # type: ignore[no-untyped-def]
    found = check("""
RNN = nn.GRU(5, 4, batch_first=True)

def padded(x: Float[Tensor, "batch time 5"], ends: Int[Tensor, " batch"]) -> Float[Tensor, "batch 9 4"]:
    rows = nn.utils.rnn.pack_padded_sequence(x, ends, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(RNN(rows)[0], batch_first=True, total_length=9)[0]
""")

    assert found["padded"].status == "unprovable"
