"""State dicts of parameters that lie in parts over ranks: made whole, as pieces, and cut again.

A state dict of a trainer on one process, of one on many, and of a rank's pieces have the same keys. They differ in what
stands for a tensor of a parameter's shape: a parameter, a moment of it, a gradient that waits.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from shaped.backends import Program
from shaped.backends.together import Together
from shaped.errors import StateError
from shaped.ranks.layout import Placement
from shaped.ranks.pieces import Piece

Change = Callable[[str, str, Any], Any]  # of a parameter's name, what it is to it, and the value


def changed(state: Mapping[str, Any], names: list[list[str]], change: Change) -> dict[str, Any]:
    """A state dict with other values for everything that a parameter has.

    Args:
        state: What a trainer packs.
        names: Of parameters, by group, for an optimizer of which the state has no names.
        change: Gives the value instead. It is not asked about step counts.
    """
    made = dict(state)
    made["params"] = {name: change(name, "parameter", value) for name, value in state["params"].items()}
    made["optimizers"] = {path: _of_optimizer(saved, names, change) for path, saved in state["optimizers"].items()}
    if waiting := state.get("waiting"):
        means = {name: change(name, "gradient that waits", value) for name, value in waiting["means"].items()}
        made["waiting"] = {**waiting, "means": means}
    return made


def _of_optimizer(saved: Any, names: list[list[str]], change: Change) -> Any:
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
        return saved  # refused where it is compared
    packed = saved["state"]
    by: dict[Any, str] = {}
    for group, own in zip(packed.get("param_groups", ()), saved.get("names", names), strict=False):
        by |= dict(zip(group["params"], own, strict=False))
    state = {
        key: {
            what: change(by[key], what, value) if what != "step" and key in by else value
            for what, value in entry.items()
        }
        for key, entry in packed.get("state", {}).items()
    }
    return {**saved, "state": {**packed, "state": state}}


def made_whole(program: Program) -> Change:
    """Gathers each part; all ranks call it in the same order."""
    return _of_parts(program, lambda together, i, part: together.whole(i, part))


def as_pieces(program: Program) -> Change:
    """Marks each part as a piece; without the others."""

    def piece(together: Together, i: int, part: Tensor) -> Piece:
        layout = together.layouts[i]
        start, stop = layout.bounds(together.exchange.rank)
        return Piece(part[: stop - start], layout.shape, start)

    return _of_parts(program, piece)


def _of_parts(program: Program, made: Callable[[Together, int, Tensor], Any]) -> Change:
    """Makes something of each part, and leaves what is whole."""
    together, index = program.together, _index(program)

    def change(name: str, what: str, value: Any) -> Any:
        i = index.get(name, -1)
        if together is None or not together.is_part(i, value):
            return value
        return made(together, i, value)

    return change


def cut_again(program: Program) -> Change:
    """Cuts what is whole, and takes this rank's pieces.

    Raises (what is returned):
        StateError: A piece is of another tensor or another rank's.
    """
    together, index = program.together, _index(program)
    rank = 0 if together is None else together.place

    def change(name: str, what: str, value: Any) -> Any:
        layout = None
        if together is not None and together.parted:
            layout = together.layouts.get(index.get(name, -1))
        if isinstance(value, Piece):
            layout = layout if isinstance(layout, Placement) else None
            return _of_piece(value, layout, rank, f"{name}, its {what}")
        if layout is None or not isinstance(value, Tensor) or tuple(value.shape) != layout.shape:
            return value  # of another shape: refused where it is compared
        return layout.cut(value, rank)

    return change


def _of_piece(piece: Piece, layout: Placement | None, rank: int, name: str) -> Tensor:
    if layout is None and piece.tensor.numel() == math.prod(piece.shape):
        return piece.tensor.view(piece.shape)
    start, stop = (0, math.prod(piece.shape)) if layout is None else layout.bounds(rank)
    if layout is None or (piece.start, piece.stop) != (start, stop) or tuple(piece.shape) != layout.shape:
        there = f"elements {piece.start} to {piece.stop} of {list(piece.shape)}"
        raise StateError(
            f"{name}: {there} there, and this rank takes {start} to {stop} of "
            f"{list(piece.shape if layout is None else layout.shape)}"
        )
    return layout.padded(piece.tensor)


def _index(program: Program) -> dict[str, int]:
    return {name: i for i, name in enumerate(program.params.names)}
