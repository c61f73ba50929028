"""Batches that are mappings: by name, in any order, with what no input has left out where the user says so."""

import signal
from typing import Any

import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shaped import Loop, ParamList, ScalarTrainer
from shaped.data import prefetch
from shaped.data.feed import DataError
from shaped.loop import Interrupted
from shaped.metrics import evaluate
from shaped.optim import SGD, schedules


class Line(ParamList):
    w: Float[Tensor, "d k"]


def loss(
    p: Line, x: Float[Tensor, "b d"], y: Int[Tensor, " b"], beta: float = 0.5, keep: Bool[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    each = torch.nn.functional.cross_entropy(x @ p.w, y, reduction="none")
    return (each if keep is None else each * keep).mean()


def trainer() -> ScalarTrainer:
    params = Line.init(d=3, k=2, seed=0)
    return ScalarTrainer(loss, params, optimizer=SGD(params, lr=0.1))


def rows(**more: Any) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    made = [
        {"y": torch.randint(2, (4,), generator=generator), "x": torch.randn(4, 3, generator=generator)}
        for _ in range(6)
    ]
    return [{**one, **more} for one in made]


def test_a_batch_that_is_a_mapping_goes_by_name():
    by_name, by_position = trainer(), trainer()
    Loop(by_name).run_epochs(rows(), 2)
    Loop(by_position).run_epochs([(b["x"], b["y"]) for b in rows()], 2)

    assert torch.equal(by_name.params.w, by_position.params.w)


@pytest.mark.parametrize("ignore", [True, ("text", "id")])
def test_entries_that_no_input_has_are_left_out_where_the_user_says_so(ignore):
    named, plain = trainer(), trainer()
    loop = Loop(named, ignore=ignore, metrics={"rows": lambda p, x, y, *rest: float(len(x))})
    loop.run_epochs(prefetch(rows(text=["a"] * 4, id=7)), 1)
    Loop(plain).run_epochs(rows(), 1)

    assert torch.equal(named.params.w, plain.params.w)
    assert loop.evaluate(rows(text="a", id=object()))["validation/rows"] == 4


def test_entries_that_no_input_has_are_an_error_that_names_them():
    message = (
        "`loss` takes `x`, `y` and `keep`, and of a batch `text` is none of them (ignore=['text'] leaves that out, "
        "ignore=True all such)"
    )
    with pytest.raises(DataError) as caught:
        Loop(trainer()).run_epochs(rows(text="a"), 1)

    assert str(caught.value) == message
    with pytest.raises(DataError, match="`text` is none of them"):
        evaluate(trainer(), rows(text="a"))


def test_an_input_that_a_mapping_lacks_is_named_with_what_is_like_it():
    with pytest.raises(DataError, match="of a batch `y` is missing; `yy` is none of them; did you mean `y`"):
        Loop(trainer()).run_epochs([{"x": torch.zeros(2, 3), "yy": torch.zeros(2)}], 1)


def test_a_mapping_may_leave_out_what_is_optional():
    kept = {**rows()[0], "keep": torch.tensor([True, False, True, True])}
    loop, plain = Loop(named := trainer()), trainer()
    loop.run_steps([rows()[0], kept], 2)
    for batch in (rows()[0], kept):
        plain.train_step(**batch)

    assert torch.equal(named.params.w, plain.params.w)


def test_a_run_over_mappings_is_resumed_bit_for_bit():
    whole, first, second = (Loop(trainer(), ignore=True) for _ in range(3))
    whole.run_steps(data := rows(text="a"), 6)
    first.run_steps(data, 4)
    second.load_state_dict(first.state_dict())
    second.run_to_step(data, 6)

    assert torch.equal(second.trainer.params.w, whole.trainer.params.w)


def test_a_step_of_ones_own_is_given_the_inputs_in_order():
    mine = trainer()
    Loop(mine, lambda *batch: mine.adamw_step(*batch, lr=0.1)).run_epochs(rows(), 1)

    assert mine.steps == 6


def test_a_schedule_may_be_a_function_of_the_step():
    made, seen = trainer(), []
    loop = Loop(made, schedule=schedules.cosine(0.1, total=6))
    loop.on_step(lambda loop: seen.append(loop.lr))
    loop.run_epochs(rows(), 1)

    assert seen == pytest.approx([schedules.cosine(0.1, total=6)(step) for step in range(1, 7)])
    bare = ScalarTrainer(loss, Line.init(d=3, k=2))
    with pytest.raises(ValueError, match="the trainer has no optimizer whose lr it could set"):
        Loop(bare, lambda *batch: bare.step(*batch, lr=0.1), schedule=lambda step: 0.1)
    with pytest.raises(ValueError, match="schedule is a float"):
        Loop(made, schedule=0.1)


def test_a_signal_says_what_became_of_the_run(capsys):
    stopped = Interrupted(signal.SIGINT, 7, ["step 7 is saved in runs/a; `resume` goes on from there"])

    assert str(stopped) == "stopped by SIGINT after step 7: step 7 is saved in runs/a; `resume` goes on from there"
    assert capsys.readouterr().err == f"shaped: {stopped}\n"
    assert "nothing is saved, since no Checkpoints are attached" in str(Interrupted(signal.SIGTERM, 3))
