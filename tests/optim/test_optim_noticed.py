"""State and groups that tell of their changes: whatever is written is seen, and copies are torch's own."""

import copy
import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaped.optim import SGD, AdamW, FusedOptimizer
from shaped.optim.noticed import NoticedEntry, NoticedState

Change = Callable[[FusedOptimizer, Tensor], object]


def zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p).detach()


def stepped(kind: Any = AdamW, count: int = 2, **given: Any) -> tuple[FusedOptimizer, tuple[Tensor, ...]]:
    """An optimizer after three steps, the last two of which have found all as it was."""
    params = tuple(torch.full((n,), 2.0).requires_grad_() for n in range(1, 1 + count))
    optimizer = kind(params, lr=0.1, **given)
    for _ in range(3):
        optimizer.update([torch.ones_like(p) for p in params], params)
    return optimizer, params


WRITES: dict[str, Change] = {
    "an item": lambda o, p: o.state[p].__setitem__("exp_avg", zeros(p)),
    "update": lambda o, p: o.state[p].update(exp_avg=zeros(p)),
    "or": lambda o, p: o.state[p].__ior__({"exp_avg": zeros(p)}),
    "popped and put": lambda o, p: (o.state[p].pop("exp_avg"), o.state[p].setdefault("exp_avg", zeros(p))),
    "the last popped": lambda o, p: (o.state[p].popitem(), o.state[p].__setitem__("exp_avg_sq", zeros(p))),
    "cleared": lambda o, p: o.state[p].clear(),
    "an entry": lambda o, p: o.state.__setitem__(p, {**o.state[p], "exp_avg": zeros(p)}),
    "a plain entry, written later": lambda o, p: _in_turn(o, p, lambda e: e.__setitem__("exp_avg", zeros(p))),
    "an entry less": lambda o, p: o.state.pop(p),
    "an entry deleted": lambda o, p: o.state.__delitem__(p),
    "none left": lambda o, p: o.state.clear(),
    "another state": lambda o, p: setattr(o, "state", defaultdict(dict)),
    "a copied state, written later": lambda o, p: _with_state(o, p, copy.copy(o.state)),
    "a copy of all, written later": lambda o, p: _with_state(o, p, copy.deepcopy(dict(o.state))),
    "a read that makes an entry": lambda o, p: (o.state.pop(p), o.state[p]),
}


def _in_turn(o: FusedOptimizer, p: Tensor, change: Callable[[Any], object]) -> None:
    entry = dict(o.state[p])
    o.state[p] = entry
    o.read(tuple(o.param_groups[0]["params"]))
    change(entry)


def _with_state(o: FusedOptimizer, p: Tensor, state: Any) -> None:
    o.state = state
    params = o.param_groups[0]["params"]
    for q in params:
        if q not in state:
            state[q] = next(entry for r, entry in state.items() if r.shape == q.shape)
    for r in [r for r in state if not any(r is q for q in params)]:
        del state[r]
    o.read(tuple(params))
    state[p]["exp_avg"] = zeros(p)


@pytest.mark.parametrize("change", WRITES.values(), ids=WRITES)
def test_whatever_is_written_into_the_state_is_what_the_next_step_takes(change: Change) -> None:
    ends, renewed = [], []
    for forgets in (False, True):
        optimizer, params = stepped()
        before = optimizer.read(params)
        change(optimizer, params[0])
        if forgets:  # all that was noticed: the state is sorted anew
            optimizer._forget_plans()
        optimizer.update([torch.ones_like(p) for p in params], params)
        ends.append([*map(repr, params), repr(optimizer.state)])
        renewed.append(optimizer.read(params).plan is not before.plan)

    assert ends[0] == ends[1]
    assert renewed == [True, True]


VALUES: dict[str, tuple[Change, bool]] = {
    "a number": (lambda o, _: o.param_groups[0].update(lr=0.2), True),
    "a negative zero": (lambda o, _: o.param_groups[0].update(weight_decay=-0.0), True),
    "a switch": (lambda o, _: o.param_groups[0].update(maximize=True), True),
    "a switch that was absent": (lambda o, _: o.param_groups[0].update(cautious=True), True),
    "numbers in a list": (lambda o, _: o.param_groups[0].update(betas=[0.5, 0.6]), True),
    "an option": (lambda o, _: setattr(o, "options", copy.copy(o.options)), False),
    "a key that says nothing": (lambda o, _: o.param_groups[0].update(initial_lr=0.3), False),
    "a group of the same": (lambda o, _: o.param_groups.__setitem__(0, dict(o.param_groups[0])), False),
}


