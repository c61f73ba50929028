"""What of a DCP folder is what of a trainer: by names, with each tensor cut as it lies on this rank."""

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from shaped.errors import StateError, listing
from shaped.export.dcp_files import DcpFolder, Key, flat
from shaped.optim import FusedOptimizer
from shaped.optim.foreign import own
from shaped.ranks.pieces import Box
from shaped.shapes import dtype_name
from shaped.state import FORMAT
from shaped.trainer import ScalarTrainer

COUNTS = ("steps", "skipped")


def nested(place: str) -> tuple[str, ...]:
    """Where something stands in a nested state: `app.model`."""
    return tuple(place.split(".")) if place else ()


class SavedNames:
    """The names of a trainer's tensors in a state dict.

    Attributes:
        places: Each name with the position of its tensor; of a module all names of what is tied, and none of a buffer
            that is not saved.
        entry: The parameter list's name for each of them.
    """

    def __init__(self, trainer: ScalarTrainer) -> None:
        program = trainer._program
        position = {id(tensor): i for i, tensor in enumerate(program.tensors)}
        saved: Mapping[str, Any] = dict(zip(program.params.names, program.tensors, strict=True))
        if program.modules:
            saved = program.modules[0].state_dict(keep_vars=True)
        self.places = [(name, position[id(t)]) for name, t in saved.items() if id(t) in position]
        self.entry = {name: program.params.names[i] for name, i in self.places}


def ready(trainer: ScalarTrainer, there: DcpFolder, model: Key, optimizer: Key | None) -> Callable[[], None]:
    """What takes a folder over, once it is known to fit; until it is called nothing has changed.

    Raises:
        StateError: It does not fit; all that differs is listed.
    """
    shared, program = trainer._shared, trainer._program
    found = _Matched(trainer, there, model, optimizer)
    params = found.parameters()
    if optimizer is None:
        tensors = {program.params.names.index(name): value for name, value in params.items()}

        def take() -> None:
            with torch.no_grad():
                for i, value in tensors.items():
                    program.tensors[i].copy_(value)

        program.places.check()
        return take
    packed = found.optimizer()
    counts = {what: int(there.tensor(f"shaped.{what}")) for what in COUNTS if f"shaped.{what}" in there.tensors}
    steps = [int(entry["step"]) for entry in packed["state"]["state"].values() if "step" in entry]
    now = {name: tensor.detach() for name, tensor in shared._saved().items()}  # buffers that are not saved stay
    state = {"format": FORMAT, "signature": {}, "optimizers": {"train": packed}, "steps": max(steps, default=0)}
    state |= {"skipped": 0, **counts, "params": {**now, **params}}
    if shared.scaler is not None:
        state["loss_scale"] = shared.scaler.state_dict()
    try:
        return shared.ready(state)
    except StateError as error:
        raise StateError(f"{there.path}: {error}") from None


