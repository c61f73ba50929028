"""Population-based training: the worst copy the best, and a population that is stopped goes on to the same result."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shaped import Loop, NonFiniteError, ShapedError, StateError
from shaped.workflow import Integer, Population, Real
from tests.workflow.loops import TRAINING, VALIDATION, fresh_loop, values

SPACE = {"lr": Real(1e-5, 0.5, log=True)}


def members(**options: Any) -> Population:
    slots = iter(range(20, 30))

    def make(chosen: dict[str, Any], seed: int) -> Loop:
        return fresh_loop(chosen["lr"], slot=next(slots))

    def train(loop: Loop, generation: int) -> float:
        loop.run_epochs(TRAINING, 1)
        return loop.evaluate(VALIDATION)["validation/loss"]

    return Population(SPACE, make, train, size=4, fraction=0.25, seed=2, **options)


def test_the_worst_take_over_the_best_and_vary_its_values() -> None:
    population = members(generations=1)
    found = population.run()
    ranked = sorted(found.history[0], key=lambda m: m.score)
    best, worst = ranked[0], ranked[-1]

    assert [m.parent for m in found.history[0] if m.number != worst.number] == [
        m.number for m in found.history[0] if m.number != worst.number
    ]
    assert worst.parent == best.number == found.best.number
    assert values(population.loops[worst.number]) == values(population.loops[best.number])
    changed = population.members[worst.number].values["lr"] / best.values["lr"]
    assert changed == pytest.approx(0.8) or changed == pytest.approx(1.2)
    assert population.loops[worst.number].lr == population.members[worst.number].values["lr"]
    assert str(found).splitlines()[0].endswith("1 of 4 copied another")


def test_a_population_that_was_stopped_goes_on_to_the_same_result(tmp_path: Path) -> None:
    whole = members(generations=4)
    expected = whole.run()
    weights = [values(loop) for loop in whole.loops]
    members(generations=2, folder=tmp_path).run()
    (tmp_path / ".tmp-population-generation-0003-0123abcd").mkdir()  # of a process that was killed while it wrote
    again = members(generations=4, folder=tmp_path)
    found = again.run()

    assert [entry.name for entry in sorted(tmp_path.iterdir())] == [".lock", "generation-0003", "generation-0004"]
    assert found.history == expected.history
    assert [values(loop) for loop in again.loops] == weights
    assert (found.best, found.loop.step) == (expected.best, 16)
    with pytest.raises(StateError, match="space was"):
        Population({"lr": Real(1e-5, 1.0)}, lambda v, s: fresh_loop(slot=20), lambda loop, g: 0.0, size=4, seed=2,
                   folder=tmp_path)  # fmt: skip


def simple(scores: list[list[float]], **options: Any) -> Population:
    applied: list[Mapping[str, Any]] = []
    return Population(
        {"units": Integer(1, 100)},
        lambda chosen, seed: fresh_loop(slot=20 + chosen["units"] % 2),
        lambda loop, generation: scores[generation].pop(0),
        apply=lambda loop, chosen: applied.append(chosen),
        **options,
    )


def test_generations_are_ordered_as_numbers_and_one_population_follows_another_in_its_folder(tmp_path: Path) -> None:
    first, second = (simple([[1.0, 2.0], [3.0, 4.0]], size=2, generations=2, folder=tmp_path) for _ in range(2))
    history = first.run().history
    second.run()
    (tmp_path / "generation-0002").rename(tmp_path / "generation-10000")
    (tmp_path / "generation-0001").rename(tmp_path / "generation-9999")

    assert second.history == list(history)
    assert simple([], size=2, generations=2, folder=tmp_path).history == list(history)


def test_members_that_fail_copy_another_and_a_population_that_fails_is_an_error() -> None:
    nan = math.nan
    found = simple([[nan, 2.0, nan, 1.0]], size=4, generations=1).run()

    assert [m.parent for m in found.history[0]] == [3, 1, 3, 3]
    assert found.best.number == 3
    with pytest.raises(NonFiniteError, match="no member has a finite score in generation 1"):
        simple([[nan, nan]], size=2, generations=1).run()
    with pytest.raises(ShapedError, match="train returned None, a NoneType; a score is a number"):
        simple([[None, 1.0]], size=2, generations=1).run()  # type: ignore[list-item]
    with pytest.raises(StateError, match="a population's state is a mapping, not a NoneType"):
        simple([], size=2).load_state_dict(None)  # type: ignore[arg-type]


def test_max_turns_the_order_round() -> None:
    found = simple([[1.0, 3.0, 2.0]], size=3, generations=1, direction="max").run()

    assert (found.best.number, [m.parent for m in found.history[0]]) == (1, [1, 1, 2])


def test_arguments_out_of_range_are_refused() -> None:
    for wrong, said in (
        ({"size": 1}, "size is 1"),
        ({"fraction": 0.6}, "fraction is 0.6; it is a share above 0 and at most a half"),
        ({"perturb": ()}, "perturb is"),
        ({"perturb": "ab"}, "perturb is 'ab'; it is a sequence of numbers"),
        ({"direction": "up"}, "direction is 'up'"),
    ):
        with pytest.raises(ValueError, match=said):
            simple([], **wrong)
    with pytest.raises(ValueError, match="the optimizer has no `units`: give `apply`"):
        Population({"units": Integer(1, 9)}, lambda v, s: fresh_loop(slot=20), lambda loop, g: 0.0)


def test_members_that_share_a_loop_are_refused() -> None:
    loop = fresh_loop(slot=20)
    with pytest.raises(ValueError, match="make gave two members one loop"):
        Population({"lr": Real(0.1, 0.2)}, lambda v, s: loop, lambda loop, g: 0.0, size=2)


def test_a_population_with_other_rules_is_another_population() -> None:
    state = simple([[1.0, 2.0]], size=2, generations=1).state_dict()
    with pytest.raises(StateError, match="rules were"):
        simple([], size=2, generations=1, direction="max").load_state_dict(state)
    with pytest.raises(StateError, match="1 members with 2 loops"):
        simple([], size=2, generations=1).load_state_dict({**state, "members": state["members"][:1]})