@pytest.mark.parametrize(("change", "differs"), VALUES.values(), ids=VALUES)
def test_whatever_changes_in_a_group_is_what_the_next_step_takes(change: Change, differs: bool) -> None:
    optimizer, params = stepped(weight_decay=0.0)
    before = optimizer.read(params)
    assert before is optimizer.read(params)
    change(optimizer, params[0])
    now = optimizer.read(params)

    assert now is not before
    assert repr(now.readings) == repr(optimizer.read(params).readings)
    assert (repr(now.readings) != repr(before.readings)) is differs


def test_what_may_change_without_being_replaced_is_read_at_each_step() -> None:
    for name in ("betas", "lr"):
        betas, lr = [0.9, 0.99], torch.tensor(0.1)
        given: dict[str, Any] = {name: betas if name == "betas" else lr}
        optimizer, params = stepped()
        optimizer.param_groups[0].update(given)
        known = [reading.numbers for reading in optimizer.read(params).readings]
        betas[0], _ = 0.5, lr.fill_(0.2)

        assert [reading.numbers for reading in optimizer.read(params).readings] != known


def test_a_rule_that_follows_from_a_number_follows_it_through_a_schedule() -> None:
    optimizer, params = stepped(SGD)
    for momentum, lr in ((0.0, 0.2), (0.9, 0.2), (0.9, 0.3), (0.0, 0.4), (0.5, 0.4)):
        optimizer.param_groups[0].update(momentum=momentum, lr=lr)
        read = optimizer.read(params)
        known = [(reading.numbers[:2], reading.rule.slots) for reading in read.readings]

        assert known == [((lr, momentum), ("momentum_buffer",) if momentum else ())]
        optimizer.update([torch.ones_like(p) for p in params], params, readings=read)


def test_a_learning_rate_that_a_schedule_takes_out_of_range_is_refused() -> None:
    optimizer, params = stepped()
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.read(params)
    for wrong in (-1.0, float("nan"), float("inf")):
        optimizer.param_groups[0]["lr"] = wrong
        for _ in range(2):
            with pytest.raises(ValueError, match="lr must be a finite number >= 0"):
                optimizer.read(params)
    optimizer.param_groups[0]["lr"] = 0.2

    assert optimizer.read(params).readings[0].numbers[0] == 0.2


def test_an_attribute_that_a_rule_of_ones_own_reads_is_followed() -> None:
    class Own(AdamW):
        scale = 1.0

        def reference(self, update, p, g, slots, scalars, step):  # type: ignore[no-untyped-def]
            return p - self.scale * g, slots

    optimizer, params = stepped(Own)
    before = [p.clone() for p in params]
    optimizer.scale = 3.0  # type: ignore[attr-defined]
    optimizer.update([torch.ones_like(p) for p in params], params)

    assert all(torch.equal(p, old - 3.0) for p, old in zip(params, before, strict=True))


def test_parameters_are_known_again_by_identity_and_not_by_value() -> None:
    optimizer, params = stepped()
    before = optimizer.read(params)
    optimizer.param_groups[0]["params"][0] = params[0].detach().clone().requires_grad_()  # of one element, and equal
    with pytest.raises(ValueError, match="not this optimizer's"):
        optimizer.read(params)

    assert before.plan.updates[0].params[0] is params[0]


def test_copies_of_the_state_are_torchs_own() -> None:
    optimizer, params = stepped()
    entry = optimizer.state[params[0]]
    assert type(optimizer.state) is NoticedState
    assert type(entry) is NoticedEntry

    assert type(copy.copy(optimizer.state)) is type(copy.deepcopy(optimizer.state)) is defaultdict
    assert type(copy.copy(entry)) is type(entry.copy()) is type(copy.deepcopy(entry)) is dict
    assert type(pickle.loads(pickle.dumps(entry))) is OrderedDict
    assert copy.copy(optimizer.state)[params[0]] is entry
    assert type(optimizer.state_dict()["state"][0]) is dict
    file = io.BytesIO()
    torch.save([entry, SGD([torch.ones(1)], lr=0.1).state_dict()], file)
    file.seek(0)
    assert torch.load(file, weights_only=True)[0].keys() == entry.keys()


def test_a_copied_optimizer_steps_its_own_state() -> None:
    optimizer, params = stepped()
    other = copy.deepcopy(optimizer)
    mine = tuple(other.param_groups[0]["params"])
    for o, ps in ((optimizer, params), (other, mine)):
        o.update([torch.ones_like(p) for p in ps], ps)

    assert float(optimizer.state[params[0]]["step"]) == float(other.state[mine[0]]["step"]) == 4.0
    assert all(torch.equal(p, q) for p, q in zip(params, mine, strict=True))
