"""A loop's state: packed as plain data, checked against a loop, and taken over all or nothing."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from shaped.checkpoint.generators import generator_states, set_generator_states
from shaped.errors import StateError


def saved_state(loop: Any, *, parts: bool = False) -> dict[str, Any]:
    """All that a resumed run needs: trainer, position in the data, generators, schedule, hooks; a copy.

    In a hook, that includes which hooks of this step are still to run: those after it, and it itself where it failed.

    Raises:
        StateError: The data keeps random state that cannot be saved.
    """
    if loop._feed is not None:
        loop._feed.check_savable()
    how = {"parts": True} if parts and loop.peers.size > 1 else {}
    position = loop._feed.state_dict() if loop._feed is not None else loop._position
    return {
        "trainer": loop.trainer.state_dict(**how),
        "specs": {str(s): t.state_dict(**how) for s, t in loop.specs.items() if s is not None},
        "step": loop.step,
        "start_step": loop.start_step,
        "start_epoch": loop.start_epoch,
        "skips": loop._skips,
        "loss": loop.loss,
        "latest": dict(loop.latest),
        "average": loop.average.state_dict(),
        "position": position,
        "generators": generator_states(),
        "hooks": {h.name: s for hooks in loop.hooks.values() for h in hooks if (s := h.schedule.state())}
        | {name: dict(state) for name, state in loop._schedules.items()},
        "kept": _kept_states(loop),
        **({"left": left} if (left := _left(loop)) is not None else {}),
    }


def _left(loop: Any) -> list[Any] | None:
    """The kind, and place and name of each hook of this moment that is due and has not run."""
    if loop._at is None:
        return [loop._left[0], [list(hook) for hook in loop._left[1]]] if loop._left is not None else None
    kind, at = loop._at
    places = [at] if loop._broken else []
    later = enumerate(loop.hooks[kind][at + 1 :], at + 1)
    places += [place for place, hook in later if kind == "epoch" or hook.schedule.due(loop)]
    return [kind, [[place, loop.hooks[kind][place].name] for place in places]] if places else None


def load_state(loop: Any, state: Mapping[str, Any]) -> None:
    """Have a loop take over a state, all or nothing.

    The trainers' part is compared and not copied; only what is kept along, which says itself whether a state fits it,
    is copied so that it can be put back.

    Raises:
        StateError: It does not fit; nothing has changed.
    """
    wrong = _malformed(state) or _differences(loop, state)
    if wrong:
        raise StateError("the state does not fit this loop.\n  " + "\n  ".join(wrong))
    taken = [loop.trainer._shared.ready(state["trainer"])]
    taken += [t._shared.ready(state["specs"][str(spec)]) for spec, t in loop.specs.items() if spec is not None]
    before = {"kept": _kept_states(loop), "generators": generator_states(), "average": loop.average.state_dict()}
    try:
        _load_along(loop, state)
    except BaseException as error:
        _load_along(loop, before)
        if isinstance(error, StateError) or not isinstance(error, Exception):
            raise
        raise StateError(f"the state does not fit this loop: {type(error).__name__}: {error}") from error
    del before
    try:
        _assign(loop, state, taken)
    except BaseException:  # an interrupt: what is begun is brought to its end
        _assign(loop, state, taken)
        raise


_KINDS: Mapping[str, Any] = {
    **{"trainer": Mapping, "specs": Mapping},
    **dict.fromkeys(("step", "start_step", "start_epoch", "skips"), int),
    **{"loss": float, "latest": Mapping, "average": Mapping, "position": object, "generators": Mapping},
    **{"hooks": Mapping, "kept": Mapping},
}


def _malformed(state: Any) -> list[str]:
    """What keeps something from being a loop's state at all."""
    if not isinstance(state, Mapping):
        return [f"it is a {type(state).__name__}"]
    wrong = [f"{key}: missing" for key in _KINDS if key not in state]
    for key, value in state.items():
        kind = _KINDS.get(key, object)
        if kind is Mapping and not isinstance(value, Mapping):
            wrong.append(f"{key}: a {type(value).__name__}")
        elif kind is int and (type(value) is not int or value < 0):
            wrong.append(f"{key}: {value!r} is no whole number of at least 0")
        elif kind is float and not isinstance(value, float):
            wrong.append(f"{key}: {value!r} is no number")
    position = state.get("position")
    counts = [position.get(k) for k in ("epoch", "index")] if isinstance(position, Mapping) else [0]
    if not (position is None or isinstance(position, Mapping)) or any(type(n) is not int or n < 0 for n in counts):
        wrong.append("position: it is no place in data")
    hooks = state.get("hooks")
    if isinstance(hooks, Mapping):
        wrong += [f"hooks: the state of `{n}` is no mapping" for n, h in hooks.items() if not isinstance(h, Mapping)]
    if "left" in state and not _is_left(state["left"]):
        wrong.append("left: it names no hooks")
    return wrong


