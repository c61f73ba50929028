"""A loop on several ranks, which are threads here: the run of one process, and stops, errors and clocks of all."""

import signal
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from shaped import Loop
from shaped.data import Batches, DataError, Local
from shaped.errors import RankError
from shaped.loop import JsonLines, TrainMetrics, read_log
from shaped.metrics import Scored
from shaped.ranks.peers import ALONE, Peers
from tests.ranks.small import batches, examples, loop_of
from tests.ranks.threads import good, on_ranks


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_run_on_ranks_is_that_of_one_process_whatever_their_number(ranks: int) -> None:
    """Batches of 4, and a last one of 2: with five ranks some have no row at all."""

    def work(peers: Peers) -> tuple[Tensor, float, int]:
        loop = loop_of(peers)
        loop.run_epochs(batches(), 3)
        return loop.trainer.params.w.clone(), loop.loss, loop.step

    alone = work(ALONE)
    for w, loss, step in good(on_ranks(ranks, work)):
        torch.testing.assert_close(w, alone[0], rtol=1e-12, atol=0)  # sums in another order

        assert (step, loss) == (alone[2], pytest.approx(alone[1], rel=1e-10))


def test_a_distributed_sampler_gives_each_rank_its_own_rows() -> None:
    data = TensorDataset(*examples(24))

    def work(peers: Peers) -> Tensor:
        sampler: Any = DistributedSampler(data, peers.size, peers.rank, shuffle=False)
        loop = loop_of(peers)
        loop.run_epochs(DataLoader(data, batch_size=2, sampler=sampler), 2)
        return loop.trainer.params.w.clone()

    alone = loop_of(ALONE)
    alone.run_epochs(DataLoader(data, batch_size=4), 2)
    for w in good(on_ranks(2, work)):
        torch.testing.assert_close(w, alone.trainer.params.w.detach(), rtol=1e-12, atol=0)


def test_a_sampler_for_another_number_of_ranks_is_refused() -> None:
    data = TensorDataset(*examples(24))
    found = on_ranks(
        2, lambda p: loop_of(p).run_epochs(DataLoader(data, 2, sampler=DistributedSampler(data, 4, p.rank)), 1)
    )

    assert [type(error) for error in found] == [DataError] * 2
    assert "is for rank 1 of 4, and this is rank 1 of 2" in str(found[1])


def test_batches_that_differ_where_they_should_be_the_same_are_an_error_on_all() -> None:
    def work(peers: Peers) -> None:
        generator = torch.Generator().manual_seed(peers.rank)
        loader = DataLoader(TensorDataset(*examples()), batch_size=4, shuffle=True, generator=generator)
        loop_of(peers).run_epochs(loader, 1)

    found = on_ranks(2, work)

    assert [type(error) for error in found] == [DataError] * 2
    assert str(found[0]).startswith("batch 0 of epoch 0 is not the same on all ranks")


@pytest.mark.parametrize("memory", [True, False])
def test_later_batches_that_differ_are_an_error_on_all_too(memory: bool) -> None:
    def work(peers: Peers) -> None:
        x, y = examples()
        x[13:] += peers.rank  # the fourth batch, and those after it
        data = (
            Batches(x, y, batch_size=4, shuffle=False)
            if memory
            else [(x[i : i + 4], y[i : i + 4]) for i in range(0, 20, 4)]
        )
        loop_of(peers).run_epochs(data, 1)

    found = on_ranks(2, work)

    assert [type(error) for error in found] == [DataError] * 2
    where = "the batch of step 4" if memory else "batch 3 of epoch 0"
    assert all(str(error).startswith(f"{where} is not the same on all ranks, and a batch is") for error in found)


def test_the_same_rows_where_each_rank_should_have_its_own_are_an_error_on_all() -> None:
    found = on_ranks(2, lambda p: loop_of(p).run_epochs(Local(batches()), 1))

    assert [type(error) for error in found] == [DataError] * 2
    assert str(found[0]).startswith("ranks 0 and 1 were given the same rows in batch 0 of epoch 0")


def test_data_that_ends_early_on_one_rank_is_an_error_on_all() -> None:
    def work(peers: Peers) -> None:
        x, y = examples()
        own = [(x[i + peers.rank :: 11], y[i + peers.rank :: 11]) for i in range(0, 8 - 2 * peers.rank, 2)]
        loop_of(peers).run_epochs(Local(own), 1)

    found = on_ranks(2, work)

    assert [type(error) for error in found] == [DataError] * 2
    assert str(found[0]) == (
        "the data of rank 1 has ended before batch 3 of epoch 0, and that of others goes on: give each rank as many "
        "batches (drop_last=True), or one batch of all ranks"
    )