class _Matched:
    """A folder held against a trainer."""

    def __init__(self, trainer: ScalarTrainer, there: DcpFolder, model: Key, optimizer: Key | None) -> None:
        self._program, self._shared, self._there = trainer._program, trainer._shared, there
        self._model, self._optim = model, optimizer or ()
        self._alone = optimizer is None
        self._saved = SavedNames(trainer)
        self._index = {name: i for i, name in enumerate(self._program.params.names)}

    def _hold(self, wrong: list[str]) -> None:
        if wrong:
            raise StateError(f"{self._there.path} does not fit this trainer.\n  " + "\n  ".join(wrong))

    def _whole_shape(self, i: int) -> tuple[int, ...]:
        together = self._program.together
        return tuple(self._program.tensors[i].shape) if together is None else together.whole_shape(i)

    def _cut(self, i: int, whole: Tensor) -> Tensor:
        """What this rank keeps of something of a parameter's shape."""
        together = self._program.together
        if together is None or not together.parted or i not in together.layouts:
            return whole
        cut: Tensor = together.layouts[i].cut(whole, together.place)
        return cut

    def _wanted(self, i: int) -> list[Box] | None:
        """Where this rank needs values of something of a parameter's shape; None where it needs all."""
        together = self._program.together
        if together is None or not together.parted or i not in together.layouts or i in self._shared.left_out:
            return None
        layout = together.layouts[i]
        shape = layout.local if hasattr(layout, "local") else (layout.length,)
        return list(layout.boxes(torch.empty(shape, device="meta"), together.place))

    # -- parameters ------------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """This rank's of every parameter and buffer that is saved, by the parameter list's names."""
        keys, wrong, read = self._keys(), list[str](), dict[str, Tensor]()
        for i, found in keys.items():
            name, wanted = self._program.params.names[i], self._wanted(i)
            mine = whole = self._there.tensor(found[0], wanted)
            if i not in self._shared.left_out:
                read[name] = mine = self._cut(i, whole)
            each = ((key, self._there.tensor(key, wanted)) for key in found[1:])
            if others := [key for key, t in each if not _same(t if mine is whole else self._cut(i, t), mine)]:
                wrong.append(f"{found[0]} and {listing(others)} have other values, and are one parameter here")
            if i not in self._shared.left_out:
                continue
            if not _same(self._program.tensors[i].detach().cpu(), whole):
                wrong.append(f"{found[0]}: it is frozen and left out here; its values here are others")
        self._hold(wrong)
        return read

    def _keys(self) -> dict[int, list[str]]:
        """The folder's names of each tensor, which has several where it is tied."""
        there, keys, wrong = self._there.tensors, dict[int, list[str]](), list[str]()
        for name, i in self._saved.places:
            keys.setdefault(i, []).append(flat((*self._model, name)))
        found = {i: [key for key in names if key in there] for i, names in keys.items()}
        if not any(found.values()):
            self._hold(
                [f"none of {flat((*self._model, self._saved.places[0][0]))} and its like is there{self._elsewhere()}"]
            )
        wrong += [f"{keys[i][0]}: missing there" for i, names in found.items() if not names]
        for i, names in found.items():
            here = self._whole_shape(i), self._program.tensors[i].dtype
            wrong += [f"{key}: {_said(*there[key])} there, {_said(*here)} here" for key in names if there[key] != here]
        mine = {key for names in found.values() for key in names}
        prefix = flat((*self._model, ""))
        others = tuple(flat((*at, "")) for at in (self._optim, ("shaped",)) if at)
        if prefix:  # what stands beside parameters at the top may be anything
            named = [key for key in there if key.startswith(prefix) and not key.startswith(others)]
            wrong += [f"{key}: unknown here" for key in named if key not in mine]
        self._hold(wrong)
        return found

    def _elsewhere(self) -> str:
        """Where the first parameter's name does stand."""
        last = self._saved.places[0][0]
        ends = [key for key in self._there.tensors if f".{key}".endswith(f".{last}") and "state." not in key]
        tops = list(dict.fromkeys(key.partition(".")[0] for key in (*self._there.tensors, *self._there.values)))
        if ends:
            return f"; {ends[0]} is: model={ends[0].removesuffix(last).rstrip('.')!r} may be meant"
        return f"; it has {listing(tops)}: say where with model="

    # -- the optimizer ---------------------------------------------------------------------------------------------

    def optimizer(self) -> dict[str, Any]:
        """The state of the optimizer of `train_step`, as a trainer packs it."""
        mine = self._shared.optimizer
        if mine is None:
            self._hold(["this trainer has no optimizer for train_step: give it one, or load with optimizer=None"])
        assert mine is not None
        groups = self._groups(mine)
        names = [group["params"] for group in groups]
        numbers = {name: number for number, name in enumerate(name for group in names for name in group)}
        entries = self._entries(numbers)
        packed = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
        return {"class": type(own(mine)).__name__, "state": {"state": entries, "param_groups": packed}, "names": names}

    @cached_property
    def _by_number(self) -> list[str] | None:
        """Our names of the parameters that the folder gives numbers; None where it gives names."""
        mine = self._shared.optimizer
        assert mine is not None
        first = self._there.value(flat((*self._optim, "param_groups", 0, "params")))
        if not first or not isinstance(first[0], int):
            return None
        warnings.warn(
            f"the optimizer's state in {self._there.path} goes by numbers, and is taken by position", stacklevel=5
        )
        return [name for group in self._shared.names_of(mine) for name in group]

    def _name(self, there: Any) -> str:
        """Our name of a parameter."""
        if str(there).isdecimal() and self._by_number is not None:
            return self._by_number[int(there)] if int(there) < len(self._by_number) else f"parameter {there}"
        return self._saved.entry.get(there, str(there))

    def _below(self, what: str) -> dict[str, str]:
        """The folder's keys of the optimizer's state or groups, with what follows in them."""
        prefix = flat((*self._optim, what, ""))
        names = (*self._there.tensors, *self._there.values)
        return {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}

    def _value(self, key: str) -> Any:
        return self._there.tensor(key) if key in self._there.tensors else self._there.value(key)

    def _groups(self, mine: FusedOptimizer) -> list[dict[str, Any]]:
        below = self._below("param_groups")
        if not below:
            at = flat((*self._optim, "param_groups"))
            self._hold([f"{at}: missing there; say where its optimizer's state is, or load with optimizer=None"])
        if not any(rest == "0.params" for rest in below.values()):
            return self._of_each(mine, below)
        found: dict[int, dict[str, Any]] = {}
        for key, rest in below.items():
            number, _, what = rest.partition(".")
            found.setdefault(int(number), {})[what] = self._value(key)
        known = {name for group in self._shared.names_of(mine) for name in group}
        frozen = {self._program.params.names[i] for i in self._program.frozen}
        for group in found.values():
            names = map(self._name, group.get("params", ()))
            group["params"] = [name for name in names if name in known or name not in frozen]
        return [found[number] for number in sorted(found)]

    def _of_each(self, mine: FusedOptimizer, below: Mapping[str, str]) -> list[dict[str, Any]]:
        """Our groups, where the folder has numbers for each parameter (flatten_optimizer_state_dict)."""
        each: dict[str, dict[str, Any]] = {}
        for key, rest in below.items():
            name, _, what = rest.rpartition(".")
            each.setdefault(self._name(name), {})[what] = self._value(key)
        groups, wrong = [], []
        for g, names in enumerate(self._shared.names_of(mine)):
            there = [name for name in names if name in each]
            wrong += [
                f"{flat((*self._optim, 'param_groups', name))}: missing there" for name in names if name not in each
            ]
            numbers = each[there[0]] if there else {}
            for what, value in numbers.items():
                if other := next((name for name in there if each[name].get(what) != value), None):
                    wrong.append(
                        f"{what} is {value} for {there[0]} and {each[other].get(what)} for {other} there, and both are "
                        f"in param_groups[{g}] here"
                    )
            groups.append({**numbers, "params": names})
        self._hold(wrong)
        return groups

    def _entries(self, numbers: Mapping[str, int]) -> dict[int, dict[str, Any]]:
        """The state of each parameter by its number in the groups."""
        keys, wrong = dict[tuple[str, str], str](), list[str]()
        for key, rest in self._below("state").items():
            there, _, what = rest.rpartition(".")
            name = self._name(there)
            if name not in numbers or name not in self._index:
                wrong.append(f"{key}: belongs to no parameter of its groups")
            else:
                keys[name, what] = key
                shape = self._whole_shape(self._index[name])
                if key in self._there.tensors and self._there.tensors[key][0] not in (shape, (), (1,)):
                    wrong.append(f"{key}: {list(self._there.tensors[key][0])} there, {list(shape)} here")
        self._hold(wrong)
        entries: dict[int, dict[str, Any]] = {}
        for (name, what), key in keys.items():
            i = self._index[name]
            like = key in self._there.tensors and self._there.tensors[key][0] == self._whole_shape(i)
            value = self._there.tensor(key, self._wanted(i)) if like and what != "step" else self._value(key)
            if what != "step" and isinstance(value, Tensor) and tuple(value.shape) == self._whole_shape(i):
                value = self._cut(i, value)
            entries.setdefault(numbers[name], {})[what] = value
        return entries


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _said(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{dtype_name(dtype)} {list(shape)}"
