"""Numbers that a call is given."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shaped.arguments import whole


@given(st.integers(), st.none() | st.integers())
def test_a_whole_number_is_refused_only_below_its_least(value: int, least: int | None) -> None:
    if least is None or value >= least:
        assert whole("n", value, least) is value
        return
    with pytest.raises(ValueError) as caught:
        whole("n", value, least)

    assert str(caught.value) == f"n is {value}; it is a whole number of at least {least}"


@pytest.mark.parametrize("value", [True, 1.0, None, "1", float("inf"), torch.tensor(1)])
def test_what_is_no_int_is_no_whole_number(value: Any) -> None:
    with pytest.raises(KeyError) as caught:
        whole("n", value, error=KeyError)

    assert caught.value.args == (f"n is {value!r}; it is a whole number",)
