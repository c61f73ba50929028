"""Taking over a loop's state: what it costs, and that a part which refuses it leaves all as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shaped import ScalarTrainer, StateError
from shaped.loop import Loop
from shaped.metrics import MovingAverage
from shaped.optim import AdamW
from tests.loop.small_loops import LIST, make, params_of, same
from tests.models import MLP, mlp_loss


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
