"""Taking over a loop's state: what it costs, and that a part which refuses it leaves all as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.lr_scheduler import LinearLR, MultiStepLR, SequentialLR, StepLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shaped import ScalarTrainer, StateError
from shaped.checkpoint.codec import from_json, join, split, to_json
from shaped.loop import Loop, TrainMetrics
from shaped.metrics import MovingAverage
from shaped.optim import AdamW
from shaped.optim.schedules import ReduceOnPlateau
from tests.loop.small_loops import LIST, make, params_of, same
from tests.models import MLP, mlp, mlp_loss


class Allocated(TorchDispatchMode):
    """The most bytes that tensors made within held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Any, tuple[StorageWeakRef, int]] = {}
        # By weak references and not by addresses alone: memory that one keeps from being freed is given to no other.
        self._known: dict[Any, StorageWeakRef] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._known |= {s._cdata: StorageWeakRef(s) for s in _storages((args, kwargs)) if s._cdata not in self._made}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in self._known:
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for ref, size in self._made.values() if not ref.expired()))
        return result


def _storages(tree: Any) -> Iterator[Any]:
    return (leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def large(seed: int) -> Loop:
    params = MLP.init(pixels=6, hidden=20_000, classes=3, seed=seed)
    return Loop(ScalarTrainer(mlp_loss, params, optimizer=AdamW(params, lr=0.01)))


def test_loading_a_state_holds_no_second_copy_of_it() -> None:
    first, second = large(0), large(1)
    first.run_steps(LIST, 2)
    second.run_steps(LIST, 1)
    state = first.state_dict()
    params = sum(p.nbytes for p in second.trainer.params)
    with Allocated() as counted:
        held = [p.clone() for p in second.trainer.params]
    with Allocated() as allocated:
        second.load_state_dict(state)

    assert counted.most == params == sum(t.nbytes for t in held)
    # The new moments, two for each parameter, stand beside the old ones until they take their place.
    assert 2 * params <= allocated.most <= 2.2 * params
    assert same(first, second)


def scored(
    p: MLP, x: Float[Tensor, "batch pixels"], y: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    loss = mlp_loss(p, x, y)
    return loss, 2 * loss


class Refuses:
    """Something that is kept along and takes no state but its own."""

    def state_dict(self) -> dict[str, Any]:
        return {"of": id(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["of"] != id(self):
            raise KeyError("of")


def test_what_is_kept_along_and_refuses_a_state_leaves_all_as_it_was() -> None:
    first, second = make(), make(seed=1)
    for loop in (first, second):
        loop.keep("average of losses", MovingAverage())
        loop.keep("last", Refuses())
        loop.run_steps(LIST, 2)
    second._keepers["average of losses"].update(5.0)
    before, params = second.state_dict(), params_of(second)

    with pytest.raises(StateError, match="the state does not fit this loop: KeyError: 'of'"):
        second.load_state_dict(first.state_dict())
    after = second.state_dict()
    assert all(map(torch.equal, params, params_of(second)))
    assert after["kept"] == before["kept"]
    assert torch.equal(after["generators"]["torch"], before["generators"]["torch"])
    assert not second.resumed


def test_generators_of_the_place_in_the_data_that_are_none_are_refused() -> None:
    first, second = make(), make(seed=1)
    first.run_steps(LIST, 2)
    state = first.state_dict()
    state["position"]["generators"] = {"torch": torch.ones(2), "python": {}}
    before = torch.get_rng_state()
    with pytest.raises(StateError, match="the state does not fit this loop"):
        second.load_state_dict(state)

    assert torch.equal(torch.get_rng_state(), before)
    assert second.step == 0


def test_hooks_without_a_name_have_a_state_each() -> None:
    def made() -> tuple[Loop, list[str]]:
        loop, log = make(), []
        for n in (3, 5):
            loop.n_times(n, lambda loop, n=n: log.append(f"{n} at {loop.step}"))
        return loop, log

    whole, straight = made()
    whole.run_epochs(LIST, 5)
    loop, before = made()
    loop.on_step(lambda loop: loop.stop() if loop.step == 13 else None, name="stop")
    loop.run_epochs(LIST, 5)
    again, after = made()
    again.load_state_dict(loop.state_dict())
    again.run_epochs(LIST, 5)

    assert before + after == straight


def test_means_over_an_epoch_count_the_first_step_after_a_resume_though_some_were_skipped() -> None:
    def made() -> Loop:
        params = mlp()
        loop = Loop(ScalarTrainer(scored, params, optimizer=AdamW(params, lr=0.01), nonfinite="skip"))
        loop.attach(TrainMetrics({"loss": lambda out, x, y: out[1]}))
        return loop

    broken = (LIST[0][0] * float("nan"), LIST[0][1])
    data = [LIST[1], broken, *LIST[2:]]
    whole, loop, again = made(), made(), made()
    whole.run_epochs(data, 1)
    loop.run_steps(data, 3)
    again.load_state_dict(loop.state_dict())
    again.run_epochs(data, 1)

    assert again.latest == whole.latest
    assert whole.latest


def test_a_schedule_of_what_does_not_step_is_refused() -> None:
    params = mlp()
    optimizer = AdamW(params, lr=0.01)
    trainer = ScalarTrainer(mlp_loss, params, optimizer=optimizer)
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    said = "the schedule moves the lr of another SGD than the one that the trainer steps with"
    with pytest.raises(ValueError, match=said):
        Loop(trainer, schedule=StepLR(other, 1))
    with pytest.raises(ValueError, match=said):
        Loop(trainer).attach(ReduceOnPlateau(other))
    with pytest.raises(ValueError, match="schedule is a ReduceLROnPlateau, which follows a figure and not the steps"):
        Loop(trainer, schedule=ReduceOnPlateau(optimizer))


def test_what_is_kept_along_is_given_the_kinds_of_mappings_that_it_has() -> None:
    def made() -> Loop:
        params = mlp()
        optimizer = AdamW(params, lr=0.01)
        parts = [LinearLR(optimizer, 0.1, 1.0, 2), MultiStepLR(optimizer, [2, 3], 0.5)]
        return Loop(ScalarTrainer(mlp_loss, params, optimizer=optimizer), schedule=SequentialLR(optimizer, parts, [4]))

    whole, loop, again = made(), made(), made()
    whole.run_epochs(LIST, 2)
    loop.run_steps(LIST, 3)
    data, tensors = split(loop.state_dict())
    again.load_state_dict(join(from_json(to_json(data)), tensors))  # a file has one kind of mapping
    again.run_epochs(LIST, 2)

    assert again.step == whole.step
    assert again.lr == whole.lr