@pytest.mark.parametrize("where", ["hook", "data", "start", "end", "epoch"])
def test_what_one_rank_raises_ends_all_at_the_same_step(where: str) -> None:
    def work(peers: Peers) -> tuple[int, str]:
        loop = loop_of(peers)

        def fail(loop: Loop) -> None:
            if peers.rank == 1 and (where != "hook" or loop.step == 3):
                raise OSError("the disk is gone")

        def data(epoch: int) -> Any:
            for i, batch in enumerate(batches().iterate(epoch)):
                if where == "data" and peers.rank == 1 and i == 3:
                    raise OSError("the disk is gone")
                yield batch

        add = {"hook": loop.on_step, "start": loop.on_start, "end": loop.on_end, "epoch": loop.on_epoch}
        if where in add:
            add[where](fail)
        try:
            loop.run_epochs(data, 1)
        except OSError as error:
            return loop.step, str(error)
        return -1, ""

    found = good(on_ranks(3, work))

    steps = {"hook": 3, "data": 3, "start": 0, "end": 6, "epoch": 6}
    assert [step for step, _ in found] == [steps[where]] * 3
    other = "on rank 1: the disk is gone"
    assert [said.splitlines()[0] for _, said in found] == [other, "the disk is gone", other]


def test_stop_on_one_rank_stops_all_at_its_step() -> None:
    def work(peers: Peers) -> tuple[int, str]:
        loop = loop_of(peers)
        loop.on_step(lambda loop: loop.stop("enough") if peers.rank == 1 and loop.step == 4 else None)
        loop.run_epochs(batches(), 3)
        return loop.step, loop.stopped

    assert good(on_ranks(3, work)) == [(4, "rank 1 asked to stop"), (4, "enough"), (4, "rank 1 asked to stop")]


def test_a_signal_on_one_rank_stops_all_at_one_step_even_within_an_evaluation() -> None:
    def work(within: bool, peers: Peers) -> tuple[Any, int]:
        loop = loop_of(peers, signals=False)

        def heard(loop: Loop) -> None:
            if peers.rank == 1 and loop.step == 2:
                loop._watch.received = signal.SIGTERM
            if within:
                loop.evaluate(batches(11))

        loop.on_step(heard)
        try:
            loop.run_epochs(batches(), 3)
        except SystemExit as stop:
            return stop.code, loop.step
        return 0, loop.step

    for within in (False, True):
        assert good(on_ranks(3, partial(work, within))) == [(128 + signal.SIGTERM, 2)] * 3


def test_hooks_by_the_clock_run_where_rank_0_says_so() -> None:
    def work(peers: Peers) -> list[int]:
        loop, ran = loop_of(peers), []
        loop.periodic(1e-6 if peers.rank == 0 else 1e6, lambda loop: ran.append(loop.step))
        loop.run_epochs(batches(), 1)
        return ran

    assert good(on_ranks(2, work)) == [[1, 2, 3, 4, 5, 6]] * 2


def test_evaluation_is_over_all_ranks_and_the_same_on_each() -> None:
    class Seen:
        """A metric object that knows nothing of ranks."""

        def reset(self) -> None:
            self.values: list[Tensor] = []

        def update(self, prediction: Tensor, y: Tensor) -> None:
            self.values.append((prediction - y).abs())

        def compute(self) -> float:
            return float(torch.cat(self.values).median())

    def work(peers: Peers) -> dict[str, float]:
        metrics = {
            "worst": lambda p, x, y: (x @ p.w - y).abs().mean(),
            "median": Scored(Seen(), lambda p, x, y: (x @ p.w, y)),
        }
        return loop_of(peers, metrics=metrics).evaluate(batches(4, shuffle=False))

    alone = work(ALONE)
    for ranks in (2, 5):
        found = good(on_ranks(ranks, work))

        assert all(one == found[0] for one in found)
        assert found[0] == pytest.approx(alone, rel=1e-12)


def test_ranks_that_do_not_do_the_same_are_told_so() -> None:
    def work(peers: Peers) -> None:
        loop = loop_of(peers)
        loop.on_step(lambda loop: loop.evaluate(batches()) if peers.rank == 0 else None, name="validate")
        loop.run_epochs(batches(), 1)

    found = on_ranks(2, work)

    assert [type(error) for error in found] == [RankError] * 2
    assert "rank 0 at a batch of an evaluation, rank 1 at the end of step 1" in str(found[0])


def test_only_rank_0_writes_a_log_and_training_metrics_are_of_all(tmp_path: Any) -> None:
    def work(peers: Peers) -> float:
        loop = loop_of(peers)
        loop.attach(JsonLines(tmp_path / f"{peers.size}.jsonl", every=1))
        loop.attach(TrainMetrics({"first": lambda out, x, y: x[:, 0].mean()}))
        loop.run_epochs(batches(), 2)
        return loop.latest["train/first"]

    found = good(on_ranks(3, work))
    mean = float(examples()[0][:, 0].mean())

    assert found == pytest.approx([mean] * 3, rel=1e-12)
    assert [step for step, _ in read_log(tmp_path / "3.jsonl")["loss"]] == list(range(1, 13))
    assert len((tmp_path / "3.jsonl").read_text().splitlines()) == 12 + 2


def test_only_the_rank_that_leads_says_why_it_stopped(capfd: pytest.CaptureFixture[str]) -> None:
    def work(peers: Peers) -> None:
        loop = loop_of(peers, signals=False)
        loop.on_step(lambda loop: setattr(loop._watch, "received", signal.SIGTERM))
        loop.run_epochs(batches(), 1)

    assert [error.code for error in on_ranks(2, work)] == [143, 143]
    assert capfd.readouterr().err.count("stopped by SIGTERM") == 1
