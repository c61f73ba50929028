"""A loop's state: packed as plain data, checked against a loop, and taken over all or nothing."""

import copy
from collections.abc import Mapping
from typing import Any

from shaped.checkpoint.generators import generator_states, set_generator_states
from shaped.errors import StateError


def saved_state(loop: Any, *, check: bool = True) -> dict[str, Any]:
    """All that a resumed run needs: trainer, position in the data, generators, schedule, hooks; a copy.

    In a hook, that includes which hooks of this step are still to run: those after it, and it itself where it failed.

    Raises:
        StateError: With `check`, the data keeps random state that cannot be saved.
    """
    if check and loop._feed is not None:
        loop._feed.check_savable()
    position = loop._feed.state_dict() if loop._feed is not None else loop._position
    return {
        "trainer": loop.trainer.state_dict(),
        "specs": {str(s): t.state_dict() for s, t in loop.specs.items() if s is not None},
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
        "kept": {name: copy.deepcopy(thing.state_dict()) for name, thing in loop._keepers.items()},
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

    Raises:
        StateError: It does not fit; nothing has changed.
    """
    wrong = _malformed(state, saved_state(loop, check=False)) or _differences(loop, state)
    if wrong:
        raise StateError("the state does not fit this loop.\n  " + "\n  ".join(wrong))
    before = saved_state(loop, check=False)
    try:
        _assign(loop, copy.deepcopy(dict(state)))  # a scheduler may change what it is given
    except BaseException as error:
        _assign(loop, before)
        if isinstance(error, StateError) or not isinstance(error, Exception):
            raise
        raise StateError(f"the state does not fit this loop: {type(error).__name__}: {error}") from error
    loop.resumed = True


def _malformed(state: Any, mine: Mapping[str, Any]) -> list[str]:
    """What keeps something from being a loop's state at all; `mine` is one."""
    if not isinstance(state, Mapping):
        return [f"it is a {type(state).__name__}"]
    wrong = [f"{key}: missing" for key in mine if key not in state]
    for key, value in state.items():
        like = mine.get(key)
        if isinstance(like, dict) and not isinstance(value, Mapping) and key != "position":
            wrong.append(f"{key}: a {type(value).__name__}")
        elif type(like) is int and (type(value) is not int or value < 0):
            wrong.append(f"{key}: {value!r} is no whole number of at least 0")
        elif type(like) is float and not isinstance(value, float):
            wrong.append(f"{key}: {value!r} is no number")
    position = state.get("position")
    counts = [position.get(k) for k in ("epoch", "index")] if isinstance(position, Mapping) else [0]
    if not (position is None or isinstance(position, Mapping)) or any(type(n) is not int or n < 0 for n in counts):
        wrong.append("position: it is no place in data")
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


def _assign(loop: Any, state: Mapping[str, Any]) -> None:
    loop.trainer.load_state_dict(state["trainer"])
    for spec, trainer in loop.specs.items():
        if spec is not None:
            trainer.load_state_dict(state["specs"][str(spec)])
    for name, thing in loop._keepers.items():
        thing.load_state_dict(state["kept"][name])
    set_generator_states(state["generators"])
    loop.average.load_state_dict(state["average"])
    loop.step, loop.start_step, loop.start_epoch = state["step"], state["start_step"], state["start_epoch"]
    loop._skips, loop.loss, loop.latest = state["skips"], state["loss"], dict(state["latest"])
    if loop._feed is not None:
        loop._feed.close()
    loop._feed, loop._position = None, state["position"]
    loop._schedules = dict(state["hooks"])
    kind, left = state.get("left", ("", ()))
    loop._known.update(loop.latest)
    loop._left = (kind, tuple((place, name) for place, name in left)) if left else None
    loop._at = None
