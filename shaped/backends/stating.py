"""What a statement says of ranks that share out a batch: how parameters lie, and what each rank gives in a step."""

import math
from typing import Any, Protocol

import torch

from shaped.backends.gathering import BACKWARD, FORWARD, GATHER, SCATTER, Turn
from shaped.ranks.exchange import VECTOR


class Shared(Protocol):
    """What `Together` knows of how a program is run."""

    sharded: bool
    layouts: dict[int, Any]
    units: list[list[int]]
    exchange: Any

    @property
    def summing(self) -> Any: ...
    def flat(self, index: int) -> Any: ...

    @property
    def buckets(self) -> list[list[int]]: ...
    @property
    def order(self) -> list[Turn]: ...
    def shape(self, index: int) -> tuple[int, ...]: ...
    def widths(self, index: int) -> tuple[torch.dtype, torch.dtype]: ...


def stated(shared: Shared, batch: str, axis: str, parameters: int) -> list[tuple[str, str]]:
    """Lines of a statement.

    Args:
        shared: How the program is run.
        batch: "batch over dp = 2".
        axis: Of the mesh.
        parameters: How many there are, with those that are not trained.
    """
    return [("ranks", batch), *(_parted(shared, axis, parameters) if shared.sharded else _whole(shared, axis))]


def _whole(shared: Shared, axis: str) -> list[tuple[str, str]]:
    held = sum(math.prod(shared.shape(i)) * shared.widths(i)[0].itemsize for i in shared.layouts)
    given = sum(math.prod(shared.shape(i)) * shared.widths(i)[1].itemsize for i in shared.layouts)
    sums = _counted(len(shared.buckets), "sum")
    return [
        ("a rank has", f"all parameters whole, {held:,} bytes of those that are trained"),
        ("forward", f"nothing over {axis}"),
        ("backward", f"nothing over {axis}"),
        ("update", f"gradients, {given:,} bytes in {sums} over {axis}, and one agreement of {VECTOR}"),
    ]


def _parted(shared: Shared, axis: str, parameters: int) -> list[tuple[str, str]]:
    held = sum(layout.length * shared.widths(i)[0].itemsize for i, layout in shared.layouts.items())
    others = parameters - len(shared.layouts)
    rest = f"; {others} others whole" if others else ""
    return [
        ("a rank has", f"1/{shared.exchange.size} of each parameter that is trained, {held:,} bytes{rest}"),
        ("forward", f"{turns_told(shared, FORWARD)} over {axis}"),
        ("backward", f"{turns_told(shared, BACKWARD)} over {axis}"),
        ("update", f"one agreement of {VECTOR} bytes"),
    ]


def turns_told(shared: Shared, phase: str) -> str:
    """`3 gathers of 9,600 bytes in all; 3 reduce-scatters of 19,200`: what each rank gives."""
    turns: list[Turn] = [turn for turn in shared.order if (turn.phase or BACKWARD) == phase]
    said = []
    for kind, noun in ((GATHER, "gather"), (SCATTER, "reduce-scatter")):
        mine = [turn for turn in turns if turn.kind == kind]
        parts = 1 if kind == GATHER else shared.summing.size  # a sum is of whole gradients
        given = sum(
            parts * shared.flat(i).length * shared.widths(i)[kind != GATHER].itemsize
            for turn in mine
            for i in shared.units[turn.unit]
        )
        if mine:
            said.append(f"{_counted(len(mine), noun)} of {given:,} bytes{' in all' if len(mine) > 1 else ''}")
    return "; ".join(said) or "nothing"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
