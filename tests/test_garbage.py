"""Python looks for garbage as before once a proof or an import is over, whatever the order in which threads leave."""

import gc

import pytest

from shaped.garbage import uncollected, young_collected


def test_what_is_old_is_let_alone_until_the_last_has_left() -> None:
    before = gc.get_threshold()
    first, second = young_collected(), young_collected()
    first.__enter__()
    second.__enter__()
    assert gc.get_threshold()[:2] == before[:2]
    first.__exit__(None, None, None)
    assert gc.get_threshold()[2] > before[2]
    second.__exit__(None, None, None)

    assert gc.get_threshold() == before


def fail(collected: bool) -> None:
    assert not collected
    raise KeyError


def test_an_error_within_leaves_the_collector_as_it_was() -> None:
    before = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(KeyError), young_collected(), uncollected():
        fail(gc.isenabled())

    assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()) == before
