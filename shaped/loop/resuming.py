"""A loop's state: packed as plain data, checked against a loop, and taken over all or nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shaped.checkpoint.generators import generator_states, set_generator_states
from shaped.errors import StateError

if TYPE_CHECKING:
    from shaped.loop.loop import Loop


def saved_state(loop: "Loop") -> dict[str, Any]:
    """All that a resumed run needs: trainer, position in the data, generators, schedule, hooks; a copy."""
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
        "hooks": {h.name: s for hooks in loop.hooks.values() for h in hooks if (s := h.schedule.state())},
        "kept": {name: thing.state_dict() for name, thing in loop._keepers.items()},
    }


def load_state(loop: "Loop", state: Mapping[str, Any]) -> None:
    """Have a loop take over a state, all or nothing.

    Raises:
        StateError: It does not fit; nothing has changed.
    """
    wrong = _malformed(state, saved_state(loop)) or _differences(loop, state)
    if wrong:
        raise StateError("the state does not fit this loop.\n  " + "\n  ".join(wrong))
    before = saved_state(loop)
    try:
        _assign(loop, state)
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
    return wrong


def _differences(loop: "Loop", state: Mapping[str, Any]) -> list[str]:
    keepers = loop._keepers
    wrong = [f"`{name}` is kept there and not here" for name in state["kept"] if name not in keepers]
    wrong += [f"`{name}` is kept here and not there" for name in keepers if name not in state["kept"]]
    mine = [str(spec) for spec in loop.specs if spec is not None]
    wrong += [f"the spec {spec} is here and not there" for spec in mine if spec not in state["specs"]]
    return wrong + [f"the spec {spec} is there and not here" for spec in state["specs"] if spec not in mine]


def _assign(loop: "Loop", state: Mapping[str, Any]) -> None:
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