def _is_left(left: Any) -> bool:
    try:
        kind, hooks = left
        return kind in ("step", "epoch") and all(type(place) is int and type(name) is str for place, name in hooks)
    except (TypeError, ValueError):
        return False


def _differences(loop: Any, state: Mapping[str, Any]) -> list[str]:
    keepers = loop._keepers
    wrong = [f"`{name}` is kept there and not here" for name in state["kept"] if name not in keepers]
    wrong += [f"`{name}` is kept here and not there" for name in keepers if name not in state["kept"]]
    mine = [str(spec) for spec in loop.specs if spec is not None]
    wrong += [f"the spec {spec} is here and not there" for spec in mine if spec not in state["specs"]]
    return wrong + [f"the spec {spec} is there and not here" for spec in state["specs"] if spec not in mine]


def _kept_states(loop: Any) -> dict[str, Any]:
    return {name: copy.deepcopy(thing.state_dict()) for name, thing in loop._keepers.items()}


def _load_along(loop: Any, state: Mapping[str, Any]) -> None:
    """Load what is kept along, and the generators."""
    for name, thing in loop._keepers.items():
        mine, found = thing.state_dict(), copy.deepcopy(state["kept"][name])  # a scheduler may change what it is given
        thing.load_state_dict(_alike(found, mine))
    began = (state.get("position") or {}).get("generators")
    if began is not None:  # it is wanted where the data is opened, which is too late to refuse it
        set_generator_states(began)
    set_generator_states(state["generators"])
    loop.average.load_state_dict(state["average"])


def _alike(found: Any, mine: Any) -> Any:
    """A loaded state with the kinds of mappings that a thing's own has, of which a file has but one."""
    if isinstance(found, dict):
        own = mine if isinstance(mine, Mapping) else {}
        made = {key: _alike(value, own.get(key)) for key, value in found.items()}
        kind: Any = next((kind for kind in (Counter, OrderedDict) if type(own) is kind), dict)
        return kind(made)
    if isinstance(found, list) and isinstance(mine, list):
        return [_alike(value, mine[i] if i < len(mine) else None) for i, value in enumerate(found)]
    return found


def _assign(loop: Any, state: Mapping[str, Any], taken: list[Callable[[], None]]) -> None:
    """Take over what is known to fit."""
    for take in taken:
        take()
    loop.step, loop.start_step, loop.start_epoch = state["step"], state["start_step"], state["start_epoch"]
    loop._skips, loop.loss, loop.latest = state["skips"], state["loss"], dict(state["latest"])
    if loop._feed is not None:
        loop._feed.close()
    loop._feed, loop._position = None, copy.deepcopy(state["position"])
    loop._schedules = {name: dict(found) for name, found in state["hooks"].items()}
    kind, left = state.get("left", ("", ()))
    loop._known.update(loop.latest)
    loop._left = (kind, tuple((place, name) for place, name in left)) if left else None
    loop._at = None
    loop.resumed = True
