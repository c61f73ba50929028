"""Data sets of Hugging Face's `datasets` as they are: batches by name; a run that is resumed goes on in their order."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Generator
from torch.utils.data import DataLoader

from shaped import Loop, ScalarTrainer
from shaped.data import DataError
from shaped.optim import AdamW
from tests.models import mlp, mlp_loss

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")


def table() -> Any:
    datasets.disable_progress_bars()
    rows = torch.arange(16.0)[:, None].expand(16, 6) / 16
    columns = {"x": rows.tolist(), "y": (torch.arange(16) % 3).tolist(), "id": [f"row {i}" for i in range(16)]}
    return datasets.Dataset.from_dict(columns).with_format("torch")


def stream() -> Any:
    return table().to_iterable_dataset().shuffle(seed=3, buffer_size=8)


KINDS: dict[str, Callable[[], Any]] = {
    "table in a loader": lambda: DataLoader(table(), 4, shuffle=True, generator=Generator().manual_seed(7)),
    "table in batches": lambda: table().shuffle(seed=3).batch(4),
    "stream in batches": lambda: stream().batch(4),
    "stream in a loader": lambda: DataLoader(stream(), 4),
}


@cache
def trainer() -> ScalarTrainer:
    params = mlp()
    return ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.05))


def job(seen: list[Any]) -> Loop:
    loop = Loop(trainer(), signals=False, ignore=["id"])

    def note(loop: Loop) -> None:
        assert loop.batch is not None
        seen.append(tuple(loop.batch.inputs[0][:, 0].tolist()))

    loop.on_step(note)
    return loop


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_sees_the_rows_of_the_uninterrupted_one(kind: str) -> None:
    rows: list[Any] = []
    job(rows).run_to_step(KINDS[kind](), 9)
    for stop in (3, 4, 6):
        seen: list[Any] = []
        first, second = job(seen), job(seen)
        first.run_to_step(KINDS[kind](), stop)
        second.load_state_dict(first.state_dict())
        second.run_to_step(KINDS[kind](), 9)
        assert seen == rows

    assert sorted(sum(rows[:4], ())) == [i / 16 for i in range(16)]
    assert (rows[:4] == rows[4:8]) == (kind == "table in batches")  # the others are shuffled anew in each epoch


def test_a_column_that_no_input_has_is_named() -> None:
    with pytest.raises(DataError, match=r"of a batch `id` is none of them \(ignore=\['id'\] leaves that out"):
        Loop(trainer(), signals=False).run_epochs(KINDS["table in a loader"](), 1)
